"""Finished boxes and the area of interest: what lies outside becomes invalid, and what lies inside stays as it is."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from segpipe.geometry.windows import Window
from segpipe.network.device_arrays import DeviceArrays, DeviceStreams
from segpipe.pipeline.blend import FinishedBox
from segpipe.pipeline.within_scope import within_scope

BOX = Window((2, 3), (6, 8))


@dataclass
class Scope:
    mask: object

    def excluded(self, window):
        assert window == BOX
        return self.mask


def left(invalid, mask, scope=True):
    sums = np.random.default_rng(0).random((3, *BOX.shape), np.float32)
    info = SimpleNamespace(scope=Scope(mask) if scope else None)
    (found,) = within_scope([FinishedBox(info, BOX, sums, invalid, inferred=2, differ=sums[0] > 0.5)])
    assert (found.window, found.inferred) == (BOX, 2)
    assert found.sums is None or np.array_equal(found.sums, sums)
    return found


OUTSIDE = np.random.default_rng(1).random(BOX.shape) < 0.5
CLOUDS = np.random.default_rng(2).random(BOX.shape) < 0.5


@pytest.mark.parametrize(
    ("invalid", "mask", "wanted"),
    [(None, None, None), (CLOUDS, None, CLOUDS), (None, OUTSIDE, OUTSIDE), (CLOUDS, OUTSIDE, CLOUDS | OUTSIDE)],
)
def test_pixels_outside_are_invalid_beside_those_that_are_so_anyway(invalid, mask, wanted):
    np.testing.assert_equal(left(invalid, mask).invalid, wanted)


def test_a_box_outside_has_no_scores():
    found = left(CLOUDS, np.ones(BOX.shape, bool))
    assert (found.sums, found.invalid, found.differ) == (None, None, None)


def test_without_an_area_boxes_stay_as_they_are():
    np.testing.assert_equal(left(CLOUDS, None, scope=False).invalid, CLOUDS)


def test_tensors_of_a_device_become_invalid_alike():
    """As on a GPU, whose masks are tensors."""
    arrays = DeviceArrays(DeviceStreams("cpu"), lag=1)
    sums = torch.zeros((3, *BOX.shape))
    box = FinishedBox(SimpleNamespace(scope=Scope(OUTSIDE)), BOX, sums, torch.tensor(CLOUDS))
    (found,) = within_scope([box], arrays)
    assert found.invalid.dtype == torch.bool
    np.testing.assert_array_equal(found.invalid.numpy(), CLOUDS | OUTSIDE)

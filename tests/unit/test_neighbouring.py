"""Neighbouring slices as channels, against stacking by hand."""

from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import volumes
from numpy.typing import NDArray

from segpipe.contract import parse_contract
from segpipe.formats.neighbouring import Neighbouring
from segpipe.formats.nifti.source import NiftiSource
from segpipe.geometry.windows import Window
from segpipe.overrides import Overrides


def by_hand(volume: NDArray[Any], count: int) -> NDArray[Any]:
    """``(2 * count + 1, *volume)``, slice by slice."""
    planes, last = range(len(volume)), len(volume) - 1
    return np.stack([[volume[min(max(k + shift, 0), last)] for k in planes] for shift in range(-count, count + 1)])


@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize(
    "box", [((0, 0, 0), (7, 13, 11)), ((0, 2, 3), (1, 9, 8)), ((3, 0, 0), (4, 5, 6)), ((5, 1, 1), (7, 2, 3))]
)
def test_slices_before_and_after(tmp_path: Path, count: int, box: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    own = parse_contract(networks.contract(1, 3), "a test")
    source = NiftiSource(str(volumes.write(tmp_path / "a.nii", volumes.voxels())), own)
    stack = Neighbouring(source, count)
    window = Window(*box)
    pixels, invalid = stack.read(window)
    where = (slice(None), *(slice(a, b) for a, b in zip(*box, strict=True)))
    np.testing.assert_array_equal(pixels, by_hand(volumes.voxels().T, count)[where])
    assert invalid is None
    assert (stack.dtype, stack.memory((1, 8, 8)), stack.empty(window)) == (source.dtype, 0, False)
    source.close()


def test_a_pixel_without_a_neighbour_stands_for_it(tmp_path: Path) -> None:
    data = volumes.voxels(dtype="u1")
    own = parse_contract(networks.contract(1, 3), "a test")
    source = NiftiSource(str(volumes.write(tmp_path / "a.nii", data)), own, Overrides(nodata=255))
    pixels, invalid = Neighbouring(source, 1).read(Window((0, 0, 0), source.grid.shape))
    planes, lost = data.T, data.T == 255
    expected = by_hand(planes, 1)
    for channel, there in enumerate(by_hand(lost, 1)):
        expected[channel][there] = planes[there]
    np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(invalid, lost)
    source.close()

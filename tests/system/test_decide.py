"""Boxes of a row are gathered: every pixel once, in its place, never over the end of a row."""

import weakref
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import contract, pixelwise
from scenes import Silent

from segpipe.contract import Contract
from segpipe.errors import ModelError
from segpipe.geometry.weighting import Weights
from segpipe.geometry.windows import Cover, Tiling
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import prepare
from segpipe.pipeline import decide, infer
from segpipe.pipeline.blend import FinishedBox
from segpipe.pipeline.decide import Decided, gathered
from segpipe.settings import load_settings

INFO = cast("Any", SimpleNamespace())


def boxes_of(cover, labels, likely, inferred):
    for number, index in enumerate(cover):
        window = cover.finished(index)
        box = (slice(None), *(slice(a, b) for a, b in zip(window.start, window.stop, strict=True)))
        yield Decided(INFO, window, labels[box], None if likely is None else likely[box], int(inferred[number]))


@given(
    shape=st.lists(st.integers(1, 90), min_size=2, max_size=3),
    most=st.integers(1, 4000),
    bands=st.integers(1, 2),
    confidence=st.booleans(),
)
def test_every_pixel_once_and_rows_apart(shape, most, bands, confidence):
    cover = Cover(tuple(shape), Tiling((16,) * len(shape), (4,) * len(shape), (4,) * len(shape), "linear"))
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 255, (bands, *shape)).astype(np.uint8)
    likely = rng.integers(0, 255, (bands, *shape)).astype(np.uint8) if confidence else None
    inferred = rng.random(len(cover)) < 0.5
    found, sure, seen = (np.zeros((bands, *shape), np.uint8) for _ in range(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decide, "GATHERED", most)
        joined = list(gathered(boxes_of(cover, labels, likely, inferred)))
    for box in joined:
        where = (slice(None), *(slice(a, b) for a, b in zip(box.window.start, box.window.stop, strict=True)))
        found[where] = box.labels
        seen[where] += 1
        if box.confidence is not None:
            sure[where] = box.confidence
    assert (seen == 1).all()
    np.testing.assert_array_equal(found, labels)
    if likely is not None:
        np.testing.assert_array_equal(sure, likely)
    assert sum(box.inferred for box in joined) == inferred.sum()
    largest = max(cover.finished(index).size for index in cover)
    assert all(box.window.size <= max(most, largest) + largest for box in joined)
    if most == 1:
        assert len(joined) == len(cover)


def test_what_fails_fails_behind_what_was_gathered_before():
    """The error is the case's; what is held is not written."""
    cover = Cover((16, 60), Tiling((16, 16), (4, 4), (4, 4), "linear"))
    labels = np.zeros((1, 16, 60), np.uint8)

    def failing():
        yield from list(boxes_of(cover, labels, None, [1] * len(cover)))[:2]
        raise ModelError("scores must be finite")

    boxes = gathered(failing())
    with pytest.raises(ModelError, match="finite"):
        next(boxes)


def test_whoever_leaves_early_closes_what_is_before():
    closed = []
    cover = Cover((60, 60), Tiling((16, 16), (4, 4), (4, 4), "linear"))
    labels = np.zeros((1, 60, 60), np.uint8)

    def before():
        try:
            yield from boxes_of(cover, labels, None, [1] * len(cover))
        finally:
            closed.append(True)

    held = before()  # else it would be closed for want of a holder
    boxes = gathered(held)
    next(boxes)
    boxes.close()
    assert closed == [True]


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("device", ["cpu", "cpu-tensors"])
def test_a_case_whose_scores_are_not_finite_is_left_at_once(device, raster, tmp_path, monkeypatch):
    """Not read and inferred to its end before anybody looks at the first box."""
    pixels = np.ones((3, 500, 3000), np.float32)
    pixels[:, 20, 150] = 3e38
    path, windows = raster("a.tif", pixels), []
    model = pixelwise(tmp_path / "m.onnx", scale=10.0, tile=[64, 64], overlap=[16, 16])
    weighted = infer.weighted
    monkeypatch.setattr(infer, "weighted", lambda own, tile, arrays: windows.append(1) or weighted(own, tile, arrays))
    flags = {"input": (str(path),), "model": model, "output": tmp_path / "out", "executor": "serial", "device": device}
    summary = carry_out(prepare(load_settings(None, flags | {"batch": 2})), Silent())
    assert ["finite" in failure.error for failure in summary.failed] == [True], summary.failed
    assert len(windows) < 200  # of 693


def test_boxes_under_way_hold_no_scores():
    """On a device they would fill its memory until the labels have come."""
    cover = Cover((8, 8), Tiling((8, 8), (0, 0), (8, 8), "constant"))
    info = cast(Any, SimpleNamespace(cover=cover, weights=Weights.over(cover), abandoned=None))
    sums = np.ones((2, 8, 8), np.float32)
    alive = weakref.ref(sums)
    box = FinishedBox(info, cover.window((0, 0)), sums, None)
    begun = decide._begun(box, decide.Decision(Contract(**contract(1, 2)), "logits"), False)
    del box, sums
    assert alive() is None
    assert begun().labels.shape == (1, 8, 8)

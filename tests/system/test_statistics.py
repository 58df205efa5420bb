"""Statistics through boxes, parts and joins: a second one beside areas, held against the finished mask."""

import json
from typing import Any

import nibabel
import numpy as np
import pytest
import rasterio
import volumes
from networks import local, volumetric
from scenes import Silent

from segpipe.contract import Contract
from segpipe.geometry.grid import Grid
from segpipe.jobs import work
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import prepare
from segpipe.results import output
from segpipe.results.case_statistics import STATISTICS
from segpipe.results.statistics import Box, Row, State
from segpipe.settings import load_settings

SHAPE = 150, 210


class Extents:
    """Bounding box of each class, and the sum of the first channel in it: what zones and lesions will ask for."""

    def __init__(self, grid: Grid, contract: Contract) -> None:
        self._ids = [c.id for c in contract.mask_classes]
        axes = len(grid.shape)
        self._low = np.tile(grid.shape, (len(self._ids), 1))
        self._high = np.zeros((len(self._ids), axes), np.int64)
        self._sums = np.zeros(len(self._ids), np.int64)

    def add(self, box: Box) -> None:
        stored, _ = box.pixels()
        for k, value in enumerate(self._ids):
            where = box.labels[0] == value
            if where.any():
                found = np.argwhere(where) + box.window.start
                self._low[k] = np.minimum(self._low[k], found.min(axis=0))
                self._high[k] = np.maximum(self._high[k], found.max(axis=0) + 1)
                self._sums[k] += int(stored[0][where].sum(dtype=np.int64))

    @property
    def state(self) -> State:
        return {"low": self._low, "high": self._high, "sums": self._sums}

    def merge(self, state: State) -> None:
        self._low = np.minimum(self._low, state["low"])
        self._high = np.maximum(self._high, state["high"])
        self._sums = self._sums + state["sums"]

    def rows(self) -> list[Row]:
        each = zip(self._ids, self._low.tolist(), self._high.tolist(), self._sums.tolist(), strict=True)
        return [{"class_id": k, "low": low, "high": high, "sum": total} for k, low, high, total in each]


@pytest.fixture
def scene(tmp_path, raster):
    pixels = np.random.default_rng(0).integers(1, 256, (3, *SHAPE), dtype=np.uint8)
    pixels[:, :40, :60] = 0
    local(tmp_path / "m.onnx", 3, 4, tile=[64, 64], overlap=[16, 16], align=8)
    return raster("in/a.tif", pixels, nodata=0)


@pytest.fixture
def with_extents(monkeypatch):
    monkeypatch.setitem(STATISTICS, "extents", Extents)


@pytest.fixture
def opened(monkeypatch):
    """How often a case was opened for its pixels a second time, and closed."""
    seen = {"opened": 0, "closed": 0}
    open_case = output.open_case

    def opening(*arguments):
        source = open_case(*arguments)
        close = source.close

        def closing():
            seen["closed"] += 1
            close()

        source.close = closing
        seen["opened"] += 1
        return source

    monkeypatch.setattr(output, "open_case", opening)
    return seen


def once(scene, out, **flags):
    fixed = {"input": (str(scene),), "model": scene.parents[1] / "m.onnx", "output": out, "device": "cpu"}
    return carry_out(prepare(load_settings(None, fixed | {"executor": "serial"} | flags)), Silent())


def table(out, name="extents") -> list[dict[str, Any]]:
    return json.loads((out / "a.json").read_text())["statistics"][name]


def of_mask(scene, out) -> list[dict[str, Any]]:
    """Oracle: the same figures from the whole mask and the whole scene."""
    with rasterio.open(out / "a.tif") as mask, rasterio.open(scene) as source:
        labels, first = mask.read(1), source.read(1)
    return extents_of(labels, first, 4)


def extents_of(labels, first, classes) -> list[dict[str, Any]]:
    rows = []
    for k in range(classes):
        found = np.argwhere(labels == k)
        low = found.min(axis=0).tolist() if len(found) else [*labels.shape]
        high = (found.max(axis=0) + 1).tolist() if len(found) else [0] * labels.ndim
        rows.append({"class_id": k, "low": low, "high": high, "sum": int(first[labels == k].sum(dtype=np.int64))})
    return rows


@pytest.mark.parametrize("parts", [None, 1, 4, 6])
def test_a_second_statistic_goes_through_boxes_parts_and_joins(scene, tmp_path, with_extents, opened, parts):
    out = tmp_path / "out"
    summary = once(scene, out, parts=parts)
    assert summary.failed == []
    assert table(out) == of_mask(scene, out)
    assert opened["opened"] == opened["closed"] > 0
    assert not (out / ".parts").exists()


@pytest.mark.parametrize("parts", [None, 4])
def test_boxes_and_pixels_of_a_resampled_case_are_on_its_own_grid(scene, tmp_path, with_extents, parts):
    model = local(tmp_path / "coarse.onnx", 3, 4, tile=[32, 32], overlap=[16, 16], align=8, spacing=[20, 20])
    out = tmp_path / "out"
    assert once(scene, out, model=model, parts=parts, resample=True).failed == []
    assert table(out) == of_mask(scene, out)


def test_a_box_of_the_network_s_grid_without_a_pixel_of_the_own_one_is_not_counted(tmp_path, raster, with_extents):
    """Pixels of 10 m, and boxes of 8 of the network's, which are of 1 m: some lie between two centres."""
    scene = raster("in/a.tif", np.random.default_rng(1).integers(1, 256, (3, 12, 15), dtype=np.uint8))
    model = local(tmp_path / "fine.onnx", 3, 4, tile=[16, 16], overlap=[8, 8], align=8, spacing=[1, 1])
    assert once(scene, tmp_path / "out", model=model, resample=True).failed == []
    assert table(tmp_path / "out") == of_mask(scene, tmp_path / "out")


@pytest.mark.parametrize("parts", [None, 5])
def test_a_volume_goes_the_same_way(tmp_path, with_extents, opened, parts):
    """The model's axes are turned against the file's: boxes and pixels of a statistic are in the model's."""
    data = volumes.voxels((31, 23, 19), "u1")
    model = volumetric(tmp_path / "m.onnx", (8, 12, 10), scale=1 / 255, pixel="physical", orientation="RAS")
    volume = volumes.write(tmp_path / "a.nii.gz", data, np.diag([-2.0, 1.5, 1.0, 1.0]))
    out = tmp_path / "out"
    assert once(volume, out, model=model, parts=parts).failed == []
    turned = [
        nibabel.as_closest_canonical(nibabel.load(path)).get_fdata().astype(np.int64) for path in (out / "a.nii.gz", volume)
    ]
    assert table(out) == extents_of(*turned, 3)
    assert opened["opened"] == opened["closed"] > 0


def test_nothing_is_read_again_where_no_statistic_asks(scene, tmp_path, opened):
    assert once(scene, tmp_path / "out").failed == []
    assert opened == {"opened": 0, "closed": 0}


def test_pixels_of_a_box_are_read_once_for_all_statistics(scene, tmp_path, with_extents, monkeypatch):
    monkeypatch.setitem(STATISTICS, "again", Extents)
    reads = []

    class Counted(Extents):
        def add(self, box):
            first, second = box.pixels(), box.pixels()
            reads.append(first[0] is second[0])
            super().add(box)

    monkeypatch.setitem(STATISTICS, "counted", Counted)
    assert once(scene, tmp_path / "out").failed == []
    assert reads
    assert all(reads)
    assert table(tmp_path / "out", "again") == table(tmp_path / "out", "counted") == table(tmp_path / "out")


def test_parts_counted_without_a_statistic_are_made_again_with_it(scene, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def stopped(*_):
        raise work.SourceError("stopped before the join")

    with monkeypatch.context() as patch:
        patch.setattr(work, "join", stopped)
        assert len(once(scene, out, parts=4).failed) == 1
    assert list(out.glob(".parts/*/*.npz"))
    monkeypatch.setitem(STATISTICS, "extents", Extents)
    assert once(scene, out).failed == []
    assert table(out) == of_mask(scene, out)


def test_a_statistic_that_fails_leaves_nothing_open(scene, tmp_path, opened, monkeypatch):
    class Failing(Extents):
        def add(self, box):
            super().add(box)
            raise work.SourceError("no more")

    monkeypatch.setitem(STATISTICS, "extents", Failing)
    summary = once(scene, tmp_path / "out")
    assert "no more" in summary.failed[0].error
    assert opened["opened"] == opened["closed"] == 1
    assert not (tmp_path / "out" / "a.tif").exists()

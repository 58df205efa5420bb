"""Estimates of memory against fact: arrays that are really kept, NumPy's allocations, and what a process held in a trial."""

import tracemalloc
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from networks import Network, contract, local, volumetric

from segpipe.errors import SourceError
from segpipe.formats.case import Case
from segpipe.geometry.regridding import Regridding
from segpipe.geometry.voxel_grid import VoxelGrid
from segpipe.geometry.weighting import Weights
from segpipe.geometry.windows import Cover, Window
from segpipe.jobs.plan import PlannedCase, as_planned
from segpipe.network.read import read_spec
from segpipe.overrides import Overrides
from segpipe.pipeline import memory, model_check, opening
from segpipe.pipeline.blend import FinishedBox, Strip
from segpipe.pipeline.infer import load_model
from segpipe.pipeline.memory import (
    Load,
    device_bytes,
    least_bytes,
    lesion_bytes,
    longest_strip,
    network_bytes,
    strip_bytes,
    worker_bytes,
)
from segpipe.pipeline.model_check import try_out
from segpipe.pipeline.opening import open_checked
from segpipe.pipeline.read import Reading
from segpipe.pipeline.regrid import regrid
from segpipe.pipeline.run import segmented
from segpipe.process.machine import forget_most_resident, most_resident, resident
from segpipe.results.lesions.rule import LesionRule
from segpipe.results.lesions.statistic import Lesions
from segpipe.results.statistics import Box
from segpipe.settings import load_settings
from segpipe.tune.places import BoxSource


def spec_of(model, **settings):
    return read_spec(load_settings(None, {"input": ("-",), "model": model, "device": "cpu", **settings}))


def test_the_strip_of_a_volume_is_what_blending_keeps(tmp_path):
    spec = spec_of(volumetric(tmp_path / "m.onnx", (32, 32, 24), 5))
    cover = Cover((70, 90, 50), spec.tiling_of((70, 90, 50)))
    strip = Strip(cover)
    strip.add((0, 0, 0), np.zeros((5, 32, 32, 24), np.float32))
    assert strip_bytes(cover, spec) == sum(kept.nbytes for kept in strip._kept)


def volumes(path, ndim, classes, tile, **changes):
    """A network of one 1 x 1 convolution, so that memory is that of tiles."""
    keys = {"layout": "NCDHW"} if ndim == 3 else {}
    values = contract(1, classes, **keys, tile=[tile] * ndim, overlap=[tile // 4] * ndim, **changes)
    net = Network(1, ndim=ndim).conv(1, classes, 1)
    return net.save(path, values, classes=classes, shape=("n", *"dhw"[-ndim:]))


CASES = {
    "volume": (3, 20, 24, (40, 120, 130)),
    "slices of a volume": (2, 20, 64, (6, 150, 2500)),
    "scene": (2, 20, 64, (700, 1500)),
    "low wide scene": (2, 20, 64, (100, 4000)),
}


@pytest.fixture
def peak_of(tmp_path, monkeypatch):
    """NumPy's allocations at their peak while a case is labelled, of all threads, and what is planned for it.

    ONNX Runtime's own are left out of both. The third number is of tiles that may wait or not, as threads come first.
    """

    def measure(spec, source, confidence):
        monkeypatch.setattr(opening, "open_case", lambda *_: source)
        monkeypatch.setattr(memory, "PROCESS", 0)
        case = Case("case", str(tmp_path / "case"))
        (tmp_path / "case").write_bytes(b"")
        overrides = Overrides(resample=True)
        _, info = open_checked(case, spec, overrides)
        load_of = replace(as_planned(case, info).load(spec), cached=0)
        model, reading = load_model(spec), Reading(spec, overrides, allow_unusual=True)
        planned = worker_bytes([load_of], spec, 2, confidence=confidence)
        tracemalloc.start()
        try:
            with closing(segmented([case], reading, model, 2, confidence=confidence)) as cases:
                for _, boxes in cases:
                    for _ in boxes:
                        pass
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        return peak, planned, planned - strip_bytes(info.cover, spec)

    return measure


@pytest.mark.parametrize("confidence", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_tiles_strip_and_decision_take_what_is_planned(case, confidence, peak_of, tmp_path):
    ndim, classes, tile, shape = CASES[case]
    pixels = np.random.default_rng(0).integers(1, 255, (1, *shape), dtype=np.uint8)
    spec = spec_of(volumes(tmp_path / "m.onnx", ndim, classes, tile))
    peak, planned, waiting = peak_of(spec, BoxSource(pixels, None), confidence)
    assert planned - waiting < peak < 1.1 * planned


@pytest.mark.parametrize("confidence", [False, True])
@pytest.mark.parametrize("spacing", [(4.0, 2.0, 1.0), (0.5, 0.5, 0.5)])
@pytest.mark.parametrize("lost", [0.0, 0.1])
def test_scores_on_a_finer_or_a_coarser_grid_take_what_is_planned(spacing, lost, confidence, peak_of, tmp_path):
    shape = tuple(int(n / s) for n, s in zip((40, 100, 110), spacing, strict=True))
    pixels = np.random.default_rng(0).integers(1, 255, (1, *shape), dtype=np.uint8)
    source = BoxSource(pixels, np.random.default_rng(1).random(shape) < lost if lost else None)
    source.grid = VoxelGrid(shape, tuple(map(tuple, np.diag([*spacing, 1.0])[:3])))
    model = volumes(tmp_path / "m.onnx", 3, 20, 24, spacing=[1.0, 1.0, 1.0])
    peak, planned, waiting = peak_of(spec_of(model), source, confidence)
    assert planned - waiting < peak < 1.1 * planned


def test_a_trial_measures_a_model_whatever_the_process_held_before(tmp_path):
    """A second trial has its own peak, above what the process holds then, and not above the first one's."""
    model = local(tmp_path / "m.onnx", classes=20, tile=[512, 512], overlap=[64, 64])
    first = try_out(spec_of(model))
    held = np.ones(2**27, np.uint8)
    del held
    second, small = try_out(spec_of(model)), try_out(spec_of(model, tile=(64, 64), overlap=(16, 16)))
    scores = 512 * 512 * 20 * 4e-6
    for spec in (first, second):
        assert scores < spec.network_mb < 12 * scores
    assert small.network_mb < 0.3 * scores


def test_a_batch_takes_its_scores_at_least(tmp_path, monkeypatch):
    """Even if libraries' pages, which are part of what a process holds, are taken away while it is tried."""
    monkeypatch.setattr(model_check, "most_resident", lambda: 0)
    spec = try_out(spec_of(local(tmp_path / "m.onnx", classes=5)))
    assert spec.network_mb == pytest.approx(64 * 64 * 5 * 4e-6)


def test_the_peak_of_a_process_can_be_forgotten():
    held = np.ones(2**27, np.uint8)
    high = resident()
    del held
    assert resident() < high - 2**26
    assert most_resident() >= high - 2**20
    forget_most_resident()
    assert most_resident() < high - 2**26


def test_calls_share_weights_and_nothing_else(tmp_path):
    spec = replace(spec_of(local(tmp_path / "m.onnx")), weights_mb=100.0, network_mb=10.0)
    assert network_bytes(spec, 4) == 140e6
    assert network_bytes(spec, 4, copies=3) == 420e6
    assert network_bytes(spec, 1, batches=2.5) == 125e6


def test_the_cache_is_that_of_the_cases_formats(tmp_path):
    spec = spec_of(local(tmp_path / "m.onnx"))
    rasters = {n: PlannedCase(Case("a", "a.tif"), (64, 64), 1, block_bytes=n).load(spec) for n in (0, 2**28)}
    assert {n: load_model.cached for n, load_model in rasters.items()} == {0: 128 * 2**20, 2**28: 288 * 2**20}
    none = replace(rasters[0], cached=0)
    planned = {len(loads): worker_bytes(loads, spec, 1, confidence=False) for loads in ([], [none], [none, rasters[0]])}
    assert planned[2] - planned[1] == 128 * 2**20
    assert planned[0] - planned[2] == -strip_bytes(none.cover, spec)


def test_a_case_is_cut_for_all_that_a_strip_keeps_and_refused_where_its_narrowest_part_is_too_large(tmp_path):
    spec = spec_of(volumetric(tmp_path / "m.onnx", (32, 32, 24), 30))
    assert longest_strip(spec, 120e6) == 500_000
    cover = Cover((5_000, 5_000, 5_000), spec.tiling_of((5_000,) * 3))
    least = least_bytes(cover, spec, 0)
    narrow = 5_000 // 64
    strip = cover.strip_size([narrow + 32, narrow + 32, narrow + 24]) * 30 * 4
    assert strip < least < strip + 20e6
    memory.refuse_large_case("a.nii", cover, spec, 0, least)
    with pytest.raises(SourceError, match=r"a\.nii: 5000 x 5000 x 5000 pixels in blocks of 1 MB need at least .* --memory"):
        memory.refuse_large_case("a.nii", cover, spec, 0, least - 1)


@pytest.mark.parametrize(
    ("density", "dtype"),
    [(0.04, np.float32), pytest.param(0.04, np.int16, marks=pytest.mark.slow), (1.0, np.float32), (1.0, np.int16)],
)
def test_components_take_what_is_planned(tmp_path, dtype, density):
    """The worst of a volume: noise, whose components are many, or one component, whose faces are full."""
    rng, shape, tile = np.random.default_rng(0), (160, 160, 160), 80
    spec = spec_of(volumes(tmp_path / "m.onnx", 3, 3, tile))
    grid = VoxelGrid(shape, tuple(map(tuple, np.eye(4)[:3])))
    labels = (rng.random((1, tile, tile, tile)) < density).astype(np.uint8)
    pixels = rng.integers(0, 1000, labels.shape).astype(dtype)
    found = Lesions(grid, spec.contract, LesionRule((1, 2), 0.0, False))
    tracemalloc.start()
    try:
        for start in np.ndindex(2, 2, 2):
            window = Window(tuple(tile * k for k in start), tuple(tile * (k + 1) for k in start))
            found.add(Box(window, labels, None, lambda: (pixels, None), lambda: None))
        rows = found.rows()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0 < len(rows) <= 10_000
    cover = Cover(shape, spec.tiling_of(shape))
    assert peak < lesion_bytes(Load(cover, 0), spec)


@pytest.mark.parametrize("finer", [1.1, 2.0, 3.7])
def test_device_memory_has_the_scores_that_are_interpolated(finer, tmp_path):
    """The arrays of a box on a device are those of NumPy, which are counted here, beside the sums that come in."""
    model, tile = tmp_path / "m.onnx", 64
    spec = spec_of(volumes(model, 3, 6, tile, spacing=[1.0, 1.0, 1.0]))
    alike = spec_of(volumes(model, 3, 6, tile))
    grids = Regridding((round(2 * tile * finer),) * 3, (finer,) * 3)
    cover = Cover(grids.shape, spec.tiling_of(grids.shape), 1)
    info = SimpleNamespace(regridding=grids, weights=Weights.over(cover))
    window = Window((tile,) * 3, grids.shape)
    sums = np.ones((6, *(n - tile + 1 for n in grids.shape)), np.float32)
    invalid = np.zeros(grids.needed_by_box(window).shape, bool)
    invalid[0] = True
    tracemalloc.start()
    for _ in regrid([FinishedBox(info, window, sums, invalid, 0)]):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    extra = device_bytes(spec) - device_bytes(alike)
    assert peak <= extra <= 4 * peak


@pytest.mark.parametrize(("given", "large", "most"), [(None, True, 8e9), (16.0, True, 16e9), (None, False, 48e9)])
def test_a_worker_with_large_scores_takes_8_gb_unless_told_otherwise(given, large, most, monkeypatch):
    """On a machine that would give each worker more."""
    monkeypatch.setattr(memory, "memory", lambda: 48e9 / memory.SHARE)
    monkeypatch.setattr(memory, "is_large", lambda model: large)
    assert memory.usual_memory(SimpleNamespace(memory=given), 1, None) == pytest.approx(most)

"""117 classes: labels against whole-volume scores that NumPy and SciPy blend and interpolate, and what memory decides."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import networks
import nibabel
import numpy as np
import onnxruntime
import pytest
import volumes
from command import invoke
from scipy.ndimage import map_coordinates

from segpipe.geometry.weighting import Weights
from segpipe.geometry.windows import Cover, Tiling
from segpipe.jobs import prepare
from segpipe.network import session
from segpipe.network.arrays import HostArrays
from segpipe.network.device import open_session
from segpipe.network.session import RuntimeSession
from segpipe.pipeline import memory
from segpipe.pipeline.model_check import try_out

CLASSES, TILE, OVERLAP = 117, (16, 16, 16), (8, 8, 8)
SPACED = {"spacing": [1.5, 1.5, 1.5], "spacing_tolerance": 0.01}
RUN = ["run", "-i", "in", "-m", "m.onnx", "--device", "cpu", "--executor", "serial"]


def prepared(root: Path, voxel: tuple[float, float, float], shape: tuple[int, int, int], **keys: Any) -> np.ndarray:
    """Write a model and a volume; return the voxels, slowest axis first."""
    networks.volumetric(root / "m.onnx", TILE, CLASSES, overlap=list(OVERLAP), align=4, scale=1 / 100, **keys)
    (root / "in").mkdir()
    voxels = volumes.voxels(shape, "i2")
    volumes.write(root / "in" / "a.nii.gz", voxels, np.diag([*voxel, 1.0]))
    return voxels.T


def labels(root: Path, *more: object) -> np.ndarray:
    done = invoke([*RUN, "-o", "out", *more], root)
    assert done.returncode == 0, done.stderr + done.stdout
    return np.asarray(nibabel.load(root / "out" / "a.nii.gz").dataobj).T


def blended(root: Path, voxels: np.ndarray) -> np.ndarray:
    """Mean scores of a whole volume in float64, ``(classes, *shape)``."""
    network = onnxruntime.InferenceSession(str(root / "m.onnx"), providers=["CPUExecutionProvider"])
    cover = Cover(voxels.shape, Tiling(TILE, OVERLAP, (4, 4, 4), "gaussian"))
    weights, image = Weights.over(cover), (voxels / 100).astype(np.float32)
    padded = np.pad(image, [(0, n - m) for n, m in zip(cover.padded, image.shape, strict=True)], mode="reflect")
    sums, total = np.zeros((CLASSES, *cover.padded)), np.zeros(cover.padded)
    for index in cover:
        window = cover.window(index)
        place = tuple(slice(a, b) for a, b in zip(window.start, window.stop, strict=True))
        (scores,) = network.run(None, {network.get_inputs()[0].name: padded[place][None, None]})
        own = weights.of(index).astype(np.float64)
        sums[(slice(None), *place)] += scores[0] * own
        total[place] += own
    return (sums / total)[(slice(None), *map(slice, voxels.shape))]


def on_grid(values: np.ndarray, factors: tuple[float, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Values at the centres of voxels of another grid with the same corner, linear in between."""
    axes = [(np.arange(n) + 0.5) / f - 0.5 for n, f in zip(shape, factors, strict=True)]
    points = np.meshgrid(*axes, indexing="ij")
    return np.stack([map_coordinates(one, points, order=1, mode="nearest") for one in values])


def assert_most_likely(found: np.ndarray, scores: np.ndarray) -> None:
    """Each label is that of the largest score; labels may differ where float32 cannot tell the two best apart."""
    best = np.sort(scores, axis=0)[-2:]
    clear = best[1] - best[0] > 1e-5 * np.abs(scores).max()
    assert clear.mean() > 0.999
    np.testing.assert_array_equal(found[clear], scores.argmax(0)[clear])
    assert len(np.unique(found)) > 10


@pytest.fixture(params=[2**23, 1], ids=["together", "one by one"])
def classes_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostArrays, "at_once", request.param)


@pytest.mark.usefixtures("classes_at_once")
@pytest.mark.parametrize("large", [False, True])
def test_labels_on_one_grid_are_those_of_the_whole_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    if large:
        monkeypatch.setattr(session, "LARGE", 0)
    voxels = prepared(tmp_path, (1.5, 1.5, 1.5), (22, 30, 37), **SPACED)
    assert_most_likely(labels(tmp_path), blended(tmp_path, voxels))


@pytest.mark.usefixtures("classes_at_once")
def test_labels_of_a_finer_case_are_those_of_the_whole_volume(tmp_path: Path) -> None:
    """Voxels of 0.75 x 0.75 x 1 mm and a network of 1.5 mm, which is whole and a half voxel: TotalSegmentator's case."""
    voxels = prepared(tmp_path, (0.75, 0.75, 1.0), (44, 60, 54), **SPACED)
    factors = (1.5, 2.0, 2.0)
    coarse = np.zeros(tuple(round(n / f) for n, f in zip(voxels.shape, factors, strict=True)))
    for at in np.ndindex(coarse.shape):  # the triangle filter, tap by tap
        coarse[at] = _filtered(voxels, at, factors)
    scores = on_grid(blended(tmp_path, coarse), factors, voxels.shape)
    assert_most_likely(labels(tmp_path), scores)


def _filtered(voxels: np.ndarray, at: tuple[int, ...], factors: tuple[float, ...]) -> float:
    box, weights = [], []
    for size, i, factor in zip(voxels.shape, at, factors, strict=True):
        centre = (i + 0.5) * factor - 0.5
        taps = np.arange(max(0, int(np.floor(centre - factor)) + 1), min(size, int(np.ceil(centre + factor))))
        weight = 1 - np.abs(taps - centre) / factor
        box.append(slice(taps[0], taps[-1] + 1))
        weights.append(weight / weight.sum())
    return float(np.einsum("kji,k,j,i->", voxels[tuple(box)].astype(float), *weights))


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (0.75, 0.75, 1.0)])
def test_classes_at_once_parts_and_memory_leave_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spacing: tuple[float, float, float]
) -> None:
    prepared(tmp_path, spacing, (40, 41, 42), **SPACED)
    whole = labels(tmp_path, "--confidence").tobytes()  # confidence needs all classes everywhere
    assert labels(tmp_path, "--overwrite").tobytes() == whole
    monkeypatch.setattr(HostArrays, "at_once", 1)
    monkeypatch.setattr(session, "LARGE", 0)
    monkeypatch.setattr("segpipe.jobs.cuts.REPEATED", 1e9)
    monkeypatch.setattr(memory, "WORKER", memory.PROCESS + 10**6)  # too little: many parts
    assert labels(tmp_path, "--overwrite", "--parts", "5").tobytes() == whole
    assert labels(tmp_path, "--overwrite").tobytes() == whole


def test_memory_decides_on_calls_workers_and_parts_where_scores_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(tmp_path, (1.5, 1.5, 1.5), (60, 61, 62), **SPACED)
    for name in ("b", "c"):
        (tmp_path / "in" / f"{name}.nii.gz").write_bytes((tmp_path / "in" / "a.nii.gz").read_bytes())
    monkeypatch.setattr(prepare, "processors", lambda: 4)
    # as measured, give or take 2 MB that the process may have had before
    monkeypatch.setattr(prepare, "try_out", lambda spec, **_: replace(try_out(spec), weights_mb=2.0, network_mb=4.0))
    words = [*RUN[:-2], "-o", "out", "--dry-run"]

    def planned(*more: object) -> tuple[int, int, int]:
        """Workers, calls in flight and parts."""
        done = invoke([*words, *more], tmp_path)
        said = done.stdout + done.stderr
        pool = re.search(r"(\d+) workers?, calls in flight in each: (\d+)", said)
        assert pool, said
        return int(pool[1]), int(pool[2]), sum(map(int, re.findall(r"(\d+) parts", said)))

    assert planned() == (3, 1, 0)
    monkeypatch.setattr(session, "LARGE", 0)
    assert planned() == (3, 1, 0)
    assert planned("--workers", 1) == (1, 4, 0)
    found = []
    monkeypatch.setattr(memory, "LEAST_STRIP_SHARE", 0.01)
    monkeypatch.setattr("segpipe.jobs.cuts.REPEATED", 1e9)
    for limit in range(300, 180, -10):  # MB, a process takes 180
        monkeypatch.setattr(memory, "WORKER", limit * 10**6)
        found.append(planned("--workers", 1))
    assert found == sorted(found, key=lambda plan: (-plan[1], plan[2]))  # first fewer calls, then more parts
    assert found[0] == (1, 4, 0)
    assert found[-1][2] > 1
    monkeypatch.setattr("segpipe.jobs.cuts.REPEATED", 0)
    assert planned("--workers", 1) == (1, 1, 0)  # parts would repeat windows: then memory is taken, since there is some
    assert {calls for _, calls, parts in found if parts} == {1}


def test_large_scores_are_written_into_an_array_of_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks.volumetric(tmp_path / "m.onnx", TILE, CLASSES)
    opened = open_session(str(tmp_path / "m.onnx"), arena="own")
    network, name = RuntimeSession(opened, opened.get_outputs()[0].name), opened.get_inputs()[0].name
    tile = np.random.default_rng(0).normal(size=(2, 1, *TILE)).astype(np.float32)
    for given in (tile, tile[:, :, ::-1]):  # a flip is a view
        monkeypatch.setattr(session, "LARGE", 2**40)
        usual = network.run({name: given})
        monkeypatch.setattr(session, "LARGE", 0)
        own = network.run({name: given})
        assert own.flags.owndata
        assert own.tobytes() == usual.tobytes()

"""A run of a contract that crops, against a run on the cropped volume, and its parts."""

from pathlib import Path
from typing import Any

import networks
import nibabel
import numpy as np
import pytest
from command import invoke
from scenes import assert_same

from segpipe import load

KEYS: dict[str, Any] = {"scale": 1.0, "normalize": "zscore", "spacing_unit": "mm", "channels": ["MR"]}
TILE = (8, 12, 10)
BOX = (slice(3, 25), slice(0, 21), slice(6, 30))


def scan(path: Path, spacing: tuple[float, ...] = (1.0, 1.1, 0.9), *, lost: bool = False) -> np.ndarray:
    """Noise in a box, zeros around it; and the box alone, in a folder beside; axes ``(k, j, i)``. Lost voxels are NaN."""
    values = np.zeros((31, 27, 33), np.float32 if lost else np.int16)
    values[BOX] = np.random.default_rng(3).integers(1, 900, values[BOX].shape)
    if lost:
        values[BOX][1:4, :2, :3] = values[BOX][12, 9] = np.nan
    for file, array in ((path / "in" / "a.nii.gz", values), (path / "box" / "a.nii.gz", values[BOX])):
        file.parent.mkdir()
        nibabel.save(nibabel.Nifti1Image(array.T, np.diag([*spacing[::-1], 1])), file)
    return values


def run(folder: Path, source: str, output: str, *words: Any) -> Any:
    common = ["--input", source, "--model", "model.onnx", "--output", output, "--device", "cpu", "--executor", "serial"]
    done = invoke(["run", *common, *words], folder)
    assert done.returncode == 0, done.stderr
    return done


def labels_in(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj).T


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("wanted", [[1.0, 1.1, 0.9], [1.3, 0.9, 1.0]])
def test_labels_are_those_of_the_cropped_volume_and_background_around_it(
    tmp_path: Path, wanted: list[float], lost: bool
) -> None:
    values = scan(tmp_path, lost=lost)
    networks.volumetric(tmp_path / "model.onnx", TILE, **KEYS, spacing=wanted, crop="nonzero")
    run(tmp_path, "in", "whole")
    run(tmp_path, "box", "alone")
    found, alone = labels_in(tmp_path / "whole" / "a.nii.gz"), labels_in(tmp_path / "alone" / "a.nii.gz")
    expected = np.zeros_like(found)
    expected[BOX] = alone
    assert np.array_equal(found, expected)
    assert len(np.unique(alone)) == 3 + lost
    assert np.array_equal(found == 255, np.isnan(values))
    # without the key, statistics and windows are those of the whole case
    networks.volumetric(tmp_path / "model.onnx", TILE, **KEYS, spacing=wanted)
    run(tmp_path, "in", "plain")
    assert not np.array_equal(labels_in(tmp_path / "plain" / "a.nii.gz")[BOX], alone)
    assert values.shape == found.shape


def test_parts_leave_the_same_bytes(tmp_path: Path) -> None:
    scan(tmp_path)
    networks.volumetric(tmp_path / "model.onnx", TILE, **KEYS, spacing=[1.3, 0.9, 1.0], crop="nonzero")
    run(tmp_path, "in", "whole", "--confidence")
    assert "parts" in run(tmp_path, "in", "cut", "--confidence", "--parts", 4, "-v").stderr
    assert_same(tmp_path / "cut", tmp_path / "whole")


def test_an_array_in_memory_is_cropped_too(tmp_path: Path) -> None:
    values = scan(tmp_path)
    networks.volumetric(tmp_path / "model.onnx", TILE, **KEYS, crop="nonzero")
    run(tmp_path, "in", "out")
    predicted = load(tmp_path / "model.onnx", device="cpu").predict(values[None])
    assert np.array_equal(predicted.array, labels_in(tmp_path / "out" / "a.nii.gz"))


def test_regions_become_one_map_in_their_order(tmp_path: Path) -> None:
    values = scan(tmp_path)
    classes = [
        {"id": 2, "name": "whole", "index": 0},
        {"id": 1, "name": "core", "index": 1},
        {"id": 3, "name": "rim", "index": 2},
    ]
    keys = {**KEYS, "normalize": "none", "activation": "sigmoid", "crop": "nonzero"}
    networks.volumetric(tmp_path / "model.onnx", TILE, **keys, task="multilabel", classes=classes)
    run(tmp_path, "in", "bands", "--confidence")
    networks.volumetric(tmp_path / "model.onnx", TILE, **keys, task="regions", classes=classes)
    run(tmp_path, "in", "map", "--confidence")
    # bands are in the order of the ids, the map in that of the scores
    core, whole, rim = labels_in(tmp_path / "bands" / "a.nii.gz").reshape(3, *values.shape) == 1
    wanted = np.zeros(values.shape, np.uint8)
    wanted[whole], wanted[core], wanted[rim] = 2, 1, 3
    wanted[core], wanted[rim] = 1, 3
    found = labels_in(tmp_path / "map" / "a.nii.gz")
    assert np.array_equal(found, wanted)
    assert (whole & core).any()
    rows = (tmp_path / "map" / "areas.csv").read_text().splitlines()[1:]
    counted = {int(row.split(",")[1]): int(row.split(",")[3]) for row in rows if "nodata" not in row}
    assert counted == {value: int((found == value).sum()) for value in range(4)}
    sure = labels_in(tmp_path / "map" / "a.confidence.nii.gz")
    assert np.array_equal(sure, labels_in(tmp_path / "bands" / "a.confidence.nii.gz").reshape(3, *values.shape).min(0))

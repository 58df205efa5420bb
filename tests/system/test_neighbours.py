"""A network of images that takes neighbouring slices: whole runs, against the network alone."""

from pathlib import Path
from typing import Any

import networks
import nibabel
import numpy as np
import onnxruntime
import pytest
import volumes
from command import invoke
from scenes import assert_same

import segpipe

KEYS: dict[str, Any] = {"neighbours": 1, "orientation": "SPR", "scale": 1 / 255}
TILE = [10, 12]


def network(path: Path, channels: int, **changes: Any) -> Path:
    """A pixel's scores are those of that pixel in all slices."""
    own = networks.contract(["T2"], 3, **{**KEYS, "tile": TILE, "overlap": [2, 2], **changes})
    return networks.Network(channels).conv(channels, 3, 1).save(path, own, classes=3)


def placed(path: Path) -> Path:
    """Scores depend on neighbours and on the place in the tile."""
    net = networks.Network(3).conv(3, 3, 5)
    net.add("Add", net.rng.normal(size=(1, 3, *TILE)).astype(np.float32))
    own = networks.contract(["T2"], 3, **{**KEYS, "normalize": "zscore", "tile": TILE, "overlap": [4, 4]})
    return net.save(path, own, classes=3, shape=("n", *TILE))


def run(root: Path, *more: str) -> Any:
    return invoke(["run", "-i", "in", "-m", "model.onnx", "--device", "cpu", "--executor", "serial", *more], root)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    volumes.write(tmp_path / "in" / "a.nii.gz", volumes.voxels((21, 23, 17), "u1"), volumes.OBLIQUE)
    return tmp_path


def turned(path: Path, letters: str) -> Any:
    image: Any = nibabel.load(path)
    ornt = nibabel.orientations
    return image.as_reoriented(ornt.ornt_transform(nibabel.io_orientation(image.affine), ornt.axcodes2ornt(letters)))


@pytest.mark.parametrize("rule", [{"normalize": "none"}, {"normalize": "zscore", "scale": 1.0}])
def test_labels_are_those_of_the_network_on_three_slices(folder: Path, rule: dict[str, Any]) -> None:
    model = network(folder / "model.onnx", 3, **rule)
    done = run(folder, "-o", "out")
    assert done.returncode == 0, done.stderr + done.stdout
    planes = np.asarray(turned(folder / "in" / "a.nii.gz", "SPR").dataobj).astype(np.float64)
    scaled = planes / 255 if rule["normalize"] == "none" else (planes - planes.mean()) / planes.std()
    padded = np.pad(scaled, ((1, 1), (0, 0), (0, 0)), mode="edge")
    stacked = np.stack([padded[:-2], padded[1:-1], padded[2:]], axis=1).astype(np.float32)
    (scores,) = onnxruntime.InferenceSession(str(model)).run(None, {"image": stacked})
    labels = np.asarray(turned(folder / "out" / "a.nii.gz", "SPR").dataobj)
    two = np.sort(scores, axis=1)
    clear = two[:, -1] - two[:, -2] > 1e-4
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(labels[clear], scores.argmax(axis=1)[clear])


def test_parts_leave_the_same_bytes_and_an_array_the_same_labels(folder: Path) -> None:
    path = placed(folder / "model.onnx")
    for name, more in (("whole", []), ("cut", ["--parts", "5"]), ("batch", ["--batch", "3"])):
        done = run(folder, "-o", name, *more)
        assert done.returncode == 0, done.stderr + done.stdout
    assert_same(folder / "cut", folder / "whole")
    assert_same(folder / "batch", folder / "whole")
    model = segpipe.load(path, device="cpu")
    planes = np.asarray(turned(folder / "in" / "a.nii.gz", "SPR").dataobj)
    labels = model.predict(np.ascontiguousarray(planes[None]))
    np.testing.assert_array_equal(labels.array, np.asarray(turned(folder / "whole" / "a.nii.gz", "SPR").dataobj))


def test_an_image_has_no_neighbours(folder: Path, raster: Any) -> None:
    network(folder / "model.onnx", 3)
    raster("in/b.tif", np.ones((1, 20, 20), np.uint8))
    done = run(folder, "-o", "out")
    assert done.returncode == 1
    output = " ".join(done.stdout.split())
    assert "a model that takes neighbouring slices (neighbours = 1) needs volumes, got an image of 20 x 20" in output


def test_the_network_must_take_all_slices(folder: Path) -> None:
    network(folder / "model.onnx", 1)
    done = run(folder)
    assert done.returncode == 2
    assert "got 1 in each of 3 slices (neighbours) in the contract (T2) and 1 in" in done.stderr

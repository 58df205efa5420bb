"""Lesions of whole runs whose masks are known: phantoms made by hand, channels, DICOM series, and real images."""

import csv
from pathlib import Path
from typing import Any

import cc3d
import dicoms
import networks
import nibabel
import numpy as np
import pytest
import volumes
from command import invoke
from numpy.typing import NDArray
from scipy.spatial.distance import pdist
from skimage.measure import label, regionprops

STEPS = np.diag([0.8, 0.8, 2.5, 1.0])

FACES = np.concatenate([0.5 * np.eye(3), -0.5 * np.eye(3)])
"""From the centre of a voxel to the centres of its faces, between which diameters are measured."""


def threshold(path: Path, level: float, tile: int, channels: Any = 1, **changes: Any) -> Path:
    """A model whose class 1 are the voxels of the first channel above a level; how a case is tiled changes nothing."""
    count = channels if isinstance(channels, int) else len(channels)
    net = networks.Network(count, ndim=3)
    weights = np.zeros((2, count, 1, 1, 1), np.float32)
    weights[1, 0] = 1
    net.add("Conv", weights, np.array([0, -level], np.float32))
    keys = {"layout": "NCDHW", "tile": [tile], "overlap": [tile // 4], "scale": 1.0, "pixel": "physical"}
    values = networks.contract(channels, 2, **keys | changes)
    return net.save(path, values, classes=2, shape=("n", tile, tile, tile))


def lesions(root: Path, *more: str) -> list[dict[str, str]]:
    """Run; the table."""
    flags = ["--device", "cpu", "--executor", "serial", "--lesions", "--unusual-values", "allow"]
    done = invoke(["run", "-i", "in", "-m", "m.onnx", "-o", "out", "--overwrite", *flags, *more], root)
    assert done.returncode == 0, done.stderr + done.stdout
    with (root / "out" / "lesions.csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_lesions_through_all_parts_are_those_made_by_hand(inside: Path, parts: int) -> None:
    """Along k, which is cut: a bar; two bars with a gap of one voxel; and steps that share only corners."""
    data = np.zeros((10, 11, 40), np.int16)
    data[5, 5, 2:38] = 100 + np.arange(2, 38)
    data[8, 8, 3:19] = data[8, 8, 20:37] = 100
    for k in range(40):
        data[1 + k % 2, 1 + k % 2, k] = 100
    data[9, 2, 39] = 100
    volumes.write(inside / "a.nii.gz", data, STEPS)
    threshold(inside.parent / "m.onnx", 50, 8)
    rows = lesions(inside.parent, "--parts", str(parts), "--instances")
    assert [int(row["voxels"]) for row in rows] == [40, 36, 17, 16, 1]
    assert [row["touches_border"] for row in rows] == ["true", "false", "false", "false", "true"]
    bar = {key: rows[1][key] for key in ("centroid_i", "centroid_j", "centroid_k", "box_k_start", "box_k_stop")}
    assert bar == {"centroid_i": "5.0", "centroid_j": "5.0", "centroid_k": "19.5", "box_k_start": "2", "box_k_stop": "38"}
    assert float(rows[1]["size"]) == pytest.approx(36 * 1.6)
    assert float(rows[1]["longest_mm"]) == pytest.approx(36 * 2.5)  # between the outermost faces
    assert [float(rows[1][f"intensity_{what}"]) for what in ("mean", "min", "max")] == [119.5, 102, 137]
    numbers = np.asarray(nibabel.load(inside.parent / "out" / "a.instances.nii.gz").dataobj)
    assert [set(np.unique(numbers[place])) for place in ((5, 5), (8, 8), (9, 2))] == [{0, 2}, {0, 3, 4}, {0, 5}]
    assert (numbers > 0).sum() == (data > 0).sum()


def test_each_channel_has_intensities_of_its_own(inside: Path) -> None:
    first, second = np.zeros((12, 11, 10), np.int16), volumes.voxels((12, 11, 10), seed=3)
    first[2:5, 3:6, 4:7] = np.arange(27).reshape(3, 3, 3) + 60
    for number, data in enumerate((first, second)):
        volumes.write(inside / f"p_000{number}.nii.gz", data, STEPS)
    threshold(inside.parent / "m.onnx", 50, 8, ["FLAIR", "T1"])
    (row,) = lesions(inside.parent, "--parts", "2")
    own = second[2:5, 3:6, 4:7].astype(float)
    for name, expected in (("FLAIR", (73, 60, 86)), ("T1", (own.mean(), own.min(), own.max()))):
        found = [float(row[f"intensity_{what}_{name}"]) for what in ("mean", "min", "max")]
        assert found == pytest.approx(expected, abs=1e-4)
    assert int(row["voxels"]) == 27


def test_intensities_of_a_series_are_values_of_the_modality(inside: Path) -> None:
    """With a slope per slice."""
    pixels = np.zeros((9, 12, 11), np.int16)
    pixels[3:6, 2:6, 5:8] = np.arange(36).reshape(3, 4, 3) + 1100
    slopes = np.linspace(1, 1.4, 9).round(2)
    dicoms.write(inside / "CT", pixels, RescaleSlope=dicoms.Each(map(str, slopes)))
    threshold(inside.parent / "m.onnx", 50, 8)
    rows = lesions(inside.parent, "--seg", "none", "--parts", "2")
    units = pixels * slopes[:, None, None] - 1024
    own = units[3:6, 2:6, 5:8]
    assert (own > 50).all()
    (row,) = rows
    assert int(row["voxels"]) == own.size
    found = [float(row[f"intensity_{what}"]) for what in ("mean", "min", "max")]
    assert found == pytest.approx([own.mean(), own.min(), own.max()], abs=1e-3)
    assert float(row["size"]) == pytest.approx(own.size * 0.7 * 0.8 * 2.5)


def check(rows: list[dict[str, str]], path: Path, values: NDArray[Any], least: float) -> None:
    """A table against scikit-image and cc3d on the written mask, and values of the input on its grid."""
    image: Any = nibabel.load(path)
    mask = np.asarray(image.dataobj) == 1
    found, count = cc3d.connected_components(mask.astype(np.uint8), connectivity=26, return_N=True)
    assert count == label(mask, connectivity=3).max()
    cell = abs(np.linalg.det(image.affine[:3, :3]))
    regions = {tuple(one.coords[0]): one for one in regionprops(found, values) if one.num_pixels * cell >= least}
    assert len(rows) == len(regions) > 5
    sizes = [int(row["voxels"]) for row in rows]
    assert sizes == sorted(sizes, reverse=True) == sorted((r.num_pixels for r in regions.values()), reverse=True)
    by_box = {tuple(one.bbox) + tuple(one.centroid): one for one in regions.values()}
    for row in rows:
        box = [int(row[f"box_{axis}_{end}"]) for end in ("start", "stop") for axis in "ijk"]
        centroid = np.array([float(row[f"centroid_{axis}"]) for axis in "ijk"])
        (one,) = [r for key, r in by_box.items() if list(key[:6]) == box and np.abs(key[6:] - centroid).max() < 1e-3]
        assert one.num_pixels == int(row["voxels"])
        assert float(row["size"]) == pytest.approx(one.num_pixels * cell, rel=1e-4, abs=1e-3)
        world = nibabel.affines.apply_affine(image.affine, centroid)
        assert [float(row[f"centroid_{a}_ras_mm"]) for a in "xyz"] == pytest.approx(world, abs=2e-3)
        ends = zip(box[:3], box[3:], mask.shape, strict=True)
        assert (row["touches_border"] == "true") == any(low == 0 or high == size for low, high, size in ends)
        own = values[tuple(one.coords.T)].astype(np.float64)
        intensities = [float(row[f"intensity_{what}"]) for what in ("mean", "min", "max")]
        assert intensities == pytest.approx([own.mean(), own.min(), own.max()], rel=1e-4, abs=1e-3)
        if one.num_pixels < 300:
            faces = (one.coords[:, None] + FACES).reshape(-1, 3)
            places = nibabel.affines.apply_affine(image.affine, faces)
            assert float(row["longest_mm"]) == pytest.approx(pdist(places).max(), rel=1e-3, abs=2e-3)


@pytest.mark.shared_data
def test_lesions_of_a_real_volume(inside: Path, shared: Path) -> None:
    path = shared / "medical" / "nifti" / "example_mr_sm.nii.gz"
    (inside / "mr.nii.gz").symlink_to(path)
    threshold(inside.parent / "m.onnx", 300, 32)
    rows = lesions(inside.parent, "--parts", "3", "--min-size", "60")
    image: Any = nibabel.load(path)
    check(rows, inside.parent / "out" / "mr.nii.gz", image.get_fdata(), 60)


@pytest.mark.shared_data
def test_lesions_of_a_real_series(inside: Path, shared: Path) -> None:
    """Its values are those of the volume that was made of it, which has other axes."""
    folder = shared / "medical" / "dicom" / "dicom2nifti" / "generic" / "anatomical" / "001"
    (inside / "mr").symlink_to(folder)
    threshold(inside.parent / "m.onnx", 246, 64)
    rows = lesions(inside.parent, "--parts", "2", "--min-size", "3", "--seg", "none")
    out = inside.parent / "out" / "mr.nii.gz"
    mask, truth = nibabel.load(out), nibabel.load(f"{folder}_ground_truth.nii.gz")
    index = np.stack(np.meshgrid(*map(np.arange, mask.shape), indexing="ij"), -1).reshape(-1, 3)
    there = nibabel.affines.apply_affine(np.linalg.inv(truth.affine) @ mask.affine, index)
    values = np.asarray(truth.dataobj)[tuple(np.rint(there).astype(int).T)].reshape(mask.shape)
    assert ((values > 246) == (np.asarray(mask.dataobj) == 1)).all()
    check(rows, out, values, 3)

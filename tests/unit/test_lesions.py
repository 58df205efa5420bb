"""The table of lesions against scikit-image, nibabel and phantoms made by hand; which classes are lesions."""

import math

import nibabel
import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS
from skimage.measure import regionprops

from segpipe.contract import Contract
from segpipe.errors import SettingsError
from segpipe.geometry.grid import BareGrid
from segpipe.geometry.raster_grid import RasterGrid
from segpipe.geometry.voxel_grid import VoxelGrid, matrix_rows, turned_to
from segpipe.geometry.windows import Window
from segpipe.results.lesions import rule as lesion_rule
from segpipe.results.lesions.axes import axes_of
from segpipe.results.lesions.rule import LesionRule, rule_of
from segpipe.results.lesions.statistic import Lesions
from segpipe.results.statistics import Box
from segpipe.settings import Settings

OBLIQUE = np.array([[0.0, -1.7, 0.3, 12.0], [0.9, 0.0, 0.0, -30.0], [0.0, 0.2, 2.55, 7.5], [0, 0, 0, 1]])
"""From i, j, k; columns at right angles."""


def contract(*names: str, task: str = "multiclass", channels: int | list[str] = 1) -> Contract:
    classes = [{"id": k, "name": name} for k, name in enumerate(names)]
    head = {"version": 1, "channels": channels, "normalize": "none", "activation": "softmax", "task": task}
    return Contract.model_validate(
        head | {"activation": "sigmoid" if task != "multiclass" else "softmax", "classes": classes}
    )


CT = contract("background", "lesion", "cyst")


def volume_grid(shape, affine=None, letters=None) -> VoxelGrid:
    """A grid whose file's axes k, j, i have this shape; ``affine`` leads from i, j, k, as nibabel's."""
    affine = np.diag([0.8, 0.8, 2.5, 1.0]) if affine is None else affine
    grid = VoxelGrid(tuple(shape), matrix_rows(affine @ np.eye(4)[[2, 1, 0, 3]]))
    return grid if letters is None else grid.turn(turned_to(grid, letters))


def whole(labels) -> Window:
    return Window((0,) * labels.ndim, labels.shape)


def measured(labels, grid, terms=CT, pixels=None, confidence=None, tags=None, **rule) -> Lesions:
    """Of labels on the grid, in one box."""
    bands = labels if labels.ndim > len(grid.shape) else labels[None]
    rule = {"classes": (1, 2), "min_size": 0.0, "instances": False} | rule
    found = Lesions(grid, terms, LesionRule(**rule))
    read = None if pixels is None else lambda: (pixels, None)
    window = Window((0,) * len(grid.shape), grid.shape)
    found.add(Box(window, bands, confidence, read, None if tags is None else lambda: tags))
    return found


def phantom(shape, *boxes):
    """Class 1 in each box of slices."""
    labels = np.zeros(shape, np.uint8)
    for box in boxes:
        labels[box] = 1
    return labels


def cube(k, j, i, side=3):
    return slice(k, k + side), slice(j, j + side), slice(i, i + side)


PHANTOMS = {
    "one voxel": ([(slice(4, 5),) * 3], [1]),
    "apart": ([cube(1, 1, 1), cube(1, 1, 5)], [27, 27]),
    "touching at a face": ([cube(1, 1, 1), cube(1, 1, 4)], [54]),
    "touching at an edge": ([cube(1, 1, 1), cube(1, 4, 4)], [54]),
    "touching at a corner": ([cube(1, 1, 1), cube(4, 4, 4)], [54]),
    "cut by the border": ([cube(0, 1, 1)], [27]),
}


@pytest.mark.parametrize("name", PHANTOMS)
def test_phantoms(name):
    boxes, sizes = PHANTOMS[name]
    labels = phantom((10, 11, 12), *boxes)
    rows = measured(labels, volume_grid(labels.shape)).rows()
    assert [row["voxels"] for row in rows] == sizes
    assert [row["size"] for row in rows] == [pytest.approx(1.6 * size) for size in sizes]
    assert [row["ml"] for row in rows] == [pytest.approx(0.0016 * size) for size in sizes]
    assert [row["touches_border"] for row in rows] == [name == "cut by the border"] * len(rows)
    assert [row["component"] for row in rows] == [*range(1, len(sizes) + 1)]


def test_a_lesion_in_a_shell_is_another_lesion():
    labels = phantom((11, 11, 11), cube(1, 1, 1, 9))
    labels[cube(3, 3, 3, 5)] = 0
    labels[cube(5, 5, 5, 1)] = 1
    assert [row["voxels"] for row in measured(labels, volume_grid(labels.shape)).rows()] == [9**3 - 5**3, 1]


def test_rows_come_by_class_then_by_size_then_by_first_voxel():
    labels = phantom((8, 9, 20), cube(1, 1, 1, 2), cube(4, 4, 14, 3), cube(1, 1, 8, 2))
    labels[cube(5, 1, 1, 2)] = 2
    rows = measured(labels, volume_grid(labels.shape)).rows()
    assert [(row["class_name"], row["voxels"], row["box_i_start"]) for row in rows] == [
        ("lesion", 27, 14),
        ("lesion", 8, 1),
        ("lesion", 8, 8),
        ("cyst", 8, 1),
    ]


@pytest.mark.parametrize("letters", [None, "RAS", "LPS", "ASR", "IPR"])
def test_places_are_those_of_nibabel_whatever_orientation_the_model_sees(letters):
    """Labels are turned as the model sees them; the table has the file's own indices, and world coordinates."""
    stored = np.zeros((9, 12, 15), np.uint8)  # k, j, i
    stored[2:5, 3:9, 4:6] = 1
    stored[6:, 1, 11] = 2
    grid = volume_grid(stored.shape, OBLIQUE, letters)
    found = measured(np.ascontiguousarray(grid.turned.array(stored)), grid).rows()
    assert found == measured(stored, volume_grid(stored.shape, OBLIQUE)).rows()
    for row, own in zip(found, (1, 2), strict=True):
        index = np.argwhere(own == stored.T)
        assert [row[f"centroid_{a}"] for a in "ijk"] == pytest.approx(index.mean(axis=0), abs=1e-4)
        assert [row[f"box_{a}_start"] for a in "ijk"] == index.min(axis=0).tolist()
        assert [row[f"box_{a}_stop"] for a in "ijk"] == (index.max(axis=0) + 1).tolist()
        world = nibabel.affines.apply_affine(OBLIQUE, index)
        centre = world.mean(axis=0)
        assert [row[f"centroid_{a}_ras_mm"] for a in "xyz"] == pytest.approx(centre, abs=1e-4)
        assert [row[f"centroid_{a}_lps_mm"] for a in "xyz"] == pytest.approx(centre * (-1, -1, 1), abs=1e-4)
        corners = np.array(list(np.ndindex(2, 2, 2))) - 0.5
        around = nibabel.affines.apply_affine(OBLIQUE, (index[:, None] + corners).reshape(-1, 3))
        for space, signs in (("ras", (1, 1, 1)), ("lps", (-1, -1, 1))):
            assert [row[f"box_{a}_min_{space}_mm"] for a in "xyz"] == pytest.approx((around * signs).min(axis=0), abs=1e-4)
            assert [row[f"box_{a}_max_{space}_mm"] for a in "xyz"] == pytest.approx((around * signs).max(axis=0), abs=1e-4)


@pytest.mark.parametrize("letters", [None, "ASR"])
def test_the_plane_of_a_diameter_is_a_slice_of_the_file(letters):
    stored = np.zeros((9, 30, 30), np.uint8)
    stored[1:8, 5, 5] = 1  # 7 slices of 2.5 mm
    stored[3, 5, 5:15] = 1  # 10 voxels of 0.8 mm
    grid = volume_grid(stored.shape, None, letters)
    (row,) = measured(np.ascontiguousarray(grid.turned.array(stored)), grid).rows()
    assert (row["longest_in_plane_mm"], row["perpendicular_mm"], row["plane_k"]) == (8.0, 0.8, 3)
    assert row["longest_mm"] == pytest.approx(17.5, abs=1.5)


def test_confidence_and_intensity_are_in_their_own_units():
    labels = phantom((4, 5, 6), cube(0, 0, 0, 2))
    pixels = np.random.default_rng(0).integers(-100, 100, (1, 4, 5, 6)).astype(np.int16)
    confidence = np.random.default_rng(1).integers(100, 255, (1, 4, 5, 6)).astype(np.uint8)
    tags = np.array([-2.0]), np.array([7.0])
    (row,) = measured(labels, volume_grid(labels.shape), pixels=pixels, confidence=confidence, tags=tags).rows()
    own = labels == 1
    values = pixels[0][own] * -2.0 + 7
    assert row["intensity_mean"] == pytest.approx(values.mean())
    assert (row["intensity_min"], row["intensity_max"]) == (values.min(), values.max())
    assert row["confidence_mean"] == pytest.approx(confidence[0][own].mean() / 254, abs=1e-4)
    assert row["confidence_max"] == round(int(confidence[0][own].max()) / 254, 4)


def test_channels_have_columns_of_their_own():
    labels = phantom((4, 5, 6), cube(0, 0, 0, 2))
    pixels = np.stack([np.full((4, 5, 6), k, np.float32) for k in (0.5, 3)])
    terms = contract("background", "lesion", "cyst", channels=["t1", "flair"])
    (row,) = measured(labels, volume_grid(labels.shape), terms, pixels=pixels).rows()
    assert (row["intensity_mean_t1"], row["intensity_max_flair"]) == (0.5, 3.0)


def test_independent_classes_overlap():
    labels = np.stack([phantom((5, 6, 7), cube(1, 1, 1)), phantom((5, 6, 7), cube(1, 1, 1), cube(0, 3, 4, 2)) * 1])
    labels[:, 4, 5, 6] = 255
    terms = contract("core", "edema", task="multilabel")
    found = measured(labels, volume_grid((5, 6, 7)), terms, classes=(0, 1))
    assert [(row["class_id"], row["voxels"]) for row in found.rows()] == [(0, 27), (1, 35)]


def test_components_below_the_size_are_counted_and_not_listed():
    labels = phantom((8, 9, 20), cube(1, 1, 1, 2), cube(4, 4, 14, 3), cube(1, 1, 8, 1))
    found = measured(labels, volume_grid(labels.shape), min_size=8 * 1.6)
    assert [row["voxels"] for row in found.rows()] == [27, 8]  # exactly of the size is listed
    assert found.counts()[0] == {
        "class_id": 1,
        "class_name": "lesion",
        "listed": 2,
        "below_min_size": 1,
        "voxels_below_min_size": 1,
        "not_listed": 0,
        "voxels_not_listed": 0,
    }


def test_an_image_is_measured_on_the_ground_with_8_neighbours():
    labels = np.zeros((40, 50), np.uint8)
    labels[5:15, 10:30] = 1
    labels[15, 30] = 1  # at a corner
    labels[30:33, 40:50] = 1
    grid = RasterGrid(labels.shape, CRS.from_epsg(32633), Affine(10, 0, 500_000, 0, -10, 5_000_000))
    rows = measured(labels, grid).rows()
    one, other = regionprops((labels * np.where(np.arange(40) < 20, 1, 2)[:, None]).astype(int))
    assert [row["voxels"] for row in rows] == [one.area, other.area]
    assert [row["centroid_j"] for row in rows] == pytest.approx([one.centroid[0], other.centroid[0]], abs=1e-4)
    assert [row["touches_border"] for row in rows] == [False, True]
    assert [row["unit"] for row in rows] == ["ha"] * 2
    assert rows[1]["size"] == pytest.approx(0.3, rel=1e-3)
    assert rows[1]["longest"] == pytest.approx(math.hypot(90, 30), abs=12)
    assert (rows[1]["centroid_x"], rows[1]["centroid_y"]) == (500_000 + 450, 5_000_000 - 315)
    assert rows[1]["length_unit"] == "m"
    assert len(measured(labels, grid, min_size=10_000).rows()) == 1  # m2


def test_a_picture_is_measured_in_pixels():
    labels = np.zeros((8, 9), np.uint8)
    labels[2:4, 3:8] = 1
    (row,) = measured(labels, BareGrid(labels.shape)).rows()
    assert (row["size"], row["unit"], row["length_unit"], row["centroid_x"]) == (None, "px", "px", None)
    assert row["longest"] == pytest.approx(math.hypot(5, 1), abs=1e-4)


def test_a_grid_of_three_axes_without_a_place_is_a_volume_in_pixels():
    frame = axes_of(BareGrid((4, 5, 6)))
    assert (frame.shape, frame.unit, frame.volume) == ((4, 5, 6), "px", True)


def rule(terms, **values):
    return rule_of(Settings(input=("a",), model="m.onnx", **values), terms)


def test_lesions_are_all_classes_but_the_background_or_those_that_are_named():
    assert rule(CT) is None
    assert rule(CT, lesions=True).classes == (1, 2)
    assert rule(CT, lesions="cyst").classes == rule(CT, lesions=["2"]).classes == (2,)
    assert rule(CT, lesions="background").classes == (0,)
    assert rule(contract("core", "edema", task="multilabel"), lesions=True).classes == (0, 1)
    one = Contract.model_validate(
        {
            "version": 1,
            "channels": 1,
            "normalize": "none",
            "activation": "sigmoid",
            "task": "binary",
            "classes": [{"id": 1, "name": "lesion", "index": 0}],
        }
    )
    assert rule(one, lesions=True).classes == (1,)


def test_classes_that_are_not_there_are_named_with_those_that_are():
    with pytest.raises(SettingsError, match="got tumour: its classes are 0 background, 1 lesion, 2 cyst"):
        rule(CT, lesions="tumour")
    with pytest.raises(SettingsError, match="needs a class beside the background"):
        rule(contract("background"), lesions=True)


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(lesion_rule, "find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"connected-components-3d, which is not installed: run pip install .*medical"):
        rule(CT, lesions=True)

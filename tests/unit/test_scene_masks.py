"""Which values of masks are valid, which file is the mask of a case, and where its pixels lie."""

import glob
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from pyproj import Transformer
from rasterio.crs import CRS
from unreadable import fail

from segpipe.errors import SourceError
from segpipe.formats.case import SCENE, Case, SceneFiles
from segpipe.formats.identity import FolderListings, identities
from segpipe.formats.raster import scene_mask
from segpipe.formats.raster.gdal import gdal_options
from segpipe.formats.raster.scene_mask import MaskLimit
from segpipe.formats.scene_masks import MaskFinder, mask_of, with_masks, without_mask
from segpipe.geometry.raster_grid import RasterGrid
from segpipe.geometry.windows import Window
from segpipe.validity import parse_validity

UTM = Affine(10, 0, 500_000, 0, -10, 5_400_000)
SHAPE = (60, 80)


# --- values ---------------------------------------------------------------------------------------------------------------


def valid(text: str, *bands: Any) -> list[int]:
    """Positions of the valid pixels of a mask of one row."""
    found = np.ones(len(bands[0]), bool)
    for condition in parse_validity(text).conditions:
        found &= condition.valid(np.asarray(bands[condition.band - 1]))
    return np.flatnonzero(found).tolist()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("scl", [2, 4, 5, 6, 7, 11]),
        ("scl:4-7", [4, 5, 6, 7]),
        ("{case}.tif:scl", [2, 4, 5, 6, 7, 11]),
        ("{case}.tif", [*range(1, 13)]),
        ("{case}.tif:not:0-3,8-10", [4, 5, 6, 7, 11, 12]),
        ("{case}.tif:bits:0,3", [0, 2, 4, 6]),
        ("{case}.tif:0-6+not:3", [0, 1, 2, 4, 5, 6]),
    ],
)
def test_values_of_classes(text, wanted):
    assert valid(text, np.arange(13, dtype=np.uint8)) == wanted


def test_bits_of_qa_pixel():
    """Values that the USGS lists for Landsat 8-9, Collection 2."""
    seen = {21824: "clear", 21952: "water", 30048: "clear with snow"}
    lost = {1: "fill", 21762: "dilated cloud", 22280: "cloud", 23888: "cloud shadow", 54596: "cirrus", 55052: "both"}
    values = np.array([*seen, *lost], np.uint16)
    assert valid("qa-pixel", values) == [0, 1, 2]
    assert valid("qa-pixel:bits:0-5", values) == [0, 1]


def test_bits_of_fmask():
    """Bits by the User Guide of HLS 2.0: cloud 1, adjacent 2, shadow 3, snow 4, water 5, aerosol 6 and 7."""
    values = np.array([0, 64, 32, 16, 192, 2, 4, 8, 255], np.uint8)
    assert valid("fmask", values) == [0, 1, 2, 3, 4]


def test_bands_of_udm2():
    clear = np.array([1, 1, 0, 1], np.uint8)
    unusable = np.array([0, 1, 0, 4], np.uint8)
    bands = [clear, *[np.zeros(4, np.uint8)] * 6, unusable]
    assert valid("udm2", *bands) == [0]
    assert valid("udm2:1", *bands) == [0, 1, 3]


def test_nan_is_never_valid():
    values = np.array([0.0, np.nan, 35.5, 41])
    assert valid("{case}.tif:not:40-100", values) == [0, 2]
    assert valid("{case}.tif:0-40", values) == [0, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clouds", "must be scl, udm2, qa-pixel, fmask or a pattern"),
        ("s3://bucket/{case}.tif", "relative to the folder of a scene"),
        ("{case}.tif:", "relative to the folder of a scene"),
        ("scl:4..7", "values must be like 4-7,11"),
        ("scl:7-4", "ranges of values must go up"),
        ("fmask:bits:63", "bits must be 0 to 62"),
        ("udm2:band0:1", "values must be like"),
    ],
)
def test_other_values_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_validity(text)


@pytest.mark.parametrize("text", ["scl", "udm2", "qa-pixel", "fmask", "a/{case}*.tif:band3:not:1,4-5+bits:2"])
def test_the_text_of_a_mask_says_the_same(text):
    assert parse_validity(str(parse_validity(text))) == parse_validity(text)


# --- files ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def names(tmp_path):
    def made(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"x")
        return tmp_path

    return made


def found(root: Path, name: str, text: str) -> str:
    path = MaskFinder(parse_validity(text)).find(Case(Path(name).stem, str(root / name)))
    return str(Path(path).relative_to(root))


@pytest.mark.parametrize(
    ("case", "text", "mask"),
    [
        ("a.tif", "scl", "a_SCL.tif"),
        ("T33UXP_20240615T095549_stack.tif", "scl", "T33UXP_20240615T095549_SCL_20m.jp2"),
        ("20220612_1000_1020_3B_AnalyticMS_SR_clip.tif", "udm2", "20220612_1000_1020_3B_udm2_clip.tif"),
        ("LC08_L2SP_193027_T1_SR_B4.TIF", "qa-pixel", "LC08_L2SP_193027_T1_QA_PIXEL.TIF"),
        ("HLS.S30.T32TQM.2022163T100031.v2.0.stack.tif", "fmask", "HLS.S30.T32TQM.2022163T100031.v2.0.Fmask.tif"),
        ("a.tif", "{case}-clouds.png:1", "a-clouds.png"),
        ("a.tif", "masks/{case}*.tif", "masks/a_v2.tif"),
        ("sub/a[1].tif", "../masks/{case}.tif", "masks/a[1].tif"),
    ],
)
def test_a_mask_is_found(names, case, text, mask):
    others = ("b_SCL.tif", "T33UXP_20240616T095549_SCL_20m.jp2", "SCL.tif", f"{mask}.aux.xml", "other/a_SCL.tif")
    root = names(case, mask, *others)
    assert (root / found(root, case, text)).resolve() == (root / mask).resolve()


def test_the_mask_with_the_longest_name_counts(names):
    assert found(names("a_b_c.tif", "a_SCL.tif", "a_b_SCL.tif"), "a_b_c.tif", "scl") == "a_b_SCL.tif"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scl", "a.tif: --validity scl needs a mask for each case, and there is none beside it, named after it with _SCL"),
        ("{case}_x.tif", r"a.tif: --validity needs a mask for each case, and {case}_x.tif names no file"),
        (
            "b*.tif",
            "a.tif: --validity must name one mask per case, and finds .*b1.tif, .*b2.tif, .*b_SCL.tif: name",
        ),
    ],
)
def test_no_mask_or_several_are_an_error(names, text, message):
    root = names("a.tif", "b1.tif", "b2.tif", "b_SCL.tif")
    with pytest.raises(SourceError, match=message):
        found(root, "a.tif", text)


PATTERNS = (
    "*.tif",
    "../masks/{case}*.tif",
    "../m*/{case}_?.tif",
    "**/[ab]*.tif",
    "../*/../masks/{case}_x.tif",
    "./{case}*",
    "x*/y*",
)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_find_what_glob_finds(pattern, names):
    root = names(
        "scenes/a[1].tif", "scenes/.a[1]_h.tif", "scenes/sub/b.tif", "masks/a[1]_x.tif", "masks/a[1]_y.tif", "masks/b.tif"
    )
    folder = glob.escape(str(root / "scenes"))
    wanted = glob.glob(f"{folder}/{pattern.replace('{case}', glob.escape('a[1]'))}")
    finder = MaskFinder(parse_validity(f"{pattern}:1"))
    assert finder._found(Case("a", str(root / "scenes/a[1].tif"))) == sorted(path.replace("/./", "/") for path in wanted)


@pytest.mark.parametrize("pattern", ["../masks/{case}*.tif:1", "../m*/{case}*.tif:1", "../masks/{case}_x.tif:1", "scl"])
def test_a_folder_that_cannot_be_read_is_not_empty(pattern, names, monkeypatch):
    """Its masks would be cases, and their scenes would fail as if there were none."""
    root = names("scenes/a.tif", "masks/a_x.tif")
    case = Case("a", str(root / "scenes/a.tif"))
    place = root / "scenes" if pattern == "scl" else root / "masks/a_x.tif" if "_x" in pattern else root / "masks"
    fail(monkeypatch, place)
    with pytest.raises((OSError, SourceError), match="Input/output error"):
        with_masks([case], parse_validity(pattern))


def test_the_mask_of_a_product_is_in_it(names):
    root = names("a_B04.tif", "a_SCL.tif")
    files = SceneFiles("bands", str(root), (str(root / "a_B04.tif"), str(root / "a_SCL.tif")), ("B04", "SCL"), "a")
    case = Case("a", str(root / "a"), SCENE, files)
    assert mask_of(case, parse_validity("scl")) == str(root / "a_SCL.tif")
    assert mask_of(case, parse_validity("{case}_B04.tif:1")) == str(root / "a_B04.tif")
    with pytest.raises(SourceError, match="none in it or beside it"):
        mask_of(case, parse_validity("fmask"))


def test_masks_are_no_cases(names):
    root = names("a.tif", "a_SCL.tif", "sub/b.tif", "sub/b_SCL.jp2", "c.tif")
    cases = [Case(p.stem, str(p)) for p in sorted(root.rglob("*.*"))]
    kept, count = with_masks(cases, parse_validity("scl"))
    assert [(case.name, case.mask and Path(case.mask).name) for case in kept] == [
        ("a", "a_SCL.tif"),
        ("c", None),
        ("b", "b_SCL.jp2"),
    ]
    assert count == 2


def test_a_changed_mask_is_another_input(names):
    root = names("a.tif", "a_SCL.tif", "a_SCL_v2.tif")
    case, mask = Case("a", str(root / "a.tif")), parse_validity("{case}_SCL.tif:1")
    files = identities(case.path, [case.path, str(root / "a_SCL.tif")])
    assert without_mask(files, case, mask, FolderListings()) == identities(case.path, [case.path])
    assert without_mask(files, case, parse_validity("{case}_SCL_v2.tif:1"), FolderListings()) is None
    assert without_mask(files[:1], case, mask, FolderListings()) is None
    (root / "a_SCL.tif").write_bytes(b"xy")
    assert without_mask(files, case, mask, FolderListings()) is None


# --- pixels ---------------------------------------------------------------------------------------------------------------


def written(path: Path, values: Any, transform: Affine | None = UTM, crs: str | None = "EPSG:32633") -> str:
    bands = np.atleast_3d(np.asarray(values).T).T
    place = {} if transform is None else {"transform": transform, "crs": crs}
    count, height, width = bands.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=bands.dtype, **place
    ) as file:
        file.write(bands)
    return str(path)


def brute(grid: RasterGrid, path: str, good: Any) -> Any:
    """Whether each pixel is valid: its centre, moved to the mask's CRS, pixel by pixel."""
    with rasterio.open(path) as mask:
        values, inverse, (height, width) = mask.read(1), ~mask.transform, mask.shape
        moved = Transformer.from_crs(grid.crs.to_wkt(), mask.crs.to_wkt(), always_xy=True)
    wanted = np.zeros(grid.shape, bool)
    for row, col in np.ndindex(*grid.shape):
        x, y = moved.transform(*(grid.transform * (col + 0.5, row + 0.5)))
        c, r = inverse * (x, y)
        if 0 <= r < height and 0 <= c < width:
            wanted[row, col] = values[int(r), int(c)] in good
    return wanted


def grid(transform: Affine = UTM, crs: str = "EPSG:32633", shape: tuple[int, ...] = SHAPE) -> RasterGrid:
    return RasterGrid(shape, CRS.from_user_input(crs), transform)


PLACES = {
    "the same": (UTM, "EPSG:32633", SHAPE),
    "coarser": (UTM * Affine.scale(2), "EPSG:32633", (30, 40)),
    "finer": (UTM * Affine.scale(0.4), "EPSG:32633", (150, 200)),
    "shifted": (UTM * Affine.translation(-33, 21) * Affine.scale(3), "EPSG:32633", (30, 30)),
    "south up": (Affine(20, 0, 500_000, 0, 20, 5_399_400), "EPSG:32633", (30, 40)),
    "rotated": (UTM * Affine.translation(20, -20) * Affine.rotation(30), "EPSG:32633", (70, 90)),
    "degrees": (Affine(0.0002, 0, 14.998, 0, -0.0002, 48.756), "EPSG:4326", (60, 80)),
    "next zone": (Affine(20, 0, 58_000, 0, -20, 5_425_000), "EPSG:32634", (1000, 200)),
}


@pytest.mark.parametrize("name", PLACES)
def test_pixels_are_those_of_the_mask_at_their_centres(tmp_path, name, monkeypatch):
    transform, crs, shape = PLACES[name]
    values = np.random.default_rng(0).integers(0, 12, shape, dtype=np.uint8)
    path = written(tmp_path / "m.tif", values, transform, crs)
    condition = parse_validity("{case}:4-7").conditions
    with gdal_options():
        limit = MaskLimit(path, grid(), condition)
        wanted = brute(grid(), path, {4, 5, 6, 7})
        assert 0 < wanted.sum() < wanted.size
        for window in (Window((0, 0), SHAPE), Window((7, 13), (38, 71)), Window((59, 0), (60, 80))):
            part = wanted[tuple(map(slice, window.start, window.stop))]
            assert np.array_equal(limit.invalid(window), ~part)
        monkeypatch.setattr(scene_mask, "AT_ONCE", 100)
        assert np.array_equal(limit.invalid(Window((0, 0), SHAPE)), ~wanted)
        assert limit.memory((64, 64)) > 0
        assert bool(limit.notes) == (crs != "EPSG:32633")
        limit.close()


def test_a_window_that_is_valid_has_no_mask(tmp_path):
    with gdal_options():
        limit = MaskLimit(written(tmp_path / "m.tif", np.ones(SHAPE, np.uint8)), grid(), parse_validity("{case}").conditions)
        assert limit.invalid(Window((3, 3), (9, 9))) is None
        limit.close()


def test_masks_without_a_place_have_the_size_of_their_scene(tmp_path):
    values = np.random.default_rng(0).integers(0, 2, SHAPE, dtype=np.uint8)
    path = written(tmp_path / "m.tif", values, None)
    with gdal_options():
        limit = MaskLimit(path, RasterGrid(SHAPE), parse_validity("{case}").conditions)
        assert np.array_equal(limit.invalid(Window((0, 0), SHAPE)), values == 0)
        limit.close()
        with pytest.raises(
            SourceError, match="must have a geotransform, as the scene must, or the same size; they have 81 x 60"
        ):
            MaskLimit(path, RasterGrid((60, 81)), parse_validity("{case}").conditions)


def test_all_conditions_on_all_bands_count(tmp_path):
    bands = np.zeros((8, *SHAPE), np.uint8)
    bands[0, :, 10:] = 1
    bands[7, :5] = 2
    with gdal_options():
        limit = MaskLimit(written(tmp_path / "m.tif", bands), grid(), parse_validity("udm2").conditions)
        wanted = np.ones(SHAPE, bool)
        wanted[5:, 10:] = False
        assert np.array_equal(limit.invalid(Window((0, 0), SHAPE)), wanted)
        limit.close()


@pytest.mark.parametrize(
    ("values", "transform", "text", "message"),
    [
        (np.ones(SHAPE, np.uint8), UTM * Affine.translation(900, 0), "{case}", "must lie on its scene, and lies elsewhere"),
        (np.ones(SHAPE, np.float32), UTM, "{case}:bits:1", "must hold integers for bits, got float32"),
        (np.ones(SHAPE, np.uint8), UTM, "udm2", "band"),
    ],
)
def test_a_mask_that_cannot_be_the_scenes_is_refused(tmp_path, values, transform, text, message):
    path = written(tmp_path / "m.tif", values, transform)
    with gdal_options(), pytest.raises(SourceError, match=message) as error:
        MaskLimit(path, grid(), parse_validity(text).conditions)
    assert re.search("m.tif", str(error.value))

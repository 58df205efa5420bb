"""The joined map of a run: against one made by brute force, GDAL's warper, its index as GDAL draws it, and bad input."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from command import invoke
from networks import pixelwise
from overlapping import RULES, UTM, joined, make_scenes, read, run, scene, totals
from rio_cogeo.cogeo import cog_validate

from segpipe.formats.raster.sparse_sink import SparseSink
from segpipe.geometry.windows import Window
from segpipe.jobs.disk import Free
from segpipe.results.overlap import mask_cache
from segpipe.results.overlap import mosaic as joining
from segpipe.storage.folder import UNLOCKED, Folder
from segpipe.storage.stores import store_at

GTI = """
import sys, rasterio, numpy
with rasterio.open(sys.argv[1]) as dataset:
    print(dataset.driver, dataset.nodata, dataset.crs.to_epsg(), *dataset.transform[:6])
    numpy.save(sys.argv[2], dataset.read())
"""
"""Reads an index in a process of its own: segpipe closes GDAL's driver for indexes in its own."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_scenes(tmp_path_factory.mktemp("mosaic"))
    done = run(root, "--confidence")
    assert done.returncode == 0, done.stderr
    for rule in RULES:
        assert run(root, "--confidence", "--overlap-rule", rule, out=rule).returncode == 0
    return root


def mosaic(root: Path, *more: Any, out: str = "out", target: str = "map.tif") -> Any:
    return invoke(["mosaic", out, "-o", target, *more], root)


def drawn(index: Path, tmp_path: Path) -> tuple[Any, str]:
    """The pixels of an index, as GDAL draws them, and its properties."""
    place = tmp_path / "drawn.npy"
    done = subprocess.run([sys.executable, "-c", GTI, index, place], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return np.load(place), done.stdout


@pytest.mark.parametrize("rule", RULES)
def test_the_mosaic_is_that_of_brute_force_and_has_the_totals(made: Path, tmp_path: Path, rule: str) -> None:
    target = tmp_path / "map.tif"
    done = mosaic(made, "--overlap-rule", rule, target=str(target))
    assert done.returncode == 0, done.stderr
    canvas, _ = joined(made, rule)
    truth = np.where(canvas == 254, 255, canvas)
    assert done.stdout.splitlines()[0].endswith(f"155 x 170 px in EPSG:32633, of 3 cases, by --overlap-rule {rule}")
    with rasterio.open(target) as dataset, rasterio.open(made / "out" / "a_20230601.tif") as mask:
        labels = dataset.read(1)
        assert (labels == truth).all()
        assert dataset.transform == UTM * Affine.translation(0, -20)
        assert (dataset.crs, dataset.nodata, dataset.dtypes) == (mask.crs, 255, ("uint8",))
        assert dataset.colormap(1) == mask.colormap(1)
        assert dataset.tags()["CLASS_1"] == "class1"
        assert dataset.descriptions == mask.descriptions
    assert cog_validate(target)[0]
    classes = totals(made, rule)["classes"]
    assert [classes[f"class{k}"]["pixels"] for k in range(3)] == [int((labels == k).sum()) for k in range(3)]
    if rule != "confidence":
        pixels, said = drawn(tmp_path / "map.gti.gpkg", tmp_path)
        assert said.startswith("GTI 255.0 32633 10.0 0.0 500000.0 0.0 -10.0 5400200.0")
        assert (pixels[0] == truth).all()
        assert said
    else:
        assert "which draws masks by name" in done.stdout


def test_a_mosaic_in_small_blocks_has_the_same_bytes(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks, and masks that are opened block by block, change nothing."""
    assert mosaic(made, target=str(tmp_path / "a.tif")).returncode == 0
    data = {suffix: (tmp_path / f"a{suffix}").read_bytes() for suffix in (".tif", ".tif.aux.xml")}
    monkeypatch.setattr(joining, "TILE", 16)
    monkeypatch.setattr(mask_cache, "MOST", 1)
    monkeypatch.setattr("segpipe.formats.raster.sink.HELD_BYTES", 0)  # by a draft on disk, as large maps
    assert mosaic(made, target=str(tmp_path / "b.tif")).returncode == 0
    assert {suffix: (tmp_path / f"b{suffix}").read_bytes() for suffix in data} == data
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"{name}{suffix}" for name in "ab" for suffix in (".gti.gpkg", ".tif", ".tif.aux.xml"))
    ]


def test_scenes_far_apart_are_one_map(tmp_path: Path) -> None:
    make_scenes(tmp_path, {"a": (0, 0), "b": (-700, 900)})
    assert run(tmp_path).returncode == 0
    assert mosaic(tmp_path, target="out/map.tif").returncode == 0  # among the masks
    labels = read(tmp_path / "out" / "map.tif")
    assert labels.shape == (780, 1000)
    assert (labels[:80, 900:] == read(tmp_path / "out" / "b.tif")).all()
    assert (labels[700:, :100] == read(tmp_path / "out" / "a.tif")).all()
    labels[:80, 900:] = labels[700:, :100] = 255
    assert (labels == 255).all()
    assert run(tmp_path).returncode == 0  # the map is no case
    assert len(json.loads((tmp_path / "out" / "run.json").read_text())["skipped"]) == 2


def test_ground_without_masks_is_neither_joined_nor_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sparse map has the pixels of an ordinary one; blocks that no mask reaches are left."""
    make_scenes(tmp_path, {"a": (0, 0), "b": (-700, 900)})
    assert run(tmp_path).returncode == 0
    assert mosaic(tmp_path).returncode == 0
    written = 0

    def write(sink: SparseSink, window: Window, values: Any) -> None:
        nonlocal written
        written += window.size
        original(sink, window, values)

    original = SparseSink.write
    monkeypatch.setattr(SparseSink, "write", write)
    monkeypatch.setattr("segpipe.formats.raster.sparse_sink.PLAIN_DRAFT_PIXELS", 0)
    monkeypatch.setattr(joining, "TILE", 64)
    done = mosaic(tmp_path, target="sparse.tif")
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(read(tmp_path / "sparse.tif"), read(tmp_path / "map.tif"))
    assert 16_000 <= written <= 16 * 64**2
    assert cog_validate(tmp_path / "sparse.tif")[0]
    assert not list(tmp_path.glob(".drafts*"))
    assert mosaic(tmp_path, target="sparse.tif").returncode == 0  # it is known as segpipe's own


def test_a_map_of_continents_is_small_and_told_of_before(tmp_path: Path) -> None:
    make_scenes(tmp_path, {"a": (0, 0), "b": (-40_000, 50_000)})
    assert run(tmp_path).returncode == 0
    done = mosaic(tmp_path)
    assert done.returncode == 0, done.stderr
    warning, size = done.stderr.splitlines()
    assert warning.startswith("warning: masks lie far apart, on 0.0008% of the mosaic at most: for fewer pixels give")
    assert size.startswith("map.tif: 40,080 x 50,100 px, 2,008 Mpx, masks on 0.0008% of it at most; the file likely has 1")
    assert (tmp_path / "map.tif").stat().st_size < 300_000
    with rasterio.open(tmp_path / "map.tif") as dataset:
        for name, row, col in (("a", 40_000, 0), ("b", 0, 50_000)):
            found = dataset.read(1, window=rasterio.windows.Window(col, row, 100, 80))
            np.testing.assert_array_equal(found, read(tmp_path / "out" / f"{name}.tif"))
        assert (dataset.read(1, out_shape=(401, 501)) == 255).mean() > 0.99
    (tmp_path / "in" / "b.tif").rename(tmp_path / "b.tif")  # what the warning tells to do
    assert run(tmp_path).returncode == 0
    done = mosaic(tmp_path)
    assert (done.stderr, read(tmp_path / "map.tif").shape) == ("", (80, 100))


def test_a_disk_that_is_too_small_is_told_of_before(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segpipe.api.mosaic_size.free_at", lambda _: Free(1000, None))
    done = mosaic(made, target=str(tmp_path / "map.tif"))
    said = f"warning: the mosaic likely takes 1 MB in {tmp_path} while it is made, at most 1 MB, and 1 MB are free"
    assert said in done.stderr
    assert done.returncode == 0


def test_masks_of_two_zones_are_those_of_gdal(tmp_path: Path) -> None:
    """Each pixel of the grid has the label of the nearest pixel, as gdalwarp's nearest neighbour."""
    from rasterio.warp import Resampling, reproject

    make_scenes(tmp_path, {"a": (0, 0)})
    scene(tmp_path / "in" / "b.tif", Affine(10, 0, 60_053 + 400, 0, -10, 5_417_000), 5, "EPSG:32634")
    assert run(tmp_path, "--nodata", "none").returncode == 0
    done = mosaic(tmp_path)
    assert done.returncode == 2
    assert "a is in EPSG:32633 and b in EPSG:32634: name one with --crs, such as --crs EPSG:32633" in done.stderr
    done = mosaic(tmp_path, "--crs", "EPSG:32633")
    assert done.returncode == 0, done.stderr
    assert "1 of 2 cases moved to this grid, each pixel from the nearest: count no areas in this map" in done.stdout
    with rasterio.open(tmp_path / "map.tif") as dataset:
        labels, place = dataset.read(1), {"dst_transform": dataset.transform, "dst_crs": dataset.crs}
        assert ((dataset.transform.c - 500_000) % 10, dataset.transform.a) == (0, 10)
    own, other = np.full(labels.shape, 255, np.uint8), np.full(labels.shape, 255, np.uint8)
    for name, found in (("a", own), ("b", other)):
        with rasterio.open(tmp_path / "out" / f"{name}.tif") as mask:
            reproject(rasterio.band(mask, 1), found, **place, dst_nodata=255, resampling=Resampling.nearest, tolerance=0)
    truth = np.where(own != 255, own, other)
    assert (truth != 255).sum() > 1.3 * 8000
    assert (labels == truth).mean() > 0.999
    pixels, _ = drawn(tmp_path / "map.gti.gpkg", tmp_path)
    assert (pixels[0] == truth).mean() > 0.99
    degrees = mosaic(tmp_path, "--crs", "EPSG:4326")
    assert "--crs is the CRS of no mask, so that its pixels need a size: give --resolution, too" in degrees.stderr
    assert mosaic(tmp_path, "--crs", "EPSG:4326", "--resolution", 1e-4).returncode == 0


def test_pixel_sizes_that_differ_need_one(tmp_path: Path) -> None:
    make_scenes(tmp_path, {"a": (0, 0)})
    scene(tmp_path / "in" / "b.tif", UTM * Affine.translation(90, 0) * Affine.scale(2), 3)
    assert run(tmp_path).returncode == 0
    done = mosaic(tmp_path)
    assert done.returncode == 2
    assert "those of a are 10 x 10, of b 20 x 20: give --resolution 10, or another size" in done.stderr
    assert mosaic(tmp_path, "--resolution", 10).returncode == 0
    labels, b = read(tmp_path / "map.tif"), read(tmp_path / "out" / "b.tif")
    assert labels.shape == (160, 290)
    assert (labels[80:, 90:] == np.kron(b, np.ones((2, 2), np.uint8))[80:]).all()


def test_both_sides_of_the_antimeridian_are_one_map(tmp_path: Path) -> None:
    make_scenes(tmp_path, {})
    step = 0.0001
    scene(tmp_path / "in" / "a.tif", Affine(step, 0, 179.994, 0, -step, 10), 1, "EPSG:4326")
    scene(tmp_path / "in" / "b.tif", Affine(step, 0, -180.002, 0, -step, 10), 2, "EPSG:4326")
    assert run(tmp_path, "--nodata", "none").returncode == 0
    done = mosaic(tmp_path)
    assert done.returncode == 0, done.stderr
    labels = read(tmp_path / "map.tif")
    assert labels.shape == (80, 140)
    assert (labels[:, :100] == read(tmp_path / "out" / "a.tif")).all()
    assert (labels[:, 100:] == read(tmp_path / "out" / "b.tif")[:, 60:]).all()


def test_rotated_masks_of_one_grid_keep_it(tmp_path: Path) -> None:
    make_scenes(tmp_path, {})
    turned = UTM * Affine.rotation(30)
    scene(tmp_path / "in" / "a.tif", turned, 1)
    scene(tmp_path / "in" / "b.tif", turned * Affine.translation(60, 20), 2)
    assert run(tmp_path, "--nodata", "none").returncode == 0
    done = mosaic(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no index: GDAL knows indexes of grids with north up" in done.stdout
    labels = read(tmp_path / "map.tif")
    assert labels.shape == (100, 160)
    assert (labels[:80, :100] == read(tmp_path / "out" / "a.tif")).all()
    assert (labels[80:, 60:] == read(tmp_path / "out" / "b.tif")[60:]).all()


def test_independent_classes_keep_their_bands(tmp_path: Path) -> None:
    make_scenes(tmp_path, {"a": (0, 0), "b": (0, 60)})
    pixelwise(tmp_path / "model.onnx", seed=6, task="multilabel", activation="sigmoid", threshold=0.5)
    assert run(tmp_path).returncode == 0
    assert mosaic(tmp_path).returncode == 0
    with rasterio.open(tmp_path / "map.tif") as dataset, rasterio.open(tmp_path / "out" / "a.tif") as a:
        bands, own = dataset.read(), a.read()
        assert dataset.descriptions == a.descriptions == ("class0", "class1", "class2")
    assert (bands[:, :, :60] == own[:, :, :60]).all()
    both = own[0, :, 60:] != 255
    assert (bands[:, :, 60:100][:, both] == own[:, :, 60:][:, both]).all()


@pytest.mark.parametrize("sparse", [False, True])
def test_a_map_in_a_bucket_of_masks_in_a_bucket(
    sparse: bool, made: Path, tmp_path: Path, endpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sparse:
        monkeypatch.setattr("segpipe.formats.raster.sparse_sink.PLAIN_DRAFT_PIXELS", 0)
        monkeypatch.setattr("segpipe.formats.raster.sparse_sink.SPARSE_SHARE", 2)
    endpoint.put_folder(made / "out", "run")
    done = mosaic(made, out="s3://scenes/run", target="s3://scenes/maps/map.tif")
    assert done.returncode == 0, done.stderr
    assert mosaic(made, target=str(tmp_path / "map.tif")).returncode == 0
    store = store_at("s3://scenes/maps")
    assert store.read("map.tif") == (tmp_path / "map.tif").read_bytes()
    assert b"/vsis3/scenes/run/a_20230601.tif" in store.read("map.gti.gpkg")


def changed(root: Path, name: str, change: Any) -> None:
    path = root / "out" / f"{name}.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_masks_that_are_no_one_map_are_named(tmp_path: Path) -> None:
    make_scenes(tmp_path, {"a": (0, 0), "b": (0, 60)})
    assert run(tmp_path).returncode == 0
    keep = (tmp_path / "out" / "b.json").read_bytes()

    def other_class(record: Any) -> None:
        record["statistics"]["areas"][0]["class_name"] = "meadow"

    for change, text in (
        (lambda record: record["model"].update(sha256="1" * 64), "masks of one model, and those of a and b are of two"),
        (other_class, "masks with the same classes, and those of a and b differ: keep their runs in outputs of their own"),
    ):
        changed(tmp_path, "b", change)
        done = mosaic(tmp_path)
        assert done.returncode == 2
        assert text in done.stderr
        assert not (tmp_path / "map.tif").exists()
        (tmp_path / "out" / "b.json").write_bytes(keep)
    pixels = np.random.default_rng(0).integers(1, 256, (3, 40, 50), dtype=np.uint8)
    with rasterio.open(tmp_path / "in" / "p.png", "w", driver="PNG", width=50, height=40, count=3, dtype="uint8") as file:
        file.write(pixels)
    assert run(tmp_path).returncode == 0
    done = mosaic(tmp_path)
    assert done.returncode == 2
    assert "a position on the Earth, as that of a, and p has none: the file has no georeferencing" in done.stderr


def test_files_of_others_and_masks_stay(made: Path, tmp_path: Path) -> None:
    foreign = scene(tmp_path / "scene.tif", UTM, 1)
    before = foreign.read_bytes()
    for target, text in (
        (str(foreign), "scene.tif, or its index, was not written by segpipe: name another file"),
        ("out/a_20230601.tif", "the mosaic must not replace a mask of its run"),
        ("map.png", "the mosaic must be a .tif, got map.png: name it such as mosaic.tif"),
        ("none/map.tif", "the mosaic must lie in a folder that exists"),
    ):
        done = mosaic(made, target=target)
        assert done.returncode == 2, target
        assert text in done.stderr
    assert foreign.read_bytes() == before
    done = mosaic(made, "--crs", "nonsense", target=str(tmp_path / "m.tif"))
    assert done.returncode == 2
    assert "--crs must be a code such as EPSG:32633, or WKT, got nonsense" in done.stderr
    done = mosaic(made, "--resolution", 1e-9, target=str(tmp_path / "m.tif"))
    assert done.returncode == 2
    assert "give --resolution" in done.stderr
    done = invoke(["mosaic", "in", "-o", "m.tif"], made)
    assert done.returncode == 2
    assert "must be the output of a run" in done.stderr


def test_a_damaged_mask_leaves_the_map_that_was_there(tmp_path: Path) -> None:
    make_scenes(tmp_path, {"a": (0, 0), "b": (0, 60)})
    assert run(tmp_path).returncode == 0
    assert mosaic(tmp_path).returncode == 0
    before = (tmp_path / "map.tif").read_bytes()
    mask = tmp_path / "out" / "b.tif"
    data = bytearray(mask.read_bytes())
    with rasterio.open(mask) as dataset:
        block = int(dataset.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", 1))
    data[block + 20 : block + 220] = bytes(200)
    mask.write_bytes(data)
    done = mosaic(tmp_path)
    assert done.returncode == 2
    assert "b.tif cannot be read" in done.stderr
    assert "remove the file and run again with the same output" in done.stderr
    assert (tmp_path / "map.tif").read_bytes() == before
    mask.unlink()
    assert run(tmp_path).returncode == 0
    assert mosaic(tmp_path).returncode == 0
    assert (tmp_path / "map.tif").read_bytes() == before


KILLED = """
import os, signal
from segpipe.formats.raster.sink import RasterSink
RasterSink.finish = RasterSink.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
from segpipe.cli import main
main("mosaic out -o map.tif".split())
"""


def test_a_killed_mosaic_leaves_no_half_map_and_the_next_makes_it(made: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=made, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (made / "map.tif").exists()
    assert mosaic(made).returncode == 0
    assert not list(made.glob(".drafts*"))
    assert (made / "map.gti.gpkg").exists()


def test_the_next_map_of_a_name_replaces_a_killed_draft_and_leaves_those_of_others(made: Path, tmp_path: Path) -> None:
    """Another run may be writing a map to the same folder."""
    drafted = "from segpipe.formats.raster import sink\nsink.HELD_BYTES = 0\n"
    words = [sys.executable, "-c", drafted + KILLED.replace("map.tif", str(tmp_path / "map.tif"))]
    assert subprocess.run(words, cwd=made, check=False).returncode == -signal.SIGKILL
    left = sorted((tmp_path / UNLOCKED).iterdir())
    Folder(tmp_path).sweep()
    assert sorted((tmp_path / UNLOCKED).iterdir()) == left != []  # as at the end of a run into this folder
    (tmp_path / UNLOCKED / "other.tif").write_bytes(b"of another run")
    assert mosaic(made, target=str(tmp_path / "map.tif")).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [UNLOCKED, "map.gti.gpkg", "map.tif", "map.tif.aux.xml"]
    assert [path.name for path in (tmp_path / UNLOCKED).iterdir()] == ["other.tif"]


FEW_FILES = """
import resource, sys
from segpipe.cli import main
resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
main(["mosaic", "out", "-o", "map.tif", *sys.argv[1:]])
"""
"""Run ``mosaic`` in a process that may open 20 files: those of Python, GDAL and PROJ, and a few masks."""


@pytest.mark.parametrize("rule", ["first", "confidence"])
def test_a_mosaic_of_more_masks_than_files_may_be_open(rule: str, tmp_path: Path) -> None:
    """Scenes of which each adds a few rows to those before it, so that all are read."""
    places = {f"s{k:02d}": (4 * k, 0) for k in range(14)}
    make_scenes(tmp_path, places)
    assert run(tmp_path, "--confidence").returncode == 0
    words = [sys.executable, "-c", FEW_FILES, "--overlap-rule", rule]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    canvas, _ = joined(tmp_path, rule, places=places)
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), np.where(canvas == 254, 255, canvas))


@pytest.mark.parametrize("what", ["size", "is_blank", "local"])
def test_a_mask_that_cannot_be_opened_now_is_named_with_the_mend(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(Folder, what)

    def refused(self: Folder, name: str) -> Any:
        if name == "a.tif":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), self.path(name))
        return real(self, name)

    make_scenes(tmp_path, {"a": (0, 0), "b": (0, 60)})
    assert run(tmp_path).returncode == 0
    monkeypatch.setattr(Folder, what, refused)
    for words in (["mosaic", "out", "-o", "map.tif"], ["polygons", "out", "-o", "p.geojson"]):
        done = invoke(words, tmp_path)
        assert done.returncode == 2, done.stderr
        assert "a.tif cannot be read: Too many open files: raise the limit of open files of this process" in done.stderr

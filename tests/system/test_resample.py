"""Runs on rasters of another pixel size than the model's, against the whole array resampled, inferred and interpolated."""

import json

import nibabel
import numpy as np
import pytest
import rasterio
import volumes
from networks import Network, contract, local, pixelwise, positional, volumetric
from rasterio.transform import from_origin
from scipy.ndimage import map_coordinates
from test_oracle import NODATA, brute_force, check, scene
from test_regridding import by_matrices, places
from test_volume_stages import brute_force as brute_force_volume

from segpipe.export.tiles import scene_samples
from segpipe.formats.cases import find_cases
from segpipe.formats.raster.gdal import gdal_options
from segpipe.geometry.division import Limits, divide
from segpipe.geometry.regridding import Regridding
from segpipe.geometry.windows import Cover
from segpipe.network.read import read_spec
from segpipe.overrides import Overrides
from segpipe.pipeline import run as stages
from segpipe.pipeline.opening import open_checked
from segpipe.pipeline.spacing import whole_ratio
from segpipe.settings import load_settings
from segpipe.tune.places import survey

SPACED = {"spacing": [10.0, 10.0]}


def metres(size, top=5_400_000):
    rows, cols = size if isinstance(size, tuple) else (size, size)
    return from_origin(500_000, top, cols, rows)


def info_of(path, model):
    spec = read_spec(load_settings(None, {"input": (str(path),), "model": model, "device": "cpu"}))
    with gdal_options():
        (case,) = find_cases([str(path)])
        source, info = open_checked(case, spec, Overrides(resample=True))
        source.close()
    return info


def regridding_of(path, model):
    return info_of(path, model).regridding


def seen_by_network(regridding, pixels, valid):
    """The whole case on the network's grid, in float64, and where it is valid."""
    weight = by_matrices(regridding, valid.astype(float))
    summed = by_matrices(regridding, np.where(valid, pixels.astype(float), 0))
    return summed / np.where(weight > 0, weight, 1), weight > 0


def on_own_grid(regridding, mean, seen):
    points = np.meshgrid(*map(places, regridding.axes), indexing="ij")
    weight = map_coordinates(seen.astype(float), points, order=1, mode="nearest")
    scores = np.stack([map_coordinates(one * seen, points, order=1, mode="nearest") for one in mean])
    return scores / np.where(weight > 0, weight, 1)


@pytest.mark.parametrize(
    ("size", "shape"),
    [(20, (45, 61)), (19, (40, 33)), (7.3, (90, 75)), (5, (81, 120)), ((20, 5), (30, 90)), (20, (1, 50)), (45, (17, 1))],
)
@pytest.mark.parametrize("nodata", ["none", "half", "islands"])
def test_labels_are_those_of_the_whole_array(size, shape, nodata, raster, run_serial, tmp_path):
    pixels = scene(*shape, nodata)
    model = positional(tmp_path / "m.onnx", 24, overlap=[8, 8], align=4, **SPACED)
    path = raster("in/a.tif", pixels, nodata=NODATA, transform=metres(size))
    out = run_serial(path, model, resample=True)
    regridding = regridding_of(path, model)
    rows, cols = size if isinstance(size, tuple) else (size, size)
    np.testing.assert_allclose(regridding.factors, [10 / rows, 10 / cols], rtol=2e-3)
    valid = (pixels != NODATA).all(axis=0)
    image, seen = seen_by_network(regridding, pixels, valid)
    mean = brute_force(model, image, seen, (24, 24), (8, 8), 4, "gaussian")
    with rasterio.open(out / "a.tif") as mask, rasterio.open(path) as source:
        assert (mask.shape, mask.transform, mask.crs) == (source.shape, source.transform, source.crs)
        check(mask.read(1), on_own_grid(regridding, mean, seen), valid)


def test_twenty_metres_are_read_as_ten_and_labelled_as_twenty(raster, run_serial, tmp_path):
    """A network of single pixels on an image of two halves: labels change where the halves meet."""
    pixels = np.empty((3, 40, 40), np.uint8)
    pixels[:, :, :20], pixels[:, :, 20:] = [[[20]], [[230]], [[40]]], [[[240]], [[10]], [[220]]]
    model = pixelwise(tmp_path / "m.onnx", seed=13, **SPACED)
    plain = pixelwise(tmp_path / "plain.onnx", seed=13)
    path = raster("in/a.tif", pixels, transform=metres(20))
    out = run_serial(path, model, resample=True)
    expected = run_serial(path, plain, output=tmp_path / "plain")
    with rasterio.open(out / "a.tif") as one, rasterio.open(expected / "a.tif") as other:
        assert len(np.unique(other.read(1))) == 2
        np.testing.assert_array_equal(one.read(1), other.read(1))
    record = json.loads((out / "a.json").read_text())
    assert any("resampled to the model's 10 x 10 m" in note for note in record["notes"])
    assert record["settings"]["resample"] is True


@pytest.mark.parametrize("size", [20, 7.3])
@pytest.mark.parametrize("more", [{"parts": 5}, {"parts": 12}, {"batch": 3}, {"device": "cpu-tensors"}])
def test_parts_batches_and_tensors_make_the_same_files(size, more, raster, run_serial, tmp_path):
    pixels = scene(97, 121, "half")
    model = local(tmp_path / "m.onnx", overlap=[20, 20], **SPACED)
    path = raster("in/a.tif", pixels, nodata=NODATA, transform=metres(size))
    settings = {"resample": True, "tile": (40, 40), "overlap": (8, 8), "confidence": True}
    whole = run_serial(path, model, output=tmp_path / "whole", **settings)
    out = run_serial(path, model, output=tmp_path / "more", **settings, **more)
    for name in ("a.tif", "a.confidence.tif"):
        with rasterio.open(whole / name) as one, rasterio.open(out / name) as other:
            expected, got = one.read(), other.read()
        if "device" in more:  # torch may round an exponential otherwise
            assert np.abs(got.astype(int) - expected).max() <= 1
        else:
            assert (whole / name).read_bytes() == (out / name).read_bytes()
    assert (whole / "areas.csv").read_bytes() == (out / "areas.csv").read_bytes()


@pytest.mark.parametrize("task", ["multilabel", "binary"])
def test_thresholds_are_of_mean_scores(task, raster, run_serial, tmp_path):
    pixels = scene(50, 41, "some")
    count = 1 if task == "binary" else 3
    net = Network(3).conv(3, count, 5)
    classes = [{"id": k + (count == 1), "name": str(k)} for k in range(count)]
    terms = {"activation": "sigmoid", "task": task, "threshold": 0.6, "classes": classes, "tile": [16, 16], **SPACED}
    model = net.save(tmp_path / "m.onnx", contract(3, **terms, overlap=[6, 6]), classes=count)
    path = raster("in/a.tif", pixels, nodata=NODATA, transform=metres(17))
    out = run_serial(path, model, resample=True, confidence=True)
    valid = (pixels != NODATA).all(axis=0)
    regridding = regridding_of(path, model)
    image, seen = seen_by_network(regridding, pixels, valid)
    mean = on_own_grid(regridding, brute_force(model, image, seen, (16, 16), (6, 6), 1, "gaussian"), seen)
    limit = np.log(0.6 / 0.4)
    clear = valid & (np.abs(mean - limit) > 1e-3).all(axis=0)
    with rasterio.open(out / "a.tif") as mask, rasterio.open(out / "a.confidence.tif") as sure:
        labels, likely = mask.read(), sure.read()
    np.testing.assert_array_equal(labels[:, clear], (mean > limit)[:, clear])
    assert (labels[:, ~valid] == 255).all()
    p = 1 / (1 + np.exp(-mean))
    expected = np.where(mean > limit, p, 1 - p) * 254
    np.testing.assert_allclose(likely[:, clear], expected[:, clear], atol=1)


def test_where_pixels_have_the_size_of_the_model_nothing_changes(raster, run_serial, tmp_path):
    model = local(tmp_path / "m.onnx", **SPACED)
    path = raster("in/a.tif", scene(90, 110, "some"), nodata=NODATA, transform=metres(10.5))
    plain = run_serial(path, model, output=tmp_path / "plain")
    out = run_serial(path, model, output=tmp_path / "asked", resample=True)
    assert (plain / "a.tif").read_bytes() == (out / "a.tif").read_bytes()
    assert regridding_of(path, model) is None


def test_without_the_setting_the_error_names_it_and_with_it_the_case_is_done(raster, segpipe, tmp_path):
    model = local(tmp_path / "m.onnx", **SPACED)
    raster("in/a.tif", scene(30, 40, "none"), transform=metres(20))
    run = ["run", "-i", "in", "-m", model, "-o", "out", "--device", "cpu", "--executor", "serial"]
    refused = segpipe(*run)
    assert refused.returncode == 1
    assert "give --resample to segpipe run or tune, or resample the file with gdalwarp -tr" in refused.stdout
    planned = segpipe(*run, "--resample", "--dry-run")
    assert planned.returncode == 0
    assert "are resampled to the model's 10 x 10 m" in planned.stdout + planned.stderr
    assert segpipe(*run, "--resample").returncode == 0
    again = segpipe(*run, "--resample")
    assert "1 done before" in again.stdout or "skipped" in again.stdout + again.stderr
    (tmp_path / "cfg.toml").write_text("resample = true\n")
    assert segpipe(*run[:-1], "serial", "--config", "cfg.toml", "--no-resample").returncode == 1


def test_a_picture_has_no_size_to_resample(raster, run_serial, tmp_path):
    model = local(tmp_path / "m.onnx", **SPACED)
    out = run_serial(raster("in/a.png", scene(30, 40, "none")), model, resample=True)
    assert any("not checked" in note for note in json.loads((out / "a.json").read_text())["notes"])


def test_a_run_that_is_killed_between_parts_goes_on_to_the_same_bytes(raster, run_serial, tmp_path, monkeypatch):
    model = local(tmp_path / "m.onnx", overlap=[20, 20], **SPACED)
    path = raster("in/a.tif", scene(97, 121, "half"), nodata=NODATA, transform=metres(7.3))
    settings = {"resample": True, "tile": (40, 40), "overlap": (8, 8)}
    whole = run_serial(path, model, output=tmp_path / "whole", **settings)
    out = tmp_path / "killed"
    left = [3]

    def regrid(*arguments, **options):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return original(*arguments, **options)

    original = stages.regrid
    monkeypatch.setattr(stages, "regrid", regrid)
    run_serial(path, model, output=out, parts=6, **settings)
    monkeypatch.setattr(stages, "regrid", original)
    assert len(list(out.rglob("*.npz"))) == 3
    run_serial(path, model, output=out, **settings)
    assert (whole / "a.tif").read_bytes() == (out / "a.tif").read_bytes()


def test_ratios_near_whole_numbers_are_whole():
    assert [whole_ratio(r) for r in (2.004, 0.4985, 0.334, 1.9, 0.73, 1.02, 10.2)] == [2, 0.5, 1 / 3, 1.9, 0.73, 1.02, 10.2]


def volume_model(path, tile=(8, 12, 10), **changes):
    return volumetric(path, tile, scale=1 / 255, pixel="physical", spacing=[1.0, 1.0, 1.0], **changes)


@pytest.mark.parametrize(
    ("spacing", "shape"),
    [
        ((2.5, 0.7, 0.9), (9, 31, 23)),
        ((1.0, 1.0, 5.0), (11, 14, 6)),
        ((3.0, 0.4, 0.4), (1, 40, 37)),
        ((0.5, 3.1, 1.0), (21, 1, 9)),
    ],
)
@pytest.mark.parametrize("lost", [0, 0.3])
@pytest.mark.parametrize("parts", [None, 7])
def test_volumes_are_resampled_without_asking(spacing, shape, lost, parts, run_serial, tmp_path):
    model = volume_model(tmp_path / "m.onnx", overlap=[2, 4, 3])
    rng = np.random.default_rng(0)
    pixels = rng.random((1, *shape)).astype(np.float32) * 255
    valid = rng.random(shape) >= lost
    data = np.where(valid, pixels[0], np.nan).astype(np.float32)
    (tmp_path / "in").mkdir()
    path = volumes.write(tmp_path / "in" / "a.nii.gz", data.T, np.diag([*spacing[::-1], 1.0]))
    out = run_serial(path, model, **({} if parts is None else {"parts": parts}))
    regridding = Regridding(shape, tuple(1 / s for s in spacing))
    image, seen = seen_by_network(regridding, pixels, valid)
    mean = brute_force_volume(model, np.where(seen, image, 0), (8, 12, 10), (2, 4, 3), (1, 1, 1), "gaussian")
    labels = np.asarray(nibabel.load(out / "a.nii.gz").dataobj).T
    check(labels, on_own_grid(regridding, mean, seen), valid)
    np.testing.assert_array_equal(nibabel.load(out / "a.nii.gz").affine, nibabel.load(path).affine)


def test_parts_without_a_pixel_of_the_own_grid_are_done_too(raster, run_serial, tmp_path):
    """Steps of windows are shorter than own pixels here, so that between two of these there are parts."""
    (tmp_path / "in").mkdir()
    data = np.random.default_rng(0).random((6, 9, 7)).astype(np.float32) * 255
    volume = volumes.write(tmp_path / "in" / "a.nii.gz", data, np.diag([5.0, 1.0, 1.0, 1.0]))
    scene_path = raster("in/b.tif", scene(2, 4, "none"), transform=metres(90))
    network = volume_model(tmp_path / "v.onnx", overlap=[2, 4, 9])
    plane = positional(tmp_path / "p.onnx", 24, overlap=[20, 20], align=4, **SPACED)
    for path, model, name, parts in ((volume, network, "a.nii.gz", 21), (scene_path, plane, "b.tif", 4)):
        info = info_of(path, model)
        boxes = map(info.cover.box, divide(info.cover, Limits(parts=parts)))
        assert any(not info.regridding.owned(box).size for box in boxes)
        whole = run_serial(path, model, output=tmp_path / "whole", resample=True, confidence=True)
        out = run_serial(path, model, output=tmp_path / "parts", resample=True, confidence=True, parts=parts)
        assert (whole / name).read_bytes() == (out / name).read_bytes()
        assert (whole / "areas.csv").read_bytes() == (out / "areas.csv").read_bytes()
        records = [json.loads((folder / f"{name[0]}.json").read_text()) for folder in (whole, out)]
        assert records[0]["windows"] == records[0]["inferred"] <= records[1]["inferred"]


def test_planes_keep_their_distance_under_a_model_of_images(run_serial, tmp_path):
    terms = {"spacing": [1.0, 1.0], "spacing_unit": "mm", "pixel": "physical"}
    model = positional(tmp_path / "m.onnx", 12, 1, overlap=[4, 4], **terms)
    (tmp_path / "in").mkdir()
    data = np.random.default_rng(0).random((5, 21, 17)).astype(np.float32) * 255
    path = volumes.write(tmp_path / "in" / "a.nii", data.T, np.diag([0.7, 1.9, 4.0, 1.0]))
    out = run_serial(path, model)
    regridding = Regridding(data.shape, (1, 1 / 1.9, 1 / 0.7))
    assert regridding_of(path, model).shape == regridding.shape
    valid = np.ones(data.shape, bool)
    image, seen = seen_by_network(regridding, data[None], valid)
    mean = brute_force_volume(model, image, (1, 12, 12), (0, 4, 4), (1, 1, 1), "gaussian")
    check(np.asarray(nibabel.load(out / "a.nii").dataobj).T, on_own_grid(regridding, mean, seen), valid)


def refused(model, root, *arguments, segpipe):
    run = segpipe(
        "run", "-i", "in", "-m", model, "-o", "out", "--device", "cpu", "--executor", "serial", "--resample", *arguments
    )
    assert run.returncode == 1
    return (root / "out" / "run.json").read_text()


def test_pixels_far_larger_than_the_models_are_refused(raster, segpipe, tmp_path):
    raster("in/a.tif", np.ones((3, 30, 40), np.uint8), transform=metres(1000))
    found = refused(local(tmp_path / "m.onnx", **SPACED), tmp_path, segpipe=segpipe)
    assert "pixels must be at most 64 times as large as the model's 10 x 10 m, got 1,000 x 1,000 m on the ground" in found


def test_a_tile_that_is_made_of_more_pixels_than_there_is_memory_for_is_refused(segpipe, tmp_path):
    """Before a pixel is read."""
    (tmp_path / "in").mkdir()
    profile = {"driver": "GTiff", "crs": "EPSG:32633", "transform": metres(0.01), "tiled": True, "sparse_ok": True}
    with rasterio.open(tmp_path / "in" / "a.tif", "w", width=70_000, height=70_000, count=3, dtype="uint8", **profile):
        pass
    found = refused(local(tmp_path / "m.onnx", **SPACED), tmp_path, "--memory", 8, segpipe=segpipe)
    assert (
        "a tile of 64 x 64 pixels of the model covers 66001 x 66001 pixels of the case, which take at least 17.4 GB" in found
    )
    assert "a worker may use 8.0 GB: lower --tile, raise --memory, or resample the file" in found


def test_tune_measures_a_scene_of_another_pixel_size_as_a_run_sees_it(raster, segpipe, tmp_path):
    """Blocks of 2 x 2 network pixels per own pixel of 20 m."""
    model = local(tmp_path / "m.onnx", **SPACED)
    path = raster("in/a.tif", scene(60, 70, "none"), transform=metres(20))
    command = ["tune", model, "--input", path, "--device", "cpu", "--tile", 64, "--overlap", 16, "--seconds", 1]
    refused = segpipe(*command)
    assert refused.returncode == 2
    assert "give --resample to segpipe run or tune, or resample the file" in refused.stderr
    done = segpipe(*command, "--resample", "--min-agreement", 0.01)
    assert done.returncode == 0, done.stderr
    assert "--resample" in done.stdout.splitlines()[-1]
    spec = read_spec(load_settings(None, {"input": (str(path),), "model": model}))
    with gdal_options():
        assert survey(find_cases([str(path)]), spec, Overrides(resample=True)) == [(120, 140)]


def test_export_takes_tiles_of_the_models_pixel_size_and_says_so(raster, tmp_path, caplog):
    """A scene of one value per band keeps it, whatever is interpolated; 60 pixels of 20 m are two tiles of 64 at 10 m."""
    model = local(tmp_path / "m.onnx", **SPACED)
    spec = read_spec(load_settings(None, {"input": ("a",), "model": model}))
    path = raster("in/a.tif", np.full((3, 60, 60), 51, np.uint8), transform=metres(20))
    tiles = [pixels for pixels, _ in scene_samples([str(path)], spec, Overrides(resample=True), 99)]
    assert len(tiles) == len(Cover((120, 120), spec.tiling))
    np.testing.assert_allclose(tiles, 51 / 255, rtol=1e-6)
    assert "m are resampled to the model's 10 x 10 m" in caplog.text

"""Products of many files give the masks of a raster of their bands, made by hand, in whatever form they lie and are cut."""

import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import networks
import numpy as np
import products
import pytest
import rasterio
from command import invoke
from numpy.typing import NDArray
from rasterio.transform import from_origin
from scenes import Silent
from warm import warm_workers

from segpipe.contract import parse_contract
from segpipe.formats.cases import find_input
from segpipe.formats.registry import environment, open_case
from segpipe.geometry.windows import Window
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import prepare
from segpipe.overrides import Overrides
from segpipe.settings import load_settings

CHANNELS = ["B02", "B04", "B11", "B01"]


def bilinear(values: NDArray[Any], factor: int) -> NDArray[Any]:
    """Between the centres of valid pixels, with edges of pixels aligned, along rows and then down; rounded half up."""
    found, valid = values.astype(np.float64), values != 0
    for axis in (1, 0):
        at = (np.arange(values.shape[axis] * factor) + 0.5) / factor - 0.5
        low = np.floor(at).astype(int)
        total, weights = 0.0, 0.0
        for taps, weight in ((low, 1 - (at - low)), (low + 1, at - low)):
            index = np.clip(taps, 0, values.shape[axis] - 1)
            shares = valid.take(index, axis) * (weight[None] if axis else weight[:, None])
            total, weights = total + shares * found.take(index, axis), weights + shares
        found, valid = np.where(weights > 0, total / np.where(weights > 0, weights, 1), 0), weights > 0
    return np.where(valid, np.floor(found + 0.5 + 1e-9), 0).astype(values.dtype)


def repeated(values: NDArray[Any], factor: int) -> NDArray[Any]:
    return np.kron(values, np.ones((factor, factor), values.dtype))


def stacked(path: Path, pixels: products.Bands, names: list[str], way: Any, **more: Any) -> Path:
    """One GeoTIFF of bands on the grid of 10 m."""
    layers = [way(pixels[name], products.SIZES[name] // 10) if products.SIZES[name] > 10 else pixels[name] for name in names]
    rows, cols = products.SHAPE
    kind = {"driver": "GTiff", "dtype": layers[0].dtype, "nodata": 0, "crs": "EPSG:32633", "count": len(names)}
    with rasterio.open(
        path, "w", width=cols, height=rows, transform=from_origin(*products.CORNER, 10, 10), **kind, **more
    ) as dataset:
        dataset.write(np.stack(layers))
        dataset.descriptions = names
    return path


def model(path: Path, channels: list[str] = CHANNELS, **changes: Any) -> Path:
    """Each score depends on the pixels around it."""
    network = networks.Network(len(channels)).conv(len(channels), 8, 3).add("Relu").conv(8, 4, 3)
    return network.save(path, networks.contract(channels, 4, **{"scale": 1e-4} | changes), classes=4)


def run(source: Path, network: Path, output: Path, **flags: Any) -> Any:
    fixed = {"input": (str(source),), "model": network, "output": output, "executor": "serial", "device": "cpu"}
    fixed |= {"unusual_values": "allow"}
    with warm_workers():
        return carry_out(prepare(load_settings(None, fixed | flags)), Silent())


def labels(output: Path, name: str) -> NDArray[Any]:
    with rasterio.open(output / f"{name}.tif") as dataset:
        assert dataset.transform == from_origin(*products.CORNER, 10, 10)
        return dataset.read()


def record(output: Path, name: str) -> Any:
    return json.loads((output / f"{name}.json").read_text())


@pytest.mark.parametrize(("band_resampling", "way"), [("bilinear", bilinear), ("nearest", repeated)])
def test_a_folder_and_an_archive_have_the_labels_of_bands_stacked_by_hand(tmp_path, band_resampling, way):
    pixels, network = products.bands(), model(tmp_path / "m.onnx")
    folder = products.safe(tmp_path / "in", pixels)
    archive = products.zipped(folder, tmp_path / "in" / "zipped.zip")
    raster = stacked(tmp_path / "stack.tif", pixels, CHANNELS, way)
    done = run(folder.parent, network, tmp_path / "out", band_resampling=band_resampling)
    assert (done.failed, sorted(done.done)) == ([], sorted([products.NEW, "zipped"]))
    assert not run(raster, network, tmp_path / "by-hand").failed
    _assert_pixels(folder, raster, band_resampling)
    wanted = labels(tmp_path / "by-hand", "stack")
    assert len(np.unique(wanted)) > 2
    assert (wanted == 255).sum() == 60 * 60
    for name in (products.NEW, archive.stem):
        np.testing.assert_array_equal(labels(tmp_path / "out", name), wanted)
    notes = record(tmp_path / "out", products.NEW)["notes"]
    assert f"B11, B01: resampled to the grid of B02, {band_resampling}, as --band-resampling says" in notes
    assert any("contain an offset of 1000" in note for note in notes)


def test_a_folder_has_the_labels_of_a_vrt_made_by_hand(tmp_path):
    network, folder = model(tmp_path / "m.onnx"), products.safe(tmp_path / "in", products.bands())
    rows, cols = products.SHAPE
    text = [f'<VRTDataset rasterXSize="{cols}" rasterYSize="{rows}"><SRS>EPSG:32633</SRS>']
    text.append(f"<GeoTransform>{products.CORNER[0]}, 10, 0, {products.CORNER[1]}, 0, -10</GeoTransform>")
    for number, name in enumerate(CHANNELS, 1):
        size = products.SIZES[name]
        file = next(folder.rglob(f"*_{name}_{size}m.jp2"))
        text.append(
            f'<VRTRasterBand dataType="UInt16" band="{number}"><Description>{name}</Description><NoDataValue>0</NoDataValue>'
            f'<ComplexSource><SourceFilename relativeToVRT="1">{file.relative_to(tmp_path)}</SourceFilename>'
            f'<SrcRect xOff="0" yOff="0" xSize="{cols * 10 // size}" ySize="{rows * 10 // size}"/>'
            f'<DstRect xOff="0" yOff="0" xSize="{cols}" ySize="{rows}"/><NODATA>0</NODATA></ComplexSource></VRTRasterBand>'
        )
    (tmp_path / "hand.vrt").write_text("".join([*text, "</VRTDataset>"]))
    assert not run(folder, network, tmp_path / "out", band_resampling="nearest").failed
    assert not run(tmp_path / "hand.vrt", network, tmp_path / "by-hand").failed
    np.testing.assert_array_equal(labels(tmp_path / "out", products.NEW), labels(tmp_path / "by-hand", "hand"))


def _assert_pixels(folder, raster, band_resampling):
    """The valid pixels of a product are those of a raster."""
    (case,) = find_input([str(folder)]).cases
    contract = parse_contract(networks.contract(CHANNELS, 3), "a test")
    with environment(), closing(open_case(case, contract, Overrides(band_resampling=band_resampling))) as source:
        pixels, invalid = source.read(Window((0, 0), products.SHAPE))
    with rasterio.open(raster) as dataset:
        np.testing.assert_array_equal(pixels[:, ~invalid], dataset.read()[:, ~invalid])


def test_any_number_of_parts_and_workers_gives_the_same_bytes_and_a_second_run_does_nothing(tmp_path):
    network, source = model(tmp_path / "m.onnx"), products.safe(tmp_path / "in", products.bands())
    masks = []
    for parts, more in ((1, {}), (2, {}), (7, {"executor": "processes", "workers": 2})):
        output = tmp_path / f"out{parts}"
        assert not run(source, network, output, parts=parts, **more).failed
        masks.append((output / f"{products.NEW}.tif").read_bytes())
        again = run(source, network, output, parts=parts)
        assert (again.done, again.skipped) == ([], [products.NEW])
    assert masks[0] == masks[1] == masks[2]


def test_physical_pixels_have_the_offset_and_the_quantification_of_their_metadata(tmp_path):
    names = ["B02", "B04"]
    new, old = products.bands(names, shift=1000), products.bands(names)
    products.safe(tmp_path / "in", new)
    products.safe(tmp_path / "in", new, products.NEW_1C)
    products.safe(tmp_path / "in", old, products.OLD, offset=None)
    network = model(tmp_path / "m.onnx", channels=names, scale=1.0, pixel="physical")
    assert not run(tmp_path / "in", network, tmp_path / "out").failed
    # reflectance by hand: (DN - 1000) / 10,000, or DN / 10,000 before baseline 04.00
    floats = {
        name: np.where(values == 0, np.nan, (values - 1000.0) / 1e4).astype(np.float32) for name, values in new.items()
    }
    raster = stacked(tmp_path / "stack.tif", floats, names, bilinear)
    network = model(tmp_path / "stored.onnx", channels=names, scale=1.0)
    assert not run(raster, network, tmp_path / "by-hand").failed
    wanted = labels(tmp_path / "by-hand", "stack")
    for name in (products.NEW, products.NEW_1C, products.OLD):
        np.testing.assert_array_equal(labels(tmp_path / "out", name), wanted)
        assert not any("offset" in note for note in record(tmp_path / "out", name)["notes"])


def test_a_changed_image_or_metadata_makes_the_case_be_done_again(tmp_path):
    pixels, network = products.bands(), model(tmp_path / "m.onnx")
    source, output = products.safe(tmp_path / "in", pixels), tmp_path / "out"
    run(source, network, output)
    image = next(source.rglob("*B11_20m.jp2"))
    products.write(image, pixels["B11"] + np.uint16(1), 20)
    assert run(source, network, output).done == [products.NEW]
    assert run(source, network, output).skipped == [products.NEW]
    (source / "MTD_MSIL2A.xml").write_text(products.metadata("2A", products.NEW, -500))
    assert run(source, network, output).done == [products.NEW]
    next(source.rglob("*B12_20m.jp2")).write_bytes(b"changed, but no channel of the model")
    assert run(source, network, output).skipped == [products.NEW]
    (image.parent / f"{image.name}.aux.xml").write_text("<PAMDataset><Metadata/></PAMDataset>")
    assert run(source, network, output).done == [products.NEW]
    finer = products.write(image.parent.parent / "R10m" / image.name.replace("20m", "10m"), pixels["B02"], 10)
    assert run(source, network, output).done == [products.NEW]
    finer.unlink()
    archive = products.zipped(source, tmp_path / "a.zip")
    assert run(archive, network, output).done == ["a"]
    assert run(archive, network, output).skipped == ["a"]
    products.zipped(source, archive)
    assert run(archive, network, output).done == ["a"]
    assert run(archive, network, output, band_resampling="nearest").done == ["a"]


def test_products_that_cannot_be_read_fail_alone_with_the_reason(tmp_path):
    root, pixels = tmp_path / "in", products.bands(["B02", "B04"])
    good = products.safe(root, pixels)
    titles = {n: products.NEW.replace("T33UXP", f"T3{n}UXP") for n in range(4, 9)}
    missing, two, damaged, bare = (products.safe(root, pixels, titles[n]) for n in (4, 5, 6, 7))
    for image in missing.rglob("*B04_*.jp2"):
        image.unlink()
    products.write(two / "GRANULE/another/IMG_DATA/R10m/T_B02_10m.jp2", pixels["B02"], 10)
    image = next(damaged.rglob("*B04_10m.jp2"))
    image.write_bytes(image.read_bytes()[:-3000])
    (bare / "MTD_MSIL2A.xml").unlink()
    archive = products.zipped(good, root / f"{titles[8]}.zip")
    archive.write_bytes(archive.read_bytes()[:-500])
    done = run(root, model(tmp_path / "m.onnx", channels=["B02", "B04"]), tmp_path / "out")
    errors = {failure.case.name: failure.error for failure in done.failed}
    assert done.done == [products.NEW]
    assert "there is no band for the model's channel B04 among B02: if the product should have it" in errors[titles[4]]
    assert "a product must have one granule, got 2" in errors[titles[5]]
    assert image.name in errors[titles[6]]
    assert "is incomplete: its metadata, MTD_MSIL1C.xml or MTD_MSIL2A.xml, are missing" in errors[titles[7]]
    assert "is damaged: its directory of files cannot be read" in errors[titles[8]]


def test_landsat_by_common_names_on_the_grid_and_with_the_factors_of_its_files(tmp_path):
    rng = np.random.default_rng(4)
    pixels = {name: rng.integers(8000, 20000, (60, 80), dtype=np.uint16) for name in ("SR_B3", "SR_B4", "SR_B5", "ST_B10")}
    for values in pixels.values():
        values[:10, :12] = 0
    products.landsat(tmp_path / "in" / products.LANDSAT, {**pixels, "QA_PIXEL": np.full((60, 80), 21824, np.uint16)})
    names = ["nir", "red", "SR_B3", "ST_B10"]
    network = model(tmp_path / "m.onnx", channels=names, scale=1.0, pixel="physical")
    done = run(tmp_path / "in", network, tmp_path / "out")
    assert (done.failed, done.done) == ([], [products.LANDSAT])
    each = [(2.75e-5, -0.2)] * 3 + [(0.00341802, 149.0)]
    values = [
        pixels[name] * scale + offset
        for name, (scale, offset) in zip(["SR_B5", "SR_B4", "SR_B3", "ST_B10"], each, strict=True)
    ]
    raster = tmp_path / "stack.tif"
    kind = {"driver": "GTiff", "dtype": "float64", "nodata": -1, "crs": "EPSG:32633", "count": 4, "width": 80, "height": 60}
    with rasterio.open(raster, "w", transform=from_origin(*products.CORNER, 30, 30), **kind) as dataset:
        dataset.write(np.where(np.stack(values) == np.array([o for _, o in each])[:, None, None], -1, np.stack(values)))
        dataset.descriptions = names
    assert not run(raster, model(tmp_path / "s.onnx", channels=names, scale=1.0), tmp_path / "by-hand").failed
    with (
        rasterio.open(tmp_path / "out" / f"{products.LANDSAT}.tif") as one,
        rasterio.open(tmp_path / "by-hand/stack.tif") as two,
    ):
        np.testing.assert_array_equal(one.read(), two.read())
        assert one.transform == two.transform
        assert (one.read(1) == 255).sum() == 120
    assert any(
        "bands called SR_B5, SR_B4, SR_B3, ST_B10 were taken" in n
        for n in record(tmp_path / "out", products.LANDSAT)["notes"]
    )


@pytest.mark.parametrize("name", [f"{products.LANDSAT}.tar", "renamed.TAR"])
def test_an_archive_of_landsat_gives_the_mask_of_its_folder(name, tmp_path):
    """Stored and physical pixels, and the mask inside; a second run does nothing, and does it again when it has changed."""
    rng = np.random.default_rng(4)
    pixels = {band: rng.integers(8000, 20000, (60, 80), dtype=np.uint16) for band in ("SR_B3", "SR_B4", "SR_B5")}
    pixels["SR_B4"][:10, :12] = 0
    quality = np.where(np.arange(80) < 20, 22280, 21824) * np.ones((60, 1))
    folder = products.landsat(tmp_path / "in" / products.LANDSAT, {**pixels, "QA_PIXEL": quality.astype(np.uint16)})
    archive = products.tarred(folder, tmp_path / "tar" / name)
    network = model(tmp_path / "m.onnx", channels=["nir", "red", "SR_B3"], scale=1.0, pixel="physical")
    flags = {"validity": "qa-pixel"}
    assert not run(tmp_path / "in", network, tmp_path / "by-hand", **flags).failed
    done = run(tmp_path / "tar", network, tmp_path / "out", **flags)
    stem = Path(name).stem
    assert (done.failed, done.done) == ([], [stem])
    mask = (tmp_path / "out" / f"{stem}.tif").read_bytes()
    assert mask == (tmp_path / "by-hand" / f"{products.LANDSAT}.tif").read_bytes()
    with rasterio.open(tmp_path / "out" / f"{stem}.tif") as dataset:
        assert ((dataset.read(1) == 255) == ((pixels["SR_B4"] == 0) | (quality == 22280))).all()
    assert run(archive, network, tmp_path / "out", **flags).skipped == [stem]
    os.utime(archive, (1, 1))
    assert run(tmp_path / "tar", network, tmp_path / "out", **flags).done == [stem]
    verified = run(archive, network, tmp_path / "verified", verify_input=True)
    assert verified.done == [stem]
    assert any(
        "a tar archive has no checksums of its members" in note for note in record(tmp_path / "verified", stem)["notes"]
    )


def test_an_archive_of_landsat_that_is_damaged_costs_its_case(tmp_path):
    folder = products.landsat(tmp_path / "x", {f"SR_B{n}": np.full((60, 80), 9000, np.uint16) for n in (3, 4)})
    products.tarred(folder, tmp_path / "in" / f"{products.LANDSAT}.tar")
    other = products.LANDSAT.replace("20240615", "20240701", 1)
    data = (tmp_path / "in" / f"{products.LANDSAT}.tar").read_bytes()
    (tmp_path / "in" / f"{other}.tar").write_bytes(data[: len(data) // 2])
    (tmp_path / "in" / "notes.tar").write_bytes(data[:100])
    done = run(tmp_path / "in", model(tmp_path / "m.onnx", channels=["red", "SR_B3"]), tmp_path / "out")
    assert done.done == [products.LANDSAT]
    assert [failure.case.name for failure in done.failed] == [other]
    assert "is damaged: it ends within LC08_" in done.failed[0].error


@pytest.mark.parametrize(("kind", "bands"), [("S30", ["B04", "B8A", "B11"]), ("L30", ["B04", "B05", "B06"])])
def test_hls_has_the_same_common_names_for_both_satellites(tmp_path, kind, bands):
    rng = np.random.default_rng(5)
    pixels = {name: rng.integers(100, 5000, (60, 80), dtype=np.int16) for name in bands}
    pixels[bands[0]][:5, :5] = -9999
    products.hls(tmp_path / "flat", {**pixels, "Fmask": np.zeros((60, 80), np.uint8)}, kind)
    names = ["red", "nir08", "swir16"]
    network = model(tmp_path / "m.onnx", channels=names, scale=1.0, pixel="physical")
    done = run(tmp_path / "flat", network, tmp_path / "out")
    assert (done.failed, done.done) == ([], [products.HLS[kind]])
    raster = tmp_path / "stack.tif"
    options = {
        "driver": "GTiff",
        "dtype": "int16",
        "nodata": -9999,
        "crs": "EPSG:32633",
        "count": 3,
        "width": 80,
        "height": 60,
    }
    with rasterio.open(raster, "w", transform=from_origin(*products.CORNER, 30, 30), **options) as dataset:
        dataset.write(np.stack([pixels[name] for name in bands]))
        dataset.descriptions = names
    assert not run(raster, model(tmp_path / "s.onnx", channels=names, scale=1e-4), tmp_path / "by-hand").failed
    with (
        rasterio.open(tmp_path / "out" / f"{products.HLS[kind]}.tif") as one,
        rasterio.open(tmp_path / "by-hand/stack.tif") as two,
    ):
        np.testing.assert_array_equal(one.read(), two.read())


def test_bands_from_files_of_any_name(tmp_path):
    pixels, network = products.bands(), model(tmp_path / "m.onnx")
    for name in (*CHANNELS, "B12"):
        products.write(tmp_path / "in" / "fields" / f"north_1_{name}.tif", pixels[name], products.SIZES[name], nodata=0)
    products.write(tmp_path / "in" / "south_B02.tif", pixels["B02"], 10)
    done = run(tmp_path / "in", network, tmp_path / "out", bands_from="{case}_{band}.tif")
    assert done.done == ["fields/north_1"]
    assert [failure.error for failure in done.failed] == [
        "south: B04 has no file south_B04.tif, got south_B02.tif: add it, or change --bands-from"
    ]
    raster = stacked(tmp_path / "stack.tif", pixels, CHANNELS, bilinear)
    run(raster, network, tmp_path / "by-hand")
    np.testing.assert_array_equal(labels(tmp_path / "out", "fields/north_1"), labels(tmp_path / "by-hand", "stack"))
    again = run(tmp_path / "in", network, tmp_path / "out", bands_from="{case}_{band}.tif")
    assert again.skipped == ["fields/north_1"]


def test_the_command_line_plans_and_tells_of_products(tmp_path):
    model(tmp_path / "m.onnx")
    products.safe(tmp_path / "in", products.bands())
    more = ["-m", "m.onnx", "--unusual-values", "allow", "--executor", "serial", "--device", "cpu"]
    planned = invoke(["run", "-i", "in", *more, "--dry-run"], tmp_path)
    assert planned.returncode == 0
    assert f"{products.NEW}" in planned.stdout + planned.stderr
    assert invoke(["run", "-i", "in", *more, "-o", "out"], tmp_path).returncode == 0
    status = invoke(["status", "out"], tmp_path)
    assert status.returncode == 0, status.stderr


def test_inspect_shows_all_bands_of_a_product_and_which_a_model_takes(tmp_path):
    model(tmp_path / "m.onnx")
    pixels = products.bands()
    folder = products.safe(tmp_path, pixels)
    products.zipped(folder, tmp_path / "a.zip")
    for place in (f"{folder.name}/", "a.zip"):
        alone = invoke(["inspect", place, "--json"], tmp_path)
        assert alone.returncode == 0, alone.stderr
        facts = json.loads(alone.stdout)
        assert [band["description"] for band in facts["bands"]] == list(products.SIZES)
        assert (facts["shape"], facts["error"]) == ([180, 240], None)
        assert facts["pixel_size"] == pytest.approx([10, 10], rel=1e-3)
        assert facts["valid"]["share"] == pytest.approx(1 - 3600 / 43200)
        fitted = json.loads(invoke(["inspect", place, "-m", "m.onnx", "--json"], tmp_path).stdout)
        assert [band["band"] for band in fitted["fit"]["bands"]] == [2, 4, 8, 1]
        assert any("resampled to the grid of B02" in note for note in fitted["notes"])
        assert any("offset of 1000" in note for note in fitted["notes"])
    assert "B8A" in invoke(["inspect", "a.zip"], tmp_path).stdout
    (folder / "MTD_MSIL2A.xml").unlink()
    failed = invoke(["inspect", folder.name], tmp_path)
    assert failed.returncode == 2
    assert "is incomplete: its metadata" in failed.stderr


def test_tune_compares_labels_on_a_product(tmp_path):
    model(tmp_path / "m.onnx")
    products.safe(tmp_path, products.bands())
    more = [
        "--tile",
        "64",
        "--overlap",
        "16",
        "--batch",
        "1",
        "--seconds",
        "3",
        "--device",
        "cpu",
        "--band-resampling",
        "nearest",
    ]
    tuned = invoke(["tune", "m.onnx", "-i", f"{products.NEW}.SAFE", *more], tmp_path)
    assert tuned.returncode == 0, tuned.stderr
    assert "--band-resampling nearest" in tuned.stdout


def test_a_run_without_names_of_inputs_is_continued(tmp_path):
    network = model(tmp_path / "m.onnx")
    products.safe(tmp_path / "in", products.bands())
    products.landsat(tmp_path / "in" / "flat", {name: np.ones((9, 9), np.uint16) for name in ("SR_B3", "SR_B4")})
    done = run(tmp_path / "in", network, tmp_path / "out", case_name="number")
    assert (done.done, len(done.failed)) == (["0001"], 1)
    assert run(tmp_path / "in", network, tmp_path / "out", case_name="number").skipped == ["0001"]

"""What must not happen when something goes wrong beside a case: lost inputs, lost cases, stale or silent masks."""

import json
import os
import re
import shutil

import numpy as np
import onnx
import pytest
import rasterio
from networks import Network, contract, local, pixelwise
from scenes import Silent

from segpipe.contract import parse_contract
from segpipe.errors import OutputError
from segpipe.formats.cases import find_cases
from segpipe.formats.identity import identities
from segpipe.formats.raster.sink import raster_sink
from segpipe.formats.style import Style
from segpipe.geometry.cells import COUNT_BYTES
from segpipe.geometry.raster_grid import RasterGrid
from segpipe.geometry.windows import Window
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import prepare
from segpipe.pipeline import infer
from segpipe.results.areas import Areas
from segpipe.settings import load_settings
from segpipe.storage.folder import Folder


def scenes(raster, names="abcd", shape=(150, 130)):
    rng = np.random.default_rng(0)
    paths = [raster(f"in/{name}.tif", rng.integers(1, 255, (3, *shape), dtype=np.uint8)) for name in names]
    return paths[0].parent


def run(source, model, output, **flags):
    flags = {"input": (str(source),), "model": model, "output": output, "executor": "serial", "device": "cpu", **flags}
    return carry_out(prepare(load_settings(None, flags)), Silent())


def test_a_mask_never_replaces_the_source_of_a_vrt(raster, tmp_path):
    tile = raster("tiles/b.tif", np.ones((3, 40, 40), np.uint8))
    before = tile.read_bytes()
    (tmp_path / "in").mkdir()
    sources = "".join(
        f'<VRTRasterBand dataType="Byte" band="{b}"><SimpleSource><SourceFilename relativeToVRT="1">../tiles/b.tif'
        f"</SourceFilename><SourceBand>{b}</SourceBand></SimpleSource></VRTRasterBand>"
        for b in (1, 2, 3)
    )
    (tmp_path / "in" / "b.vrt").write_text(f'<VRTDataset rasterXSize="40" rasterYSize="40">{sources}</VRTDataset>')
    summary = run(tmp_path / "in", pixelwise(tmp_path / "m.onnx"), tmp_path / "tiles")
    assert "is an input or was not written by segpipe" in summary.failed[0].error
    assert tile.read_bytes() == before


def test_a_file_that_segpipe_did_not_write_is_not_replaced(raster, tmp_path):
    source = scenes(raster, "a")
    mine = raster("out/a.tif", np.ones((1, 5, 5), np.uint8))
    before = mine.read_bytes()
    summary = run(source, pixelwise(tmp_path / "m.onnx"), tmp_path / "out")
    assert "was not written by segpipe" in summary.failed[0].error
    assert mine.read_bytes() == before


def test_a_mask_that_lost_its_record_is_done_again(raster, tmp_path):
    source, model = scenes(raster, "a"), pixelwise(tmp_path / "m.onnx")
    raster("in/b.png", np.full((3, 40, 40), 9, np.uint8))
    run(source, model, tmp_path / "out", confidence=True)
    for name in "ab":
        (tmp_path / "out" / f"{name}.json").unlink()
    assert run(source, model, tmp_path / "out", confidence=True).done == ["a", "b"]


@pytest.mark.parametrize("damage", ["lost block", "cut"])
def test_a_raster_that_was_not_written_whole_gets_no_name(damage, tmp_path):
    """GDAL may not tell of a disk that fills up while a file is closed."""
    box = Window((0, 0), (2100, 2100))  # too large to be held in memory
    sink = raster_sink(Folder(tmp_path), "0.tif", RasterGrid(box.shape), Style("uint8", 255, ["class"]))
    sink.write(box, np.random.default_rng(0).integers(0, 3, (1, *box.shape), dtype=np.uint8))
    sink._dataset.close()
    (draft,) = (tmp_path / ".drafts").iterdir()
    if damage == "cut":
        os.truncate(draft, 40_000)
    else:
        with rasterio.open(draft, "r+") as dataset:
            dataset.write(np.full((1, 512, 512), 255, np.uint8), window=((0, 512), (0, 512)))
    with pytest.raises(OutputError, match=r"0\.tif cannot be written"):
        sink.finish()
    assert not (tmp_path / "0.tif").exists()


def test_every_case_ends_as_something_when_a_stage_breaks(raster, tmp_path, monkeypatch):
    whole = infer.weighted

    def broken(scores, tile, arrays):
        if tile.case.name == "b":
            raise MemoryError("no room")
        return whole(scores, tile, arrays)

    monkeypatch.setattr(infer, "weighted", broken)
    summary = run(scenes(raster), local(tmp_path / "m.onnx"), tmp_path / "out")
    assert summary.done == ["a", "c", "d"]
    assert [f.case.name for f in summary.failed] == ["b"]
    assert "no room" in summary.failed[0].error


def test_a_model_that_gives_fewer_scores_than_tiles_is_refused(raster, tmp_path):
    net = Network(3).conv(3, 3, 1).add("Slice", np.array([0]), np.array([1]), np.array([0]))
    model = net.save(tmp_path / "m.onnx", contract(3, 3), classes=3, out_shape=(1, 3, "h", "w"))
    with pytest.raises(Exception, match="scores for each of 4 tiles"):
        run(scenes(raster), model, tmp_path / "out", batch=4)


def test_counts_of_areas_do_not_grow_with_a_grid_of_coarse_pixels():
    grid = RasterGrid(
        (14_616, 34_704), rasterio.CRS.from_epsg(6933), rasterio.transform.from_origin(-17_367_530, 7_314_540, 1000, 1000)
    )
    areas = Areas(grid, parse_contract(contract(3, 5), "test"))
    assert areas.state["counts"].nbytes <= COUNT_BYTES


def test_nodata_of_all_bands_together_is_what_gdal_says(raster, run_serial, tmp_path):
    pixels = np.full((3, 40, 40), 200, np.uint8)
    pixels[1, :, :20] = 0  # one band is 0: valid
    pixels[:, :10, :] = 0  # all are: nodata
    path = raster("in/a.tif", pixels)
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(NODATA_VALUES="0 0 0")
    with rasterio.open(path) as dataset:
        expected = dataset.dataset_mask() == 0
    assert expected.sum() == 400
    with rasterio.open(run_serial(path, pixelwise(tmp_path / "m.onnx")) / "a.tif") as mask:
        np.testing.assert_array_equal(mask.read(1) == 255, expected)


def test_an_archive_that_changes_is_another_input(raster, tmp_path):
    scenes(raster, "a")
    archive = shutil.make_archive(str(tmp_path / "scenes"), "zip", tmp_path / "in")
    path = f"/vsizip/{archive}/a.tif"
    before = identities(path, [path])
    os.utime(archive, (1, 1))
    assert identities(path, [path]) != before
    assert run(path, pixelwise(tmp_path / "m.onnx"), tmp_path / "out").done == ["a"]


def test_a_failing_case_is_left_at_once_and_fail_fast_begins_no_other(raster, tmp_path):
    source = scenes(raster)
    (source / "a.tif").write_bytes((source / "a.tif").read_bytes()[:30_000])
    summary = run(source, pixelwise(tmp_path / "m.onnx"), tmp_path / "out", fail_fast=True)
    assert [f.case.name for f in summary.failed] == ["a"]
    assert summary.done == []
    assert not list((tmp_path / "out").glob("*.tif"))


def test_links_are_followed_and_loops_are_not(raster, tmp_path):
    scenes(raster, "ab")
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    assert [case.name for case in find_cases([str(root)])] == ["linked/a", "linked/b"]


def test_a_star_takes_rasters_only(raster, tmp_path):
    source = scenes(raster, "ab")
    for name in ("README", "a.tif.aux.xml", "a.tfw"):
        (source / name).write_text("")
    assert [case.name for case in find_cases([f"{source}/*"])] == ["a", "b"]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"segpipe": "[1]"}, "must be a JSON object"),
        ({"class_names": '{"water": 1}', "standardization_mean": "1", "standardization_std": "2"}, "cannot be read"),
        ({"tile_size": '"large"'}, "cannot be read"),
        ({"segpipe": json.dumps(contract(3, 3, spacing=[10.0]))}, "spacing must be 2 numbers above 0"),
        ({"segpipe": json.dumps(contract(3, 3, clip=[1, 0]))}, r"clip must be \[low, high\]"),
        ({"segpipe": json.dumps(contract(3, 3, scale=0.0))}, "scale must not be 0"),
    ],
)
def test_metadata_of_another_kind_is_told(metadata, message, raster, segpipe, tmp_path):
    proto = onnx.load(pixelwise(tmp_path / "m.onnx"))
    onnx.helper.set_model_props(proto, metadata)
    onnx.save(proto, tmp_path / "m.onnx")
    ended = segpipe("run", "-i", scenes(raster, "a"), "-m", tmp_path / "m.onnx")
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert re.search(message, ended.stderr)


def test_somebody_elses_json_is_no_record(raster, tmp_path):
    keys = ["segpipe", "input", "model", "settings", "confidence", "outputs", "valid", "areas", "statistics", "case"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.json").write_text(json.dumps(dict.fromkeys(keys, 7)))
    assert run(scenes(raster, "a"), pixelwise(tmp_path / "m.onnx"), tmp_path / "out").done == ["a"]


def test_the_tables_failing_at_the_end_is_told_and_the_cases_stay_done(raster, tmp_path):
    flags = {"input": (str(scenes(raster, "a")),), "model": pixelwise(tmp_path / "m.onnx"), "output": tmp_path / "out"}
    prepared = prepare(load_settings(None, {**flags, "executor": "serial", "device": "cpu"}))
    (tmp_path / "out" / "areas.csv").mkdir(parents=True)  # later, for what is in the way at the start ends the run there
    summary = carry_out(prepared, Silent())
    assert summary.done == ["a"]
    assert "areas.csv cannot be written" in summary.problems[0]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["done"] == ["a"]

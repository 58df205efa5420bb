"""A path that exists is a path, whatever it looks like."""

import json

import numpy as np
import pytest
import rasterio
from networks import pixelwise
from scenes import Silent

from segpipe.formats.cases import find_cases
from segpipe.formats.identity import FolderListings
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import prepare
from segpipe.settings import load_settings
from segpipe.storage.paths import is_remote, plain_path

NAMES = [
    "tile?r=1.tif",
    "GTIFF_DIR:1:good.tif",
    "GTIFF_RAW:good.tif",
    "NETCDF:x.tif",
    'NETCDF:"x.nc":v.tif',
    "a:b.tif",
    "s3:x.tif",
    "s3:/x/y.tif",
    "http:/x/y.tif",
    "zip:a.tif",
    "zip+s3:a.tif",
    "file:a.tif",
    "J2K_SUBFILE:0,1,a.tif",
    "vrt:/a.tif",
    "a b .tif",
    " lead.tif",
    "#1.tif",
    "a#b.tif",
    "a%20b.tif",
    "a[1].tif",
    "data[1]/s.tif",
    "GTIFF_DIR:1/s.tif",
    "*/s.tif",
    "{x}.tif",
    "-x.tif",
    "~x.tif",
    "$HOME.tif",
    "ä é.tif",
    "a'b\"c.tif",
    "a\\b.tif",
    "a!b.tif",
]


def scene(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(1, 255, (3, 20, 24), dtype=np.uint8)
    draft = path.parent / "draft.tif"
    with rasterio.open(draft, "w", driver="GTiff", count=3, height=20, width=24, dtype="uint8", crs="EPSG:32633") as dataset:
        dataset.write(pixels)
    draft.rename(path)


def run_over(text, root):
    flags = {"input": (text,), "model": root / "m.onnx", "output": root / "out", "executor": "serial", "device": "cpu"}
    summary = carry_out(prepare(load_settings(None, flags)), Silent())
    assert summary.failed == []
    return summary.done, summary.skipped


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A folder with ``good.tif``, and what a run makes of an input of it, given as it is called there."""
    pixelwise(tmp_path / "m.onnx")
    scene(tmp_path / "in" / "good.tif", 0)
    monkeypatch.chdir(tmp_path / "in")

    def run(text):
        return run_over(text, tmp_path)

    run.root = tmp_path / "in"
    return run


def labels(path):
    with rasterio.open(path) as mask:
        return mask.read(1)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Labels of the scene of all names under a plain one."""
    root = tmp_path_factory.mktemp("plain")
    pixelwise(root / "m.onnx")
    scene(root / "plain.tif", 1)
    assert run_over(str(root / "plain.tif"), root) == (["plain"], [])
    return labels(root / "out" / "plain.tif")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_any_name_is_segmented_as_itself(name, there, expected, tmp_path):
    scene(there.root / name, 1)
    (there.root / "list.txt").write_text(f"# names\n{name}\n")
    named = name.rpartition("/")[2].removesuffix(".tif")
    for text in (name, "list.txt", str(there.root / name)):
        done, skipped = there(text)
        assert done + skipped == [named]
        np.testing.assert_array_equal(labels(tmp_path / "out" / f"{named}.tif"), expected)
    assert skipped == [named]  # one place, however it is called
    record = json.loads((tmp_path / "out" / f"{named}.json").read_text())
    assert record["input"]["path"] == str(there.root / name)
    (there.root / "good.tif").unlink()
    done, skipped = there(".")
    assert len(done + skipped) == 1
    np.testing.assert_array_equal(labels(tmp_path / "out" / f"{(done + skipped)[0]}.tif"), expected)


@pytest.mark.parametrize("folder", ["data[1]", "*", "what?", "[ab]", "s3:", "a:b"])
def test_a_folder_of_any_name_is_searched(folder, there, tmp_path):
    scene(there.root / folder / "sub" / "s.tif", 1)
    assert [case.name for case in find_cases([folder])] == ["sub/s"]
    assert [case.name for case in find_cases([f"{folder}/*/*.tif"])] == ["sub/s"]
    assert [case.name for case in find_cases([f"{folder}/**/*.tif"])] == ["sub/s"]
    assert [case.name for case in find_cases([f"{there.root}/{folder}/sub/*"])] == ["s"]


def test_a_part_of_a_file_is_no_file(there):
    with pytest.raises(Exception, match=r"the input must exist, got GTIFF_DIR:1:good\.tif"):
        find_cases(["GTIFF_DIR:1:good.tif"])


def test_a_relative_vrt_finds_a_source_that_looks_like_a_part(there, tmp_path):
    scene(there.root / "a:b.tif", 1)
    rows = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename relativeToVRT="1">a:b.tif'
        f"</SourceFilename><SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
        for band in (1, 2, 3)
    )
    (there.root / "s.vrt").write_text(f'<VRTDataset rasterXSize="24" rasterYSize="20">{rows}</VRTDataset>')
    assert there("s.vrt") == (["s"], [])
    there("a:b.tif")
    np.testing.assert_array_equal(labels(tmp_path / "out" / "s.tif"), labels(tmp_path / "out" / "a:b.tif"))
    assert there("s.vrt") == ([], ["s"])


def test_a_folder_that_is_called_as_gdal_calls_what_is_not_one():
    """Nobody can make one at the root here: what GDAL would be told of it."""
    assert plain_path("/vsizip/a.tif") == "/./vsizip/a.tif"
    assert not is_remote(plain_path("/vsi-data/a.tif"))
    assert FolderListings().named("/./vsizip/a.tif") == "/./vsizip/a.tif"


def test_inspect_takes_a_file_of_any_name(there, segpipe):
    for name in ("GTIFF_DIR:1:good.tif", "tile?r=1.tif", "zip:a.tif"):
        scene(there.root / name, 1)
        done = segpipe("inspect", name, "--json", cwd=there.root)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["shape"] == [20, 24]

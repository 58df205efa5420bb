"""Products are found by names, each once; bands are chosen by the names of both sides."""

from pathlib import Path

import networks
import pytest

from segpipe.contract import parse_contract
from segpipe.errors import InputError, SourceError
from segpipe.formats.cases import find_input
from segpipe.formats.scenes.match import match_channels
from segpipe.formats.scenes.names import HLS_LANDSAT, LANDSAT, MSI, part_of, short
from segpipe.formats.scenes.product import BandFile
from segpipe.formats.scenes.search import is_scene
from segpipe.overrides import Overrides

S2 = "S2B_MSIL2A_20240615T095549_N0510_R122_T33UXP_20240615T123456"
L8 = "LC08_L2SP_191027_20240615_20240620_02_T1"
HLS = "HLS.S30.T33UXP.2024167T095549.v2.0"


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(*inputs: object) -> dict[str, str]:
    return {case.name: case.format for case in find_input([str(one) for one in inputs]).cases}


def test_one_case_a_product_and_none_within_it(tmp_path):
    inside = f"{S2}.SAFE/GRANULE/L2A/IMG_DATA/R10m/T33UXP_B02_10m.jp2"
    landsat = [
        f"sub/{L8}/{L8}_{part}"
        for part in ("SR_B4.TIF", "SR_B5.TIF", "QA_PIXEL.TIF", "MTL.txt", "ANG.txt", "thumb_small.jpeg")
    ]
    hls = [f"{HLS}.{part}" for part in ("B04.tif", "B08.tif", "Fmask.tif", "jpg")]
    touch(
        tmp_path,
        inside,
        *landsat,
        *hls,
        f"{S2}.SAFE/QI_DATA/a.jp2",
        "other.tif",
        f"sub/{L8}/stack.tif",
        "S2A_MSIL1C_X.zip",
        "a.zip",
    )
    expected = {S2: "scene", f"sub/{L8}": "scene", HLS: "scene", "other": "raster", f"sub/{L8}/stack": "raster"}
    assert found(tmp_path) == expected | {"S2A_MSIL1C_X": "scene"}
    assert find_input([str(tmp_path)]).left_out == {".zip": 1}
    for given, name in ((f"{S2}.SAFE", S2), (f"{S2}.SAFE/", S2), ("S2A_MSIL1C_X.zip", "S2A_MSIL1C_X"), (f"sub/{L8}", L8)):
        assert found(tmp_path / given)[name] == "scene"
    assert found(tmp_path / "*.SAFE") == {S2: "scene"}
    assert found(tmp_path / "sub" / "LC08*") == {L8: "scene"}
    assert found(tmp_path / "**" / "*.jp2") == {inside.removesuffix(".jp2"): "raster", f"{S2}.SAFE/QI_DATA/a": "raster"}
    (tmp_path / "list.txt").write_text(f"{S2}.SAFE\nsub/{L8}\nother.tif\n")
    assert found(tmp_path / "list.txt") == {S2: "scene", L8: "scene", "other": "raster"}
    assert found(tmp_path / f"{HLS}.B04.tif") == {f"{HLS}.B04": "raster"}


def test_a_folder_within_itself_is_named_after_the_product(tmp_path, monkeypatch):
    touch(tmp_path, f"{S2}.SAFE/a/b.jp2", f"{L8}/{L8}_SR_B4.TIF", f"{L8}/{L8}_SR_B5.TIF")
    monkeypatch.chdir(tmp_path / f"{S2}.SAFE")
    assert found(".") == {S2: "scene"}
    monkeypatch.chdir(tmp_path / L8)
    assert found(".") == {L8: "scene"}
    monkeypatch.chdir(tmp_path)
    assert [case.path for case in find_input(["."]).cases] == [L8, f"{S2}.SAFE"]


def test_what_is_no_product_stays_what_it_was(tmp_path):
    touch(
        tmp_path, "S1A_IW_GRDH.SAFE/measurement/a.tiff", f"one/{L8}_SR_B4.TIF", f"stack/{L8}_stack.tif", "plain.SAFE/b.tif"
    )
    assert set(found(tmp_path).values()) == {"raster"}
    (tmp_path / "plain.SAFE" / "MTD_MSIL1C.xml").touch()
    assert found(tmp_path)["plain"] == "scene"
    assert not is_scene(str(tmp_path / "one"))


def test_a_folder_and_its_archive_are_two_of_one_name(tmp_path):
    touch(tmp_path, f"{S2}.SAFE/a.jp2", f"{S2}.zip")
    assert f"two inputs would get one name, {S2}" in find_input([str(tmp_path)]).refused[0].error


def test_a_product_in_a_bucket_is_named_as_what_cannot_be_read(monkeypatch):
    monkeypatch.setattr(
        "segpipe.formats.search.find_objects", lambda *_: iter([(f"{S2}.SAFE/a.jp2", f"s3://b/{S2}.SAFE/a.jp2")])
    )
    with pytest.raises(InputError, match=f"a product of many files must lie on this machine, got {S2}.SAFE in s3://b/"):
        find_input(["s3://b/"])
    with pytest.raises(InputError, match="must lie on this machine"):
        find_input([f"s3://b/{S2}.SAFE"])


def test_parts_of_products():
    assert part_of(f"{L8}_ST_B10.TIF").name == "ST_B10"
    assert part_of("LE07_L1TP_191027_20030615_20200904_02_T1_B6_VCID_1.TIF").name == "B6_VCID_1"
    assert part_of(f"{HLS}.B8A.tif").is_band
    assert not part_of(f"{L8}_MTL.txt").is_band
    assert part_of("LC08_L1TP_191027_20150615_20170408_01_T1_B4.TIF") is None  # Collection 1


def bands(kind: str) -> list[BandFile]:
    if kind == "landsat":
        return [BandFile(f"SR_B{n}", "", (f"B{n}", *names)) for n, names in LANDSAT["C"].items() if int(n) < 8]
    return [BandFile(n, "", (*short(n), *names)) for n, names in (MSI if kind == "msi" else HLS_LANDSAT).items()]


@pytest.mark.parametrize(
    ("kind", "channels", "expected"),
    [
        ("msi", ["B02", "b8a", "B4"], ["B02", "B8A", "B04"]),
        ("msi", ["Red", "NIR", "near infrared", "swir16", "red edge 1"], ["B04", "B08", "B08", "B11", "B05"]),
        ("landsat", ["red", "nir", "SR_B3", "B7"], ["SR_B4", "SR_B5", "SR_B3", "SR_B7"]),
        ("l30", ["B05", "nir", "swir22"], ["B05", "B05", "B07"]),
    ],
)
def test_channels_by_the_names_of_products_and_common_names(kind, channels, expected):
    chosen, notes = match_channels(bands(kind), parse_contract(networks.contract(channels, 3), "a test"), Overrides())
    assert [band.name for band in chosen] == expected
    assert bool(notes) == ([name.lower() for name in channels] != [name.lower() for name in expected])


@pytest.mark.parametrize(
    ("channels", "overrides", "rule"),
    [
        (["B04", "B08"], Overrides(), "there is no band for the model's channel B04 among SR_B1, SR_B2"),
        (2, Overrides(), "the model takes 2 channels without names, got 7 bands"),
        (2, Overrides(bands=(1, 9)), "--bands must name 2 of the scene's bands, 1 to 7"),
    ],
)
def test_channels_that_a_product_does_not_have(channels, overrides, rule):
    with pytest.raises(SourceError, match=rule):
        match_channels(bands("landsat"), parse_contract(networks.contract(channels, 3), "a test"), overrides)


def test_bands_by_number_and_all_of_them_in_their_order():
    two = parse_contract(networks.contract(2, 3), "a test")
    assert [b.name for b in match_channels(bands("landsat"), two, Overrides(bands=(5, 4)))[0]] == ["SR_B5", "SR_B4"]
    assert len(match_channels(bands("landsat")[:2], two, Overrides())[0]) == 2
    double = [BandFile("B6_VCID_1", "", ("lwir",)), BandFile("B6_VCID_2", "", ("lwir",))]
    with pytest.raises(SourceError, match="several bands are called lwir, B6_VCID_1, B6_VCID_2"):
        match_channels(double, parse_contract(networks.contract(["lwir"], 3), "a test"), Overrides())

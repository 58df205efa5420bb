"""What the metadata of products say of bands: offsets, factors, and what is missing."""

import hashlib
import json

import numpy as np
import products
import pytest
from unreadable import fail

from segpipe.errors import InputError, SourceError
from segpipe.formats.cases import find_input
from segpipe.formats.scenes import hls, landsat, sentinel2
from segpipe.formats.scenes.reading import product_of
from segpipe.formats.scenes.verify import verify_products

FLAT = {name: np.ones((6, 6), np.uint16) for name in ("B02", "B8A", "B01")}
TITLE = products.LANDSAT


def by_name(product):
    return {band.name: band for band in product.bands}


@pytest.mark.parametrize("title", [products.NEW, products.NEW_1C])
def test_offsets_since_baseline_0400_in_both_levels(tmp_path, title):
    product = sentinel2.read_product(str(products.safe(tmp_path, FLAT, title)))
    assert list(by_name(product)) == ["B01", "B02", "B8A"]
    assert {(band.scale, band.offset, band.nodata) for band in product.bands} == {(1e-4, -0.1, 0)}
    assert "offset of 1000" in product.stored_notes[0]
    assert "offset = -0.1, in the contract" in product.stored_notes[0]


def test_no_offset_before_and_each_band_its_own(tmp_path):
    path = products.safe(tmp_path, FLAT, products.OLD, offset=None, quantification=5000)
    product = sentinel2.read_product(str(path))
    assert {(band.scale, band.offset) for band in product.bands} == {(1 / 5000, 0.0)}
    assert not product.stored_notes
    text = products.metadata("2A", "x", -1000).replace('band_id="8">-1000', 'band_id="8">-250')
    (path / "MTD_MSIL2A.xml").write_text(text)
    assert {name: band.offset for name, band in by_name(sentinel2.read_product(str(path))).items()} == {
        "B01": -0.1,
        "B02": -0.1,
        "B8A": -0.025,
    }


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        (
            '<BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE>',
            "",
            "must have a positive QUANTIFICATION",
        ),
        (">10000<", ">0<", "must have a positive QUANTIFICATION_VALUE, got 0"),
        (">10000<", ">many<", "the quantification value must be a number, got 'many'"),
        ('band_id="3">-1000', 'band_id="3">nan', "BOA_ADD_OFFSET must be a number, got 'nan'"),
        ('band_id="3"', 'band_id="33"', "must name a band by its number, got band_id='33'"),
        ('<BOA_ADD_OFFSET band_id="1">-1000</BOA_ADD_OFFSET>', "", "an offset for some bands but not for B02"),
        ("<n1:Level-2A", "<!DOCTYPE x><n1:Level-2A", "without a document type"),
    ],
)
def test_metadata_that_are_damaged(tmp_path, old, new, rule):
    path = products.safe(tmp_path, FLAT)
    text = (path / "MTD_MSIL2A.xml").read_text()
    assert old in text
    (path / "MTD_MSIL2A.xml").write_text(text.replace(old, new, 1))
    with pytest.raises(SourceError, match=rule):
        sentinel2.read_product(str(path))


def test_the_finest_image_of_a_band_and_a_note_on_a_coarse_one(tmp_path):
    path = products.safe(tmp_path, {"B02": np.ones((12, 12), np.uint16)})
    assert sentinel2.read_product(str(path)).bands[0].path.endswith("B02_10m.jp2")
    next(path.rglob("*B02_10m.jp2")).unlink()
    (band,) = sentinel2.read_product(str(path)).bands
    assert band.path.endswith("B02_20m.jp2")
    assert band.note == "B02 is read at 20 m: the product has no image of it at 10 m"
    next(path.rglob("*B02_20m.jp2")).unlink()
    with pytest.raises(SourceError, match=r"is incomplete: it has no images GRANULE/\*/IMG_DATA"):
        sentinel2.read_product(str(path))


def test_an_empty_folder_of_a_product_is_told_as_such(tmp_path):
    (tmp_path / "tile.SAFE").mkdir()
    with pytest.raises(
        InputError, match=r"a \.SAFE folder must have the metadata of its product, .*tile\.SAFE holds nothing"
    ):
        find_input([str(tmp_path / "tile.SAFE")])


PIXELS = {name: np.ones((6, 6), np.uint16) for name in ("SR_B4", "ST_B10", "QA_PIXEL")}


def as_xml(groups: dict[str, dict[str, str]]) -> str:
    inner = "".join(f"<{g}>{''.join(f'<{k}>{v}</{k}>' for k, v in own.items())}</{g}>" for g, own in groups.items())
    return f'<?xml version="1.0"?><LANDSAT_METADATA_FILE>{inner}</LANDSAT_METADATA_FILE>'


@pytest.mark.parametrize("form", ["txt", "xml", "json"])
def test_factors_of_landsat_in_each_form_of_its_metadata(tmp_path, form):
    products.landsat(tmp_path, PIXELS)
    text = tmp_path / f"{TITLE}_MTL.txt"
    if form != "txt":
        groups = landsat._of_text(text.read_bytes())
        text.unlink()
        values = json.dumps({"LANDSAT_METADATA_FILE": groups}) if form == "json" else as_xml(groups)
        text.with_suffix(f".{form}").write_text(values)
    (case,) = find_input([str(tmp_path)]).cases
    found = by_name(product_of(case))
    assert list(found) == ["SR_B4", "ST_B10", "QA_PIXEL"]
    assert (found["SR_B4"].scale, found["SR_B4"].offset) == (2.75e-5, -0.2)
    assert (found["ST_B10"].scale, found["ST_B10"].offset) == (0.00341802, 149.0)
    assert found["QA_PIXEL"].classes
    assert found["SR_B4"].others == ("B4", "red")
    assert product_of(case).scene["DATE_ACQUIRED"] == "2024-06-15"


def test_level_1_of_landsat_has_its_own_factors(tmp_path):
    title = TITLE.replace("L2SP", "L1TP")
    products.landsat(tmp_path, {"B4": PIXELS["SR_B4"], "B10": PIXELS["SR_B4"]}, title)
    product = landsat.read_product(str(tmp_path), [path.name for path in tmp_path.iterdir()], title)
    assert {name: (band.scale, band.offset) for name, band in by_name(product).items()} == {
        "B4": (2e-5, -0.1),
        "B10": (3.342e-4, 0.1),
    }
    assert "not divided by the sine of the sun's elevation, 61.5" in product.notes[0]


def test_landsat_without_and_with_damaged_metadata(tmp_path):
    products.landsat(tmp_path, PIXELS)
    (tmp_path / f"{TITLE}_MTL.txt").write_text(products.MTL.replace("2.75e-05", "NULL"))  # as in some of the first years
    (case,) = find_input([str(tmp_path)]).cases
    assert by_name(product_of(case))["SR_B4"].scale is None
    (tmp_path / f"{TITLE}_MTL.txt").write_text(products.MTL.replace("2.75e-05", "much"))
    (case,) = find_input([str(tmp_path)]).cases
    with pytest.raises(SourceError, match="REFLECTANCE_MULT_BAND_4 must be a number, got 'much'"):
        product_of(case)
    (tmp_path / f"{TITLE}_MTL.txt").unlink()
    (case,) = find_input([str(tmp_path)]).cases
    assert product_of(case).unscaled == (
        f"{TITLE} is incomplete: its metadata, {TITLE}_MTL.txt, are missing: download the product again"
    )
    (tmp_path / f"{TITLE}_MTL.json").write_text("[1]")
    (case,) = find_input([str(tmp_path)]).cases
    with pytest.raises(SourceError, match="must hold groups of values"):
        product_of(case)


def test_bands_of_hls_and_their_common_names(tmp_path):
    for kind, nir in (("S30", "B08"), ("L30", "B05")):
        files = [f"{products.HLS[kind]}.{part}.tif" for part in (nir, "B04", "Fmask", "SZA")]
        product = hls.read_product(str(tmp_path), files, products.HLS[kind])
        assert [band.name for band in product.bands] == ["B04", nir, "Fmask", "SZA"]
        assert "nir" in by_name(product)[nir].others
        assert by_name(product)["Fmask"].classes


def manifest(path):
    """``manifest.safe`` with digests of all images."""
    rows = []
    for file in sorted(path.rglob("*.jp2")):
        digest = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
        place = f"./{file.relative_to(path)}"
        rows.append(
            f'<byteStream><fileLocation href="{place}"/><checksum checksumName="MD5">{digest}</checksum></byteStream>'
        )
    (path / "manifest.safe").write_text(f"<xfdu>{''.join(rows)}</xfdu>")


@pytest.mark.parametrize("archived", [False, True])
def test_a_manifest_or_an_archive_that_cannot_be_examined_is_not_missing(archived, tmp_path, monkeypatch):
    """Without its manifest, a file would count as verified with a note alone."""
    path = products.safe(tmp_path, FLAT)
    manifest(path)
    image = next(path.rglob("*B02_10m.jp2"))
    place = products.zipped(path) if archived else path / "manifest.safe"
    file = f"/vsizip/{place}/{path.name}/{image.relative_to(path)}" if archived else str(image)
    fail(monkeypatch, place, "stat")
    with pytest.raises(SourceError, match=r"cannot be read: Input/output error: check the disk"):
        verify_products([file])


def test_checksums_of_manifests_and_archives(tmp_path):
    path = products.safe(tmp_path, FLAT)
    image = next(path.rglob("*B02_10m.jp2"))
    (note,) = verify_products([str(image)])
    assert "is not verified: pixels of its format have no checksum" in note
    manifest(path)
    assert verify_products([str(image), str(path / "MTD_MSIL2A.xml")]) == []
    archive = products.zipped(path)
    inside = f"/vsizip/{archive}/{path.name}/{image.relative_to(path)}"
    assert verify_products([inside]) == []
    data = archive.read_bytes()
    archive.write_bytes(data.replace(image.read_bytes()[-40:], b"x" * 40))
    with pytest.raises(SourceError, match=r"B02_10m\.jp2 is damaged: Bad CRC-32"):
        verify_products([inside])
    image.write_bytes(image.read_bytes()[:-1])
    with pytest.raises(SourceError, match=r"B02_10m\.jp2 is damaged: its MD5 is not that of .*manifest\.safe"):
        verify_products([str(image)])

"""A world file or an .aux.xml that contradicts a GeoTIFF: which one counts, and a note that says so."""

import numpy as np
import pytest
import rasterio
from affine import Affine

from segpipe.formats.raster.georeference import place_notes

PLACE = Affine(10, 0, 500_000, 0, -10, 5_400_000)
SAME, MOVED, WORDS = "10\n0\n0\n-10\n500005\n5399995\n", "10\n0\n0\n-10\n500025\n5399995\n", "a file of others\n" * 7


def notes(path):
    with rasterio.open(path) as dataset:
        return place_notes(dataset, str(path)), dataset.transform, dataset.crs


@pytest.fixture
def scene(raster):
    return raster("a.tif", np.ones((1, 8, 9), np.uint8), crs="EPSG:32633", transform=PLACE)


@pytest.mark.parametrize("name", ["a.tfw", "a.tifw", "a.wld", "a.TFW"])
def test_a_world_file_elsewhere_gets_a_note(scene, name):
    scene.with_name(name).write_text(MOVED)
    (note,), transform, _ = notes(scene)
    assert transform == PLACE
    assert f"{name} gives another place than the file itself, up to 2 pixels away, and is ignored, as by GDAL" in note


@pytest.mark.parametrize("text", [SAME, SAME.replace("500005", "500005.5"), WORDS, ""])
def test_a_world_file_of_the_same_place_or_of_others_gets_none(scene, text):
    scene.with_suffix(".tfw").write_text(text)
    assert notes(scene)[0] == []


def test_a_world_file_that_counts_gets_none(raster):
    path = raster("b.tif", np.ones((1, 8, 9), np.uint8), crs=None, transform=None)
    path.with_suffix(".tfw").write_text(MOVED)
    found, transform, _ = notes(path)
    assert (found, transform.c) == ([], 500_020)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<SRS>EPSG:32634</SRS>", ["CRS"]),
        ("<GeoTransform>600000,10,0,5400000,0,-10</GeoTransform>", ["place"]),
        ("<SRS>EPSG:32633</SRS><GeoTransform>500000,10,0,5400000,0,-10</GeoTransform>", []),
        ("<Metadata><MDI key='a'>b</MDI></Metadata>", []),
    ],
)
def test_an_aux_xml_that_replaces_the_georeference_gets_a_note(scene, text, words):
    scene.with_name("a.tif.aux.xml").write_text(f"<PAMDataset>{text}</PAMDataset>")
    assert notes(scene)[0] == [
        f"{scene}.aux.xml gives another {word} than the file itself, and counts, as for GDAL: take it away if the file is "
        "right"
        for word in words
    ]

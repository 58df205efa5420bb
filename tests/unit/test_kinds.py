"""Files that are no single raster are told by what they are."""

import re

import numpy as np
import pytest
import rasterio
import tifffile

from segpipe.errors import SourceError
from segpipe.formats.raster.kinds import explained, refuse_pages, refuse_slides
from segpipe.formats.raster.tiff import check_tags

PIXELS = np.zeros((64, 64), np.uint8)


def test_a_file_of_several_images_is_refused_with_the_command_that_takes_one_out(tmp_path):
    path = tmp_path / "pages.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(PIXELS)
        writer.write(PIXELS)
    with rasterio.open(path) as dataset, pytest.raises(SourceError, match=r"got 2 images.*gdal_translate 'GTIFF_DIR:1:"):
        refuse_pages(dataset, str(path))


@pytest.mark.parametrize("below", [False, True], ids=["beside", "below"])
def test_a_preview_in_front_of_its_image_is_refused_with_the_command_that_takes_the_image_out(below, tmp_path):
    path, pixels = tmp_path / "preview.tif", np.arange(64, dtype=np.uint8)[None] + np.zeros((64, 1), np.uint8)
    with tifffile.TiffWriter(path) as writer:
        writer.write(pixels[::4, ::4], subfiletype=1, subifds=int(below))
        writer.write(pixels)
    with (
        path.open("rb") as file,
        pytest.raises(SourceError, match="preview of 16 x 16 pixels of an image of 64 x 64") as caught,
    ):
        check_tags(str(path), file)
    taken = re.search(r"GTIFF_DIR:[^']+", str(caught.value))
    assert taken is not None
    with rasterio.open(taken[0]) as image:
        assert (image.read(1) == pixels).all()


@pytest.mark.parametrize("below", [False, True], ids=["beside", "below"])
def test_an_image_in_front_of_its_preview_or_a_preview_alone_is_taken(below, tmp_path):
    for name, kinds in (("levels.tif", (0, 1)), ("alone.tif", (1,))):
        path = tmp_path / name
        with tifffile.TiffWriter(path) as writer:
            for k, kind in enumerate(kinds):
                writer.write(PIXELS[:: 4**k, :: 4**k], subfiletype=kind, subifds=len(kinds) - 1 if below and not k else 0)
        with path.open("rb") as file:
            check_tags(str(path), file)


def test_one_image_is_taken(raster):
    path = raster("a.tif", PIXELS[None])
    with rasterio.open(path) as dataset:
        refuse_pages(dataset, str(path))
        refuse_slides(dataset, str(path))


@pytest.mark.parametrize("name", ["a.svs", "A.NDPI"])
def test_a_slide_is_known_by_its_name(name, raster):
    path = raster("a.tif", PIXELS[None])
    with rasterio.open(path) as dataset, pytest.raises(SourceError, match="is a slide"):
        refuse_slides(dataset, name)


@pytest.mark.parametrize("levels", [False, True])
def test_or_by_its_scanner_and_its_levels(levels, raster):
    path = raster("a.tif", PIXELS[None], tiled=True, blockxsize=16, blockysize=16)
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(TIFFTAG_IMAGEDESCRIPTION="Aperio Image Library v1")
        if levels:
            dataset.build_overviews([2])
    with rasterio.open(path) as dataset:
        if not levels:
            refuse_slides(dataset, str(path))  # a level that somebody has taken out
            return
        with pytest.raises(SourceError, match=r"rio convert .* level0.tif"):
            refuse_slides(dataset, str(path))


def test_gdal_s_words_give_way_to_what_the_file_is(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(b"%PDF-1.7\n" + bytes(100))
    with pytest.raises(SourceError, match="PDF") as caught, explained(str(path)):
        raise SourceError(f"{path} cannot be opened: not recognized as being in a supported file format")
    assert "not recognized" not in str(caught.value)


def test_other_errors_stay_as_they_are(raster):
    path = raster("a.tif", PIXELS[None])
    error = SourceError("band 3 is missing")
    with pytest.raises(SourceError) as caught, explained(str(path)):
        raise error
    assert caught.value is error

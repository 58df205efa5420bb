"""Recognise files that are not a single raster, and say what to do with them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rasterio.io import DatasetReader

from segpipe.errors import SourceError, of_system
from segpipe.formats.file_endings import missing
from segpipe.storage.content import describe
from segpipe.storage.paths import is_remote
from segpipe.storage.retry import is_passing

SLIDES = (".svs", ".ndpi", ".scn", ".bif", ".mrxs", ".vms", ".vmu")
"""Suffixes of slides, most of which are TIFF."""

SCANNERS = ("Aperio", "<scn", "<DataObject", "<EncodeInfo")
"""Beginnings of their descriptions: Aperio, Leica, Philips, Ventana."""

NOT_RECOGNIZED = "not recognized"
"""GDAL's message where no driver accepts a file. A file that a driver accepted is damaged, whatever it looks like."""

CONVERT = "where gdalinfo {0} shows a raster, convert it: gdal_translate {0} out.tif; save other pictures as PNG"
NO_CODEC = "missing codec"
"""GDAL's message for a TIFF with a compression of which this build of GDAL knows only the name."""

DECODE = "write it with another compression where GDAL has the codec: gdal_translate -co COMPRESS=DEFLATE {0} out.tif"

NO_SLIDES = (
    "{0} is a slide, which is not supported yet: take a level out, as with rio convert {0} level0.tif, "
    "or vips openslideload {0} level1.tif --level 1, and check --tile and the pixel size of the model"
)


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Describe a file that GDAL cannot open, or how much of it is missing, instead of GDAL's message."""
    try:
        yield
    except SourceError as error:
        if is_remote(path) or is_passing(error):
            raise
        try:
            text, rest = describe(path) if NOT_RECOGNIZED in str(error) else None, missing(path)
        except OSError as unreadable:
            raise SourceError(f"{path} cannot be read: {of_system(unreadable)}") from unreadable
        if text is not None:
            raise SourceError(text) from error
        if (more := _mend(path, str(error), rest)) is not None:
            raise SourceError(f"{str(error).removesuffix('.')}; {more}") from error
        raise


def _mend(path: str, error: str, rest: str | None) -> str | None:
    """What to do with a file that GDAL cannot open, as far as the error or the file tell."""
    if rest is not None:
        return rest
    if NO_CODEC in error:
        return DECODE.format(path)
    return CONVERT.format(path) if NOT_RECOGNIZED in error else None


def refuse_slides(dataset: DatasetReader, path: str) -> None:
    """Refuse slides, with levels, labels and a magnification: models are not trained on the base level alone."""
    description = dataset.tags().get("TIFFTAG_IMAGEDESCRIPTION", "")
    if path.lower().endswith(SLIDES) or (description.lstrip().startswith(SCANNERS) and _has_levels(dataset)):
        raise SourceError(NO_SLIDES.format(path))


def _has_levels(dataset: DatasetReader) -> bool:
    return bool(dataset.subdatasets) or bool(dataset.overviews(1) if dataset.count else ())


def refuse_pages(dataset: DatasetReader, path: str) -> None:
    """Refuse files of several images: a case is one image."""
    parts = dataset.subdatasets
    if parts:
        count = f"{len(parts)} images" if len(parts) > 1 or not dataset.count else "an image and another beside it"
        raise SourceError(
            f"{path}: a file must hold one image, got {count}: "
            f"write one to a file of its own, as with gdal_translate '{parts[0]}' {Path(path).stem}-1.tif"
        )
    if dataset.count == 0:
        raise SourceError(f"{path}: a file must hold one image, got none: it has no bands")

"""What a map that is joined from masks takes from them: type, nodata, colours and names."""

from pathlib import Path

from segpipe import __version__
from segpipe.errors import OutputError
from segpipe.formats.raster.gdal import gdal_errors, gdal_options, open_raster
from segpipe.formats.style import Color, Style

CLASS = "CLASS_"
"""Beginning of the tags with class names."""


def style_of(path: Path) -> Style:
    """The style of a mask, as its sink wrote it.

    Raises:
        OutputError: the mask cannot be read.
    """
    with gdal_options(), gdal_errors(OutputError, f"{path} cannot be read"), open_raster(str(path)) as dataset:
        tags = {key: value for key, value in dataset.tags().items() if key.startswith((CLASS, "MODEL_SHA256"))}
        names = {int(key.removeprefix(CLASS)): value for key, value in tags.items() if key.startswith(CLASS)}
        nodata, dtype = int(dataset.nodata), dataset.dtypes[0]
        table: dict[int, Color] = dataset.colormap(1) if names and dtype == "uint8" else {}
        bands = [text or "" for text in dataset.descriptions]
    colors = {value: table[value] for value in (*sorted(names), nodata)} if table else None
    legend = {value: table[value] for value in sorted(names)} if table else {}
    names = dict(sorted(names.items()))
    return Style(
        dtype=dtype,
        nodata=nodata,
        bands=bands,
        colors=colors,
        names=names or None,
        tags={"SEGPIPE": __version__, **tags},
        legend=legend,
    )

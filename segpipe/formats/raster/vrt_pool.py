"""GDAL's pool of the sources of VRTs keeps a source that did not open: from then on it reads as zeros, without an error.

The pool is that of the process, and lives as long as any VRT is open. So after a storage fault that passes, a source would
be zeros in every VRT that has it, however often they are opened.
"""

import threading
from weakref import WeakSet
from xml.sax.saxutils import escape

from rasterio.io import DatasetReader

MOST = 1000
"""Most sources that the pool can hold (gdalproxypool.cpp)."""

_SOURCE = '<VRTDataset rasterXSize="1" rasterYSize="1"><VRTRasterBand dataType="Byte" band="1"><Description>{}</Description>'
_SOURCE += "</VRTRasterBand></VRTDataset>"
_PLACED = (
    '<SimpleSource><SourceFilename relativeToVRT="0" shared="0">{1}</SourceFilename><SourceBand>1</SourceBand>'
    '<SrcRect xOff="0" yOff="0" xSize="1" ySize="1"/><DstRect xOff="{0}" yOff="0" xSize="1" ySize="1"/></SimpleSource>'
)

_lock = threading.Lock()
_vrts = WeakSet[DatasetReader]()
"""VRTs that were opened in this process; without an open one there is no pool."""
_changes = 0
"""How often sources were about to be forgotten, and how often they were; odd in between."""


def note_opened(dataset: DatasetReader) -> None:
    """Note a dataset that was opened."""
    if dataset.driver == "VRT":
        with _lock:
            _vrts.add(dataset)


def changes() -> int:
    """A number to compare with a later one, for ``is_doubtful``."""
    return _changes


def is_doubtful(before: int) -> bool:
    """Whether a source that failed in another thread may have been read as zeros since ``changes`` returned a number."""
    return before % 2 == 1 or _changes != before


def forget_failed() -> None:
    """Make GDAL open all sources of VRTs again, after an error: fill the pool with others, which need no files."""
    global _changes  # noqa: PLW0603 - GDAL has one pool per process
    with _lock:
        if all(vrt.closed for vrt in _vrts):
            return
        _changes += 1
        try:
            with DatasetReader(_filler(), driver=["VRT"], sharing=False) as dataset:
                dataset.read()
        finally:
            _changes += 1


def _filler() -> str:
    placed = "".join(_PLACED.format(k, escape(_SOURCE.format(k))) for k in range(MOST))
    band = f'<VRTRasterBand dataType="Byte" band="1">{placed}</VRTRasterBand>'
    return f'<VRTDataset rasterXSize="{MOST}" rasterYSize="1">{band}</VRTDataset>'

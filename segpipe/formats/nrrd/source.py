"""Read NRRD volumes, with attached or detached voxels, and masks that segpipe wrote."""

import zlib
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
from numpy.typing import NDArray

from segpipe.errors import OutputError, SourceError, one_line
from segpipe.formats.nrrd.header import read_nrrd
from segpipe.formats.volume.file import Volume
from segpipe.formats.volume.source import VolumeSource
from segpipe.geometry.grid import Grid


class NrrdSource(VolumeSource):
    """A volume with an NRRD header."""

    how_to_place = (
        "its space is not RAS, LAS or LPS, so that left and right are a guess: set space, with 3D Slicer or nrrd.write"
    )

    def _read(self, path: str, several: int) -> tuple[Volume, object]:
        return read_nrrd(path, several)


def read_mask(path: Path) -> tuple[NDArray[Any], Grid]:
    """Bands ``(bands, planes, rows, cols)`` of a volume and its grid; axes are slowest first.

    Raises:
        OutputError: it cannot be read.
    """
    try:
        stored, _ = nrrd.read(str(path), index_order="C")
        bands = stored if stored.ndim == 4 else stored[None]
        volume, _ = read_nrrd(str(path), len(bands))
    except (nrrd.NRRDError, SourceError, OSError, EOFError, ValueError, zlib.error) as error:
        raise OutputError(f"{path} cannot be read: {one_line(error)}") from error
    return np.ascontiguousarray(bands, stored.dtype.newbyteorder("=")), volume.grid

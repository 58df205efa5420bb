"""Read an NRRD volume of labels that segpipe wrote."""

import zlib
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
from numpy.typing import NDArray

from segpipe.errors import OutputError, SourceError, one_line
from segpipe.formats.nrrd.header import read_nrrd
from segpipe.geometry.grid import Grid


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

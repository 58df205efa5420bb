"""Read a volume of labels that segpipe wrote."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from segpipe.errors import OutputError, SourceError, one_line
from segpipe.formats.nifti.header import read_volume
from segpipe.formats.volume.file import check_trailer
from segpipe.geometry.grid import Grid


def read_mask(path: Path) -> tuple[NDArray[Any], Grid]:
    """Bands ``(bands, planes, rows, cols)`` of a volume and its grid; axes are slowest first, the last axis of NIfTI.

    Raises:
        OutputError: it cannot be read.
    """
    try:
        check_trailer(str(path))
        image: Any = nibabel.load(path)
        stored = np.asarray(image.dataobj.get_unscaled())
        bands = stored.T if stored.ndim == 4 else stored.T[None]
        grid = read_volume(str(path), len(bands)).grid
    except (ImageFileError, SourceError, OSError, EOFError, ValueError) as error:
        raise OutputError(f"{path} cannot be read: {one_line(error)}") from error
    return np.ascontiguousarray(bands, stored.dtype.newbyteorder("=")), grid

"""Read NIfTI volumes, of which nibabel parses the headers, and masks that segpipe wrote."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from segpipe.errors import OutputError, SourceError, one_line
from segpipe.formats.nifti.header import read_volume
from segpipe.formats.nifti.sink import template_of
from segpipe.formats.volume.file import Volume, check_trailer
from segpipe.formats.volume.source import VolumeSource
from segpipe.geometry.grid import Grid


class NiftiSource(VolumeSource):
    """A volume with a NIfTI header."""

    how_to_place = (
        "its sform_code and qform_code are 0, so that left and right are a guess: set its affine with nibabel's "
        "img.set_sform(affine, 1)"
    )

    def _read(self, path: str, several: int) -> tuple[Volume, object]:
        volume = read_volume(path, several)
        return volume, template_of(volume)


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

"""A file of one volume, or of one per channel: what its header says, and whether the file keeps it."""

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import SourceError, of_system, one_line
from segpipe.geometry.voxel_grid import VoxelGrid, shear, spanned_volume
from segpipe.messages.printable import dims

GZIP = b"\x1f\x8b"

MOST_UNPACKED = 1032
"""Largest number of bytes that one byte of DEFLATE can unpack to (zlib's technical notes)."""

APART = 0.5
"""Largest difference, in voxels, between sform and qform: float32 quaternions are off by 0.1 over 512 voxels."""

FLAT = 1e-6
"""Volume that three axes of length 1 must span: an affine is stored in float32, whose rounding is 6e-8."""

NOTED = 0.05
"""Difference, in voxels, above which there is a note."""


@dataclass(frozen=True, eq=False)
class Volume:
    """The facts in the header of a file with one volume, or one per channel; axes are slowest first, ``(k, j, i)``."""

    path: str
    header: Any
    """nibabel's header object, as stored in the file."""
    stored: np.dtype[Any]
    """Data type of a voxel in the file, with its byte order."""
    offset: int
    """Bytes before the first voxel in the unpacked file."""
    packed: bool
    grid: VoxelGrid
    scale: tuple[float, float] = (1.0, 0.0)
    """Slope and intercept; 1 and 0 if the file has none."""
    notes: tuple[str, ...] = ()
    count: int = 1
    """Number of volumes in the file, one after the other."""
    placed: bool = True
    """Whether the file has a sform or a qform, which give the directions of its axes."""
    start: int = 0
    """Bytes before the gzip stream, if it is packed behind a header."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.grid.shape

    @property
    def end(self) -> int:
        """Size of the unpacked file in bytes."""
        return self.offset + self.count * self.volume_bytes

    @property
    def volume_bytes(self) -> int:
        """Size of one volume in bytes."""
        return math.prod(self.shape) * self.stored.itemsize

    @property
    def slack(self) -> int:
        """Bytes of the smallest slice; a file with so many bytes after the last voxel has slices that its header omits."""
        return math.prod(self.shape) // max(self.shape) * self.stored.itemsize


@contextmanager
def source_errors(path: str) -> Iterator[None]:
    """Turn errors of a local file, or of its gzip stream, into a ``SourceError``."""
    try:
        yield
    except EOFError:
        raise SourceError(f"{path} is cut: its gzip stream ends before its trailer: copy it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise SourceError(f"{path} is damaged: its gzip stream does not decode: {one_line(error)}: copy it again") from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {of_system(error)}") from error


def is_packed(path: str | Path) -> bool:
    """Whether a file is packed, by its first two bytes and not by its name."""
    with Path(path).open("rb") as stream:
        return stream.read(2) == GZIP


class _Behind(gzip.GzipFile):
    """A gzip stream that begins behind the start of its file."""

    def __init__(self, path: str, start: int) -> None:
        self._file = Path(path).open("rb")  # noqa: SIM115 - closed with the stream
        self._file.seek(start)
        super().__init__(fileobj=self._file)

    def close(self) -> None:
        super().close()
        self._file.close()


def opened(path: str, *, packed: bool, start: int = 0) -> IO[bytes] | gzip.GzipFile:
    """Open a file to read its bytes, unpacked if ``packed``; the gzip stream begins at the byte ``start``."""
    if packed and start:
        return _Behind(path, start)
    return gzip.open(path) if packed else Path(path).open("rb")


def check_trailer(path: str) -> None:
    """Read a packed file to its end, where gzip compares its checksum.

    Raises:
        SourceError: it is cut or damaged.
    """
    with source_errors(path):
        if is_packed(path):
            with opened(path, packed=True) as stream:
                while stream.read(2**20):
                    pass


def check_packed(volume: Volume, size: int) -> None:
    """Check, before planning and unpacking, that a packed file is large enough for the volume in its header.

    Raises:
        SourceError: it is too short.
    """
    if volume.end > MOST_UNPACKED * size:
        raise SourceError(
            f"{volume.path} is cut or damaged: {_said(volume)}, {volume.end:,} bytes, and {size:,} bytes of gzip unpack to "
            f"{MOST_UNPACKED * size:,} at most: copy it again"
        )


def _said(volume: Volume) -> str:
    sizes = dims((*reversed(volume.shape), volume.count)[: 3 + (volume.count > 1)])
    return f"its header says {sizes} voxels of {volume.stored.itemsize} bytes"


def check_length(volume: Volume, size: int) -> None:
    """Check that the file is as long as its header says.

    Raises:
        SourceError: it is shorter, or longer by at least one slice, which means that ``dim`` is too small.
    """
    says = _said(volume)
    if size < volume.end:
        raise SourceError(
            f"{volume.path} is cut: {says}, which end at byte {volume.end:,}, and it has {size:,}: copy it again"
        )
    if size - volume.end >= volume.slack:
        raise SourceError(
            f"{volume.path} contradicts itself: {says}, which end at byte {volume.end:,}, and it goes on to byte {size:,}: "
            "correct the sizes in its header (dim of NIfTI, sizes of NRRD), or copy it again"
        )


def check_right_angles(path: str, grid: VoxelGrid) -> list[str]:
    """A note if the axes of a volume are sheared a little.

    Raises:
        SourceError: they are sheared by more than ``APART`` voxels.
    """
    if (off := shear(grid)) > APART:
        raise SourceError(
            f"{path}: axes must be at right angles, and one is sheared by {off:.3g} voxels over the volume, "
            "as a tilted gantry does: resample it to such a grid first"
        )
    note = f"axes are sheared by {off * min(grid.spacing):.3g} mm over the volume, and are taken as they are"
    return [note] if off > NOTED else []


def checked_affine(path: str, affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine, if its numbers are finite and it can be inverted.

    Raises:
        SourceError: it cannot.
    """
    if not np.isfinite(affine).all() or not _is_invertible(affine[:3, :3]):
        raise SourceError(
            f"{path}: the affine must be of finite numbers and invertible, got {as_rows(affine)}: "
            "set the right one (sform of NIfTI, space directions of NRRD)"
        )
    return affine


def _is_invertible(steps: NDArray[np.float64]) -> bool:
    """Whether the columns do not lie in one plane; rounding may give a flat affine a small volume."""
    lengths = np.linalg.norm(steps, axis=0)
    return bool(lengths.all()) and spanned_volume(steps / lengths) > FLAT


def as_rows(affine: NDArray[np.float64]) -> str:
    """The rows of an affine as text, with columns in the order ``(i, j, k)``, as other programs print it."""
    return str([[round(float(n), 4) for n in row] for row in affine[:3][:, [2, 1, 0, 3]]])

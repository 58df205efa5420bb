"""Orientation of pictures: the EXIF and TIFF tag that GDAL does not apply."""

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

from segpipe.errors import SourceError, of_system
from segpipe.geometry.windows import Window
from segpipe.messages.printable import dims
from segpipe.storage.existence import is_file
from segpipe.storage.paths import in_bucket, is_remote
from segpipe.storage.s3 import read_range

UPRIGHT = 1
ORIENTATION = 274
"""Number of the tag in a TIFF and in an EXIF block, which is a small TIFF."""

TRANSPOSED, ROWS_FLIPPED, COLS_FLIPPED = (5, 6, 7, 8), (3, 4, 7, 8), (2, 3, 6, 7)
"""How to make each orientation upright: first swap axes, then reverse rows, then columns (EXIF 2.32)."""

HEAD = 2**16
"""Bytes of an object that one request reads."""

EXIF_MARK = b"Exif\0\0"

BIG = 43
"""BigTIFF's version."""

MOST_ENTRIES = 4096
"""Most entries of a directory; GDAL accepts at most 2,000 in an EXIF block."""

SIZES = {1: "B", 3: "H", 4: "I"}
"""TIFF's integer types."""

Bytes = Callable[[int, int], bytes]
"""Reads bytes by offset and size; the result may be shorter."""


class DamagedError(Exception):
    """A block that should contain an orientation cannot be read."""


@dataclass(frozen=True)
class Turn:
    """Transformation between a stored picture and its upright form."""

    orientation: int
    stored_shape: tuple[int, ...]

    @property
    def transposed(self) -> bool:
        """Whether rows become columns."""
        return self.orientation in TRANSPOSED

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns of the upright picture."""
        return self.stored_shape[::-1] if self.transposed else self.stored_shape

    @property
    def against_the_file(self) -> bool:
        """Whether upright windows, row by row, need the stored rows in another order."""
        return self.orientation in TRANSPOSED or self.orientation in ROWS_FLIPPED

    def stored(self, window: Window) -> Window:
        """The stored window that contains the pixels of an upright window."""
        spans = self._flipped(list(zip(window.start, window.stop, strict=True)))
        return Window.spanning(spans[::-1] if self.transposed else spans)

    def upright(self, window: Window) -> Window:
        """The upright window of a stored window's pixels."""
        spans = list(zip(window.start, window.stop, strict=True))
        return Window.spanning(self._flipped(spans[::-1] if self.transposed else spans))

    def _flipped(self, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Spans of rows and columns of the upright picture, counted from the other end where an axis is reversed."""
        flips = (self.orientation in ROWS_FLIPPED, self.orientation in COLS_FLIPPED)
        return [(n - b, n - a) if flip else (a, b) for (a, b), n, flip in zip(spans, self.shape, flips, strict=True)]

    def __call__(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Turn stored pixels ``(..., rows, cols)`` upright; a copy unless they stay in place."""
        if self.orientation == UPRIGHT:
            return stored
        turned = stored.swapaxes(-1, -2) if self.transposed else stored
        turned = turned[..., ::-1, :] if self.orientation in ROWS_FLIPPED else turned
        turned = turned[..., ::-1] if self.orientation in COLS_FLIPPED else turned
        return np.ascontiguousarray(turned)


def turn_of(dataset: DatasetReader, path: str, *, place: bool) -> tuple[Turn, list[str]]:
    """How to turn a file's pixels upright, and notes; a georeferenced file stays as GDAL and GIS read it."""
    orientation, notes = _orientation(dataset, path, place=place)
    if place and orientation != UPRIGHT:
        notes = [f"its orientation tag, {orientation}, is left alone: the file is georeferenced as its pixels are stored"]
        orientation = UPRIGHT
    elif orientation != UPRIGHT:
        stored = dims(dataset.shape)
        notes = [f"turned upright, as its orientation tag, {orientation}, says: {stored} rows and columns are stored"]
    return Turn(orientation, dataset.shape), notes


def take_exif(dataset: DatasetReader) -> None:
    """Let GDAL parse a JPEG's EXIF block once: if it is damaged, the first access to any metadata fails, and later ones
    ignore the block. Any other failure here occurs again when pixels are read."""
    if dataset.driver == "JPEG":
        with suppress(RasterioError, CPLE_BaseError):
            dataset.tags()
            tuple(dataset.colorinterp)  # rasterio raises a pending error of GDAL at the next call that checks for one


def _orientation(dataset: DatasetReader, path: str, *, place: bool) -> tuple[int, list[str]]:
    if place and is_remote(path):
        return UPRIGHT, []  # saves a request per file: the tag would be ignored
    try:
        found = read_orientation(path, dataset.driver)
    except DamagedError:
        return UPRIGHT, ["its EXIF block or TIFF directory is damaged: the pixels are taken to be stored upright"]
    except OSError as error:
        raise SourceError(f"its orientation cannot be read: {of_system(error)}") from error
    if found is None:
        return UPRIGHT, ["no orientation is looked for behind a URL or in an archive: the pixels are taken as stored"]
    return found, []


def read_orientation(path: str, driver: str) -> int | None:
    """Orientation of a file, 1 to 8; 1 if it has none, None if it cannot be read: behind a URL or in an archive.

    Raises:
        DamagedError: the block that should contain it cannot be read.
    """
    find = {"GTiff": _in_tiff, "JPEG": _in_jpeg, "PNG": _in_png, "WEBP": _in_webp}.get(driver)
    if find is None:
        return UPRIGHT
    if in_bucket(path):
        return find(_from_bucket(path))
    if not is_file(path):
        return None
    with _from_file(path) as read:
        return find(read)


@contextmanager
def _from_file(path: str) -> Iterator[Bytes]:
    with Path(path).open("rb") as stream:

        def read(offset: int, size: int) -> bytes:
            stream.seek(offset)
            return stream.read(size)

        yield read


def _from_bucket(path: str) -> Bytes:
    """The head of an object only, where cameras write EXIF."""
    head = read_range(path, 0, HEAD)
    return lambda offset, size: head[offset : offset + size]


def _in_tiff(read: Bytes) -> int:
    """Orientation in the first directory of a TIFF or BigTIFF (TIFF 6.0, section 2)."""
    head = read(0, 16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None:
        raise DamagedError
    big = _number(order + "H", head[2:4]) == BIG
    entry, offset, count = (20, "Q", "Q") if big else (12, "I", "H")
    at = _number(order + offset, head[8:16] if big else head[4:8])
    entries = _number(order + count, read(at, struct.calcsize(count)))
    directory = read(at + struct.calcsize(count), entries * entry) if entries <= MOST_ENTRIES else b""
    for i in range(0, len(directory) - entry + 1, entry):
        tag, kind = struct.unpack_from(order + "HH", directory, i)
        if tag == ORIENTATION:
            return _upright_or(_number(order + SIZES.get(kind, "x"), directory[i + entry - struct.calcsize(offset) :]))
    if len(directory) < entries * entry:
        raise DamagedError
    return UPRIGHT


def _number(form: str, data: bytes) -> int:
    try:
        return int(struct.unpack_from(form, data)[0])
    except (struct.error, IndexError):
        raise DamagedError from None


def _upright_or(value: int) -> int:
    """The value if it is one of the eight; viewers take any other for upright."""
    return value if 1 <= value <= 8 else UPRIGHT


def _in_exif(read: Bytes, start: int, size: int) -> int:
    """Orientation in an EXIF block, with or without JPEG's marker in front of it."""
    marked = len(EXIF_MARK) if read(start, len(EXIF_MARK)) == EXIF_MARK else 0
    start, size = start + marked, size - marked
    return _in_tiff(lambda offset, count: read(start + offset, max(0, min(count, size - offset))))


def _in_jpeg(read: Bytes) -> int:
    """Orientation in the APP1 segment that begins with EXIF's mark, before the scan (ITU-T T.81, annex B)."""
    at = 2
    while len(head := read(at, 4)) == 4 and head[0] == 0xFF:
        marker, size = head[1], int.from_bytes(head[2:])
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker == 0xE1 and read(at + 4, len(EXIF_MARK)) == EXIF_MARK:
            return _in_exif(read, at + 4, size - 2)
        elif marker == 0xDA:
            break
        else:
            at += 2 + size
    return UPRIGHT


def _in_png(read: Bytes) -> int:
    """Orientation in the eXIf chunk, anywhere (PNG, third edition, 11.3.3.4)."""
    at = 8
    while len(head := read(at, 8)) == 8 and head[4:] != b"IEND":
        if head[4:] == b"eXIf":
            return _in_exif(read, at + 8, int.from_bytes(head[:4]))
        at += 12 + int.from_bytes(head[:4])
    return UPRIGHT


def _in_webp(read: Bytes) -> int:
    """Orientation in the EXIF chunk of the RIFF container; chunks are padded to even sizes."""
    at = 12
    while len(head := read(at, 8)) == 8:
        size = int.from_bytes(head[4:], "little")
        if head[:4] == b"EXIF":
            return _in_exif(read, at + 8, size)
        at += 8 + size + size % 2
    return UPRIGHT

"""Damage of TIFFs that GDAL does not report: tags that it drops or misreads silently, and blocks that are too long.

Reads the directories only, from the file's bytes (TIFF 6.0 section 2, BigTIFF, GeoTIFF 1.1 annex B).
"""

import math
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import SourceError
from segpipe.messages.printable import dims
from segpipe.storage.existence import is_file
from segpipe.storage.paths import is_remote

MAGIC = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}

TYPES = {
    **{1: "u1", 2: "S1", 3: "u2", 4: "u4", 5: "u8", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 10: "i8", 11: "f4", 12: "f8"},
    **{13: "u4", 16: "u8", 17: "i8", 18: "u8"},
}
"""NumPy names of TIFF's types, by number; fractions are 8 bytes."""

SIZES = {kind: np.dtype(name).itemsize for kind, name in TYPES.items()}
"""Bytes per value, by the same numbers."""

DEFLATE, LERC = (8, 32946), 34887
UNCOMPRESSED = 1

PHOTOMETRIC, YCBCR = 262, 6
SAMPLE_FORMAT, INTEGERS = 339, (1, 2)
WIDTH, HEIGHT, BITS, COMPRESSION, SAMPLES, ROWS_PER_STRIP, PLANAR = 256, 257, 258, 259, 277, 278, 284
TILE_WIDTH, TILE_HEIGHT, SUBFILE, SUBIFDS, NODATA, GEO_KEYS = 322, 323, 254, 330, 42113, 34735
OFFSETS, COUNTS = (273, 324), (279, 325)
MASK = 4
"""Bit of the subfile type for a mask of the preceding image. Bit 1: an overview."""

ASCII, SHORT, FLOAT, DOUBLE = 2, 3, 11, 12
SCALE = 33550

NUMBER = re.compile(
    r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?(,0*)?|\+?nan|[+-]?inf"
    r"|-?1\.#QNAN\d*|1\.#SNAN\d*|-1\.#IND\d*|-?1\.#INF\d*",  # as written by C on Windows
    re.ASCII | re.IGNORECASE,
)
"""Texts that GDAL reads as the number that they are. It reads ``-nan`` and ``infinity`` as 0, ``1.#IND`` as 1."""

WHOLE = re.compile(r"[+-]?\d+([.,]\d*)?", re.ASCII)
NOT_WHOLE = (
    "its pixels are 64-bit integers, whose nodata value must be written in digits, got {0!r}, of which GDAL takes the first "
    "digits, or 0: write the raster again with another nodata value, or with none and --nodata"
)

FIRST = 8
"""Bytes of the header: no value of a tag begins before."""

READ_BYTES = 2**22

PREVIEW = (
    "{0}: the first image of a file must be the whole one, and it is a preview of {1} pixels of an image of {2}: write that "
    "to a file of its own: gdal_translate 'GTIFF_DIR:off:{3}:{0}' OUT.tif"
)

LARGEST = 2**63 - 1
"""More bytes than any block has."""

OVERVIEWS = ".ovr"
"""Suffix of overviews beside a raster, whose pixels are not read."""

FORMS: dict[int, tuple[str, int, Callable[[int], bool]]] = {
    SCALE: ("ModelPixelScale", DOUBLE, lambda n: n > 1),
    33922: ("ModelTiepoint", DOUBLE, lambda n: n > 0 and n % 6 == 0),
    34264: ("ModelTransformation", DOUBLE, lambda n: n == 16),
    GEO_KEYS: ("GeoKeyDirectory", SHORT, lambda n: n >= 4),
    34736: ("GeoDoubleParams", DOUBLE, lambda n: n > 0),
    34737: ("GeoAsciiParams", ASCII, lambda n: n > 0),
    42112: ("GDAL_METADATA", ASCII, lambda n: n > 0),
    NODATA: ("GDAL_NODATA", ASCII, lambda n: n > 0),
    50844: ("RPCCoefficient", DOUBLE, lambda n: n == 92),
}
"""Tags that define georeferencing and validity: name, type, and a test of the number of values. GDAL ignores a tag of any
other form, so that the file has no georeferencing or nodata. It accepts floats for doubles."""


@dataclass(frozen=True, slots=True)
class Tag:
    """One tag of a directory."""

    kind: int
    count: int
    at: int
    """Offset of its values in the file."""

    @property
    def size(self) -> int:
        return self.count * SIZES[self.kind]


class Directory:
    """One image of a TIFF, by its tags."""

    def __init__(self, file: BufferedReader, order: str, entries: dict[int, Tag], at: int) -> None:
        self._file, self._order, self.entries = file, order, entries
        self.at = at
        """Offset in the file."""
        self._values: dict[int, NDArray[Any] | None] = {}

    def values(self, tag: int) -> NDArray[Any] | None:
        """All values of a tag, read once; None if it is missing, or lies outside the file."""
        if tag not in self._values:
            self._values[tag] = self._read(tag)
        return self._values[tag]

    def _read(self, tag: int) -> NDArray[Any] | None:
        entry = self.entries.get(tag)
        if entry is None or entry.kind not in TYPES:
            return None
        data = _pread(self._file, entry.size, entry.at)
        return np.frombuffer(data, np.dtype(self._order + TYPES[entry.kind])) if len(data) == entry.size else None

    def value(self, tag: int, default: int = 0) -> int:
        """First value of a tag; ``default`` if the file does not have the tag."""
        values = self.values(tag)
        return default if values is None or not len(values) else int(values[0])

    @property
    def read(self) -> bool:
        """Whether its pixels are read: it is the image or its mask, not an overview."""
        return not self.value(SUBFILE) & 1

    @property
    def wide(self) -> bool:
        """Whether its pixels are 64-bit integers."""
        return self.value(BITS) == 64 and self.value(SAMPLE_FORMAT, 1) in INTEGERS

    @cached_property
    def block(self) -> tuple[int, int]:
        """Rows and columns of a block."""
        width, height = self.value(WIDTH), self.value(HEIGHT)
        if TILE_WIDTH in self.entries:
            return self.value(TILE_HEIGHT), self.value(TILE_WIDTH)
        return min(self.value(ROWS_PER_STRIP, height), height), width

    def block_data(self, number: int) -> bytes:
        """The bytes of a strip or tile as they are in the file, compressed or not."""
        offsets, counts = self.blocks
        return _pread(self._file, int(counts[number]), int(offsets[number]))

    @cached_property
    def blocks(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Offset and size in bytes of each block, band by band where bands are stored separately."""
        offsets, counts = (
            next((v for t in tags if (v := self.values(t)) is not None), np.zeros(0)) for tags in (OFFSETS, COUNTS)
        )
        n = min(len(offsets), len(counts))
        return offsets[:n].astype(np.int64), counts[:n].astype(np.int64)

    @property
    def shape(self) -> tuple[int, int]:
        return self.value(HEIGHT), self.value(WIDTH)

    @property
    def block_count(self) -> int:
        """Number of blocks of an image of this shape."""
        if 0 in self.block:
            return 0
        down, across = (-(-n // block) for n, block in zip(self.shape, self.block, strict=True))
        return down * across * self._planes

    @property
    def _planes(self) -> int:
        return self.value(SAMPLES, 1) if self.value(PLANAR, 1) == 2 else 1

    def expected_of_all(self) -> NDArray[np.int64]:
        """``expected`` of each block: all strips of a plane are equal except for the last."""
        rows = self.block[0]
        down = -(-self.value(HEIGHT) // rows)
        plane = np.full(self.block_count // self._planes, min(self.expected(0, full=True), LARGEST))
        plane[-1] = min(self.expected(down - 1), LARGEST)
        return np.tile(plane, self._planes)

    def expected(self, number: int, *, full: bool = False) -> int:
        """Bytes of a decoded block; with ``full``, as if the last strip were as high as the others."""
        rows, cols = self.block
        if TILE_WIDTH not in self.entries and not full:
            down = -(-self.value(HEIGHT) // rows)
            rows = min(rows, self.value(HEIGHT) - number % down * rows)
        samples = self.value(SAMPLES, 1) if self.value(PLANAR, 1) == 1 else 1
        return rows * -(-cols * samples * self.value(BITS, 1) // 8)


def _pread(file: BufferedReader, size: int, at: int) -> bytes:
    """Bytes at an offset; limited to the file, so that a number from a damaged file allocates no memory."""
    there = os.fstat(file.fileno()).st_size - at
    return os.pread(file.fileno(), min(size, there), at) if at >= 0 and there > 0 and size > 0 else b""


def directories(file: BufferedReader, at: int | None = None) -> Iterator[Directory]:
    """Yield the chain of images of a TIFF that begins at an offset, or the main one; nothing for another file; ends where
    the chain is broken."""
    head = _pread(file, 16, 0)
    order = MAGIC.get(head[:4])
    if order is None or len(head) < 16:
        return
    big = head[2:4] in (b"+\0", b"\0+")
    count, entry, pointer = ("Q", "HHQQ", "Q") if big else ("H", "HHII", "I")
    (at,) = (at,) if at is not None else struct.unpack_from(order + pointer, head, 8 if big else 4)
    seen: set[int] = set()
    while at and at not in seen:
        seen.add(at)
        sizes = struct.calcsize(order + count), struct.calcsize(order + entry), struct.calcsize(order + pointer)
        if len(first := _pread(file, sizes[0], at)) < sizes[0]:
            return
        (n,) = struct.unpack(order + count, first)
        body = _pread(file, n * sizes[1] + sizes[2], at + sizes[0])
        if len(body) < n * sizes[1] + sizes[2]:
            return
        entries = {}
        for i in range(n):
            tag, kind, values, value = struct.unpack_from(order + entry, body, i * sizes[1])
            inline = at + sizes[0] + (i + 1) * sizes[1] - sizes[2]
            item = SIZES.get(kind, 1)
            entries[tag] = Tag(kind, values, inline if values * item <= sizes[2] else value)
        yield Directory(file, order, entries, at)
        (at,) = struct.unpack_from(order + pointer, body, n * sizes[1])


def check_tags(path: str, file: BufferedReader) -> None:
    """Check that tags of georeferencing and validity have a form that GDAL accepts, that block offsets are possible, and
    that the first image is no preview.

    Raises:
        SourceError: GDAL would ignore a tag, read its value from a wrong place, or read a preview for the image.
    """
    size = os.fstat(file.fileno()).st_size
    first: Directory | None = None
    for directory in directories(file):
        if first is not None and not (directory.read and directory.value(SUBFILE) & MASK):
            continue
        first = first or directory
        if (fault := _fault(directory, size) or _shape_fault(directory, first)) is not None:
            raise SourceError(f"{path} is damaged: {fault}")
    if first is not None and (whole := _previewed(first, file)) is not None:
        raise SourceError(PREVIEW.format(path, dims(first.shape), dims(whole.shape), whole.at))


def _previewed(first: Directory, file: BufferedReader) -> Directory | None:
    """The full image of a file whose first image is a preview of it, as some cameras and scanners write; else None."""
    if first.read:
        return None
    listed = first.values(SUBIFDS)
    subimages = (next(directories(file, at), None) for at in ([] if listed is None else listed.tolist()))
    others = (one for one in (*directories(file), *subimages) if one is not None and one.read)
    whole = (one for one in others if not one.value(SUBFILE) & MASK and math.prod(one.shape) > math.prod(first.shape))
    return next(whole, None)


def _fault(directory: Directory, size: int) -> str | None:
    for tag, entry in directory.entries.items():
        if (form := FORMS.get(tag)) is not None:
            name, kind, fits = form
            if not (entry.kind == kind or (kind == DOUBLE and entry.kind == FLOAT)) or not fits(entry.count):
                return f"its tag {tag}, {name}, cannot have {entry.count} values of type {entry.kind}"
            if entry.at < FIRST or entry.at + entry.size > size:
                return f"its tag {tag}, {name}, lies outside the file, at byte {entry.at}"
    return _scale_fault(directory) or _nodata_fault(directory) or _keys_fault(directory) or _blocks_fault(directory)


def _shape_fault(mask: Directory, image: Directory) -> str | None:
    return None if mask.shape == image.shape else f"its mask has {mask.shape} pixels, the image {image.shape}"


def _scale_fault(directory: Directory) -> str | None:
    """Detect a scale of doubles marked as floats: then zeros lie between them, and GDAL ignores a scale of 0."""
    scale = directory.values(SCALE)
    if scale is None or directory.entries[SCALE].kind != FLOAT or (np.isfinite(scale[:2]) & (scale[:2] != 0)).all():
        return None
    return f"its tag {SCALE}, ModelPixelScale, must have two sizes of a pixel, got {scale.tolist()}"


def _nodata_fault(directory: Directory) -> str | None:
    """Detect nodata that is neither a number, with a point or a comma, nor empty, which means none."""
    if (values := directory.values(NODATA)) is None or not (data := values.tobytes()).strip(b"\0 "):
        return None
    text = data.split(b"\0")[0].decode(errors="replace").strip()
    if not is_number(text.replace(",", ".", 1)):
        return f"its nodata value is no number, got {text!r}"
    return None if not directory.wide or is_whole(text) else NOT_WHOLE.format(text)


def is_whole(text: str) -> bool:
    """Whether GDAL reads a text as the nodata value of 64-bit integers that it is, but for decimals, which it drops."""
    return WHOLE.fullmatch(text) is not None


def is_number(text: str) -> bool:
    """Whether GDAL reads a whole text as a number: it uses the longest valid prefix, and stops at a comma."""
    return NUMBER.fullmatch(text) is not None


def _keys_fault(directory: Directory) -> str | None:
    """Detect an invalid directory of GeoKeys: it has a version, then four numbers per key."""
    if (keys := directory.values(GEO_KEYS)) is None:
        return None
    if keys[0] != 1 or 4 * (int(keys[3]) + 1) > len(keys):
        return f"its GeoKeys must be of version 1, 4 numbers each, got version {keys[0]} and {len(keys)} for {keys[3]} keys"
    return None


def _blocks_fault(directory: Directory) -> str | None:
    """Detect blocks that begin in the header, and uncompressed ones that are too short. A block of 0 bytes is empty.

    Blocks beyond those of the image are ignored, as by all readers.
    """
    offsets, counts = directory.blocks
    if 0 in (*directory.block, *directory.shape):
        return None  # GDAL refuses these
    if len(offsets) < directory.block_count:
        return f"it has {len(offsets)} blocks of pixels, where its size has {directory.block_count}"
    offsets, counts = offsets[: directory.block_count], counts[: directory.block_count]
    stored = counts > 0
    if len(bad := np.flatnonzero(stored & (offsets < FIRST))):
        return f"block {bad[0]} of its pixels begins at byte {offsets[bad[0]]}"
    whole = directory.value(COMPRESSION, UNCOMPRESSED) == UNCOMPRESSED and directory.value(PHOTOMETRIC) != YCBCR
    if not whole or not stored.any():
        return None
    if not len(short := np.flatnonzero(stored & (counts < directory.expected_of_all()))):
        return None
    number = int(short[0])
    expected = directory.expected(number)
    return f"block {number} of its pixels has {counts[number]} bytes, too few for the {expected} that it holds"


def verify_files(paths: Iterable[str]) -> list[str]:
    """Compare the pixels in files with their checksums; return a note for each file without one.

    Raises:
        SourceError: a file is damaged.
    """
    return [f"{path} is not verified: {why}" for path in paths if (why := _verify_file(path)) is not None]


def _verify_file(path: str) -> str | None:
    if path.endswith(OVERVIEWS):
        return None
    if is_remote(path) or not is_file(path):
        return "it is not a file of this machine"
    with Path(path).open("rb") as file:
        head = _pread(file, 512, 0)
        if head.startswith(b"\x89PNG") or 0 not in head:
            return None  # libpng compares checksums on every read; a text has no pixels
        if not (images := [image for image in directories(file) if image.read]):
            return "pixels of its format have no checksum"
        for image in images:
            if image.value(COMPRESSION) in DEFLATE:
                _verify_blocks(path, image)
        checked = images[0].value(COMPRESSION) in (*DEFLATE, LERC)  # LERC blocks are compared whenever they are decoded
    return None if checked else "its compression has no checksum"


def _verify_blocks(path: str, image: Directory) -> None:
    """Check that every DEFLATE block ends at its checksum.

    GDAL decodes a block only as far as its pixels, so that damage that lengthens it is never compared with the checksum.
    """
    for number in range(min(len(image.blocks[0]), image.block_count)):
        if (data := image.block_data(number)) and (fault := _deflate_fault(data, _sizes(image, number))):
            raise SourceError(f"{path} is damaged: block {number} of its pixels: {fault}")


def _sizes(image: Directory, number: int) -> set[int]:
    """Possible sizes of a decoded block in bytes; empty for subsampled colour."""
    if image.value(PHOTOMETRIC) == YCBCR or 0 in (*image.block, *image.shape):
        return set()
    return {image.expected(number), image.expected(number, full=True)}


def _deflate_fault(data: bytes, sizes: set[int]) -> str | None:
    stream, size = zlib.decompressobj(), 0
    try:
        while data and not stream.eof:
            size += len(stream.decompress(data, READ_BYTES))
            data = stream.unconsumed_tail
    except zlib.error as error:
        return str(error)
    if not stream.eof:
        return "its DEFLATE stream has no end"
    return None if not sizes or size in sizes else f"it holds {size} bytes, not {max(sizes)}"

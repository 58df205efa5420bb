"""Assemble a cloud-optimised GeoTIFF from drafts of its levels, block by block.

GDAL's own driver decodes and encodes every block of a map, also those without data. Here, blocks are copied as they are
stored, and those without data have no bytes, as TIFF allows: readers fill them with nodata.
"""

import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from segpipe.formats.raster.tiff import COUNTS, OFFSETS, SIZES, SUBFILE, Directory, directories

HEADER = struct.Struct("<2sHHHQ")
"""Of BigTIFF: byte order, version, size of offsets, a zero, and the offset of the first directory."""
COUNT, ENTRY, NEXT = struct.Struct("<Q"), struct.Struct("<HHQ8s"), struct.Struct("<Q")
"""Parts of a directory: the number of its tags, each tag, and the offset of the next directory."""
LONG, LONG8 = 4, 16
OVERVIEW = 1
"""Bit of the subfile type."""

LAYOUT = (
    b"LAYOUT=IFDS_BEFORE_DATA\nBLOCK_ORDER=ROW_MAJOR\nBLOCK_LEADER=SIZE_AS_UINT4\nBLOCK_TRAILER=LAST_4_BYTES_REPEATED\n"
    b"KNOWN_INCOMPATIBLE_EDITION=NO\n "
)
"""What GDAL's readers may rely on (https://gdal.org/en/stable/drivers/raster/cog.html)."""
GHOST = b"GDAL_STRUCTURAL_METADATA_SIZE=%06d bytes\n%s" % (len(LAYOUT), LAYOUT)
AROUND = 4
"""Bytes before a block, which are its size, and after it, which repeat its last ones."""

Tags = dict[int, tuple[int, bytes]]
"""Type and values of each tag, by its number."""


@dataclass(frozen=True)
class _Level:
    """An image of the file: the map, or an overview."""

    file: BufferedReader
    draft: Directory
    tags: Tags
    """Without the offsets of blocks."""
    offsets: NDArray[np.int64]
    """Where each block lies in its draft; 0 if it has no data."""
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, file: BufferedReader, *, overview: bool) -> "_Level":
        draft = next(directories(file))
        kinds = {tag: entry.kind for tag, entry in draft.entries.items() if tag not in OFFSETS + COUNTS}
        tags = {tag: (kind, _little(draft, tag)) for tag, kind in kinds.items()}
        if overview:
            tags[SUBFILE] = LONG, struct.pack("<I", OVERVIEW)
        offsets, counts = draft.blocks
        return cls(file, draft, tags, np.where(counts > 0, offsets, 0), counts)

    @property
    def size(self) -> int:
        """Bytes of its blocks in the file."""
        return int(self.counts.sum()) + 2 * AROUND * int((self.counts > 0).sum())

    def placed(self, start: int) -> Tags:
        """All tags, if its blocks begin at an offset."""
        taken = np.where(self.counts > 0, self.counts + 2 * AROUND, 0)
        offsets = np.where(self.counts > 0, start + np.cumsum(taken) - taken + AROUND, 0)
        where, sizes = offsets.astype("<u8").tobytes(), self.counts.astype("<u4").tobytes()
        return dict(sorted((self.tags | {OFFSETS[1]: (LONG8, where), COUNTS[1]: (LONG, sizes)}).items()))

    def blocks(self) -> Iterator[bytes]:
        """Its blocks with data, in row-major order."""
        return (self.draft.block_data(number) for number in np.flatnonzero(self.counts > 0).tolist())


def _little(draft: Directory, tag: int) -> bytes:
    """Values of a tag in little-endian order."""
    values = draft.values(tag)
    assert values is not None  # GDAL has just written the draft
    return values.astype(values.dtype.newbyteorder("<")).tobytes()


def assemble(drafts: Sequence[Path], target: Path) -> None:
    """Write a cloud-optimised GeoTIFF.

    Args:
        drafts: tiled little-endian TIFFs of the map and of its overviews, each smaller than the one before.
        target: the file.

    Raises:
        OSError: it cannot be written.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(draft.open("rb")) for draft in drafts]
        levels = [_Level.of(file, overview=k > 0) for k, file in enumerate(files)]
        with target.open("wb") as stream:
            _write_directories(stream, levels)
            for level in reversed(levels):  # readers look at the overviews first
                for block in level.blocks():
                    stream.write(struct.pack("<I", len(block)) + block + block[-AROUND:])


def _write_directories(stream: BinaryIO, levels: Sequence[_Level]) -> None:
    """Write the header and all directories; the blocks follow, those of the last level in front."""
    first = _even(HEADER.size + len(GHOST))
    begins = np.cumsum([first, *(_directory_size(level.placed(0)) for level in levels)]).tolist()
    starts = np.cumsum([begins[-1], *(level.size for level in reversed(levels))]).tolist()[-2::-1]
    stream.write((HEADER.pack(b"II", 43, 8, 0, first) + GHOST).ljust(first, b"\0"))
    for level, begin, following, start in zip(levels, begins[:-1], [*begins[1:-1], 0], starts, strict=True):
        stream.write(_directory(level.placed(start), begin, following))


def _even(size: int) -> int:
    """Offsets of directories and values are multiples of 8, those of BigTIFF's largest numbers."""
    return -(-size // 8) * 8


def _is_inline(values: bytes) -> bool:
    return len(values) <= NEXT.size


def _table_size(tags: Tags) -> int:
    return _even(COUNT.size + ENTRY.size * len(tags) + NEXT.size)


def _directory_size(tags: Tags) -> int:
    return _table_size(tags) + sum(_even(len(values)) for _, values in tags.values() if not _is_inline(values))


def _directory(tags: Tags, begin: int, following: int) -> bytes:
    """The bytes of a directory at an offset: its tags, and the values that they have no room for."""
    table, beyond, at = COUNT.pack(len(tags)), [], begin + _table_size(tags)
    for tag, (kind, values) in tags.items():
        held = values if _is_inline(values) else NEXT.pack(at)
        table += ENTRY.pack(tag, kind, len(values) // SIZES[kind], held)
        if not _is_inline(values):
            beyond.append(values.ljust(_even(len(values)), b"\0"))
            at += len(beyond[-1])
    return (table + NEXT.pack(following)).ljust(_table_size(tags), b"\0") + b"".join(beyond)

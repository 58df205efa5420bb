"""Detect truncated files by the sizes and offsets in their headers."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from segpipe.storage.existence import is_file

SIZES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
"""TIFF's integer types as ``struct`` formats."""

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
OFFSETS, COUNTS = (273, 324), (279, 325)
DIRECTORIES = 64
UNFINISHED = "its header refers to no image, as while a program writes it: write it again"


def missing(path: str | Path) -> str | None:
    """Describe how much of a local file is missing; None where it is whole, or this is unknown."""
    path = Path(path)
    if not is_file(path):
        return None
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(16)
        try:
            needed = _needed(stream, head)
        except struct.error:
            return f"it has {size:,} bytes and ends within its directory: copy it again"
        if needed is not None and not 0 < needed <= size:
            rest = f"what it names reaches to byte {needed:,}: copy it again" if needed else UNFINISHED
            return f"it has {size:,} bytes, and {rest}"
        if head.startswith(b"\xff\xd8\xff") and not _ends(stream, size, b"\xff\xd9"):
            return f"it has {size:,} bytes and no end (EOI): copy it again"
        if head.startswith(b"\x89PNG") and not _ends(stream, size, b"IEND"):
            return f"it has {size:,} bytes and no end (IEND): copy it again"
    return None


def _ends(stream: BinaryIO, size: int, mark: bytes) -> bool:
    stream.seek(max(0, size - 2**16))
    return mark in stream.read()


def _needed(stream: BinaryIO, head: bytes) -> int | None:
    """Minimum size of a file in bytes by its own header; 0 for a TIFF without images, None if unknown."""
    if head[:4] == b"RIFF":
        return 8 + int(struct.unpack("<I", head[4:8])[0])
    if head[:2] == b"BM":
        return int(struct.unpack("<I", head[2:6])[0]) or None  # some programs write 0
    if head[:4] in TIFF:
        return max(_reaches(stream, "<" if head[:1] == b"I" else ">", big=b"+" in head[:4]), default=0)
    return None


def _reaches(stream: BinaryIO, order: str, *, big: bool) -> Iterator[int]:
    """Yield the ends of everything that a TIFF's directories refer to (TIFF 6.0, section 2; BigTIFF)."""
    count, entry, word = ("Q", 20, "Q") if big else ("H", 12, "I")
    start, seen = _read(stream, order + word, 8 if big else 4), set[int]()
    while start and start not in seen and len(seen) < DIRECTORIES:
        seen.add(start)
        width = struct.calcsize(count)
        yield start + width
        size = stream.seek(0, 2)
        if start + width > size:
            return
        entries = _read(stream, order + count, start)
        stop = start + width + entry * entries
        yield stop
        if stop > size:
            return
        yield from _strips(stream, order, range(start + width, stop, entry), big=big)
        start = _read(stream, order + word, stop) if stop + struct.calcsize(word) <= size else 0


def _strips(stream: BinaryIO, order: str, entries: range, *, big: bool) -> Iterator[int]:
    found: dict[int, tuple[int, ...]] = {}
    for at in entries:
        tag, kind = _read(stream, order + "H", at), _read(stream, order + "H", at + 2)
        if tag in OFFSETS + COUNTS and kind in SIZES:
            count = _read(stream, order + ("Q" if big else "I"), at + 4)
            form = f"{order}{count}{SIZES[kind]}"
            inline, inside = (8, at + 12) if big else (4, at + 8)
            place = inside if struct.calcsize(form) <= inline else _read(stream, order + ("Q" if big else "I"), inside)
            end = place + struct.calcsize(form)
            yield end
            if end <= stream.seek(0, 2):  # otherwise the values lie beyond the end, and may be too many for memory
                stream.seek(place)
                found[tag] = struct.unpack(form, stream.read(end - place))
    for offsets, counts in zip(OFFSETS, COUNTS, strict=True):
        ends = zip(found.get(offsets, ()), found.get(counts, found.get(COUNTS[0], ())), strict=False)
        yield from (offset + count for offset, count in ends)


def _read(stream: BinaryIO, form: str, at: int) -> int:
    stream.seek(at)
    return int(struct.unpack(form, stream.read(struct.calcsize(form)))[0])

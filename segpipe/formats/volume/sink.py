"""Write the mask of a volume into one file, whatever its header looks like."""

import gzip
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import OutputError, SourceError, on_failure
from segpipe.formats.sink import Target
from segpipe.formats.volume.file import Volume, opened, source_errors
from segpipe.formats.volume.slabs import MASK_SLAB, SlabWriter, slab_width
from segpipe.formats.volume.voxels import Voxels
from segpipe.geometry.voxel_grid import VoxelGrid, furthest_apart
from segpipe.geometry.windows import Window
from segpipe.storage import Store
from segpipe.storage.draft import CHUNK, Draft
from segpipe.storage.files import output_errors
from segpipe.storage.retry import is_passing

LEVEL = 4
"""Compression level: a mask has few values, and level 9 takes four times as long for a file that is hardly smaller."""

APART, FLOAT32 = 1e-3, 1e-6
"""Largest distance between the corners of two equal grids: a share of a voxel, and a share of the corner's coordinates."""


@dataclass(frozen=True, slots=True)
class Wrapping:
    """The bytes around the voxels of a mask."""

    suffix: str
    packed: bool
    inside: bytes = b""
    """The bytes before the voxels, packed with them."""
    before: bytes = b""
    """The bytes before the gzip stream."""


class VolumeSink(ABC):
    """Writes one volume: boxes to an unpacked draft first; the finished draft is checked and, if needed, compressed."""

    def __init__(self, target: Target) -> None:
        grid = target.grid
        assert isinstance(grid, VoxelGrid)
        self._output, self._wrapping = target.output, self._wrapped(target)
        self.name = target.stem + self._wrapping.suffix
        self.path = self._output.path(self.name)
        self.size = 0
        self._grid, self._style, self._total = grid, target.style, 0
        with output_errors(self.path):
            self._draft = Draft(self._output.draft(f"{target.stem}.draft"))
            with on_failure(self.discard):
                self._bands = self._begin()
                self._writers = self._slabs()

    @abstractmethod
    def _wrapped(self, target: Target) -> Wrapping:
        """What the mask has around its voxels."""

    @abstractmethod
    def _read(self, path: str, several: int) -> Volume:
        """The header of a finished file.

        Raises:
            SourceError: it cannot be read.
        """

    def _begin(self) -> list[Voxels]:
        """Write the start, and reserve space for one volume per band, one after the other."""
        start = self._wrapping.inside
        os.pwrite(self._draft.file, start, 0)
        shape, dtype = self._grid.stored.shape, np.dtype(self._style.dtype).newbyteorder("<")
        step = int(np.prod(shape)) * dtype.itemsize
        bands = [Voxels(self._draft.file, shape, dtype, len(start) + n * step) for n in range(len(self._style.bands))]
        os.ftruncate(self._draft.file, bands[-1].end)
        return bands

    def _slabs(self) -> list[SlabWriter]:
        """Writers of the bands, if boxes come in the order of the file's fastest axis; else none."""
        if self._grid.turned.order[0] != 2:
            return []
        band = self._bands[0]
        width = slab_width(band.shape, band.dtype.itemsize * len(self._bands), MASK_SLAB)
        return [SlabWriter(band, width, backwards=self._grid.turned.flipped[0]) for band in self._bands if width]

    def _flush(self) -> None:
        for writer in self._writers:
            writer.flush()

    def files(self) -> Sequence[str]:
        return (self.name,)

    def write(self, window: Window, values: NDArray[Any]) -> None:
        turned = self._grid.turned
        stored = turned.window_back(window, self._grid.shape)
        self._total += int(values.sum(dtype=np.int64))
        with output_errors(self.path):
            writers: Sequence[Voxels | SlabWriter] = self._writers or self._bands
            for band, part in zip(writers, values, strict=True):
                band.write(stored, turned.back(part))

    def plane(self, k: int) -> NDArray[Any]:
        """Read a stored plane back from the draft, shape ``(bands, rows, columns)``."""
        rows, columns = self._bands[0].shape[1:]
        with output_errors(self.path):
            self._flush()
            return np.concatenate([band.read(Window((k, 0, 0), (k + 1, rows, columns))) for band in self._bands])

    def finish(self) -> list[str]:
        try:
            with output_errors(self.path):
                digest = self._check_draft()
                if self._wrapping.packed:
                    self._publish(Draft(self._output.draft(self.name)), digest)
                else:
                    self._publish(self._draft, digest)
        finally:
            self.discard()
        return [self.name]

    def _publish(self, finished: Draft, digest: bytes) -> None:
        """Give the file its name in the output, compressed first if the mask is packed."""
        try:
            if finished is not self._draft:
                _pack(self._draft, finished.file, self._wrapping.before)
            self._take_aside(finished)
            self._check_written(finished.path, digest)
            self.size = finished.path.stat().st_size
            self._output.publish(finished.path, self.name)
        finally:
            finished.discard()

    def _check_draft(self) -> bytes:
        """Compute the digest of the draft.

        Raises:
            OutputError: the sum of its voxels differs from the sum of those written.
        """
        self._flush()
        os.fsync(self._draft.file)
        found = sum(int(plane.sum(dtype=np.int64)) for band in self._bands for plane in _planes(band))
        if found != self._total:
            raise OutputError(f"{self.path} cannot be written: not all of it has reached the disk")
        return _digest(self._draft.chunks())

    def _take_aside(self, finished: Draft) -> None:
        try:
            finished.take_aside()
        except OutputError as error:
            raise OutputError(f"{self.path} cannot be written: {error}") from error

    def _check_written(self, written: Path, digest: bytes) -> None:
        """Read a finished file back, up to its checksum, and compare its digest.

        Raises:
            OutputError: its content differs from the draft.
        """
        try:
            with source_errors(str(written)), self._content(written) as stream:
                same = _digest(_chunks(stream)) == digest
            there = self._read(str(written), len(self._bands)).grid
        except SourceError as error:
            raise OutputError(f"{self.path} cannot be written: {error}") from error
        if not (same and _same_place(there, self._grid)):
            raise OutputError(f"{self.path} cannot be written: it does not read back as it was written")

    def _content(self, written: Path) -> IO[bytes] | gzip.GzipFile:
        """The bytes of the draft in a finished file."""
        return opened(str(written), packed=self._wrapping.packed, start=len(self._wrapping.before))

    def discard(self) -> None:
        self._draft.discard()


def is_marked(output: Store, name: str, has_mark: Callable[[Path], bool]) -> bool:
    """Whether a volume of the output has the mark of segpipe in its header; False for what is damaged.

    Raises:
        OutputError: the file cannot be read now, but may be readable later.
    """
    try:
        with output_errors(output.path(name)), output.local(name) as path, source_errors(output.path(name)):
            return has_mark(path)
    except SourceError as error:
        if is_passing(error):
            raise OutputError(str(error)) from error
        return False


def _planes(band: Voxels) -> Iterator[NDArray[Any]]:
    return (band.read(plane) for plane in Window.whole(band.shape).blocks((1, *band.shape[1:])))


def _pack(draft: Draft, packed: int, before: bytes) -> None:
    """Compress a draft into an open file, without name and time, so that equal volumes give equal bytes."""
    with open(packed, "wb", closefd=False) as file:
        file.write(before)
        with gzip.GzipFile("", "wb", LEVEL, file, mtime=0) as stream:
            for chunk in draft.chunks():
                stream.write(chunk)


def _chunks(stream: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    """Yield all bytes up to the end, where gzip compares checksum and length."""
    while chunk := stream.read(CHUNK):
        yield chunk


def _digest(chunks: Iterable[bytes]) -> bytes:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.digest()


def _same_place(written: VoxelGrid, grid: VoxelGrid) -> bool:
    """Whether two grids agree at every corner, up to the float32 numbers of a header."""
    there = written.turn(grid.turned)
    one, other = np.array(there.affine), np.array(grid.affine)
    furthest = float((np.abs(other[:3]) @ [*grid.shape, 1]).max())  # no corner is farther from 0
    allowed = APART * min(grid.spacing) + FLOAT32 * furthest
    return there.shape == grid.shape and furthest_apart(one, other, grid.shape) <= allowed

"""Write masks as NIfTI volumes with the grid and the header of their input."""

import gzip
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from segpipe import __version__
from segpipe.errors import OutputError, SourceError
from segpipe.formats.nifti.draft import CHUNK, Draft
from segpipe.formats.nifti.header import PACKED, PLAIN, Volume, opened, read_volume, source_errors
from segpipe.formats.nifti.slabs import MASK_SLAB, SlabWriter, slab_width
from segpipe.formats.nifti.voxels import Voxels
from segpipe.formats.sink import Target
from segpipe.formats.style import Style
from segpipe.geometry.voxel_grid import VoxelGrid
from segpipe.geometry.windows import Window
from segpipe.storage import Store
from segpipe.storage.files import output_errors
from segpipe.storage.retry import is_passing

LEVEL = 4
"""Compression level: a mask has few values, and level 9 takes four times as long for a file that is hardly smaller."""

LABEL = 1002
"""NIFTI_INTENT_LABEL: each value is an index to a list of names."""

MARK = b"segpipe"
"""``intent_name`` of segpipe's masks; it identifies a mask that no record names."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a mask copies from its input."""

    header: bytes
    """The header's bytes, as stored in the file."""
    order: str
    """Byte order of the header."""
    packed: bool


def origin_of(volume: Volume) -> Origin:
    return Origin(volume.header.binaryblock, volume.header.endianness, volume.packed)


def mask_header(origin: Origin, style: Style) -> Any:
    """The input's header with the data type, scale and intent of a mask; its affine and units stay.

    Extensions and texts are left out: they describe the input's voxels, or the patient.
    """
    family: Any = nibabel.Nifti1Header if len(origin.header) == 348 else nibabel.Nifti2Header
    header = family(origin.header, endianness=origin.order, check=False).as_byteswapped("<")
    _set_shape(header, len(style.bands))
    header.set_data_dtype(np.dtype(style.dtype))
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    header["scl_slope"], header["scl_inter"] = style.scale, 0
    header["cal_min"] = header["cal_max"] = 0
    header["intent_code"] = LABEL if style.scale == 1 and len(style.bands) == 1 else 0
    header["intent_p1"] = header["intent_p2"] = header["intent_p3"] = 0
    header["intent_name"] = MARK
    header["descrip"] = f"segpipe {__version__}".encode()
    header["aux_file"] = b""
    if "db_name" in header:
        header["db_name"] = b""  # only NIfTI-1 has it
    return header


def _set_shape(header: Any, bands: int) -> None:
    """Set three axes, and a fourth if there are several bands."""
    rank = min(int(header["dim"][0]), 3)
    sizes = [*map(int, header["dim"][1 : 1 + rank]), *[1] * (3 - rank)]
    steps = [*map(float, header["pixdim"][1 : 1 + rank]), *[1.0] * (3 - rank)]
    more = [bands] if bands > 1 else []
    header["dim"] = [3 + len(more), *sizes, *more, *[1] * (4 - len(more))]
    header["pixdim"][1:] = [*steps, *[1.0] * 4]


class NiftiSink:
    """Writes one volume: boxes to an unpacked draft first; the finished draft is checked and, if needed, compressed."""

    def __init__(self, target: Target) -> None:
        grid = target.grid
        assert isinstance(grid, VoxelGrid)
        self._output = target.output
        self.name = target.stem + self._prepare(target)
        self.path = self._output.path(self.name)
        self.size = 0
        self._grid, self._style, self._total = grid, target.style, 0
        with output_errors(self.path):
            self._draft = Draft(self._output.draft(f"{target.stem}.draft{PLAIN}"))
            try:
                self._bands = self._begin()
                self._writers = self._slabs()
            except BaseException:
                self.discard()
                raise

    def _prepare(self, target: Target) -> str:
        """Set whether the mask is packed, and the start of its draft; return its suffix."""
        origin = target.origin
        assert isinstance(origin, Origin)
        self._packed = origin.packed
        self._start = bytes(mask_header(origin, target.style).binaryblock) + bytes(4)  # no extensions
        return PACKED if origin.packed else PLAIN

    def _begin(self) -> list[Voxels]:
        """Write the start, and reserve space for one volume per band, one after the other."""
        os.pwrite(self._draft.file, self._start, 0)
        shape, dtype = self._grid.stored.shape, np.dtype(self._style.dtype).newbyteorder("<")
        step = int(np.prod(shape)) * dtype.itemsize
        bands = [Voxels(self._draft.file, shape, dtype, len(self._start) + n * step) for n in range(len(self._style.bands))]
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
        """What is written of a stored plane, shape ``(bands, rows, columns)``."""
        rows, columns = self._bands[0].shape[1:]
        with output_errors(self.path):
            self._flush()
            return np.concatenate([band.read(Window((k, 0, 0), (k + 1, rows, columns))) for band in self._bands])

    def finish(self) -> list[str]:
        try:
            with output_errors(self.path):
                digest = self._check_draft()
                if self._packed:
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
                self._pack(self._draft, finished.file)
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
                kept = _digest(_chunks(stream)) == digest and _same_place(self._grid_of(written), self._grid)
        except SourceError as error:
            raise OutputError(f"{self.path} cannot be written: {error}") from error
        if not kept:
            raise OutputError(f"{self.path} cannot be written: it does not read back as it was written")

    def _pack(self, draft: Draft, file: int) -> None:
        """Write a draft into an open file, packed."""
        _pack(draft, file)

    @contextmanager
    def _content(self, written: Path) -> Iterator[IO[bytes] | gzip.GzipFile]:
        """The bytes of the draft in a finished file."""
        with opened(str(written), packed=self._packed) as stream:
            yield stream

    def _grid_of(self, written: Path) -> VoxelGrid:
        """The grid of a finished file."""
        return read_volume(str(written), len(self._style.bands)).grid

    def discard(self) -> None:
        self._draft.discard()


def is_own_volume(output: Store, name: str) -> bool:
    """Whether the header of a volume says that segpipe wrote it.

    Raises:
        OutputError: the file cannot be read now, but may be readable later.
    """
    try:
        with output_errors(output.path(name)), output.local(name) as path, source_errors(output.path(name)):
            return _mark(path) == MARK
    except SourceError as error:
        if is_passing(error):
            raise OutputError(str(error)) from error
        return False


def _mark(path: Path) -> bytes:
    with opened(str(path), packed=path.name.endswith(".gz")) as stream:
        head = stream.read(540)
    if len(head) < 348:
        return b""
    family: Any = nibabel.Nifti1Header if head[344:348] == b"n+1\0" else nibabel.Nifti2Header
    size = 348 if family is nibabel.Nifti1Header else 540
    return bytes(family(head[:size].ljust(size, b"\0"), check=False)["intent_name"].item())


def _planes(band: Voxels) -> Iterator[NDArray[Any]]:
    planes, rows, columns = band.shape
    return (band.read(Window((k, 0, 0), (k + 1, rows, columns))) for k in range(planes))


def _pack(draft: Draft, packed: int) -> None:
    """Compress a draft into an open file, without name and time, so that equal volumes give equal bytes."""
    with open(packed, "wb", closefd=False) as file, gzip.GzipFile("", "wb", LEVEL, file, mtime=0) as stream:
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
    there = written.turn(grid.turned)
    return there.shape == grid.shape and bool(np.allclose(there.affine, grid.affine, rtol=1e-6, atol=1e-6))

"""Write masks as NRRD volumes with the space, directions and origin of their input."""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from segpipe import __version__
from segpipe.errors import OutputError, SourceError
from segpipe.formats.nifti.draft import Draft
from segpipe.formats.nifti.header import opened, source_errors
from segpipe.formats.nifti.sink import LEVEL, NiftiSink
from segpipe.formats.nrrd.header import MAGIC, MOST_HEADER, NrrdOrigin, read_nrrd
from segpipe.formats.sink import Target
from segpipe.geometry.voxel_grid import VoxelGrid
from segpipe.storage import Store
from segpipe.storage.files import output_errors
from segpipe.storage.retry import is_passing

SUFFIX = ".nrrd"

MARK = b"\nsegpipe:="
"""A key of segpipe's masks; it identifies a mask that no record names."""

NAMES = {"u1": "uint8", "u2": "uint16"}


def mask_header(target: Target) -> bytes:
    """The header of a mask, up to the blank line: the place of the input, and no text of it that may name a patient."""
    origin, grid, style = target.origin, target.grid, target.style
    assert isinstance(origin, NrrdOrigin)
    assert isinstance(grid, VoxelGrid)
    bands, fields = len(style.bands), dict(origin.fields)
    more = {"space directions": " none", "spacings": " nan", "thicknesses": " nan"}
    place = [f"{name}: {value}{more.get(name, '') * (bands > 1)}" for name, value in fields.items()]
    sizes = [*map(str, reversed(grid.stored.shape)), *[str(bands)] * (bands > 1)]
    lines = [
        "NRRD0005",
        f"type: {NAMES[np.dtype(style.dtype).str[1:]]}",
        f"dimension: {len(sizes)}",
        *place[:1],
        f"sizes: {' '.join(sizes)}",
        *place[1:],
        f"kinds: domain domain domain{' list' * (bands > 1)}",
        "endian: little",
        "encoding: gzip",
        f"segpipe:={__version__}",
        *[f"scale:={style.scale!r}"] * (style.scale != 1),
    ]
    return "\n".join([*lines, "", ""]).encode()


class NrrdSink(NiftiSink):
    """As ``NiftiSink``, with voxels packed behind a text; the draft holds voxels alone."""

    def _prepare(self, target: Target) -> str:
        self._packed, self._start, self._text = True, b"", mask_header(target)
        return SUFFIX

    def _pack(self, draft: Draft, file: int) -> None:
        with open(file, "wb", closefd=False) as packed:
            packed.write(self._text)
            with gzip.GzipFile("", "wb", LEVEL, packed, mtime=0) as stream:
                for chunk in draft.chunks():
                    stream.write(chunk)

    @contextmanager
    def _content(self, written: Path) -> Iterator[IO[bytes] | gzip.GzipFile]:
        with opened(str(written), packed=True, start=len(self._text)) as stream:
            yield stream

    def _grid_of(self, written: Path) -> VoxelGrid:
        volume, _ = read_nrrd(str(written), len(self._style.bands))
        return volume.grid


def is_own_nrrd(output: Store, name: str) -> bool:
    """Whether the header of a volume says that segpipe wrote it.

    Raises:
        OutputError: the file cannot be read now, but may be readable later.
    """
    try:
        with output_errors(output.path(name)), output.local(name) as path, source_errors(output.path(name)):
            with path.open("rb") as stream:
                head = stream.read(MOST_HEADER)
            return head.startswith(MAGIC) and MARK in head.partition(b"\n\n")[0]
    except SourceError as error:
        if is_passing(error):
            raise OutputError(str(error)) from error
        return False

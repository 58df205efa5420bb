"""Write masks as NRRD volumes with the space, directions and origin of their input."""

from pathlib import Path

import numpy as np

from segpipe import __version__
from segpipe.formats.nrrd.header import MAGIC, MOST_HEADER, NrrdTemplate, read_nrrd
from segpipe.formats.sink import Target
from segpipe.formats.volume.file import Volume
from segpipe.formats.volume.sink import VolumeSink, Wrapping, is_marked
from segpipe.geometry.voxel_grid import VoxelGrid
from segpipe.storage import Store

SUFFIX = ".nrrd"

MARK = b"\nsegpipe:="
"""A key of segpipe's masks; it identifies a mask that no record names."""

NAMES = {"u1": "uint8", "u2": "uint16"}


def mask_header(target: Target) -> bytes:
    """The header of a mask, up to the blank line: the place of the input, and no text of it that may name a patient."""
    template, grid, style = target.template, target.grid, target.style
    assert isinstance(template, NrrdTemplate)
    assert isinstance(grid, VoxelGrid)
    bands, fields = len(style.bands), dict(template.fields)
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


class NrrdSink(VolumeSink):
    """Writes a volume with its voxels packed behind a text."""

    def _wrapped(self, target: Target) -> Wrapping:
        return Wrapping(SUFFIX, packed=True, before=mask_header(target))

    def _read(self, path: str, several: int) -> Volume:
        return read_nrrd(path, several)[0]


def is_own_nrrd(output: Store, name: str) -> bool:
    """Whether the header of a volume says that segpipe wrote it.

    Raises:
        OutputError: the file cannot be read now, but may be readable later.
    """
    return is_marked(output, name, _has_mark)


def _has_mark(path: Path) -> bool:
    with path.open("rb") as stream:
        head = stream.read(MOST_HEADER)
    return head.startswith(MAGIC) and MARK in head.partition(b"\n\n")[0]

"""Write masks as NIfTI volumes with the grid and the header of their input."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from segpipe import __version__
from segpipe.formats.nifti.header import PACKED, PLAIN, read_volume
from segpipe.formats.sink import Target
from segpipe.formats.style import Style
from segpipe.formats.volume.file import Volume, opened
from segpipe.formats.volume.sink import VolumeSink, Wrapping, is_marked
from segpipe.storage import Store

LABEL = 1002
"""NIFTI_INTENT_LABEL: each value is an index to a list of names."""

MARK = b"segpipe"
"""``intent_name`` of segpipe's masks; it identifies a mask that no record names."""


@dataclass(frozen=True, slots=True)
class NiftiTemplate:
    """The parts of its input that a mask copies."""

    header: bytes
    """The header's bytes, as stored in the file."""
    order: str
    """Byte order of the header."""
    packed: bool


def template_of(volume: Volume) -> NiftiTemplate:
    """What the sink of a volume's mask needs of its file."""
    return NiftiTemplate(volume.header.binaryblock, volume.header.endianness, volume.packed)


def mask_header(template: NiftiTemplate, style: Style) -> Any:
    """The input's header with the data type, scale and intent of a mask; its affine and units stay.

    Extensions and texts are left out: they describe the input's voxels, or the patient.
    """
    family: Any = nibabel.Nifti1Header if len(template.header) == 348 else nibabel.Nifti2Header
    header = family(template.header, endianness=template.order, check=False).as_byteswapped("<")
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
    steps = [*map(float, header["pixdim"][1 : 1 + rank]), *(_omitted_step(header, axis) for axis in range(rank, 3))]
    more = [bands] if bands > 1 else []
    header["dim"] = [3 + len(more), *sizes, *more, *[1] * (4 - len(more))]
    header["pixdim"][1:] = [*steps, *[1.0] * 4]


def _omitted_step(header: Any, axis: int) -> float:
    """The step along an axis that ``dim`` omits, as of a single slice: its sform or qform has one all the same."""
    if int(header["sform_code"]) > 0:
        return float(np.linalg.norm(header.get_sform()[:3, axis]))
    return float(header["pixdim"][1 + axis]) if int(header["qform_code"]) > 0 else 1.0


class NiftiSink(VolumeSink):
    """Writes a volume with the header of its input; it is packed if the input is."""

    def _wrapped(self, target: Target) -> Wrapping:
        template = target.template
        assert isinstance(template, NiftiTemplate)
        start = bytes(mask_header(template, target.style).binaryblock) + bytes(4)  # no extensions
        return Wrapping(PACKED if template.packed else PLAIN, template.packed, start)

    def _read(self, path: str, several: int) -> Volume:
        return read_volume(path, several)


def is_own_volume(output: Store, name: str) -> bool:
    """Whether the header of a volume says that segpipe wrote it.

    Raises:
        OutputError: the file cannot be read now, but may be readable later.
    """
    return is_marked(output, name, lambda path: _mark(path) == MARK)


def _mark(path: Path) -> bytes:
    with opened(str(path), packed=path.name.endswith(".gz")) as stream:
        head = stream.read(540)
    if len(head) < 348:
        return b""
    family: Any = nibabel.Nifti1Header if head[344:348] == b"n+1\0" else nibabel.Nifti2Header
    size = 348 if family is nibabel.Nifti1Header else 540
    return bytes(family(head[:size].ljust(size, b"\0"), check=False)["intent_name"].item())

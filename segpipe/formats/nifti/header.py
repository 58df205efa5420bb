"""Read the header of a NIfTI file, and check it against the rules of the format before any voxel is read."""

import gzip
import math
import os
from typing import IO, Any

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from segpipe.errors import SourceError, one_line
from segpipe.formats.volume.file import (
    APART,
    GZIP,
    NOTED,
    Volume,
    as_rows,
    check_length,
    check_packed,
    check_right_angles,
    checked_affine,
    is_packed,
    opened,
    source_errors,
)
from segpipe.geometry.voxel_grid import VoxelGrid, furthest_apart, matrix_rows
from segpipe.messages.printable import dims
from segpipe.storage.content import describe

PLAIN, PACKED = ".nii", ".nii.gz"

HEAD = 552
"""Bytes to read: a NIfTI-2 header (540; NIfTI-1 has 348), the extension flag (4), and the extension's size and code (8)."""

MAGIC = {348: (344, b"n+1\0", 352), 540: (4, b"n+2\0", 544)}
"""For each header size: offset of the magic, the magic, and the smallest offset of the voxels."""

EXTENSION = 16
"""Bytes of which the length of an extension is a multiple."""

MOST_EXTENSIONS = 1000
"""Extensions that are looked at: nobody writes as many, and each costs a read."""

PAIR = {348: b"ni1\0", 540: b"ni2\0"}

MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 1e-3}
"""Millimetres per unit of length, by NIfTI's code: unknown, metres, millimetres, micrometres."""

UNITS = {1: "m", 3: "um"}

DTYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
"""Data types with one real number per voxel, by NIfTI's code."""

OTHER_TYPES = {
    1: "1-bit voxels",
    32: "complex voxels",
    128: "RGB colours",
    1536: "floats of 128 bits",
    1792: "complex voxels",
    2048: "complex voxels",
    2304: "RGBA colours",
}

SIZE_APART, SIZE_TOLD = 1e-3, 1e-5
"""Largest relative difference between pixdim and the voxel size of sform, and the difference above which there is a note;
float32 rounds by 1e-6."""

SEVERAL = "take one out, with fslroi or nibabel's img.slicer[..., n]"
UNPLACED = (
    "the file does not say how it lies (sform_code and qform_code are 0): left and right follow nibabel's default, and "
    "other programs may differ"
)

WRITE_AGAIN = "write it again with the program that made it"
KEEP_ONE = "keep the one that is right, and set the other's code to 0: nibabel's img.set_qform(None, 0), or set_sform"


def read_volume(path: str, several: int = 1) -> Volume:
    """Read the header of a file that holds one volume, or ``several``: channels, or bands of a mask.

    Raises:
        SourceError: the file is not a volume that can be labelled, or its header contradicts itself.
    """
    with source_errors(path):
        packed = is_packed(path)
        with opened(path, packed=packed) as stream:
            head = stream.read(HEAD)
            volume = _audited(path, head, packed=packed, several=several)
            _check_extensions(volume, head, stream)
        size = os.stat(path).st_size  # noqa: PTH116
    if packed:
        check_packed(volume, size)
    else:
        check_length(volume, size)
    return volume


def _audited(path: str, head: bytes, *, packed: bool, several: int) -> Volume:
    header = _parsed(path, head, packed=packed)
    offset = _voxels_at(path, header)
    shape, count = _shape(path, header), _count(path, header, several)
    stored = _type(path, header)
    _check_pixdim(path, header)
    unit = _unit(path, header)
    affine, notes = _affine(path, header, shape, unit)
    code = int(header["xyzt_units"]) & 0x07
    if code == 0:
        notes.append("the file names no unit of length (xyzt_units): mm is taken")
    elif code in UNITS:
        notes.append(f"lengths of the file are in {UNITS[code]}; they are mm here and in the tables")
    grid = VoxelGrid(shape, matrix_rows(affine))
    notes += check_right_angles(path, grid)
    placed = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
    return Volume(
        path=path,
        header=header,
        stored=stored,
        offset=offset,
        packed=packed,
        grid=grid,
        scale=_scale(path, header),
        notes=tuple(notes),
        count=count,
        placed=placed,
    )


def _parsed(path: str, head: bytes, *, packed: bool) -> Any:
    """Parse the header without nibabel's automatic repairs."""
    orders = {kind.to_bytes(4, order): (kind, order) for kind in MAGIC for order in ("little", "big")}
    kind, order = orders.get(head[:4], (0, ""))
    if not kind or len(head) < kind:
        raise SourceError(_no_nifti(path, head, packed=packed))
    at, magic, _ = MAGIC[kind]
    found = head[at : at + 4]
    if found == PAIR[kind]:
        raise SourceError(f"{path} is the header of a pair, whose voxels lie in another file: convert both to one .nii")
    if found != magic:
        raise SourceError(
            f"{path} is no NIfTI file: its magic must be {magic!r}, got {found!r}: convert it to .nii, as with "
            "nibabel, if it is ANALYZE"
        )
    family: Any = nibabel.Nifti1Header if kind == 348 else nibabel.Nifti2Header
    return family(head[:kind], endianness=order, check=False)


def _no_nifti(path: str, head: bytes, *, packed: bool) -> str:
    """Describe a file that has the name of a volume but is not one."""
    if packed and head[:2] == GZIP:
        return f"{path} is packed twice: unpack it once: gunzip -c {path} > out.nii.gz"
    if packed and not head:
        return f"{path} unpacks to 0 bytes: copy it again"
    kind = None if packed or any(head[at : at + 4] == magic for at, magic, _ in MAGIC.values()) else describe(path)
    return kind or f"{path} is no NIfTI file: its first number must be 348 or 540, the size of its header: copy it again"


def _voxels_at(path: str, header: Any) -> int:
    """Offset of the first voxel in bytes."""
    size = int(header["sizeof_hdr"])
    least, offset = MAGIC[size][2], float(header["vox_offset"])
    if not (math.isfinite(offset) and offset >= least and offset == int(offset)):
        raise SourceError(f"{path}: vox_offset must be a whole number, {least} or more, got {offset:g}: {WRITE_AGAIN}")
    return int(offset)


def _check_extensions(volume: Volume, head: bytes, stream: IO[bytes] | gzip.GzipFile) -> None:
    """Check that all extensions of the header end before the voxels; bytes that are no extension end the search.

    Raises:
        SourceError: an extension reaches into the voxels.
    """
    size = int(volume.header["sizeof_hdr"])
    at = MAGIC[size][2]
    if not head[size : size + 1].strip(b"\0"):
        return
    for number in range(1, MOST_EXTENSIONS + 1):
        if at + EXTENSION > volume.offset and number > 1:
            return  # no space for another one
        stream.seek(at)
        length = int.from_bytes(stream.read(4), "little" if volume.header.endianness == "<" else "big", signed=True)
        if length <= 0 or length % EXTENSION:
            return
        at += length
        if at > volume.offset:
            raise SourceError(
                f"{volume.path} contradicts itself: extension {number} of its header, of {length} bytes, ends at byte {at}, "
                f"so vox_offset must be {at} or more, got {volume.offset}: {WRITE_AGAIN}"
            )


def _shape(path: str, header: Any) -> tuple[int, ...]:
    """Voxels per axis, slowest first, without the axes after the third."""
    rank, *sizes = (int(n) for n in header["dim"])
    if not 1 <= rank <= 7 or min(sizes[:rank]) < 1:
        raise SourceError(
            f"{path}: dim must hold the number of axes, 1 to 7, and their sizes, 1 or more, got {[rank, *sizes]}: "
            f"{WRITE_AGAIN}"
        )
    i, j, k = (*sizes[: min(rank, 3)], 1, 1)[:3]
    return k, j, i


def _count(path: str, header: Any, several: int) -> int:
    """Volumes in the file: one, or ``several`` along one of the axes after the third; the others have length 1."""
    rank, *sizes = (int(n) for n in header["dim"])
    more = [n for n in sizes[3:rank] if n > 1]
    if more not in ([], [several]):
        times, wanted = dims(sizes[3:rank]), f", or {several} for the model's channels" * (several > 1)
        raise SourceError(f"{path} must hold one volume{wanted}, and holds {times} of them: {SEVERAL}")
    return more[0] if more else 1


def _type(path: str, header: Any) -> np.dtype[Any]:
    code, bits = int(header["datatype"]), int(header["bitpix"])
    if code not in DTYPES:
        what = OTHER_TYPES.get(code, f"data type {code}")
        raise SourceError(
            f"{path}: a voxel must be one integer or float of at most 64 bits, and the file has {what}: "
            "write it with one number per voxel, as with nibabel"
        )
    dtype = np.dtype(DTYPES[code])
    if bits != 8 * dtype.itemsize:
        raise SourceError(
            f"{path} contradicts itself: bitpix of {dtype} voxels must be {8 * dtype.itemsize}, got {bits}: {WRITE_AGAIN}"
        )
    return dtype.newbyteorder(header.endianness)


def _check_pixdim(path: str, header: Any) -> None:
    """Refuse voxel sizes of 0 or less, which readers interpret differently."""
    rank = min(int(header["dim"][0]), 3)
    sizes = [float(n) for n in header["pixdim"][1 : 1 + rank]]
    if not all(math.isfinite(n) and n > 0 for n in sizes):
        listed = ", ".join(f"{n:g}" for n in sizes)
        raise SourceError(
            f"{path}: pixdim, the size of a voxel, must be above 0, got {listed}: "
            "set it with nibabel's img.header.set_zooms, as the scanner had it"
        )


def _unit(path: str, header: Any) -> float:
    code = int(header["xyzt_units"]) & 0x07
    if code not in MILLIMETRES:
        raise SourceError(
            f"{path}: the unit of length must be m, mm or um (xyzt_units 1, 2, 3), got {code}: set it with nibabel's "
            'img.header.set_xyzt_units("mm")'
        )
    return MILLIMETRES[code]


def _affine(path: str, header: Any, shape: tuple[int, ...], unit: float) -> tuple[NDArray[np.float64], list[str]]:
    """The affine from ``(k, j, i, 1)`` to mm, from sform, else qform, else pixdim alone; and notes.

    Raises:
        SourceError: sform and qform differ, and readers would use one or the other.
    """
    codes = int(header["sform_code"]), int(header["qform_code"])
    forms: dict[str, NDArray[np.float64]] = {}
    notes: list[str] = []
    if codes[0] > 0:
        forms["sform"] = checked_affine(path, _of_mm(header.get_sform(), unit))
    if codes[1] > 0:
        forms["qform"] = checked_affine(path, _of_mm(_quaternion(path, header), unit))
    if not forms:
        return _of_mm(header.get_base_affine(), unit), [UNPLACED]
    if len(forms) == 2:
        notes += _check_agreement(path, forms["sform"], forms["qform"], codes, shape)
    if "sform" in forms:
        notes += _check_sizes(path, header, forms["sform"], unit)
    return next(iter(forms.values())), notes


def _of_mm(affine: NDArray[np.float64], unit: float) -> NDArray[np.float64]:
    """Scale an affine to mm, and reorder its columns from ``(i, j, k)`` to ``(k, j, i)``."""
    scaled = np.array(affine, np.float64)
    scaled[:3] *= unit
    return scaled[:, [2, 1, 0, 3]]


def _quaternion(path: str, header: Any) -> Any:
    header = header.copy()
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1  # as the standard says
    try:
        return header.get_qform()
    except (HeaderDataError, ValueError) as error:
        raise SourceError(
            f"{path}: its qform is not valid: {one_line(error)}: set qform_code to 0, or correct the qform"
        ) from None


def _check_agreement(
    path: str, sform: NDArray[np.float64], qform: NDArray[np.float64], codes: tuple[int, int], shape: tuple[int, ...]
) -> list[str]:
    voxel = float(np.linalg.norm(sform[:3, :3], axis=0).min())
    apart = furthest_apart(sform, qform, shape)
    if not apart <= APART * voxel:
        raise SourceError(
            f"{path}: sform and qform must agree, and differ by {apart:.4g} mm at a corner; readers take one or the other. "
            f"sform (code {codes[0]}) is {as_rows(sform)}, qform (code {codes[1]}) is {as_rows(qform)}: {KEEP_ONE}"
        )
    far = apart > NOTED * voxel
    return [f"sform and qform differ by {apart:.3g} mm at a corner, and sform is taken"] if far else []


def _check_sizes(path: str, header: Any, sform: NDArray[np.float64], unit: float) -> list[str]:
    rank = min(int(header["dim"][0]), 3)
    sizes = np.array(header["pixdim"][1 : 1 + rank], np.float64) * unit
    steps = np.linalg.norm(sform[:3, :3], axis=0)[::-1][:rank]
    apart = float(np.abs(sizes / np.where(steps > 0, steps, 1) - 1).max())
    if not apart <= SIZE_APART:
        raise SourceError(
            f"{path}: pixdim and sform must give voxels one size, got {' x '.join(f'{n:.4g}' for n in sizes)} and "
            f"{' x '.join(f'{n:.4g}' for n in steps)} mm: readers take one or the other, set pixdim with "
            "nibabel's img.header.set_zooms"
        )
    return [f"pixdim and sform differ by {apart:.2g} of a voxel's size, and sform is taken"] if apart > SIZE_TOLD else []


def _scale(path: str, header: Any) -> tuple[float, float]:
    """Slope and intercept. A slope of 0 or NaN, as nibabel writes it, means that there is none."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    if not math.isfinite(slope) or not math.isfinite(intercept):
        raise SourceError(
            f"{path}: scl_slope and scl_inter must be finite, got {slope:g} and {intercept:g}: set them with nibabel's "
            "img.header.set_slope_inter"
        )
    return slope, intercept

"""Read the header of an NRRD file, and check it before any voxel is read."""

import math
import re
from collections.abc import Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
from numpy.typing import NDArray

from segpipe.errors import SourceError, one_line
from segpipe.formats.volume.file import (
    GZIP,
    Volume,
    check_length,
    check_packed,
    check_right_angles,
    checked_affine,
    source_errors,
)
from segpipe.geometry.voxel_grid import VoxelGrid, matrix_rows
from segpipe.storage.existence import is_file

MOST_HEADER = 2**16
"""Bytes of a header; those of DWI series with a line per direction have about 20,000."""

MAGIC = b"NRRD000"

TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
"""Names of types with one number per voxel (NRRD's definition of the format, "type")."""

TO_RAS = {
    **dict.fromkeys(("right-anterior-superior", "ras"), (1.0, 1.0, 1.0)),
    **dict.fromkeys(("left-anterior-superior", "las"), (-1.0, 1.0, 1.0)),
    **dict.fromkeys(("left-posterior-superior", "lps"), (-1.0, -1.0, 1.0)),
}
"""Signs that turn world coordinates of a space into those to the right, anterior and superior."""

MILLIMETRES = {"mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "cm": 10.0, "m": 1000.0, "um": 1e-3, "µm": 1e-3, "μm": 1e-3}

UNPLACED = (
    "the file does not say how it lies (space is not RAS, LAS or LPS): left and right are taken as if it were RAS, and "
    "other programs may differ"
)

WRITE_AGAIN = "write it again, with nrrd.write or 3D Slicer, encoded as raw or gzip"

SPATIAL = "domain"

PER_AXIS = ("kinds", "spacings", "thicknesses", "space directions")
"""Fields with a value for each axis, of those that are used."""

SEVERAL = re.compile(r"LIST(\s|$)|.*%\d*d")
"""Matches a data file entry that names several files: a list, or a pattern with a number."""


@dataclass(frozen=True, slots=True)
class NrrdTemplate:
    """The parts of its input that a mask copies: the fields that place it in space, as text."""

    fields: tuple[tuple[str, str], ...]


def read_nrrd(path: str, several: int = 1) -> tuple[Volume, NrrdTemplate]:
    """Read the header of a file that holds one volume, or ``several``: channels, or bands of a mask.

    Raises:
        SourceError: the file is not a volume that can be labelled, or its header contradicts itself.
    """
    with source_errors(path), Path(path).open("rb") as stream:
        head = stream.read(MOST_HEADER)
    text, length = _text(path, head)
    header = _parsed(path, text)
    spatial, count = _axes(path, header, several)
    stored = _type(path, header)
    file, packed, offset = _place_of_voxels(path, header, length)
    affine, placed, notes = _affine(path, header, spatial)
    sizes = [int(header["sizes"][axis]) for axis in spatial]
    grid = VoxelGrid(tuple(reversed(sizes)), matrix_rows(affine))
    notes += check_right_angles(path, grid)
    start, skipped = (offset, _skip(path, header)) if packed else (0, offset)
    volume = Volume(
        path=file,
        header=None,
        stored=stored,
        offset=skipped,
        packed=packed,
        grid=grid,
        scale=(1.0, 0.0),
        notes=tuple(notes),
        count=count,
        placed=placed,
        start=start,
    )
    with source_errors(file):
        size = Path(file).stat().st_size
    (check_packed if packed else check_length)(volume, size)
    return volume, NrrdTemplate(_place_fields(path, text, spatial, len(header["sizes"])))


def _text(path: str, head: bytes) -> tuple[list[str], int]:
    """The lines of a header, and its length in bytes with the blank line that ends it."""
    if not head.startswith(MAGIC):
        raise SourceError(f"{path} is no NRRD file: its first bytes must be NRRD000, got {head[:8]!r}")
    end = re.search(rb"\r?\n\r?\n", head)
    if end is None and len(head) == MOST_HEADER:
        raise SourceError(f"{path}: a header must end with a blank line within {MOST_HEADER:,} bytes: {WRITE_AGAIN}")
    whole = head if end is None else head[: end.end()]
    return whole.decode("utf-8", "replace").splitlines(), len(whole)


def _parsed(path: str, lines: list[str]) -> Mapping[str, Any]:
    try:
        with np.errstate(invalid="ignore"):  # of sizes too large for any type, which become negative
            header: Mapping[str, Any] = nrrd.read_header(lines)
    except (nrrd.NRRDError, ValueError, KeyError, IndexError, TypeError, StopIteration) as error:
        raise SourceError(f"{path}: its header is not valid: {one_line(error)}: {WRITE_AGAIN}") from None
    missing = [key for key in ("dimension", "type", "sizes", "encoding") if key not in header]
    if missing:
        raise SourceError(f"{path}: its header must have {', '.join(missing)}: {WRITE_AGAIN}")
    if len(header["sizes"]) != header["dimension"] or min(header["sizes"], default=0) < 1:
        raise SourceError(
            f"{path}: sizes must be {header['dimension']} whole numbers above 0, got {list(map(int, header['sizes']))}"
        )
    for key in PER_AXIS:
        _check_count(path, key, header.get(key), header["dimension"])
    return header


def _check_count(path: str, key: str, values: Sized | None, axes: int) -> None:
    """Check that a field has a value for each axis, if the header has it."""
    if values is not None and len(values) != axes:
        raise SourceError(f"{path}: {key} must have a value for each of {axes} axes, got {len(values)}: {WRITE_AGAIN}")


def _axes(path: str, header: Mapping[str, Any], several: int) -> tuple[list[int], int]:
    """The three axes of space, fastest first, and the number of volumes along a fourth axis, which must be the slowest.

    An axis is one of space if it has a direction, or by its kind in a file without directions.
    """
    sizes, directions, kinds = list(map(int, header["sizes"])), header.get("space directions"), header.get("kinds")
    if directions is not None:
        spatial = [axis for axis, row in enumerate(directions) if row is not None and np.isfinite(row).all()]
    elif kinds is not None and len(sizes) > 3:
        spatial = [axis for axis, kind in enumerate(kinds) if kind in (SPATIAL, "space")]
    else:
        spatial = list(range(min(3, len(sizes))))
    others = [axis for axis in range(len(sizes)) if axis not in spatial]
    more = [axis for axis in others if sizes[axis] > 1]
    if len(spatial) != 3:
        raise SourceError(f"{path} must have three axes of space, got {len(spatial)} among {' x '.join(map(str, sizes))}")
    if more and (len(more) > 1 or sizes[more[0]] != several):
        times, wanted = " x ".join(str(sizes[a]) for a in others), f", or {several} for the model's channels" * (several > 1)
        raise SourceError(f"{path} must hold one volume{wanted}, and holds {times} of them: take one out, with 3D Slicer")
    empty = [axis for axis in others if sizes[axis] == 1]
    if more and more[0] < max(spatial):
        raise SourceError(
            f"{path}: channels must be along the last axis, the slowest, got axis {more[0] + 1} of {len(sizes)}: write it "
            f"again with its axes in another order: {_reordered([*spatial, *empty, *more])}"
        )
    return spatial, sizes[more[0]] if more else 1


def _reordered(order: list[int]) -> str:
    """Lines of Python that write ``file`` with its axes in another order."""
    fields = ", ".join(f'"{key}"' for key in PER_AXIS)
    return (
        f"data, header = nrrd.read(file); order = {order}; "
        f"header |= {{key: [header[key][n] for n in order] for key in ({fields}) if key in header}}; "
        "nrrd.write(file, data.transpose(order), header)"
    )


def _type(path: str, header: Mapping[str, Any]) -> np.dtype[Any]:
    name = str(header["type"]).lower()
    if name not in TYPES:
        raise SourceError(f"{path}: a voxel must be one integer or float of at most 64 bits, and the file has {name}")
    dtype = np.dtype(TYPES[name])
    endian = str(header.get("endian", "")).lower()
    if dtype.itemsize > 1 and endian not in ("little", "big"):
        raise SourceError(f'{path}: endian must be little or big, got "{endian}": {WRITE_AGAIN}')
    return dtype.newbyteorder(">" if endian == "big" else "<")


def _place_of_voxels(path: str, header: Mapping[str, Any], length: int) -> tuple[str, bool, int]:
    """The file with the voxels, whether they are packed, and the byte at which they, or their gzip stream, begin."""
    encoding = str(header["encoding"]).lower()
    packed = encoding in ("gzip", "gz")
    if encoding != "raw" and not packed:
        raise SourceError(f"{path}: voxels must be encoded as raw or gzip, got {encoding}: {WRITE_AGAIN}")
    if int(header.get("line skip", header.get("lineskip", 0))):
        raise SourceError(f"{path}: line skip is not supported: {WRITE_AGAIN}")
    name = header.get("data file", header.get("datafile"))
    file, start = (path, length) if name is None else (_data_file(path, str(name)), 0)
    if packed:
        return file, True, start
    skip = _skip(path, header)
    if skip >= 0:
        return file, False, start + skip
    with source_errors(file):
        size = Path(file).stat().st_size
    needed = math.prod(map(int, header["sizes"])) * _type(path, header).itemsize
    if size - needed < start:
        raise SourceError(
            f"{file} is cut: its voxels take {needed:,} bytes, and it has {size - start:,} for them: copy it again"
        )
    return file, False, size - needed


def _skip(path: str, header: Mapping[str, Any]) -> int:
    skip = int(header.get("byte skip", header.get("byteskip", 0)))
    if skip < -1 or (skip == -1 and str(header["encoding"]).lower() != "raw"):
        raise SourceError(f"{path}: byte skip must be 0 or more, or -1 for raw voxels, got {skip}: {WRITE_AGAIN}")
    return skip


def _data_file(path: str, name: str) -> str:
    """The file that a header names, which lies in its folder.

    Raises:
        SourceError: there are several, or it is elsewhere.
    """
    folder = Path(path).parent
    if "\0" in name:
        raise SourceError(f"{path}: the name of the file with the voxels must be text, got {name!r}: {WRITE_AGAIN}")
    if SEVERAL.match(name):
        raise SourceError(f"{path}: voxels must lie in one file, and the header names several: {WRITE_AGAIN}")
    file = folder / name
    with source_errors(path):
        inside, there = file.resolve().is_relative_to(folder.resolve()), is_file(file)
    if not inside:
        raise SourceError(f"{path}: the file with the voxels must lie in the header's folder, got {name}: move it there")
    if not there:
        raise SourceError(f"{path}: the file with the voxels must exist, got {file}: copy it beside the header")
    return str(file)


def _affine(path: str, header: Mapping[str, Any], spatial: list[int]) -> tuple[NDArray[np.float64], bool, list[str]]:
    """The affine from ``(k, j, i, 1)`` to mm in RAS, whether the file says how it lies, and notes."""
    signs = TO_RAS.get(str(header.get("space", "")).lower())
    notes = [] if signs else [UNPLACED]
    affine = np.eye(4)
    affine[:3, :3] = _steps(path, header, spatial).T
    affine[:3, 3] = _origin(path, header)
    unit, unit_notes = _unit(path, header)
    affine[:3] *= unit
    affine[:3] *= np.array(signs or (1.0, 1.0, 1.0))[:, None]
    return checked_affine(path, affine[:, [2, 1, 0, 3]]), signs is not None, notes + unit_notes


def _steps(path: str, header: Mapping[str, Any], spatial: list[int]) -> NDArray[np.float64]:
    """The step along each axis of space, one per row."""
    directions = header.get("space directions")
    if directions is not None:
        steps = np.array([directions[axis] for axis in spatial], np.float64)
        if steps.shape != (3, 3):
            raise SourceError(f"{path}: space directions must have three numbers per axis, got {steps.shape[1:]}")
        return steps
    spacings = header.get("spacings")
    sizes = [math.nan] * 3 if spacings is None else [float(spacings[axis]) for axis in spatial]
    if not all(math.isfinite(size) and size > 0 for size in sizes):
        raise SourceError(
            f"{path}: the size of a voxel must be above 0, and the header has neither space directions nor spacings that "
            "say so: set space directions, as the scanner had them"
        )
    return np.diag(sizes)


def _origin(path: str, header: Mapping[str, Any]) -> NDArray[np.float64]:
    origin = np.array(header.get("space origin", np.zeros(3)), np.float64)
    if origin.shape != (3,) or not np.isfinite(origin).all():
        raise SourceError(f"{path}: space origin must be three numbers, got {origin.tolist()}: {WRITE_AGAIN}")
    return origin


def _unit(path: str, header: Mapping[str, Any]) -> tuple[float, list[str]]:
    """Millimetres per unit of length, and a note unless it is mm."""
    units = {str(unit).strip('"').lower() for unit in header.get("space units", [])} - {""}
    if not units:
        return 1.0, ["the file names no unit of length (space units): mm is taken"]
    if len(units) > 1 or not units <= MILLIMETRES.keys():
        raise SourceError(f"{path}: the unit of length must be one of mm, cm, m and um, got {', '.join(sorted(units))}")
    (unit,) = units
    return MILLIMETRES[unit], [] if unit.startswith("mi") or unit == "mm" else [
        f"lengths of the file are in {unit}; they are mm here and in the tables"
    ]


def _place_fields(path: str, lines: list[str], spatial: list[int], axes: int) -> tuple[tuple[str, str], ...]:
    """The fields that say where the three axes of space lie, as the file has them."""
    fields = [line.split(":", 1) for line in lines if not line.startswith("#") and ":=" not in line and ":" in line]
    values = {name.strip().lower(): value.strip() for name, value in fields}
    split = {"space directions": r"none|\([^)]*\)", "spacings": r"\S+", "thicknesses": r"\S+"}
    for name, pattern in split.items():
        if name in values:
            each = re.findall(pattern, values[name])
            _check_count(path, name, each, axes)
            values[name] = " ".join(each[axis] for axis in spatial)
    kept = ("space", "space dimension", "space directions", "spacings", "thicknesses", "space origin", "space units")
    return tuple((name, values[name]) for name in kept if name in values)


def is_packed(path: str) -> bool:
    """Whether gzip's checksum covers the voxels of a file, by its header; those of a detached file by its first bytes."""
    with source_errors(path), Path(path).open("rb") as stream:
        head = stream.read(MOST_HEADER)
    if not head.startswith(MAGIC):
        return head.startswith(GZIP)
    encoding = str(_parsed(path, _text(path, head)[0])["encoding"]).lower()
    return encoding in ("gzip", "gz")

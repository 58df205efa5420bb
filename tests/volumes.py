"""NIfTI files for tests, written by nibabel or byte by byte."""

import errno
import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

OBLIQUE = np.array([[0.0, -1.7, 0.3, 12.0], [0.9, 0.0, 0.0, -30.0], [0.0, 0.2, 2.55, 7.5], [0, 0, 0, 1]])
"""Columns at right angles, axes to A, L, S, 0.9 x 1.712 x 2.568 mm."""


def voxels(shape: tuple[int, ...] = (11, 13, 7), dtype: str = "i2", seed: int = 0) -> NDArray[Any]:
    """Seeded values, axes ``(i, j, k)`` as nibabel has them."""
    values = np.random.default_rng(seed).integers(-300, 1500, shape)
    return (values.clip(0, 255) if np.dtype(dtype) == "u1" else values).astype(dtype)


def write(
    path: Path, data: NDArray[Any], affine: NDArray[np.float64] | None = None, codes: tuple[int, int] = (2, 1), **fields: Any
) -> Path:
    """A volume with these codes of sform and qform, in mm; ``fields`` of the header are set last, as they are."""
    image = nibabel.Nifti1Image(data, None)
    affine = np.diag([1.0, 1.0, 1.0, 1.0]) if affine is None else affine
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    image.header.set_zooms((*np.linalg.norm(affine[:3, :3], axis=0), *[1] * (data.ndim - 3)))
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"a phantom"
    nibabel.save(image, path)
    if fields:
        patch(path, **fields)
    return path


def patch(path: Path, **fields: Any) -> Path:
    """Set fields of a header past all checks."""
    packed = path.suffix == ".gz"
    data = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    header = nibabel.Nifti1Header(bytes(data[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    data[:348] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(data)) if packed else bytes(data))
    return path


@dataclass(frozen=True)
class Room:
    """What ``shutil.disk_usage`` says."""

    free: int


def full(*_: Any) -> int:
    """Writes to a disk without room."""
    raise OSError(errno.ENOSPC, "No space left on device")

"""Reference volumes: values as their files mean them, on the grid of a mask."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import volumes

from segpipe.accuracy.labels import open_reference
from segpipe.errors import SourceError
from segpipe.formats.nifti.header import read_volume
from segpipe.geometry.windows import Window

LABELS = np.random.default_rng(0).integers(0, 3, (9, 8, 6))


def read(path: Path) -> Any:
    """All labels and where they are valid, with nibabel's axes; the mask's first axis is that of the file, reversed."""
    mask = volumes.write(
        path.parent / "mask.nii", LABELS[::-1].astype("u1"), np.diag([-1, 1, 1, 1]) @ np.diag([0.8, 0.7, 2, 1])
    )
    volumes.patch(mask, srow_x=[-0.8, 0, 0, 0.8 * 8], qform_code=0)
    grid = read_volume(str(mask)).grid
    with open_reference(path, grid) as reference:
        labels, valid = reference.read(Window((0, 0, 0), grid.shape))
    return labels.T[::-1], None if valid is None else valid.T[::-1]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(
    ("stored", "slope", "intercept"),
    [(LABELS, 1, 0), (2 * LABELS, 0.5, 0), (LABELS + 5, 1, -5), (127 * LABELS, 1 / 127, 0)],
)
def test_slope_and_intercept_are_applied(tmp_path: Path, name: str, stored: Any, slope: float, intercept: float) -> None:
    affine = np.diag([0.8, 0.7, 2, 1])
    path = volumes.write(tmp_path / name, stored.astype("i2"), affine, scl_slope=slope, scl_inter=intercept)
    np.testing.assert_allclose(nibabel.load(path).get_fdata(), LABELS, atol=1e-6)
    np.testing.assert_array_equal(read(path)[0], LABELS)


def test_nan_is_not_valid(tmp_path: Path) -> None:
    values = LABELS.astype("f4")
    values[2, 3] = np.nan
    labels, valid = read(volumes.write(tmp_path / "a.nii", values, np.diag([0.8, 0.7, 2, 1])))
    np.testing.assert_array_equal(valid, ~np.isnan(values))
    np.testing.assert_array_equal(labels[valid], LABELS[valid])


def test_a_reference_is_one_volume(tmp_path: Path) -> None:
    several = np.stack([k == LABELS for k in range(3)], axis=-1).astype("u1")
    path = volumes.write(tmp_path / "a.nii", several, np.diag([0.8, 0.7, 2, 1]))
    with pytest.raises(SourceError, match="must hold one volume, and holds 3 of them: take one out"):
        read(path)

"""Checks that are the same for volumes of all formats."""

import numpy as np
import pytest
from unreadable import fail

from segpipe.errors import SourceError
from segpipe.formats.volume.checks import box_near, check_local, check_overrides, declared_nodata
from segpipe.overrides import Overrides


@pytest.mark.parametrize("place", [(0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.999, 0.0, 0.7)])
@pytest.mark.parametrize("most", [1, 7, 1000])
def test_a_box_near_a_place_lies_inside_and_is_as_large_as_it_may_be(place, most):
    shape = (5, 40, 9)
    box = box_near(shape, place, most)
    assert box.shape == tuple(min(most, n) for n in shape)
    assert all(start >= 0 and stop <= n for start, stop, n in zip(box.start, box.stop, shape, strict=True))
    wanted = [int(share * n) for share, n in zip(place, shape, strict=True)]
    assert all(start <= at < stop for start, at, stop in zip(box.start, wanted, box.stop, strict=True))


@pytest.mark.parametrize("path", ["s3://bucket/a.nii", "/vsizip/a.zip/a.nii", "nowhere/a.nii", "."])
def test_a_volume_is_a_file_of_this_machine(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=r"a volume must be a file of this machine, got .*: copy it here first"):
        check_local(path, "a volume must be a file")


def test_a_volume_that_cannot_be_examined_is_not_called_missing(tmp_path, monkeypatch):
    fail(monkeypatch, tmp_path / "a.nii", "stat")
    with pytest.raises(SourceError, match=r"a\.nii cannot be read: Input/output error: check the disk"):
        check_local(str(tmp_path / "a.nii"), "a volume must be a file")


@pytest.mark.parametrize(("overrides", "flag"), [(Overrides(crs="EPSG:32633"), "--crs"), (Overrides(bands=(2,)), "--bands")])
def test_flags_of_rasters_are_refused(overrides, flag):
    with pytest.raises(SourceError, match=f"{flag}"):
        check_overrides("a.nii", overrides)
    check_overrides("a.nii", Overrides(bands=(1,)))


@pytest.mark.parametrize(
    ("given", "dtype", "value"),
    [(None, "i2", None), ("none", "i2", None), ("nan", "f4", None), (-2000, "i2", -2000), (0.1, "f4", np.float32(0.1))],
)
def test_a_declared_value_is_one_of_the_voxels_type(given, dtype, value):
    found = declared_nodata("a.nii", np.dtype(dtype), given)
    assert found == value
    assert found is None or found.dtype == dtype


def test_a_value_that_voxels_cannot_hold_is_refused():
    with pytest.raises(SourceError, match=r"^a\.nii: --nodata must be a value that the pixels can hold"):
        declared_nodata("a.nii", np.dtype("u1"), -1)

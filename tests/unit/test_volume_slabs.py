"""Slices along a file's fastest axis: the same voxels, and each byte of the file read a few times only."""

import math
import os
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import volumes
from command import invoke

from segpipe.contract import parse_contract
from segpipe.formats.nifti.source import NiftiSource
from segpipe.formats.volume import sink
from segpipe.formats.volume import source as source_module
from segpipe.formats.volume.slabs import MASK_SLAB, Slabs, SlabWriter
from segpipe.formats.volume.voxels import Voxels
from segpipe.geometry.windows import Window

SHAPE = (11, 13, 37)
"""Planes, rows, columns."""


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of bytes that were read."""
    counts: list[int] = []
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *given: counts.append(preadv(*given)) or counts[-1])
    return counts


def array(path: Path) -> tuple[Voxels, Any]:
    data = np.random.default_rng(0).integers(-300, 1500, SHAPE).astype(">i2")
    path.write_bytes(bytes(16) + data.tobytes())
    return Voxels(os.open(path, os.O_RDONLY), SHAPE, data.dtype, 16), data


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("width", [1, 5, 37])
def test_any_boxes_are_those_of_the_array(tmp_path: Path, width: int, backwards: bool) -> None:
    voxels, data = array(tmp_path / "a")
    thin, rng = Slabs(voxels, width, backwards=backwards), np.random.default_rng(1)
    for _ in range(300):
        start = rng.integers(0, SHAPE)
        stop = [int(rng.integers(a + 1, n + 1)) for a, n in zip(start, SHAPE, strict=True)]
        found = thin.read(Window(tuple(map(int, start)), tuple(stop)))
        np.testing.assert_array_equal(found, data[tuple(map(slice, start, stop))])
    os.close(thin.file)


@pytest.mark.parametrize("backwards", [False, True])
def test_slices_in_order_read_a_file_once_per_slab(tmp_path: Path, backwards: bool, read: list[int]) -> None:
    """Two windows a slice. The first box is read by itself; then 4 slabs of 10 columns hold 37."""
    voxels, data = array(tmp_path / "a")
    thin = Slabs(voxels, 10, backwards=backwards)
    for column in range(SHAPE[2])[:: -1 if backwards else 1]:
        for rows in ((0, 8), (5, 13)):
            box = Window((0, rows[0], column), (SHAPE[0], rows[1], column + 1))
            np.testing.assert_array_equal(thin.read(box), data[:, rows[0] : rows[1], column : column + 1])
    assert sum(read) == 4 * data.nbytes + 8 * data.nbytes // 13
    os.close(thin.file)


def test_boxes_here_and_there_read_their_own_rows_only(tmp_path: Path, read: list[int]) -> None:
    voxels, data = array(tmp_path / "a")
    thin = Slabs(voxels, 10, backwards=False)
    for column in (3, 20, 9, 30):
        thin.read(Window((2, 4, column), (5, 6, column + 3)))
    assert sum(read) == 4 * 3 * 2 * SHAPE[2] * data.itemsize
    os.close(thin.file)


def sagittal(path: Path, **changes: Any) -> NiftiSource:
    """A source of slices whose first axis is the fastest of the file."""
    return NiftiSource(str(path), parse_contract(networks.contract(1, 3, **{"orientation": "RAS", **changes}), "test"))


@pytest.mark.parametrize("letters", ["RAS", "LAS", "LSA", "SAR"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_volume_is_the_same_along_every_axis(
    tmp_path: Path, name: str, letters: str, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = volumes.voxels((37, 13, 11))  # axes to R, A, S
    path = volumes.write(tmp_path / name, data)
    monkeypatch.setattr(source_module, "SLAB", 10 * 13 * 11 * 2)
    source = sagittal(path, orientation=letters)
    assert source.memory((1, 5, 5)) == (0 if letters == "SAR" else 10 * 13 * 11 * 2 + 2 * MASK_SLAB)
    shape = source.grid.shape
    planes = [source.read(Window((k, 0, 0), (k + 1, *shape[1:])))[0][0, 0] for k in range(shape[0])]
    source.close()
    axes = tuple("RAS".find(letter) if letter in "RAS" else 0 for letter in letters)
    wanted = data.transpose(axes)
    np.testing.assert_array_equal(np.stack(planes), wanted[::-1] if letters[0] == "L" else wanted)
    assert sum(read) <= 5 * data.nbytes


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("width", [1, 5, 37])
def test_boxes_in_any_order_are_written(tmp_path: Path, width: int, backwards: bool) -> None:
    (tmp_path / "b").write_bytes(bytes(16 + 2 * 11 * 13 * 37))
    file, rng = os.open(tmp_path / "b", os.O_RDWR), np.random.default_rng(2)
    voxels, wanted = Voxels(file, SHAPE, np.dtype("<i2"), 16), np.zeros(SHAPE, "<i2")
    writer = SlabWriter(voxels, width, backwards=backwards)
    for _ in range(200):
        start = rng.integers(0, SHAPE)
        stop = [int(rng.integers(a + 1, n + 1)) for a, n in zip(start, SHAPE, strict=True)]
        box = tuple(map(slice, start, stop))
        wanted[box] = rng.integers(-99, 99, wanted[box].shape)
        writer.write(Window(tuple(map(int, start)), tuple(stop)), wanted[box])
    writer.flush()
    writer.flush()
    np.testing.assert_array_equal(voxels.read(Window((0, 0, 0), SHAPE)), wanted)
    os.close(file)


@pytest.mark.parametrize("backwards", [False, True])
def test_slices_in_order_are_written_once_per_slab(
    tmp_path: Path, backwards: bool, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four slabs: each is read, and each of its rows is read and written once more."""
    (tmp_path / "b").write_bytes(bytes(math.prod(SHAPE)))
    file, written, pwrite = os.open(tmp_path / "b", os.O_RDWR), [], os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda *given: written.append(pwrite(*given)) or written[-1])
    writer = SlabWriter(Voxels(file, SHAPE, np.dtype("u1")), 10, backwards=backwards)
    for column in range(SHAPE[2])[:: -1 if backwards else 1]:
        writer.write(Window((0, 0, column), (*SHAPE[:2], column + 1)), np.full((*SHAPE[:2], 1), column))
    writer.flush()
    assert (sum(read), sum(written)) == (8 * math.prod(SHAPE), 4 * math.prod(SHAPE))
    assert (tmp_path / "b").read_bytes() == bytes(range(37)) * (11 * 13)
    os.close(file)


@pytest.mark.parametrize("more", [[], ["--parts", "3"], ["--confidence"]])
def test_a_run_slice_by_slice_gives_the_same_mask_without_slabs(
    tmp_path: Path, more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = volumes.write(tmp_path / "a.nii", volumes.voxels((37, 13, 11), "u1"))
    networks.positional(tmp_path / "m.onnx", 8, 1, overlap=[2, 2], orientation="RAS")
    command = ["run", "-i", path.name, "-m", "m.onnx", "--executor", "serial", "--device", "cpu", *more]
    assert invoke([*command, "-o", "slabs"], tmp_path).returncode == 0
    monkeypatch.setattr(source_module, "SLAB", 0)
    monkeypatch.setattr(sink, "MASK_SLAB", 0)
    assert invoke([*command, "-o", "none"], tmp_path).returncode == 0
    for name in ("a.nii", *["a.confidence.nii"] * ("--confidence" in more)):
        assert (tmp_path / "slabs" / name).read_bytes() == (tmp_path / "none" / name).read_bytes()

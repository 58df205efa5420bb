"""Packed volumes are read to their last byte, unpacked once, into TMPDIR, and leave nothing there."""

import errno
import gzip
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import volumes
from command import invoke

import segpipe
from segpipe.errors import SourceError
from segpipe.formats.nifti.header import read_volume
from segpipe.formats.volume import scratch, unpacked_files
from segpipe.formats.volume.unpacked_files import close, unpacked
from segpipe.formats.volume.voxels import Voxels
from segpipe.geometry.windows import Window
from segpipe.storage.retry import unwritable


@pytest.fixture
def tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "unpacked_files"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    unpacked_files.release()
    assert not list(folder.iterdir())


@pytest.fixture
def unpackings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the volumes that were unpacked."""
    names: list[str] = []
    unpack = unpacked_files._unpack
    monkeypatch.setattr(unpacked_files, "_unpack", lambda volume: names.append(Path(volume.path).name) or unpack(volume))
    return names


def content(path: Path) -> Any:
    volume = read_volume(str(path))
    file = unpacked(volume)
    try:
        voxels = Voxels(file, volume.shape, volume.stored, volume.offset)
        return voxels.read(Window((0, 0, 0), volume.shape))
    finally:
        close(file)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", ">f4", "f8"])
def test_voxels_are_those_that_were_written(tmp_path: Path, tmpdir: Path, name: str, dtype: str) -> None:
    data = volumes.voxels(dtype=dtype)
    header = None if dtype[0] != ">" else volumes.nibabel.Nifti1Header(endianness=">")
    image = volumes.nibabel.Nifti1Image(data, np.eye(4), header)
    image.set_data_dtype(dtype)
    volumes.nibabel.save(image, tmp_path / name)
    found = content(tmp_path / name)
    np.testing.assert_array_equal(found, data.T)
    assert found.dtype == np.dtype(dtype).newbyteorder("=")


def test_a_stream_of_several_members_is_one_file(tmp_path: Path, tmpdir: Path) -> None:
    plain = volumes.write(tmp_path / "a.nii", volumes.voxels()).read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(plain[:1000]) + gzip.compress(plain[1000:]))
    np.testing.assert_array_equal(content(tmp_path / "b.nii.gz"), volumes.voxels().T)


@pytest.mark.parametrize("lost", [1, 7, 8, 9, 1500])
def test_a_stream_that_is_cut_is_refused(tmp_path: Path, tmpdir: Path, lost: int) -> None:
    path = volumes.write(tmp_path / "a.nii.gz", volumes.voxels())
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(SourceError, match=r"a.nii.gz is cut: its gzip stream ends before its trailer"):
        content(path)


@pytest.mark.parametrize(("at", "message"), [(-8, "CRC check failed"), (-1, "Incorrect length"), (-900, "does not decode")])
def test_a_stream_with_one_wrong_byte_is_refused(tmp_path: Path, tmpdir: Path, at: int, message: str) -> None:
    path = volumes.write(tmp_path / "a.nii.gz", volumes.voxels())
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(SourceError, match=f"is damaged: its gzip stream does not decode.*{message}|{message}"):
        content(path)


def test_what_is_inside_must_be_as_long_as_its_header_says(tmp_path: Path, tmpdir: Path) -> None:
    path = volumes.write(tmp_path / "a.nii.gz", volumes.voxels(), dim=[3, 11, 13, 6, 1, 1, 1, 1])
    with pytest.raises(SourceError, match="contradicts itself"):
        content(path)
    path = volumes.write(tmp_path / "b.nii.gz", volumes.voxels(), dim=[3, 11, 13, 8, 1, 1, 1, 1])
    with pytest.raises(SourceError, match="is cut"):
        content(path)


def test_a_bomb_is_not_unpacked_to_its_end(tmp_path: Path, tmpdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = volumes.write(tmp_path / "a.nii", volumes.voxels()).read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(plain + bytes(2**26)))
    monkeypatch.setattr(unpacked_files, "CHUNK", 2**16)
    read = []
    monkeypatch.setattr(unpacked_files, "opened", lambda path, **_: Counting(Path(path), read))
    with pytest.raises(SourceError, match="contradicts itself"):
        content(tmp_path / "b.nii.gz")
    assert sum(read) < 2**19


class Counting:
    def __init__(self, path: Path, read: list[int]) -> None:
        self.stream, self.seen = gzip.GzipFile(path), read

    def read(self, size: int) -> bytes:
        data: bytes = self.stream.read(size)
        self.seen.append(len(data))
        return data

    def __enter__(self) -> "Counting":
        return self

    def __exit__(self, *details: object) -> None:
        self.stream.close()


def test_a_full_tmpdir_is_named(tmp_path: Path, tmpdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = volumes.write(tmp_path / "a.nii.gz", volumes.voxels())
    with monkeypatch.context() as patch:
        patch.setattr(scratch.shutil, "disk_usage", lambda folder: volumes.Room(10))
        with pytest.raises(SourceError, match=r"takes 2,354 bytes unpacked, and .* has 10 free"):
            content(path)

    with monkeypatch.context() as patch:
        patch.setattr(scratch.os, "posix_fallocate", full)
        with pytest.raises(SourceError, match="free space there, or set TMPDIR") as raised:
            content(path)
    assert unwritable(raised.value, writing=False) is None  # other cases, and their masks, have room

    monkeypatch.setattr(unpacked_files.os, "write", full)
    with pytest.raises(SourceError, match="free space there, or set TMPDIR"):
        content(path)


def full(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_header_that_no_file_of_this_size_can_keep_is_refused_before_anything_is_unpacked(tmp_path: Path) -> None:
    path = volumes.write(tmp_path / "a.nii.gz", volumes.voxels(), dim=[3, 3000, 3000, 3000, 1, 1, 1, 1])
    with pytest.raises(SourceError, match=r"is cut or damaged: its header says 3000 x 3000 x 3000 voxels .* copy it again"):
        read_volume(str(path))


def test_what_packs_best_is_taken(tmp_path: Path, tmpdir: Path) -> None:
    """Zeros are packed a thousand times."""
    path = tmp_path / "a.nii.gz"
    plain = volumes.write(tmp_path / "a.nii", np.zeros((256, 256, 200), np.uint8)).read_bytes()
    path.write_bytes(gzip.compress(plain, 9))
    assert path.stat().st_size * 900 < len(plain)
    assert not content(path).any()


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = volumes.write(tmp_path / "a.nii", volumes.voxels())
    volume = read_volume(str(path))
    file = unpacked(volume)
    os.truncate(path, 1000)
    with pytest.raises(OSError, match="has become shorter"):
        Voxels(file, volume.shape, volume.stored, volume.offset).read(Window((0, 0, 0), volume.shape))
    close(file)


def used(folder: Path) -> int:
    """Bytes in files without a name that this process holds in a folder."""
    links = [path for path in Path("/proc/self/fd").iterdir() if os.path.lexists(path)]
    open_files = {}
    for link in links:
        try:
            target, found = str(link.readlink()), link.stat()
        except OSError:
            continue  # the descriptor of the listing itself
        if target.startswith(f"{folder}/"):
            open_files[found.st_ino] = found.st_size
    return sum(open_files.values())


def test_a_volume_is_unpacked_once_for_all_openings(tmp_path: Path, tmpdir: Path, unpackings: list[str]) -> None:
    path = volumes.write(tmp_path / "a.nii.gz", volumes.voxels())
    for _ in range(3):
        np.testing.assert_array_equal(content(path), volumes.voxels().T)
    assert unpackings == ["a.nii.gz"]
    assert used(tmpdir) == read_volume(str(path)).end
    unpacked_files.release()
    assert used(tmpdir) == 0
    content(path)
    assert unpackings == ["a.nii.gz"] * 2


def test_the_space_of_a_volume_is_free_before_another_is_unpacked(
    tmp_path: Path, tmpdir: Path, unpackings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = volumes.write(tmp_path / "a.nii.gz", volumes.voxels())
    other = volumes.write(tmp_path / "b.nii.gz", volumes.voxels(seed=1))
    content(one)
    held, reserve = [], scratch._reserve
    monkeypatch.setattr(scratch, "_reserve", lambda *given: held.append(used(tmpdir)) or reserve(*given))
    np.testing.assert_array_equal(content(other), volumes.voxels(seed=1).T)
    assert held == [0]
    content(one)
    assert unpackings == ["a.nii.gz", "b.nii.gz", "a.nii.gz"]


def test_an_open_source_keeps_its_voxels_while_others_come(tmp_path: Path, tmpdir: Path, unpackings: list[str]) -> None:
    volume = read_volume(str(volumes.write(tmp_path / "a.nii.gz", volumes.voxels())))
    file = unpacked(volume)
    content(volumes.write(tmp_path / "b.nii.gz", volumes.voxels(seed=1)))
    found = Voxels(file, volume.shape, volume.stored, volume.offset).read(Window((0, 0, 0), volume.shape))
    close(file)
    np.testing.assert_array_equal(found, volumes.voxels().T)
    content(volumes.write(tmp_path / "c.nii.gz", volumes.voxels(seed=2)))
    assert used(tmpdir) == volume.end  # of the third, which has the same size


def test_the_volumes_of_one_case_are_kept_together(tmp_path: Path, tmpdir: Path, unpackings: list[str]) -> None:
    paths = [volumes.write(tmp_path / f"{name}.nii.gz", volumes.voxels(seed=n)) for n, name in enumerate("ab")]
    for _ in range(3):  # parts
        files = [unpacked(read_volume(str(path))) for path in paths]
        for file in files:
            close(file)
    assert unpackings == ["a.nii.gz", "b.nii.gz"]
    content(volumes.write(tmp_path / "c.nii.gz", volumes.voxels(seed=2)))
    assert used(tmpdir) == read_volume(str(paths[0])).end


def test_a_file_that_is_replaced_is_unpacked_again(tmp_path: Path, tmpdir: Path, unpackings: list[str]) -> None:
    path = volumes.write(tmp_path / "a.nii.gz", volumes.voxels())
    content(path)
    before = path.stat()
    volumes.write(tmp_path / "b.nii.gz", volumes.voxels(seed=1)).replace(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    np.testing.assert_array_equal(content(path), volumes.voxels(seed=1).T)
    assert len(unpackings) == 2


def test_a_file_that_changes_while_it_is_unpacked_is_not_kept(
    tmp_path: Path, tmpdir: Path, unpackings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = volumes.write(tmp_path / "a.nii.gz", volumes.voxels())
    length = unpacked_files.check_length
    monkeypatch.setattr(unpacked_files, "check_length", lambda *given: os.utime(path, ns=(0, 0)) or length(*given))
    content(path)
    monkeypatch.setattr(unpacked_files, "check_length", length)
    content(path)
    content(path)
    assert len(unpackings) == 2


def test_threads_that_open_one_volume_at_once_share_it(tmp_path: Path, tmpdir: Path, unpackings: list[str]) -> None:
    path = volumes.write(tmp_path / "a.nii.gz", volumes.voxels())
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(content, [path] * 32):
            np.testing.assert_array_equal(found, volumes.voxels().T)
    assert unpackings == ["a.nii.gz"]


def test_a_volume_that_cannot_be_unpacked_is_not_kept(tmp_path: Path, tmpdir: Path, unpackings: list[str]) -> None:
    path = volumes.write(tmp_path / "a.nii.gz", volumes.voxels())
    path.write_bytes(path.read_bytes()[:-1])
    for _ in range(2):
        with pytest.raises(SourceError, match="its gzip stream ends"):
            content(path)
    assert (len(unpackings), used(tmpdir)) == (2, 0)


@pytest.mark.parametrize("more", [[], ["--parts", "4"], ["--dry-run"]])
def test_a_run_unpacks_a_volume_once_and_frees_it(
    tmp_path: Path, tmpdir: Path, unpackings: list[str], more: list[str]
) -> None:
    model = networks.volumetric(tmp_path / "m.onnx", (8, 8, 8), normalize="zscore")
    path = volumes.write(tmp_path / "a.nii.gz", volumes.voxels((20, 22, 24), "u1"))
    command = ["run", "-i", str(path), "-m", str(model), "-o", str(tmp_path / "out"), "--executor", "serial", *more]
    done = invoke(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert unpackings == ["a.nii.gz"]
    assert more or used(tmpdir) == 0


def test_a_run_from_python_leaves_nothing_in_tmpdir(tmp_path: Path, tmpdir: Path, unpackings: list[str]) -> None:
    model = networks.volumetric(tmp_path / "m.onnx", (8, 8, 8))
    path = volumes.write(tmp_path / "a.nii.gz", volumes.voxels((20, 22, 24), "u1"))
    segpipe.run(str(path), str(model), str(tmp_path / "out"), executor="serial", parts=3)
    assert (unpackings, used(tmpdir)) == (["a.nii.gz"], 0)

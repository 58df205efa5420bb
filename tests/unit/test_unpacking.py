"""Space in TMPDIR for packed volumes: counted by hand, and compared with what a run holds there."""

import math
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import dicoms
import networks
import pytest
import volumes
from command import invoke
from scenes import Silent

from segpipe.formats.registry import open_case
from segpipe.formats.volume import unpacked_files
from segpipe.jobs import unpacking as counting
from segpipe.jobs.disk import Free
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import Prepared, prepare
from segpipe.jobs.unpacking import Unpacked, unpacked, unpacking, unpacking_shortages
from segpipe.settings import load_settings

SIZES = {"a": (20, 22, 24), "b": (20, 22, 12), "c": (8, 9, 10)}
BYTES = {name: 352 + i * j * k for name, (i, j, k) in SIZES.items()}
"""A header of NIfTI-1 with its flag of extensions, and a byte per voxel."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name, shape in SIZES.items():
        volumes.write(tmp_path / "in" / f"{name}.nii.gz", volumes.voxels(shape, "u1"))
    networks.volumetric(tmp_path / "m.onnx", (8, 8, 8))
    return tmp_path


def prepared(folder: Path, **flags: Any) -> Prepared:
    fixed = {"input": (str(folder / "in"),), "model": folder / "m.onnx", "output": folder / "out", "device": "cpu"}
    return prepare(load_settings(None, fixed | {"executor": "serial"} | flags))


def of(folder: Path, **flags: Any) -> Unpacked:
    made = prepared(folder, **flags)
    return unpacked(made.plan, made.run)


def test_each_worker_has_one_volume(folder: Path) -> None:
    assert of(folder) == Unpacked(BYTES["a"], BYTES["a"])
    assert of(folder, executor="dask", workers=2, parts=1) == Unpacked(BYTES["a"], BYTES["a"] + BYTES["b"])
    assert of(folder, executor="dask", workers=5, parts=1) == Unpacked(BYTES["a"], sum(BYTES.values()))


def test_a_volume_in_parts_is_unpacked_by_several_workers(folder: Path) -> None:
    assert of(folder, executor="dask", workers=3, parts=2) == Unpacked(BYTES["a"], 2 * BYTES["a"] + BYTES["b"])


def test_files_that_are_read_in_place_take_nothing(folder: Path) -> None:
    for path in (folder / "in").iterdir():
        path.unlink()
    volumes.write(folder / "in" / "a.nii", volumes.voxels(dtype="u1"))
    made = prepared(folder)
    assert unpacked(made.plan, made.run) == Unpacked(0, 0)
    assert list(unpacking(made.plan, made.run)) == list(unpacking_shortages(made.plan, made.run)) == []


def test_cases_that_were_not_opened_count_as_the_largest_of_a_sample(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segpipe.jobs.planning.MOST_OPENED", 2)
    assert of(folder, executor="dask", workers=2) == Unpacked(BYTES["a"], 2 * BYTES["a"])


@pytest.mark.parametrize("parts", [1, 4])
def test_a_run_takes_no_more_than_that(folder: Path, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made, held = prepared(folder, parts=parts), []
    unpack = unpacked_files._unpack
    monkeypatch.setattr(unpacked_files, "_unpack", lambda volume: held.append(volume.end) or unpack(volume))
    carry_out(made, Silent())
    assert sorted(held) == sorted(BYTES.values())
    assert max(held) == unpacked(made.plan, made.run).largest


def test_dry_run_has_a_line_for_it(folder: Path) -> None:
    done = invoke(["run", "-i", "in", "-m", "m.onnx", "-o", "out", "--dry-run", "--executor", "serial"], folder)
    assert f"disk  unpacked cases take at most 1 MB in {tempfile.gettempdir()} (TMPDIR" in done.stdout


GIGABYTE = 10**9


@pytest.mark.parametrize(
    ("free", "same", "tmpfs", "words"),
    [
        (10 * GIGABYTE, False, False, None),
        (
            GIGABYTE,
            False,
            False,
            "unpack cases of 6.0 GB at once into TMP, and 1.0 GB are free: free 5.0 GB there, set",
        ),
        (7 * GIGABYTE, True, False, "OUT and TMP are on one disk, where the run likely takes 8.0 GB with unpacked cases"),
        (7 * GIGABYTE, False, False, None),
        (10 * GIGABYTE, False, True, "TMP is a tmpfs, so unpacked cases take 6.0 GB of memory beside"),
        (None, True, False, None),
    ],
)
def test_warnings(
    folder: Path, free: int | None, same: bool, tmpfs: bool, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepared(folder)
    monkeypatch.setattr(counting, "unpacked", lambda *_: Unpacked(3 * GIGABYTE, 6 * GIGABYTE))
    monkeypatch.setattr(counting, "free_at", lambda _: Free(free, None))
    monkeypatch.setattr(counting, "_is_same_disk", lambda *_: same)
    monkeypatch.setattr(counting, "is_in_memory", lambda _: tmpfs)
    monkeypatch.setattr(counting, "memory", lambda: 6 * GIGABYTE)
    monkeypatch.setattr(counting, "needed", lambda *_: type("Needed", (), {"likely": 2 * GIGABYTE}))
    lines = list(unpacking_shortages(made.plan, made.run))
    if words is None:
        assert lines == []
        return
    (line,) = lines
    words = words.replace("TMP ", f"{tempfile.gettempdir()} ").replace("TMP,", f"{tempfile.gettempdir()},")
    assert words.replace("OUT", str(folder / "out")) in line or words.replace("OUT", str(folder)) in line
    assert line.startswith("warning: ")


def test_workers_elsewhere_have_a_tmpdir_of_their_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = prepared(folder)
    monkeypatch.setattr(counting, "_is_elsewhere", lambda _: True)
    monkeypatch.setattr(counting, "free_at", lambda _: Free(1, None))
    assert list(unpacking_shortages(made.plan, made.run)) == []
    (line,) = unpacking(made.plan, made.run)
    assert line == "disk  each worker unpacks cases into TMPDIR of its machine, one at a time, at most 1 MB"


def test_a_series_takes_its_decoded_planes(tmp_path: Path) -> None:
    dicoms.write(tmp_path / "in" / "ct")
    networks.volumetric(tmp_path / "m.onnx", (4, 8, 8), pixel="physical")
    made = prepared(tmp_path)
    (case,) = made.plan.opened
    with closing(open_case(case.case, made.run.model.contract)) as source:
        assert unpacked(made.plan, made.run).largest == math.prod(case.shape) * source.dtype.itemsize > 0

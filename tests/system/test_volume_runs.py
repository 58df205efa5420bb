"""The life of a case that is a volume: parts, a kill in the middle, resuming, what is not overwritten, what is refused."""

import csv
import errno
import io
import json
import os
import pkgutil
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import nibabel
import numpy as np
import pytest
import volumes
from command import invoke
from scenes import SEGPIPE, assert_same, begin_and_stop, wait

TILE = (8, 12, 10)
COMMAND = ["run", "-i", "in", "-m", "model.onnx", "--device", "cpu"]
Segpipe = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    networks.volumetric(tmp_path / "model.onnx", TILE, scale=1 / 255)
    (tmp_path / "in").mkdir()
    volumes.write(tmp_path / "in" / "a.nii.gz", volumes.voxels((41, 33, 29), "u1"), volumes.OBLIQUE)
    volumes.write(tmp_path / "in" / "b.nii", volumes.voxels((12, 13, 14), "u1", 1))
    return tmp_path


def run(root: Path, *more: str) -> Any:
    done = invoke([*COMMAND, "--executor", "serial", *more], root)
    done.stderr += done.stdout
    return done


@pytest.mark.parametrize("more", [["--parts", "5"], ["--parts", "5", "--confidence"], ["--batch", "3"]])
def test_parts_and_batches_leave_the_same_bytes(folder: Path, more: list[str]) -> None:
    assert run(folder, "-o", "whole", *more[2:] * ("--confidence" in more)).returncode == 0
    done = run(folder, "-o", "cut", *more)
    assert done.returncode == 0, done.stderr
    assert_same(folder / "cut", folder / "whole")


def test_a_later_run_skips_what_is_done_and_does_what_has_changed(folder: Path) -> None:
    assert "2 done" in run(folder).stderr
    mask = folder / "segpipe-out" / "a.nii.gz"
    before = mask.stat().st_mtime_ns
    assert "0 done, 2 done before" in run(folder).stderr
    assert mask.stat().st_mtime_ns == before
    volumes.write(folder / "in" / "a.nii.gz", volumes.voxels((41, 33, 29), "u1", 7), volumes.OBLIQUE)
    assert "1 done, 1 done before" in run(folder).stderr
    assert "2 done, 0 done before" in run(folder, "--overwrite").stderr
    mask.write_bytes(mask.read_bytes()[:-5])
    again = run(folder)
    assert "a.nii.gz is damaged" in again.stderr
    assert "1 done, 1 done before" in again.stderr


def test_a_file_of_somebody_else_stays(folder: Path) -> None:
    out = folder / "segpipe-out"
    out.mkdir()
    theirs = volumes.write(out / "a.nii.gz", volumes.voxels()).read_bytes()
    done = run(folder)
    assert done.returncode != 0
    assert "a.nii.gz is an input or was not written by segpipe" in done.stderr
    assert (out / "a.nii.gz").read_bytes() == theirs
    assert (out / "b.nii").exists()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("times", [1, 3])  # in the plan; before its parts and in their join, too
@pytest.mark.parametrize("where", ["opened", "Folder.local"])  # the header; the copy of an object
def test_a_mask_that_cannot_be_read_just_now_is_looked_at_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, where: str, times: int, number: int
) -> None:
    """Its record is lost; whether segpipe wrote it, its header says as soon as it can be read."""
    assert run(folder).returncode == 0
    (folder / "segpipe-out" / "a.json").unlink()
    name = f"segpipe.formats.nifti.sink.{where}" if where == "opened" else f"segpipe.storage.folder.{where}"
    faults = iter([OSError(number, os.strerror(number))] * times)
    there = pkgutil.resolve_name(name)

    def flaky(*arguments: Any, **more: Any) -> Any:
        if (fault := next(faults, None)) is not None:
            raise fault
        return there(*arguments, **more)

    monkeypatch.setattr(name, flaky)
    monkeypatch.setattr("segpipe.storage.retry.FIRST_WAIT", 0.001)
    again = run(folder)
    assert again.returncode == 0, again.stderr
    assert "1 done, 1 done before" in again.stderr
    assert ("tried again" in again.stderr) == (times == 3)
    assert next(faults, None) is None


def test_a_mask_whose_record_is_lost_is_known_and_made_again(folder: Path) -> None:
    assert run(folder).returncode == 0
    out = folder / "segpipe-out"
    before = (out / "a.nii.gz").read_bytes()
    (out / "a.json").unlink()
    assert "1 done, 1 done before" in run(folder).stderr
    assert (out / "a.nii.gz").read_bytes() == before


def test_an_input_is_never_its_own_mask(folder: Path) -> None:
    before = (folder / "in" / "b.nii").read_bytes()
    done = run(folder, "-o", "in")
    assert done.returncode != 0
    assert (folder / "in" / "b.nii").read_bytes() == before


def test_rasters_and_volumes_in_one_folder(folder: Path, raster: Callable[..., Path]) -> None:
    raster("in/r.tif", np.ones((1, 20, 24), np.uint8))
    done = run(folder)
    assert done.returncode != 0
    assert "r.tif: a model of volumes needs volumes" in done.stderr
    networks.pixelwise(folder / "flat.onnx", 1)
    done = invoke(["run", "-i", "in", "-m", "flat.onnx", "--device", "cpu", "--executor", "serial", "-o", "flat"], folder)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO((folder / "flat" / "areas.csv").read_text())))
    assert [row["ml"] != "" for row in rows] == [True] * 8 + [False] * 4
    assert {row["case"]: row["unit"] for row in rows} == {"a": "mm3", "b": "mm3", "r": "ha"}


def test_volumes_are_counted_in_voxels(folder: Path) -> None:
    planned = run(folder, "--dry-run").stdout
    assert re.search(r"(?m)^case  a  [\d x]+ voxels  \d+ windows$", planned)
    done = run(folder).stdout
    assert re.search(r"done  a  [\d.]+ Mvoxel  [\d.]+ s  [\d.]+ Mvoxel/s", done)
    assert re.search(r"0 failed in [\d.]+ s, [\d.]+ Mvoxel/s", done)
    assert "px" not in planned + done
    shown = invoke(["status", "segpipe-out"], folder).stdout
    assert "px" not in shown


def test_names_that_differ_in_their_form_alone_collide(folder: Path) -> None:
    volumes.write(folder / "in" / "a.nii", volumes.voxels(dtype="u1"))
    done = run(folder)
    assert "two inputs would get one name, a" in done.stderr


def test_bad_volumes_cost_only_themselves(folder: Path) -> None:
    (folder / "in" / "cut.nii.gz").write_bytes((folder / "in" / "a.nii.gz").read_bytes()[:-9])
    volumes.write(folder / "in" / "four.nii", volumes.voxels((12, 13, 14, 2), "u1"))
    (folder / "in" / "none.nii").write_bytes(b"nothing")
    done = run(folder)
    assert done.returncode != 0
    assert "2 done, 0 done before, 3 failed" in done.stderr
    for said in ("cut.nii.gz is cut: its gzip stream ends", "four.nii must hold one volume", "none.nii is no NIfTI file"):
        assert said in done.stderr
    assert {path.name for path in (folder / "segpipe-out").iterdir() if ".nii" in path.name} == {"a.nii.gz", "b.nii"}


def test_without_nibabel_the_command_that_installs_it_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("segpipe.formats.nifti.", "nibabel"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    done = run(folder)
    assert done.returncode != 0
    assert ".nii and .nii.gz files need nibabel, which is not installed: run pip install" in done.stderr
    assert "[medical]" in done.stderr


def test_voxels_without_a_number_are_nodata_in_the_mask(folder: Path) -> None:
    data = volumes.voxels((12, 13, 14), "f4")
    data[:3] = np.nan
    volumes.write(folder / "in" / "b.nii", data)
    assert run(folder).returncode == 0
    labels = np.asarray(nibabel.load(folder / "segpipe-out" / "b.nii").dataobj)
    np.testing.assert_array_equal(labels == 255, np.isnan(data))
    assert json.loads((folder / "segpipe-out" / "b.json").read_text())["valid"]["pixels"] == 9 * 13 * 14


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume of many tiles in a folder with a model, and ``whole``, what an undisturbed run makes of it."""
    root = tmp_path_factory.mktemp("killed")
    net = networks.Network(1, 0, ndim=3).conv(1, 8, 3).add("Relu").conv(8, 8, 3).add("Relu").conv(8, 3, 3)
    values = networks.contract(1, 3, layout="NCDHW", tile=[16], overlap=[4], orientation="RAS")
    net.save(root / "model.onnx", values, classes=3, shape=("n", 16, 16, 16))
    (root / "in").mkdir()
    volumes.write(root / "in" / "a.nii.gz", volumes.voxels((90, 60, 50), "u1"), volumes.OBLIQUE)
    assert run(root, "-o", "whole").returncode == 0
    return root


@pytest.mark.slow
@pytest.mark.parametrize("parts", [[], ["--parts", "6"]])
@pytest.mark.parametrize("box", [2, 9])
def test_a_run_that_is_killed_in_a_volume_goes_on_to_the_same_bytes(
    whole: Path, tmp_path: Path, parts: list[str], box: int
) -> None:
    out = tmp_path / "out"
    command = [*SEGPIPE, *COMMAND, "-o", str(out), "--executor", "serial", *parts]
    process = begin_and_stop(whole, command, tmp_path / "log", f"results.output:write:{box}")
    assert any((out / ".drafts").rglob("*"))
    process.send_signal(signal.SIGKILL)
    assert wait(process) == -signal.SIGKILL, process.said("not killed")
    assert not (out / "a.json").exists()
    assert run(whole, "-o", str(out), *parts).returncode == 0
    assert_same(out, whole / "whole")


@pytest.mark.parametrize("name", ["T1.nii", "T1.nii.gz"])
def test_a_mask_does_not_lie_beside_its_input(folder: Path, name: str) -> None:
    volumes.write(folder / "in" / name, volumes.voxels())
    done = invoke(["run", "-i", f"in/{name}", "-m", "model.onnx", "-o", "in", "--executor", "serial"], folder)
    assert done.returncode != 0
    assert f"the mask of in/{name} would lie on or beside it: name another folder" in done.stdout + done.stderr


@pytest.mark.parametrize("more", [[], ["--parts", "3"], ["--dry-run"]])
def test_nodata_that_a_volume_does_not_declare_is_told_with_a_flag(folder: Path, more: list[str]) -> None:
    networks.volumetric(folder / "model.onnx", TILE, scale=1, normalize="zscore")
    for path in (folder / "in").iterdir():
        path.unlink()
    voxels = volumes.voxels((41, 33, 29), "i2")
    voxels[::3] = -32768
    volumes.write(folder / "in" / "a.nii", voxels, volumes.OBLIQUE, scl_slope=2, scl_inter=7)
    done = run(folder, *more)
    assert "hold -32768, which looks like nodata that the file does not declare: say so with --nodata" in done.stderr
    assert "gdal_edit" not in done.stderr

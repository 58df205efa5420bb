"""Runs of DICOM series: one bad among ten, parts, resuming, names, the audit, and the same bytes as for the NIfTI volume."""

import json
import os
from pathlib import Path
from typing import Any

import dicoms
import networks
import nibabel
import numpy as np
import pydicom
import pytest
from command import invoke
from dicoms import Each
from scenes import assert_same

TILE = (2, 6, 8)
TURNED = [0.0, 0.8, -0.6, 1.0, 0.0, 0.0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    networks.volumetric(tmp_path / "model.onnx", TILE, scale=1 / 4096)
    return tmp_path


def run(root: Path, *more: str) -> Any:
    done = invoke(["run", "-i", "in", "-m", "model.onnx", "--device", "cpu", "--executor", "serial", *more], root)
    done.stderr += done.stdout
    return done


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_bad_series_among_ten_costs_only_itself(folder: Path) -> None:
    for n in range(10):
        places = np.delete(dicoms.positions(7), 3, axis=0) if n == 4 else None
        dicoms.write(folder / "in" / f"p{n}" / "CT", dicoms.values(seed=n), places, series=n + 1)
    done = run(folder)
    assert done.returncode == 1
    assert "9 done, 0 done before, 1 failed" in done.stderr
    assert "p4/CT: in/p4/CT: 1 slice is missing at steps of 2.5 mm" in done.stderr
    assert not (folder / "segpipe-out/p4").exists()
    assert len(lines(folder / "segpipe-out/audit.jsonl")) == 9
    again = run(folder)
    assert "0 done, 9 done before, 1 failed" in again.stderr


@pytest.mark.parametrize("more", [["--parts", "3"], ["--parts", "7", "--confidence"], ["--batch", "3"]])
def test_parts_and_batches_leave_the_same_bytes(folder: Path, more: list[str]) -> None:
    dicoms.write(folder / "in" / "CT", dicoms.values((13, 14, 15)))
    assert run(folder, "-o", "whole", *more[2:] * ("--confidence" in more)).returncode == 0
    done = run(folder, "-o", "cut", *more)
    assert done.returncode == 0, done.stderr
    (folder / "whole/audit.jsonl").unlink()
    (folder / "cut/audit.jsonl").unlink()
    assert_same(folder / "cut", folder / "whole")


def test_workers_leave_the_same_bytes(folder: Path, segpipe: Any) -> None:
    for n in range(2):
        dicoms.write(folder / "in" / f"p{n}", dicoms.values((6, 14, 15), seed=n), series=n + 1)
    assert run(folder, "-o", "one").returncode == 0
    command = ["run", "-i", "in", "-m", "model.onnx", "--device", "cpu", "--workers", "2", "--parts", "2", "-o", "two"]
    done = segpipe(*command, cwd=folder)
    assert done.returncode == 0, done.stderr
    for name in ("one", "two"):
        (folder / name / "audit.jsonl").unlink()
    assert_same(folder / "two", folder / "one")


def test_a_series_and_its_nifti_volume_get_the_same_labels(folder: Path) -> None:
    pixels, places = dicoms.values((9, 14, 15)), dicoms.positions(9, orientation=TURNED)
    dicoms.write(folder / "in" / "CT", pixels, places, ImageOrientationPatient=TURNED)
    assert run(folder).returncode == 0
    mask = nibabel.load(folder / "segpipe-out/CT.nii.gz")
    volume = nibabel.Nifti1Image((pixels.astype(np.int32) - 1024).T, mask.affine, dtype="int32")
    volume.header.set_xyzt_units("mm")
    volume.set_sform(mask.affine, 1)
    volume.set_qform(mask.affine, 1)
    (folder / "nifti").mkdir()
    nibabel.save(volume, folder / "nifti" / "CT.nii.gz")
    done = invoke(
        ["run", "-i", "nifti", "-m", "model.onnx", "--device", "cpu", "--executor", "serial", "-o", "other"], folder
    )
    assert done.returncode == 0, done.stderr + done.stdout
    other = nibabel.load(folder / "other/CT.nii.gz")
    np.testing.assert_array_equal(np.asarray(other.dataobj), np.asarray(mask.dataobj))
    np.testing.assert_array_equal(other.affine, mask.affine)
    assert len(np.unique(np.asarray(mask.dataobj))) > 1


def test_a_series_that_has_changed_is_done_again(folder: Path) -> None:
    dicoms.write(folder / "in" / "CT", dicoms.values((7, 9, 11))[:6])
    assert "1 done" in run(folder).stderr
    assert "0 done, 1 done before" in run(folder).stderr
    more = dicoms.slice_of(dicoms.values()[0], dicoms.positions(7)[6], 7)
    dicoms.save(more, folder / "in" / "CT" / "IM0006.dcm")
    assert "1 done, 0 done before" in run(folder).stderr
    assert nibabel.load(folder / "segpipe-out/CT.nii.gz").shape == (11, 9, 7)
    (folder / "in" / "CT" / "IM0006.dcm").unlink()
    assert "1 done, 0 done before" in run(folder).stderr
    path = folder / "in" / "CT" / "IM0002.dcm"
    data = pydicom.dcmread(path)
    data.PixelData = bytes(198)
    data.save_as(path)
    assert "1 done, 0 done before" in run(folder).stderr


def test_the_record_and_the_audit_have_the_uids(folder: Path) -> None:
    dicoms.write(folder / "in" / "CT", dicoms.values()[::-1], dicoms.positions(6)[::-1])
    assert run(folder).returncode == 0
    record = json.loads((folder / "segpipe-out/CT.json").read_text())
    read = record["uids"]["read"]
    assert read["SeriesInstanceUID"] == dicoms.uid(1)
    assert read["SOPInstanceUIDs"] == [dicoms.uid(1, n) for n in (6, 5, 4, 3, 2, 1)]
    assert len(record["input"]["files"]) == 6
    (line,) = lines(folder / "segpipe-out/audit.jsonl")
    assert line["audit"] == "CT"
    assert line["model"]["sha256"] == record["model"]["sha256"]
    assert line["read"] == read
    seg = pydicom.dcmread(folder / "segpipe-out/CT.seg.dcm", stop_before_pixels=True)
    levels = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    assert line["written"] == {"CT.seg.dcm": {level: seg[level].value for level in levels}}
    assert line["files"] == ["CT.nii.gz", "CT.seg.dcm"]
    assert line["time"].startswith("20")


def test_a_copy_without_times_leaves_those_of_the_audit(folder: Path) -> None:
    """The file of a record of an earlier version is all that has its time."""
    dicoms.write(folder / "in" / "CT")
    assert run(folder).returncode == 0
    out, record = folder / "segpipe-out", folder / "segpipe-out" / "CT.json"
    (before,) = lines(out / "audit.jsonl")
    os.utime(record, (86400.5, 86400.5))
    assert "0 done, 1 done before" in run(folder).stderr
    assert lines(out / "audit.jsonl") == [before]
    record.write_text(json.dumps({key: value for key, value in json.loads(record.read_text()).items() if key != "time"}))
    os.utime(record, (86400.5, 86400.5))
    assert "0 done, 1 done before" in run(folder).stderr
    assert lines(out / "audit.jsonl") == [before | {"time": "1970-01-02T00:00:00+00:00"}]


@pytest.mark.parametrize("names", ["path", "number", "uid"])
def test_no_output_names_a_patient(folder: Path, names: str) -> None:
    named = "case" if names == "path" else "Mustermann"
    dicoms.write(folder / "in" / named / "CT", SeriesDescription="of Mustermann")
    dicoms.write(folder / "in" / named / "MR", series=2, places=np.delete(dicoms.positions(7), 3, axis=0))
    for n, path in enumerate(sorted(dicoms.write(folder / "cut", series=3).iterdir())):
        path.rename(folder / "in" / named / "MR" / f"cut{n}")
    (folder / "in" / named / "MR" / "cut2").write_bytes((folder / "in" / named / "MR" / "cut2").read_bytes()[:-9])
    (folder / "in" / named / "IM1.dcm").write_bytes(bytes(200))
    more = ["--seg", "none", "--confidence", "--log-file", "run.log", "--style", "qgis"]  # a SEG repeats the patient's tags
    done = run(folder, "--case-name", names, *more)
    assert "1 done, 0 done before, 3 failed" in done.stderr
    for path in [folder / "run.log", *(folder / "segpipe-out").rglob("*")]:
        data = path.read_bytes() if path.is_file() else b""
        assert not any(word in data for word in (b"Mustermann", b"Erika", b"4711", b"19700101")), path
    name = {"path": "case/CT", "number": "0001", "uid": dicoms.uid(1)}[names]
    assert (folder / f"segpipe-out/{name}.nii.gz").is_file()
    assert (folder / "segpipe-out/areas.csv").read_text().splitlines()[1].startswith(name)
    again = run(folder, "--case-name", names, "--seg", "none")
    assert "0 done, 1 done before, 3 failed" in again.stderr
    assert (f"in/{named}/MR" in again.stderr) == (names == "path")
    status = invoke(["status", "segpipe-out", "-i", "in"], folder).stdout
    assert "1 done, 3 failed, 0 missing" in status
    if names != "path":
        dicoms.write(folder / "in" / named / "CT", dicoms.values(seed=8))
        assert "1 done, 0 done before" in run(folder, "--case-name", names, "--seg", "none").stderr


def test_series_are_chosen(folder: Path) -> None:
    dicoms.write(folder / "in" / "a", SeriesDescription="Thorax 1mm")
    dicoms.write(folder / "in" / "b", series=2, SeriesDescription="Scout")
    done = run(folder, "--series", "thorax")
    assert done.returncode == 0
    assert "1 done" in done.stderr
    assert "1 DICOM series not chosen" in done.stderr
    status = invoke(["status", "segpipe-out"], folder)
    assert "missing" not in status.stdout.replace("0 missing", "")


def test_slopes_of_slices_and_echoes_go_through_a_run(folder: Path) -> None:
    pixels = np.concatenate([dicoms.values((4, 9, 11))] * 2)
    places = np.concatenate([dicoms.positions(4)] * 2)
    echoes, slopes = Each([1] * 4 + [2] * 4), Each([1, 2, 3, 4] * 2)
    dicoms.write(folder / "in" / "MR", pixels, places, modality="MR", EchoNumbers=echoes, RescaleSlope=slopes)
    assert "2 done" in run(folder).stderr
    masks = sorted((folder / "segpipe-out").glob("*.nii.gz"))
    assert [path.name for path in masks] == ["MR-echo1.nii.gz", "MR-echo2.nii.gz"]
    assert masks[0].read_bytes() == masks[1].read_bytes()


def test_a_command_says_which_number_is_which_path(folder: Path) -> None:
    dicoms.write(folder / "in" / "Zorn")
    dicoms.write(folder / "in" / "Mustermann", series=2)
    lines = invoke(["cases", "-i", "in", "--case-name", "number"], folder).stdout.splitlines()
    assert lines == ["0001  in/Mustermann", "0002  in/Zorn"]


def test_a_dry_run_says_what_would_fail(folder: Path) -> None:
    places = dicoms.positions(6) + np.arange(6)[:, None] * [0.2, 0, 0]
    dicoms.write(folder / "in" / "tilted", places=places)
    done = run(folder, "--dry-run")
    assert "problem  tilted: in/tilted: slices must lie at right angles" in done.stdout
    assert not (folder / "segpipe-out").exists()

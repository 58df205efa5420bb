"""DICOM files beside the mask of a series, from whole runs."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import dicom_series
import dicoms
import networks
import nibabel
import numpy as np
import pytest
import scipy.ndimage
from command import invoke
from later import Later
from pydicom import dcmread
from pydicom.sr.codedict import codes
from test_dicom_seg import dciodvfy

from segpipe.errors import OutputError
from segpipe.formats.dicom.sink import is_own_file
from segpipe.formats.style import palette
from segpipe.jobs import work
from segpipe.storage.folder import Folder

highdicom = Later("highdicom")

TILE = (8, 12, 10)
CLASSES = [
    {"id": 0, "name": "background"},
    {"id": 1, "name": "liver", "snomed": "10200004"},
    {"id": 2, "name": "tumour", "snomed": ["49755003", "108369006"]},
]
COMMAND = ["run", "-i", "in", "-m", "model.onnx", "--device", "cpu", "--executor", "serial"]
RUN_PART = work.run_part
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made(tmp_path)


def made(root: Path) -> Path:
    """A folder with a model and a series."""
    networks.volumetric(root / "model.onnx", TILE, scale=1 / 255, classes=CLASSES)
    write_series(root / "in" / "a")
    return root


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with a report, which each test leaves as it was."""
    root = made(tmp_path_factory.mktemp("reported"))
    assert "1 done, 0 done before" in run(root, "--report", "dicom").stderr
    return root


def write_series(folder: Path, orientation: str = "axial", backwards: bool = False) -> Path:
    headers = dicom_series.slices((9, 14, 13), dicom_series.ORIENTATIONS[orientation])
    dicom_series.save(folder, headers[::-1] if backwards else headers, voxels())
    return folder


def voxels() -> Any:
    return np.random.default_rng(0).integers(0, 255, (9, 14, 13)).astype(np.int16)


def run(root: Path, *more: str) -> Any:
    done = invoke([*COMMAND, *more], root)
    done.stderr += done.stdout
    return done


def centroids(values: Any, matrix: Any) -> Any:
    return np.array([matrix @ [*np.argwhere(values == value).mean(axis=0), 1] for value in (1, 2)])[:, :3]


@pytest.mark.parametrize("orientation", dicom_series.ORIENTATIONS)
def test_seg_and_mask_have_the_same_centroids(folder: Path, orientation: str) -> None:
    write_series(folder / "in" / "a", orientation, backwards=orientation.startswith("sagittal"))
    assert "1 done" in run(folder).stderr
    mask = nibabel.load(folder / "segpipe-out" / "a.nii.gz")
    seg = highdicom.seg.segread(folder / "segpipe-out" / "a.seg.dcm").get_volume(combine_segments=True)
    ours = centroids(np.asarray(mask.dataobj), LPS @ mask.affine)
    assert np.abs(ours - centroids(seg.array, seg.affine)).max() < 1e-3  # mm; half a voxel is 0.25


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_a_concatenation_has_the_mask_of_one_file_and_a_seg_of_all_its_files(folder: Path, kind: str) -> None:
    path = folder / "in" / "a" / "e.dcm"
    shutil.rmtree(path.parent)
    for out in ("one", "several"):
        path.parent.mkdir(exist_ok=True)
        dicoms.enhanced(path, voxels(), dicoms.positions(9), [1] * 9)
        paths = dicoms.concatenate(path, [4, 4, 1]) if out == "several" else [path]
        done = run(folder, "-o", out, "--seg", kind, "--report", "dicom")
        assert done.returncode == 0, done.stderr
    one, several = (next((folder / out).glob("**/*.nii.gz")) for out in ("one", "several"))
    assert np.array_equal(np.asarray(nibabel.load(one).dataobj), np.asarray(nibabel.load(several).dataobj))
    whole, found = (highdicom.seg.segread(next((folder / out).glob("**/*.seg.dcm"))) for out in ("one", "several"))
    assert dciodvfy(next((folder / "several").glob("**/*.seg.dcm"))) == []
    files = {str(header.SOPInstanceUID): header for header in map(dcmread, paths)}
    assert {uids[2] for uids in found.get_source_image_uids()} == {*files}
    for group in found.PerFrameFunctionalGroupsSequence:
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        theirs = files[source.ReferencedSOPInstanceUID].PerFrameFunctionalGroupsSequence[source.ReferencedFrameNumber - 1]
        own = group.PlanePositionSequence[0].ImagePositionPatient
        assert list(theirs.PlanePositionSequence[0].ImagePositionPatient) == list(own)
    report = next((folder / "several").glob("**/*.sr.dcm"))
    (study,) = dcmread(report).CurrentRequestedProcedureEvidenceSequence
    listed = (item for one in study.ReferencedSeriesSequence for item in one.ReferencedSOPSequence)
    assert {*files} < {str(item.ReferencedSOPInstanceUID) for item in listed}
    first, second = (seg.get_volume(combine_segments=True) for seg in (whole, found))
    assert np.array_equal(first.array, second.array)
    assert np.allclose(first.affine, second.affine)


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_the_record_names_the_seg_which_breaks_no_rule(folder: Path, kind: str) -> None:
    assert run(folder, "--seg", kind).returncode == 0
    out = folder / "segpipe-out"
    record = json.loads((out / "a.json").read_text())
    assert record["outputs"] == ["a.nii.gz", "a.seg.dcm"]
    assert dciodvfy(out / "a.seg.dcm") == []
    labels = np.asarray(nibabel.load(out / "a.nii.gz").dataobj)
    seg = highdicom.seg.segread(out / "a.seg.dcm")
    assert seg.SegmentationType == kind.upper()
    found = np.bincount(seg.get_volume(combine_segments=True).array.ravel(), minlength=3)
    assert found[1:].tolist() == np.bincount(labels.ravel(), minlength=3)[1:3].tolist()
    described = [item for item in seg.SegmentSequence if item.SegmentNumber > 0]  # a label map describes its background, too
    assert [item.SegmentedPropertyTypeCodeSequence[0].CodeValue for item in described] == ["10200004", "108369006"]


def test_parts_and_later_runs_leave_the_same_bytes(folder: Path) -> None:
    for out, more in (("one", []), ("two", []), ("cut", ["--parts", "3"])):
        assert run(folder, "-o", out, *more).returncode == 0
    one = (folder / "one" / "a.seg.dcm").read_bytes()
    assert one == (folder / "two" / "a.seg.dcm").read_bytes() == (folder / "cut" / "a.seg.dcm").read_bytes()


def test_a_case_is_done_again_if_its_seg_is_gone_or_another_is_asked_for(folder: Path) -> None:
    seg = folder / "segpipe-out" / "a.seg.dcm"
    assert "1 done, 0 done before" in run(folder).stderr
    assert "0 done, 1 done before" in run(folder).stderr
    seg.unlink()
    assert "1 done, 0 done before" in run(folder).stderr
    assert "1 done, 0 done before" in run(folder, "--seg", "labelmap").stderr
    assert dcmread(seg).SegmentationType == "LABELMAP"
    assert "1 done, 0 done before" in run(folder, "--seg", "none").stderr
    assert not seg.exists()
    assert "0 done, 1 done before" in run(folder, "--seg", "none").stderr


def test_a_seg_of_somebody_else_stays(folder: Path) -> None:
    theirs = folder / "segpipe-out" / "a.seg.dcm"
    theirs.parent.mkdir()
    dicom_series.save(theirs.parent, dicom_series.slices((1, 14, 13)), voxels()[:1])[0].rename(theirs)
    done = run(folder)
    assert done.returncode != 0
    assert "a.seg.dcm is an input or was not written by segpipe" in done.stderr
    assert dcmread(theirs).Modality == "CT"


def test_a_label_map_of_classes_that_may_overlap_is_refused_before_the_run(folder: Path) -> None:
    networks.volumetric(
        folder / "model.onnx", TILE, scale=1 / 255, classes=CLASSES, task="multilabel", activation="sigmoid", threshold=0.01
    )
    done = run(folder, "--seg", "labelmap")
    assert done.returncode == 2
    assert 'has one class per voxel, and the contract says task = "multilabel": leave out --seg labelmap' in done.stderr
    assert not (folder / "segpipe-out").exists()
    assert run(folder).returncode == 0
    assert highdicom.seg.segread(folder / "segpipe-out" / "a.seg.dcm").SegmentsOverlap == "YES"


def test_no_output_but_the_seg_names_the_patient(folder: Path) -> None:
    done = run(folder, "--log-file", "log.jsonl", "--profile", "--report", "dicom", "--lesions")
    assert done.returncode == 0
    files = [path for path in folder.rglob("*") if path.suffix in (".json", ".csv", ".jsonl")]
    texts = [done.stderr.encode(), *(path.read_bytes() for path in files)]
    names = [str(p.relative_to(folder)).encode() for p in folder.rglob("*")]
    for value in dicom_series.PATIENT.values():
        found = [text for text in (*texts, *names) if len(value) > 1 and value.encode() in text]
        assert not found, value


def raising(error: Exception) -> Any:
    def fail(*_: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("check_segmentation", OutputError("it does not read back as it was written"), "does not read back"),
        (
            "write_segmentation",
            ValueError("Doe^Jane is no name"),
            "values that it cannot repeat (ValueError)",
        ),
        ("write_segmentation", OSError(28, "No space left on device"), "cannot be written: No space left on device"),
    ],
)
def test_a_seg_that_cannot_be_written_leaves_no_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: Exception, message: str
) -> None:
    monkeypatch.setattr(f"segpipe.formats.dicom.seg.{name}", raising(error))
    done = run(folder, "--retries", "0")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Doe" not in done.stderr
    assert sorted(path.name for path in (folder / "segpipe-out").iterdir()) == ["areas.csv", "run.json"]


@pytest.mark.parametrize("name", ["a.seg.dcm", "a.sr.dcm", "a.sc.dcm"])
def test_another_attempt_does_not_touch_what_this_one_writes(
    folder: Path, reported: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A worker that was taken for lost still lives while its successor begins the same file."""
    publish, others = Folder.publish, []

    def late(store: Folder, draft: Path, target: str, *, flush: bool = True) -> None:
        if target == name and not others:
            others.append(store.draft_of(name))
            others[0].__enter__().write_bytes(b"of another attempt")
        publish(store, draft, target, flush=flush)

    monkeypatch.setattr(Folder, "publish", late)
    assert run(folder, "-o", "late", "--report", "dicom").returncode == 0
    assert others
    assert (folder / "late" / name).read_bytes() == (reported / "segpipe-out" / name).read_bytes()


def test_a_file_is_segpipes_own_by_its_manufacturer(tmp_path: Path) -> None:
    (tmp_path / "text.seg.dcm").write_text("no DICOM")
    theirs = dicom_series.save(tmp_path / "x", dicom_series.slices((1, 14, 13)), voxels()[:1])[0]
    theirs.rename(tmp_path / "theirs.seg.dcm")
    assert [is_own_file(Folder(tmp_path), name) for name in ("text.seg.dcm", "theirs.seg.dcm")] == [False, False]


REPORT = ["--report", "dicom", "--lesions"]


@pytest.mark.parametrize("orientation", ["axial", "oblique"])
def test_a_report_and_pictures_stand_beside_the_seg(folder: Path, orientation: str) -> None:
    write_series(folder / "in" / "a", orientation, backwards=True)
    assert run(folder, *REPORT).returncode == 0
    out = folder / "segpipe-out"
    record = json.loads((out / "a.json").read_text())
    assert record["outputs"] == ["a.nii.gz", "a.seg.dcm", "a.sr.dcm", "a.sc.dcm"]
    assert [line for name in record["outputs"][1:] for line in dciodvfy(out / name)] == []
    assert sorted(record["uids"]["written"]) == ["a.sc.dcm", "a.seg.dcm", "a.sr.dcm"]
    assert "0 done, 1 done before" in run(folder, *REPORT).stderr
    for other, more in (("again", []), ("cut", ["--parts", "3"])):
        assert run(folder, *REPORT, "-o", other, *more).returncode == 0
        for name in record["outputs"]:
            assert (folder / other / name).read_bytes() == (out / name).read_bytes(), name


def test_a_report_has_the_volumes_and_the_components_of_the_tables(folder: Path) -> None:
    assert run(folder, *REPORT).returncode == 0
    out = folder / "segpipe-out"
    content = highdicom.sr.srread(out / "a.sr.dcm").content
    with (out / "areas.csv").open() as areas, (out / "lesions.csv").open() as lesions:
        classes = {row["class_name"]: float(row["ml"]) for row in csv.DictReader(areas)}
        components = {f"lesion {row['component']}": row for row in csv.DictReader(lesions)}
    volumes = content.get_volumetric_roi_measurement_groups()
    assert {group.tracking_identifier for group in volumes} == {"liver", "tumour"}
    for group in volumes:
        assert measured(group, codes.SCT.Volume) == pytest.approx(classes[group.tracking_identifier], rel=1e-9)
    single = content.get_image_measurement_groups()
    assert 1 < len(single) == min(100, len(components))
    for group in single:
        row = components[group.tracking_identifier]
        assert measured(group, codes.SCT.Volume) == pytest.approx(float(row["ml"]), rel=1e-9)
        assert measured(group, codes.cid7470.LongAxis) == float(row["longest_in_plane_mm"])
    assert single[0].get_measurements()[0].referenced_coordinates[0].value.shape == (1, 3)
    items = group[0].ContentSequence
    named = {item.ConceptNameCodeSequence[0].CodeValue: item.get("TextValue") for item in items}
    assert (named["111001"], named["111003"]) == ("model.onnx", json.loads((out / "a.json").read_text())["model"]["sha256"])


def measured(group: Any, name: Any) -> float:
    return float(group.get_measurements(name=name)[0].value)


@pytest.mark.parametrize("orientation", ["axial", "axial, feet first", "sagittal", "oblique"])
def test_pictures_have_each_class_where_the_mask_has_it(folder: Path, orientation: str) -> None:
    """Outlines are opaque, so each pixel at the border of a class has the class's own colour."""
    write_series(folder / "in" / "a", orientation, backwards=orientation.startswith("sagittal"))
    assert run(folder, *REPORT).returncode == 0
    out = folder / "segpipe-out"
    capture = dcmread(out / "a.sc.dcm")
    seg = highdicom.seg.segread(out / "a.seg.dcm")
    images = [dcmread(path) for path in (folder / "in" / "a").iterdir()]
    place = {image.SOPInstanceUID: image for image in images}
    assert capture.NumberOfFrames == 9
    compared = 0
    for item, picture in zip(capture.SourceImageSequence, capture.pixel_array, strict=True):
        uid = item.ReferencedSOPInstanceUID
        masks = seg.get_pixels_by_source_instance([uid], combine_segments=True)[0]
        for number, position in ((1, 1), (2, 2)):
            shown = masks == number
            border = shown & ~scipy.ndimage.binary_erosion(shown)
            assert (picture[border] == palette(position)[:3]).all()
        bare, source = masks == 0, place[uid].pixel_array
        grey = picture[bare].astype(int)
        assert (grey == grey[:, :1]).all()
        order = source[bare].argsort(kind="stable")
        assert (np.diff(grey[order, 0]) >= 0).all()  # of this slice: what is brighter there is not darker here
        compared += int(bare.sum())
    assert compared > 50


def test_a_run_without_a_report_goes_on_where_one_is_and_writes_it_where_none_is(folder: Path) -> None:
    assert "1 done, 0 done before" in run(folder).stderr
    assert "1 done, 0 done before" in run(folder, "--report", "dicom").stderr
    assert "0 done, 1 done before" in run(folder).stderr
    (folder / "segpipe-out" / "a.sc.dcm").unlink()
    assert "1 done, 0 done before" in run(folder).stderr
    assert not (folder / "segpipe-out" / "a.sr.dcm").exists()


@pytest.mark.parametrize("name", ["a.seg.dcm", "a.sr.dcm", "a.sc.dcm"])
@pytest.mark.parametrize("damage", ["cut", "empty", "zeros"])
def test_a_damaged_file_made_of_a_mask_is_written_again(reported: Path, name: str, damage: str) -> None:
    path = reported / "segpipe-out" / name
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-40], "empty": b"", "zeros": bytes(len(data))}[damage])
    again = run(reported, "--report", "dicom")
    assert f"{name} is damaged" in again.stderr
    assert "1 done, 0 done before" in again.stderr
    assert path.read_bytes() == data
    assert "0 done, 1 done before" in run(reported, "--report", "dicom").stderr


def test_a_run_that_was_killed_between_two_records_leaves_no_report_of_another_mask(folder: Path) -> None:
    out = folder / "segpipe-out"
    assert "1 done, 0 done before" in run(folder, "--report", "dicom").stderr
    (out / "a.json").unlink()
    assert "1 done, 0 done before" in run(folder, "--seg", "none").stderr
    assert list(out.glob("*.dcm")) == []


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SOPInstanceUID"])
def test_a_source_that_cannot_be_referred_to_fails_before_it_is_labelled(folder: Path, keyword: str) -> None:
    for path in (folder / "in" / "a").iterdir():
        header = dcmread(path)
        delattr(header, keyword)
        header.save_as(path)
    done = run(folder)
    assert done.returncode == 1
    assert f"where a file has no {keyword}: write the series again with it, or leave the file out with" in done.stderr
    assert "1 done" in run(folder, "--seg", "none").stderr


@pytest.mark.parametrize("name", ["measurement_report", "write_capture"])
def test_a_report_that_cannot_be_written_leaves_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    module = "report" if name == "measurement_report" else "capture"
    monkeypatch.setattr(f"segpipe.formats.dicom.{module}.{name}", raising(ValueError("Doe^Jane is no name")))
    done = run(folder, *REPORT, "--retries", "0")
    assert done.returncode == 1
    assert "leave the file out with" in done.stderr
    assert "Doe" not in done.stderr
    assert sorted(path.name for path in (folder / "segpipe-out").iterdir()) == ["areas.csv", "lesions.csv", "run.json"]


@pytest.mark.parametrize("more", [["--seg", "labelmap"], ["--seg", "none"], ["--report", "dicom"]])
def test_what_is_made_of_series_leaves_other_cases_done(folder: Path, more: list[str]) -> None:
    image = nibabel.Nifti1Image(voxels(), np.diag([1.0, 1.0, 1.0, 1.0]))
    nibabel.save(image, folder / "in" / "volume.nii.gz")
    assert "2 done, 0 done before" in run(folder).stderr
    record = (folder / "segpipe-out" / "volume.json").read_bytes()
    assert "1 done, 1 done before" in run(folder, *more).stderr
    assert (folder / "segpipe-out" / "volume.json").read_bytes() == record


def test_another_seg_takes_the_parts_of_a_run_that_wrote_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inferred: list[int] = []
    monkeypatch.setattr(work, "run_part", lambda job, context: (inferred.append(job.number), RUN_PART(job, context))[1])
    with monkeypatch.context() as broken:
        broken.setattr("segpipe.formats.dicom.seg.write_segmentation", raising(OSError(28, "No space left on device")))
        assert run(folder, "--parts", "3", "--retries", "0").returncode == 1
    assert sorted(inferred) == [0, 1]
    assert run(folder, "--parts", "3", "--seg", "none").returncode == 0
    assert sorted(inferred) == [0, 1]


def test_a_report_without_any_series_is_warned_of(folder: Path) -> None:
    warned = "--report dicom writes nothing here"
    assert warned not in run(folder, "--report", "dicom", "--dry-run").stderr
    shutil.rmtree(folder / "in")
    (folder / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(voxels(), np.eye(4)), folder / "in" / "volume.nii.gz")
    done = run(folder, "--report", "dicom")
    assert done.returncode == 0
    assert warned in done.stderr


def test_a_report_needs_a_seg(folder: Path) -> None:
    done = run(folder, "--report", "dicom", "--seg", "none")
    assert done.returncode == 2
    assert "leave --seg none out" in done.stderr


@pytest.mark.shared_data
@pytest.mark.parametrize(
    "name", ["dcmqi/ct-3slice", "dicom2nifti/generic/anatomical/001", "dicom2nifti/generic/compressed_jpegls/001"]
)
def test_files_of_a_real_series_break_no_rule(folder: Path, shared: Path, name: str) -> None:
    shutil.rmtree(folder / "in")
    shutil.copytree(shared / "medical" / "dicom" / name, folder / "in")
    net = networks.Network(1, 0, ndim=3).add("Mul", np.array([-1, 0.5, 1], np.float32).reshape(1, 3, 1, 1, 1))
    more = {
        "layout": "NCDHW",
        "tile": [8, 64, 64],
        "overlap": [0, 0, 0],
        "scale": 1.0,
        "normalize": "zscore",
        "classes": CLASSES,
    }
    net.save(folder / "model.onnx", networks.contract(1, 3, **more), classes=3, shape=("n", 8, 64, 64))
    done = run(folder, *REPORT, "--min-size", "500", "--unusual-values", "allow")
    assert done.returncode == 0, done.stderr
    written = sorted((folder / "segpipe-out").rglob("*.dcm"))
    assert [path.name.split(".", 1)[1] for path in written] == ["sc.dcm", "seg.dcm", "sr.dcm"]
    assert [line for path in written for line in dciodvfy(path)] == []

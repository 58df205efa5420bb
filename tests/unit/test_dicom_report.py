"""Measurement reports, read back by highdicom and checked by dciodvfy."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_series import UID, enhanced, series_of, slices
from later import Later
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import EnhancedMRImageStorage
from test_dicom_seg import AUTHOR, SEGMENTS, dciodvfy, planes, random_labels

from segpipe import __version__
from segpipe.formats.dicom.reference import reference_of
from segpipe.formats.dicom.report import MOST_LESIONS, measurement_report
from segpipe.formats.dicom.seg import content_of, write_segmentation

sr = Later("highdicom.sr")

CELL = 2.5 * 0.75 * 0.5


def lesion(number: int = 1, voxels: int = 8, **more: Any) -> dict[str, Any]:
    """A row of ``lesions.csv``, as far as a report reads it."""
    lengths = {"longest_in_plane_mm": 3.5, "perpendicular_mm": 2.25, "longest_mm": 4.125}
    place = {f"centroid_{axis}_lps_mm": value for axis, value in zip("xyz", (-1.5, 2.25, 15.1), strict=True)}
    row = {"class_name": "tumour", "component": number, "voxels": voxels, "ml": voxels * CELL / 1000}
    return {**row, **lengths, **place, **more}


def write(folder: Path, labels: Any, lesions: Any = (), headers: Any = None, frames: Any = None) -> Path:
    headers = slices() if headers is None else headers
    reference, shown = reference_of(series_of(headers, frames), headers[0]), planes(labels)
    seg = write_segmentation(folder / "a.seg.dcm", reference, shown, AUTHOR, "binary")
    counts = dict(zip(SEGMENTS, content_of(shown).counts.sum(axis=0).tolist(), strict=True))
    report = measurement_report(reference, seg, counts, lesions, replace(AUTHOR, title="lesion.onnx"))
    report.save_as(folder / "a.sr.dcm", enforce_file_format=True)
    return folder / "a.sr.dcm"


def contents(item: Dataset) -> list[Dataset]:
    return list(item.get("ContentSequence", ()))


def coded(code: Dataset) -> tuple[str, str]:
    return code.CodeValue, code.CodingSchemeDesignator


def concept(item: Dataset) -> tuple[str, str]:
    return coded(item.ConceptNameCodeSequence[0])


def value(item: Dataset) -> Any:
    """What an item says, without highdicom."""
    match item.ValueType:
        case "CODE":
            return coded(item.ConceptCodeSequence[0])
        case "NUM":
            (measured,) = item.MeasuredValueSequence
            return float(measured.NumericValue), *coded(measured.MeasurementUnitsCodeSequence[0])
        case "IMAGE":
            (named,) = item.ReferencedSOPSequence
            return named.ReferencedSOPInstanceUID, named.get("ReferencedSegmentNumber", named.get("ReferencedFrameNumber"))
        case "UIDREF":
            return str(item.UID)
        case "TEXT":
            return str(item.TextValue)
        case _:
            return None


def said(group: Dataset) -> dict[tuple[str, str], Any]:
    items = contents(group)
    found = {concept(item): value(item) for item in items}
    assert len(found) == len(items)
    return found


def groups_of(path: Path) -> list[dict[tuple[str, str], Any]]:
    (measurements,) = (item for item in contents(dcmread(path)) if concept(item) == ("126010", "DCM"))
    found = contents(measurements)
    assert {concept(group) for group in found} == {("125007", "DCM")}  # measurement group
    return [said(group) for group in found]


ALGORITHM = {
    ("111001", "DCM"): "lesion.onnx",
    ("111003", "DCM"): "ab" * 32,
    ("111002", "DCM"): f"segpipe {__version__}",
}


def test_every_item_of_a_report(tmp_path: Path) -> None:
    labels = random_labels()
    path = write(tmp_path, labels, [lesion()])
    seg = dcmread(tmp_path / "a.seg.dcm")
    root = dcmread(path)
    assert (concept(root), root.ContentTemplateSequence[0].TemplateIdentifier) == (("126000", "DCM"), "1500")
    head = {concept(item): value(item) for item in contents(root)}
    assert head[("121005", "DCM")] == ("121007", "DCM")  # the observer is a device
    assert head[("121013", "DCM")] == "segpipe, not a medical device"
    assert head[("121058", "DCM")] == ("25045-6", "LN")  # CT
    *classes, one = groups_of(path)
    uids = [group.pop(("112040", "DCM")) for group in (*classes, one)]
    assert len(set(uids)) == 4
    assert all(re.fullmatch(r"2\.25\.\d{30,39}", uid) for uid in uids)
    found = [
        ("liver", ("91723000", "SCT"), ("10200004", "SCT")),
        ("tumour", ("49755003", "SCT"), ("108369006", "SCT")),
        ("Milz / Größe", ("CLASS", "99SEGPIPE"), ("C-AB72F52E9F1A", "99SEGPIPE")),
    ]
    for number, (group, (name, category, kind)) in enumerate(zip(classes, found, strict=True), 1):
        ml, *unit = group.pop(("118565006", "SCT"))
        assert (ml, unit) == (pytest.approx(np.count_nonzero(labels == number) * CELL / 1000), ["ml", "UCUM"])
        assert group == ALGORITHM | {
            ("112039", "DCM"): name,
            ("276214006", "SCT"): category,
            ("121071", "DCM"): kind,
            ("121191", "DCM"): (seg.SOPInstanceUID, number),
            ("121232", "DCM"): f"{UID}.2",
        }
    assert one == ALGORITHM | {
        ("112039", "DCM"): "lesion 1",
        ("276214006", "SCT"): ("49755003", "SCT"),
        ("121071", "DCM"): ("108369006", "SCT"),
        ("118565006", "SCT"): (0.0075, "ml", "UCUM"),
        ("103339001", "SCT"): (3.5, "mm", "UCUM"),
        ("103340004", "SCT"): (2.25, "mm", "UCUM"),
        ("81827009", "SCT"): (4.125, "mm", "UCUM"),
        ("121112", "DCM"): (f"{UID}.3.4", None),  # 7.25 + 3 * 2.5 mm is nearest to 15.1 mm
    }


def test_a_lesion_of_a_multi_frame_source_names_its_frame(tmp_path: Path) -> None:
    *_, one = groups_of(write(tmp_path, random_labels(), [lesion(centroid_z_lps_mm=9.9)], [enhanced()], [5, 4, 3, 2, 1, 0]))
    assert one[("121112", "DCM")] == (f"{UID}.3.1", 2)  # frames from the topmost at 12.5 mm, 2.5 mm apart
    assert dciodvfy(tmp_path / "a.sr.dcm") == []


def volume_of(group: Any) -> float:
    return float(group.get_measurements(name=codes.SCT.Volume)[0].value)


@pytest.mark.parametrize("lesions", [(), (lesion(), lesion(2))])
@pytest.mark.parametrize("empty", [False, True])
def test_dciodvfy_finds_no_errors(tmp_path: Path, lesions: Any, empty: bool) -> None:
    assert dciodvfy(write(tmp_path, random_labels() * (not empty), lesions)) == []


def test_volumes_are_those_of_the_mask(tmp_path: Path) -> None:
    labels = random_labels()
    labels[labels == 3] = 0
    report = sr.srread(write(tmp_path, labels))
    groups = report.content.get_volumetric_roi_measurement_groups()
    expected = [np.count_nonzero(labels == value) * CELL / 1000 for value in (1, 2)]
    assert np.allclose([volume_of(group) for group in groups], expected, rtol=1e-9)
    assert [group.finding_type.value for group in groups] == ["10200004", "108369006"]
    (absent,) = report.content.get_image_measurement_groups()
    assert (volume_of(absent), absent.finding_type.scheme_designator) == (0, "99SEGPIPE")


def test_a_volume_refers_to_its_segment_and_the_source(tmp_path: Path) -> None:
    path = write(tmp_path, random_labels())
    seg, report = dcmread(tmp_path / "a.seg.dcm"), sr.srread(path)
    for number, group in enumerate(report.content.get_volumetric_roi_measurement_groups(), 1):
        assert value(group.referenced_segment[0]) == (seg.SOPInstanceUID, number)
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    listed = {item.ReferencedSOPInstanceUID for series in evidence for item in series.ReferencedSOPSequence}
    assert listed == {seg.SOPInstanceUID, *(item.ReferencedSOPInstanceUID for item in seg.SourceImageSequence)}


def test_lesions_have_sizes_and_a_centroid(tmp_path: Path) -> None:
    report = sr.srread(write(tmp_path, random_labels(), [lesion(1), lesion(2, 20)]))
    first, second = report.content.get_image_measurement_groups()  # the largest first
    assert [group.tracking_identifier for group in (first, second)] == ["lesion 2", "lesion 1"]
    values = {m.name.value: float(m.value) for m in second.get_measurements()}
    names = codes.SCT.Volume, codes.cid7470.LongAxis, codes.cid7470.ShortAxis, codes.cid7470.Diameter
    assert values == {name.value: value for name, value in zip(names, (0.0075, 3.5, 2.25, 4.125), strict=True)}
    (place,) = second.get_measurements(name=codes.SCT.Volume)[0].referenced_coordinates
    assert np.allclose(place.value, [[-1.5, 2.25, 15.1]])


def test_a_report_lists_the_largest_lesions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_LESIONS == 100
    monkeypatch.setattr("segpipe.formats.dicom.report.MOST_LESIONS", 20)
    report = sr.srread(write(tmp_path, random_labels(), [lesion(n, n) for n in range(1, 31)]))
    found = [group.tracking_identifier for group in report.content.get_image_measurement_groups()]
    assert found == [f"lesion {n}" for n in range(30, 10, -1)]


def test_a_lesion_of_a_background_is_left_out(tmp_path: Path) -> None:
    report = sr.srread(write(tmp_path, random_labels(), [lesion(class_name="background")]))
    assert len(report.content.get_image_measurement_groups()) == 0


def test_a_report_is_preliminary_and_not_verified(tmp_path: Path) -> None:
    report = dcmread(write(tmp_path, random_labels()))
    assert (report.PreliminaryFlag, report.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    one, other = (write(tmp_path / name, random_labels(), [lesion()]).read_bytes() for name in "12")
    assert one == other


def test_other_lesions_have_another_uid(tmp_path: Path) -> None:
    one = dcmread(write(tmp_path, random_labels(), [lesion()])).SOPInstanceUID
    assert one != dcmread(write(tmp_path, random_labels(), [lesion(longest_mm=5.0)])).SOPInstanceUID


@pytest.mark.parametrize("sop_class", [EnhancedMRImageStorage, "1.3.46.670589.5.0.1"])
def test_a_source_of_any_class(tmp_path: Path, sop_class: str) -> None:
    """Several files of an enhanced class, or a vendor's own class."""
    headers = slices(SOPClassUID=sop_class)
    root = dcmread(write(tmp_path, random_labels(), [lesion()], headers))
    items = [item for study in root.CurrentRequestedProcedureEvidenceSequence for item in study.ReferencedSeriesSequence]
    named = {one.ReferencedSOPInstanceUID: one.ReferencedSOPClassUID for item in items for one in item.ReferencedSOPSequence}
    seg = dcmread(tmp_path / "a.seg.dcm")
    assert named == {header.SOPInstanceUID: sop_class for header in headers} | {seg.SOPInstanceUID: seg.SOPClassUID}
    assert (root.PatientID, root.StudyInstanceUID) == (headers[0].PatientID, headers[0].StudyInstanceUID)
    assert dciodvfy(tmp_path / "a.sr.dcm") == []

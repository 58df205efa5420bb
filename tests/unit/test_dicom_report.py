"""Measurement reports, read back by highdicom and checked by dciodvfy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_series import series_of, slices
from highdicom.sr import srread
from pydicom import dcmread
from pydicom.sr.codedict import codes
from test_dicom_seg import AUTHOR, SEGMENTS, dciodvfy, planes, random_labels

from segpipe.formats.dicom.reference import reference_of
from segpipe.formats.dicom.report import MOST_LESIONS, measurement_report
from segpipe.formats.dicom.seg import survey, write_segmentation

CELL = 2.5 * 0.75 * 0.5


def lesion(number: int = 1, voxels: int = 8, **more: Any) -> dict[str, Any]:
    """A row of ``lesions.csv``, as far as a report reads it."""
    lengths = {"longest_in_plane_mm": 3.5, "perpendicular_mm": 2.25, "longest_mm": 4.125}
    place = {f"centroid_{axis}_lps_mm": value for axis, value in zip("xyz", (-1.5, 2.25, 30.0), strict=True)}
    row = {"class_name": "tumour", "component": number, "voxels": voxels, "ml": voxels * CELL / 1000}
    return {**row, **lengths, **place, **more}


def write(folder: Path, labels: Any, lesions: Any = (), headers: Any = None) -> Path:
    headers = slices() if headers is None else headers
    reference, shown = reference_of(series_of(headers), headers[0]), planes(labels)
    seg = write_segmentation(folder / "a.seg.dcm", reference, shown, AUTHOR, "binary")
    counts = dict(zip(SEGMENTS, survey(shown).counts.sum(axis=0).tolist(), strict=True))
    report = measurement_report(reference, seg, counts, lesions, AUTHOR)
    report.save_as(folder / "a.sr.dcm", enforce_file_format=True)
    return folder / "a.sr.dcm"


def volume_of(group: Any) -> float:
    return float(group.get_measurements(name=codes.SCT.Volume)[0].value)


@pytest.mark.parametrize("lesions", [(), (lesion(), lesion(2))])
@pytest.mark.parametrize("empty", [False, True])
def test_dciodvfy_finds_no_errors(tmp_path: Path, lesions: Any, empty: bool) -> None:
    assert dciodvfy(write(tmp_path, random_labels() * (not empty), lesions)) == []


def test_volumes_are_those_of_the_mask(tmp_path: Path) -> None:
    labels = random_labels()
    labels[labels == 3] = 0
    report = srread(write(tmp_path, labels))
    groups = report.content.get_volumetric_roi_measurement_groups()
    found = [round(volume_of(group), 6) for group in groups]
    assert found == [round(np.count_nonzero(labels == value) * CELL / 1000, 6) for value in (1, 2)]
    assert [group.finding_type.value for group in groups] == ["10200004", "108369006"]
    (absent,) = report.content.get_image_measurement_groups()
    assert (volume_of(absent), absent.finding_type.scheme_designator) == (0, "99SEGPIPE")


def test_a_volume_refers_to_its_segment_and_the_source(tmp_path: Path) -> None:
    path = write(tmp_path, random_labels())
    seg, report = dcmread(tmp_path / "a.seg.dcm"), srread(path)
    for number, group in enumerate(report.content.get_volumetric_roi_measurement_groups(), 1):
        there = group.roi
        assert there.referenced_sop_instance_uid == seg.SOPInstanceUID
        assert there.referenced_segment_numbers == [number]
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    listed = {item.ReferencedSOPInstanceUID for series in evidence for item in series.ReferencedSOPSequence}
    assert listed == {seg.SOPInstanceUID, *(item.ReferencedSOPInstanceUID for item in seg.SourceImageSequence)}


def test_lesions_have_sizes_and_a_centroid(tmp_path: Path) -> None:
    report = srread(write(tmp_path, random_labels(), [lesion(1), lesion(2, 20)]))
    first, second = report.content.get_image_measurement_groups()  # the largest first
    assert [group.tracking_identifier for group in (first, second)] == ["lesion 2", "lesion 1"]
    values = {m.name.value: float(m.value) for m in second.get_measurements()}
    names = codes.SCT.Volume, codes.cid7470.LongAxis, codes.cid7470.ShortAxis, codes.cid7470.Diameter
    assert values == {name.value: value for name, value in zip(names, (0.0075, 3.5, 2.25, 4.125), strict=True)}
    (place,) = second.get_measurements(name=codes.SCT.Volume)[0].referenced_coordinates
    assert np.allclose(place.value, [[-1.5, 2.25, 30.0]])


def test_a_report_lists_the_largest_lesions(tmp_path: Path) -> None:
    report = srread(write(tmp_path, random_labels(), [lesion(n, n) for n in range(1, MOST_LESIONS + 11)]))
    found = [group.tracking_identifier for group in report.content.get_image_measurement_groups()]
    assert found == [f"lesion {n}" for n in range(MOST_LESIONS + 10, 10, -1)]


def test_a_lesion_of_a_background_is_left_out(tmp_path: Path) -> None:
    report = srread(write(tmp_path, random_labels(), [lesion(class_name="background")]))
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

"""DICOM Segmentations of masks, read back by highdicom and checked by dciodvfy."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_series import ORIENTATIONS, PATIENT, affine, enhanced, series_of, slices
from later import Later
from pydicom import dcmread
from pydicom.uid import EnhancedMRImageStorage, LegacyConvertedEnhancedCTImageStorage

from segpipe.errors import OutputError
from segpipe.formats.dicom.reference import Authorship, reference_of
from segpipe.formats.dicom.seg import SegmentedPlanes, check_segmentation, content_of, write_segmentation
from segpipe.formats.style import Segment

highdicom = Later("highdicom")

AUTHOR = Authorship("ab" * 32, "cd" * 32)

SEGMENTS = (
    Segment("liver", 1, color=(200, 60, 60, 255), snomed=("10200004",)),
    Segment("tumour", 2, color=(60, 60, 200, 255), snomed=("49755003", "108369006")),
    Segment("Milz \\ Größe", 3),
)


def dciodvfy(path: Path) -> list[str]:
    """Lines of dicom3tools that say that a file breaks a rule."""
    found = subprocess.run([Path(sys.executable).parent / "dciodvfy", path], capture_output=True, text=True, check=False)
    return [line for line in (found.stdout + found.stderr).splitlines() if line.startswith("Error")]


def random_labels(shape=(6, 10, 12), top=3, seed=0):
    """Blobs of labels in a volume of background and nodata, with empty planes at both ends."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((1, *shape), np.uint8)
    labels[0, 1:-1, 2:7, 3:8] = rng.integers(0, top + 1, (shape[0] - 2, 5, 5))
    labels[0, :, 0, 0] = 255
    return labels


def written(tmp_path, headers, labels, kind="binary", segments=SEGMENTS, frames=None):
    path, reference = tmp_path / "a.dcm", reference_of(series_of(headers, frames), headers[0])
    write_segmentation(path, reference, planes(labels, segments), AUTHOR, kind)
    check_segmentation(path, reference, planes(labels, segments))
    return path


def planes(labels, segments=SEGMENTS):
    return SegmentedPlanes(lambda k: labels[:, k], labels.shape[1], segments)


def volume(path):
    """Labels by highdicom ``(planes, rows, columns)`` and the affine from their indices to LPS."""
    found = highdicom.seg.segread(path).get_volume(combine_segments=True)
    return found.array, found.affine


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_dciodvfy_finds_no_errors(tmp_path, kind):
    assert dciodvfy(written(tmp_path, slices(), random_labels(), kind)) == []


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_dciodvfy_finds_no_errors_in_an_empty_mask(tmp_path, kind):
    path = written(tmp_path, slices(), np.zeros((1, 6, 10, 12), np.uint8), kind)
    assert dciodvfy(path) == []
    assert dcmread(path).NumberOfFrames == (3 if kind == "binary" else 1)


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("backwards", [False, True])
def test_centroids_agree_with_those_of_the_mask(tmp_path, orientation, backwards, kind):
    headers, labels = slices(orientation=ORIENTATIONS[orientation]), random_labels()
    headers = headers[::-1] if backwards else headers
    found, matrix = volume(written(tmp_path, headers, labels, kind))
    for value in (1, 2, 3):
        ours = affine(headers) @ [*np.argwhere(labels[0] == value).mean(axis=0), 1]
        theirs = matrix @ [*np.argwhere(found == value).mean(axis=0), 1]
        assert np.abs(ours - theirs).max() < 1e-4  # mm; half a voxel is 0.25


def test_segments_overlap_in_a_binary_segmentation(tmp_path):
    labels = np.zeros((2, 6, 10, 12), np.uint8)
    labels[0, 2:5, 2:6, 2:6], labels[1, 3, 4:8, 4:8] = 1, 1
    segments = (Segment("liver", 1, 0), Segment("tumour", 1, 1))
    path = written(tmp_path, slices(), labels, segments=segments)
    seg = highdicom.seg.segread(path)
    assert dciodvfy(path) == []
    assert seg.SegmentsOverlap == "YES"
    assert np.array_equal(seg.get_volume().array.sum(axis=(0, 1, 2)), labels.sum(axis=(1, 2, 3)))
    with pytest.raises(OutputError, match="leave out --seg labelmap"):
        written(tmp_path, slices(), labels, "labelmap", segments)


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_masks_of_a_band_per_class_whose_classes_do_not_overlap(kind, tmp_path):
    one_band = random_labels(top=2)
    labels = np.concatenate([np.where(one_band == 255, 255, one_band == value) for value in (1, 2)]).astype(np.uint8)
    path = written(tmp_path, slices(), labels, kind, (Segment("liver", 1, 0), Segment("tumour", 1, 1)))
    assert dciodvfy(path) == []
    found = volume(path)[0]
    assert [int((found == value).sum()) for value in (1, 2)] == [int((one_band == value).sum()) for value in (1, 2)]


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_frames_of_an_odd_number_of_pixels(tmp_path, kind):
    labels = random_labels((5, 9, 11))
    path = written(tmp_path, slices((5, 9, 11)), labels, kind)
    found, _ = volume(path)
    assert dciodvfy(path) == []
    assert np.array_equal(np.bincount(found.ravel())[1:4], np.bincount(labels.ravel(), minlength=4)[1:4])


def test_frames_refer_to_their_source_instances(tmp_path):
    headers = slices()
    header = dcmread(written(tmp_path, headers, random_labels()))
    assert {str(item.ReferencedSOPInstanceUID) for item in header.SourceImageSequence} == {h.SOPInstanceUID for h in headers}
    place = {str(h.SOPInstanceUID): [float(x) for x in h.ImagePositionPatient] for h in headers}
    for group in header.PerFrameFunctionalGroupsSequence:
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        assert place[source.ReferencedSOPInstanceUID] == list(group.PlanePositionSequence[0].ImagePositionPatient)
        assert source.SpatialLocationsPreserved == "YES"


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
@pytest.mark.parametrize("sop_class", [EnhancedMRImageStorage, LegacyConvertedEnhancedCTImageStorage, "1.3.46.670589.5.0.1"])
def test_files_of_one_frame_of_any_class_are_referred_to(tmp_path, sop_class, kind):
    """Converters write a file of an enhanced class for each slice; some vendors have classes of their own."""
    headers, labels = slices(SOPClassUID=sop_class), random_labels()
    header = dcmread(written(tmp_path, headers, labels, kind))
    sources = [group.DerivationImageSequence[0].SourceImageSequence[0] for group in header.PerFrameFunctionalGroupsSequence]
    listed = [*header.ReferencedSeriesSequence[0].ReferencedInstanceSequence, *header.SourceImageSequence]
    assert {item.ReferencedSOPClassUID for item in (*sources, *listed)} == {sop_class}
    place = {str(h.SOPInstanceUID): [float(x) for x in h.ImagePositionPatient] for h in headers}
    assert {str(item.ReferencedSOPInstanceUID) for item in listed} == {*place}
    for source, group in zip(sources, header.PerFrameFunctionalGroupsSequence, strict=True):
        assert place[source.ReferencedSOPInstanceUID] == list(group.PlanePositionSequence[0].ImagePositionPatient)
    assert dciodvfy(tmp_path / "a.dcm") == []


def test_planes_of_a_multi_frame_source_keep_the_numbers_of_their_frames(tmp_path):
    source, labels = enhanced(), random_labels()
    frames = [5, 4, 3, 2, 1, 0]
    path = written(tmp_path, [source], labels, frames=frames)
    header = dcmread(path)
    assert dciodvfy(path) == []
    for group in header.PerFrameFunctionalGroupsSequence:
        frame = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        theirs = source.PerFrameFunctionalGroupsSequence[frame - 1].PlanePositionSequence[0].ImagePositionPatient
        assert list(theirs) == list(group.PlanePositionSequence[0].ImagePositionPatient)


def test_every_class_has_a_concept(tmp_path):
    header = dcmread(written(tmp_path, slices(), random_labels()))
    types = [item.SegmentedPropertyTypeCodeSequence[0] for item in header.SegmentSequence]
    categories = [item.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning for item in header.SegmentSequence]
    assert [(t.CodeValue, t.CodingSchemeDesignator) for t in types[:2]] == [("10200004", "SCT"), ("108369006", "SCT")]
    assert (types[2].CodingSchemeDesignator, types[2].CodeMeaning) == ("99SEGPIPE", "Milz / Größe")
    assert categories[:2] == ["Anatomical Structure", "Morphologically Abnormal Structure"]
    assert header.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99SEGPIPE"


def test_two_runs_give_the_same_bytes(tmp_path):
    (tmp_path / "1").mkdir(), (tmp_path / "2").mkdir()
    for kind in ("binary", "labelmap"):
        one, other = (written(tmp_path / n, slices(), random_labels(), kind) for n in "12")
        assert one.read_bytes() == other.read_bytes()


def test_frames_of_one_file_have_uids_of_their_own(tmp_path):
    """As of two echoes of an enhanced file, with equal masks."""
    whole, empty = enhanced(), np.zeros((1, 3, 10, 12), np.uint8)
    (tmp_path / "1").mkdir(), (tmp_path / "2").mkdir()
    one, other = (written(tmp_path / n, [whole], empty, frames=frames) for n, frames in (("1", [2, 1, 0]), ("2", [5, 4, 3])))
    assert dcmread(one).SOPInstanceUID != dcmread(other).SOPInstanceUID


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
@pytest.mark.parametrize("frames", [[2, 1, 0], [5, 4, 3], [0, 3, 5]])
def test_each_frame_names_the_frame_of_the_source_at_its_place(tmp_path, frames, kind):
    """Also where several classes are in one plane."""
    whole = enhanced()
    header = dcmread(written(tmp_path, [whole], random_labels((3, 10, 12)), kind, frames=frames))
    for group in header.PerFrameFunctionalGroupsSequence:
        number = int(group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber)
        source = whole.PerFrameFunctionalGroupsSequence[number - 1].PlanePositionSequence[0].ImagePositionPatient
        assert group.PlanePositionSequence[0].ImagePositionPatient == source


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_a_mask_of_lossy_images_says_so(tmp_path, kind):
    headers, path = slices(), tmp_path / "a.dcm"
    reference = reference_of(replace(series_of(headers), lossy=True), headers[0])
    write_segmentation(path, reference, planes(random_labels()), AUTHOR, kind)
    check_segmentation(path, reference, planes(random_labels()))
    assert dcmread(path).LossyImageCompression == "01"
    assert dciodvfy(path) == []


def test_sizes_do_not_depend_on_the_length_of_directions():
    """The audit takes directions of a length that is off by less than 1 %."""
    headers = slices(orientation=[0.995, 0, 0, 0, 0.995, 0])
    for k, header in enumerate(headers):
        header.ImagePositionPatient = [0, 0, 2.5 * k]
    reference = reference_of(series_of(headers), headers[0])
    assert reference.gap == pytest.approx(2.5)
    assert reference.cell == pytest.approx(2.5 * 0.75 * 0.5)
    assert reference.nearest((0, 0, 7.4)).sop_instance == headers[3].SOPInstanceUID


def test_patient_and_study_are_repeated_and_nothing_else_that_identifies(tmp_path):
    headers = slices(PatientAddress="1 High Street", InstitutionName="St Elsewhere")
    header = dcmread(written(tmp_path, headers, random_labels()))
    assert {key: str(header[key].value) for key in PATIENT} == PATIENT
    assert (header.StudyInstanceUID, header.AccessionNumber) == (headers[0].StudyInstanceUID, "A1")
    assert header.ContentDate == "20240102"
    assert not {"PatientAddress", "InstitutionName"} & {element.keyword for element in header}
    assert not header.ReferringPhysicianName


def test_headers_without_what_the_standard_asks_for(tmp_path):
    headers = slices(PatientBirthDate="", PatientSex="X", StudyDate="", SliceThickness=None)
    for header in headers:
        del header.AccessionNumber, header.PatientName, header.StudyTime, header.FrameOfReferenceUID
    path = written(tmp_path, headers, random_labels())
    assert dciodvfy(path) == []


def test_a_frame_that_differs_is_found(tmp_path):
    headers, labels = slices(), random_labels()
    path = written(tmp_path, headers, labels)
    other = labels.copy()
    other[0, 2, 3, 3] = 3 - other[0, 2, 3, 3] if other[0, 2, 3, 3] in (1, 2) else 1
    with pytest.raises(OutputError, match="does not read back"):
        check_segmentation(path, reference_of(series_of(headers), headers[0]), planes(other))
    more = labels.copy()
    more[0, 0, 5, 5] = 1
    with pytest.raises(OutputError, match="frames are missing"):
        check_segmentation(path, reference_of(series_of(headers), headers[0]), planes(more))


def test_survey_counts_every_class():
    labels = random_labels()
    counts = content_of(planes(labels)).counts
    assert counts.sum(axis=0).tolist() == np.bincount(labels.ravel(), minlength=256)[1:4].tolist()

"""Secondary captures: pictures of slices, read by pydicom and checked by dciodvfy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_series import PATIENT, enhanced, series_of, slices
from pydicom import Dataset, dcmread
from test_dicom_report import lesion
from test_dicom_report import write as write_report
from test_dicom_seg import AUTHOR, SEGMENTS, dciodvfy, planes, random_labels

from segpipe.errors import OutputError
from segpipe.formats.dicom.capture import MOST_FRAMES, chosen, overlaid, pictures_of, shade, write_capture
from segpipe.formats.dicom.reference import reference_of
from segpipe.formats.dicom.seg import content_of
from segpipe.formats.style import Segment

SHAPE = (6, 10, 12)
VALUES = np.random.default_rng(1).integers(-500, 500, SHAPE)


def write(folder: Path, labels: Any, headers: Any = None, frames: Any = None, values: Any = None) -> Path:
    headers = slices(labels.shape[1:]) if headers is None else headers
    reference, shown = reference_of(series_of(headers, frames), headers[0]), planes(labels)
    values = np.resize(VALUES, labels.shape[1:]) if values is None else values
    pictures = pictures_of(reference, lambda k: values[k], shown, content_of(shown).counts)
    write_capture(folder / "a.sc.dcm", reference, pictures, AUTHOR)
    return folder / "a.sc.dcm"


@pytest.mark.parametrize("empty", [False, True])
def test_dciodvfy_finds_no_errors(tmp_path: Path, empty: bool) -> None:
    path = write(tmp_path, random_labels() * (not empty))
    assert dciodvfy(path) == []
    assert dcmread(path).NumberOfFrames == (1 if empty else 4)


def test_pictures_of_a_multi_frame_source(tmp_path: Path) -> None:
    path = write(tmp_path, random_labels(), [enhanced()], [5, 4, 3, 2, 1, 0])
    assert dciodvfy(path) == []
    assert [item.ReferencedFrameNumber for item in dcmread(path).SourceImageSequence] == [5, 4, 3, 2]


def test_pictures_show_the_window_of_the_source_and_the_classes(tmp_path: Path) -> None:
    labels = np.zeros((1, *SHAPE), np.uint8)
    labels[0, 2, 2:7, 3:9] = 1
    (picture,) = [dcmread(write(tmp_path, labels, slices(WindowCenter=0.5, WindowWidth=201))).pixel_array]
    grey = np.rint((VALUES[2].clip(-100, 100) + 100) / 200 * 255)
    outside = labels[0, 2] == 0
    assert np.abs(picture[outside] - grey[outside][:, None]).max() <= 1
    assert (picture[2, 3:9] == SEGMENTS[0].color[:3]).all()
    inside = grey[4, 5] * 0.65 + np.array(SEGMENTS[0].color[:3]) * 0.35
    assert np.abs(picture[4, 5] - inside).max() <= 1


SOURCES: dict[str, dict[str, Any]] = {
    "PT": {"Modality": "PT"},
    "anonymous": dict.fromkeys(PATIENT, ""),
    "de-identified": {"PatientIdentityRemoved": "YES", "IssuerOfPatientID": "H"},
    "without dates": dict.fromkeys(
        ("StudyDate", "StudyTime", "ContentDate", "SeriesDate", "AccessionNumber", "StudyID"), ""
    ),
    "without a frame of reference": {"FrameOfReferenceUID": ""},
    "with text in its pixels": {"BurnedInAnnotation": "YES"},
}


@pytest.mark.parametrize("source", SOURCES)
def test_dciodvfy_finds_no_errors_for_odd_sources(tmp_path: Path, source: str) -> None:
    headers = slices(**SOURCES[source])
    assert dciodvfy(write(tmp_path, random_labels(), headers)) == []
    assert dciodvfy(write_report(tmp_path, random_labels(), [lesion()], headers)) == []


def test_a_series_of_one_slice(tmp_path: Path) -> None:
    labels, headers = random_labels((3, 10, 12))[:, 1:2], slices((1, 10, 12))
    assert dciodvfy(write(tmp_path, labels, headers)) == []
    assert dciodvfy(write_report(tmp_path, labels, [], headers)) == []


def test_large_slices_and_many_of_them_are_bounded(tmp_path: Path) -> None:
    labels = np.ones((1, 70, 1030, 20), np.uint8)
    path = write(tmp_path, labels)
    header = dcmread(path)
    assert (header.Rows, header.Columns, header.NumberOfFrames) == (344, 7, MOST_FRAMES)
    assert dciodvfy(path) == []


@pytest.mark.parametrize(
    ("with_class", "picked"),
    [([], [5]), ([3], [3]), ([1, 2, 8], [1, 2, 8]), (range(2, 9), [2, 3, 8])],
)
def test_slices_are_chosen_evenly_among_those_with_a_class(with_class: Any, picked: list[int]) -> None:
    counts = np.zeros((10, 2), int)
    counts[list(with_class), 1] = 1
    assert chosen(counts, 3) == picked


def test_the_slice_with_most_of_a_class_is_shown() -> None:
    counts = np.zeros((100, 3), int)
    counts[:, 0] = 5
    counts[40:43, 1] = [1, 7, 2]
    assert 41 in chosen(counts, 4)
    assert chosen(np.eye(100, dtype=int), 3) == [0, 50, 99]


def test_values_without_a_number_are_black() -> None:
    values = np.array([np.nan, -np.inf, np.inf, 0, 5, 10], np.float32)
    assert shade(values, 0, 10).tolist() == [0, 0, 255, 0, 128, 255]
    assert shade(values, 0, 10, inverted=True).tolist() == [0, 255, 0, 255, 128, 0]
    assert shade(np.full(2, 7, np.float32), 7, 7).tolist() == [0, 0]


def test_pixels_that_are_not_square_and_text_in_the_source_are_stated(tmp_path: Path) -> None:
    plain = dcmread(write(tmp_path, random_labels(), slices(spacing=(2.5, 0.5, 0.5))))
    assert "PixelAspectRatio" not in plain
    assert plain.BurnedInAnnotation == "NO"
    other = dcmread(write(tmp_path, random_labels(), slices(BurnedInAnnotation="YES")))
    assert (list(other.PixelAspectRatio), other.BurnedInAnnotation) == ([3, 2], "YES")  # 0.75 mm high, 0.5 mm wide


def test_without_a_window_the_slices_own_values_are_the_ends(tmp_path: Path) -> None:
    values = np.broadcast_to(np.arange(120.0).reshape(10, 12), SHAPE)
    labels = np.zeros((1, *SHAPE), np.uint8)
    labels[0, 3, 4, 4] = 2
    picture = dcmread(write(tmp_path, labels, values=values)).pixel_array
    low, high = np.percentile(values[0], [0.5, 99.5])
    grey = np.rint((values[0].clip(low, high) - low) / (high - low) * 255)
    outside = labels[0, 3] == 0
    assert np.abs(picture[outside] - grey[outside][:, None]).max() <= 1
    assert picture[4, 4].tolist() == list(SEGMENTS[1].color[:3])


def test_each_picture_names_its_slice_and_shows_the_class_there(tmp_path: Path) -> None:
    labels = np.zeros((1, *SHAPE), np.uint8)
    for k in (1, 2, 4):
        labels[0, k, k, 2 * k] = 2
    headers = slices()
    capture = dcmread(write(tmp_path, labels, headers))
    named = [item.ReferencedSOPInstanceUID for item in capture.SourceImageSequence]
    assert named == [headers[k].SOPInstanceUID for k in (1, 2, 4)]
    coloured = np.argwhere((capture.pixel_array == SEGMENTS[1].color[:3]).all(axis=3))
    assert coloured.tolist() == [[0, 1, 2], [1, 2, 4], [2, 4, 8]]


def test_a_file_that_the_disk_changes_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Dataset.save_as

    def damaging(self: Dataset, path: Path, **more: Any) -> None:
        save(self, path, **more)
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)

    monkeypatch.setattr(Dataset, "save_as", damaging)
    with pytest.raises(OutputError, match="does not read back"):
        write(tmp_path, random_labels())


def test_classes_that_overlap_are_drawn_in_their_order() -> None:
    labels = np.ones((2, 3, 3), np.uint8)
    one, other = Segment("a", 1, 0, (200, 0, 0, 255)), Segment("b", 1, 1, (0, 200, 0, 255))
    picture = overlaid(np.zeros((3, 3), np.uint8), labels, [one, other])
    assert picture[0, 0].tolist() == [0, 200, 0]
    assert np.abs(picture[1, 1].astype(int) - [45.5, 70, 0]).max() < 1


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    one = write(tmp_path, random_labels()).read_bytes()
    assert one == write(tmp_path, random_labels()).read_bytes()

"""Frames of a header: attributes of plain files, and of functional groups; each frame's own come before shared ones."""

import io

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from segpipe.formats.dicom.elements import NotDicomError
from segpipe.formats.dicom.frames import MOST_FRAMES, frames_of

AXIAL = [1, 0, 0, 0, 1, 0]


def header(**elements: object) -> Dataset:
    """What pydicom reads of a file: elements are bytes until they are asked for."""
    data = Dataset()
    data.SOPInstanceUID, data.Rows, data.Columns, data.BitsStored = "1.2.3", 4, 5, 12
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    written = io.BytesIO()
    pydicom.dcmwrite(written, data)
    return pydicom.dcmread(io.BytesIO(written.getvalue()), force=True)


def item(**elements: object) -> Dataset:
    data = Dataset()
    for keyword, value in elements.items():
        setattr(data, keyword, Sequence([value]) if isinstance(value, Dataset) else value)
    return data


def test_a_plain_file_is_one_frame_with_its_own_attributes():
    (frame,) = frames_of("a", header(ImagePositionPatient=[1, 2, 3], ImageOrientationPatient=AXIAL, PixelSpacing=[2, 3]))
    assert (frame.position, frame.directions) == ((1, 2, 3), ((1, 0, 0), (0, 1, 0)))
    assert (frame.spacing, frame.shape, frame.bits, frame.slope, frame.intercept) == ((2, 3), (4, 5), 12, 1, 0)
    assert not frame.is_scaled


def test_frames_without_functional_groups_have_no_position_of_the_file():
    frames = list(frames_of("a", header(NumberOfFrames=3, ImagePositionPatient=[1, 2, 3])))
    assert [(frame.number, frame.position) for frame in frames] == [(0, None), (1, None), (2, None)]


def test_own_groups_of_a_frame_come_before_shared_ones():
    shared = item(PixelValueTransformationSequence=item(RescaleSlope=2, RescaleIntercept=-1))
    each = [
        item(PlanePositionSequence=item(ImagePositionPatient=[0, 0, 1])),
        item(
            PlanePositionSequence=item(ImagePositionPatient=[0, 0, 2]),
            PixelValueTransformationSequence=item(RescaleSlope=7, RescaleIntercept=5),
        ),
    ]
    groups = {"SharedFunctionalGroupsSequence": Sequence([shared]), "PerFrameFunctionalGroupsSequence": Sequence(each)}
    frames = list(frames_of("a", header(NumberOfFrames=2, **groups)))
    assert [(frame.position, frame.slope, frame.intercept) for frame in frames] == [((0, 0, 1), 2, -1), ((0, 0, 2), 7, 5)]


@pytest.mark.parametrize(("signed", "value", "stored"), [(0, 63536, 63536), (1, -2000, -2000)])
def test_padding_has_the_sign_of_the_pixels(signed, value, stored):
    data = header(PixelRepresentation=signed)
    data.add_new("PixelPaddingValue", "SS" if signed else "US", value)
    written = io.BytesIO()
    pydicom.dcmwrite(written, data)
    (frame,) = frames_of("a", pydicom.dcmread(io.BytesIO(written.getvalue()), force=True))
    assert frame.padding == (stored, stored)


def test_more_frames_than_any_series_has_are_refused():
    with pytest.raises(NotDicomError, match="NumberOfFrames must be at most 65,536, got 65,537"):
        list(frames_of("a", header(NumberOfFrames=MOST_FRAMES + 1)))

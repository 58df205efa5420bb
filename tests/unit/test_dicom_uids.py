"""UIDs of what a series was read from, and of DICOM files that were written."""

import dicoms
import pytest

from segpipe.errors import OutputError
from segpipe.formats.dicom.series import Series
from segpipe.formats.dicom.source import SeriesTemplate
from segpipe.formats.dicom.uids import uids_of
from segpipe.storage.folder import Folder


@pytest.fixture
def origin(tmp_path):
    frames = tuple(dicoms.frame(n) for n in (2, 1, 3))
    series = Series(dicoms.uid(1), dicoms.uid(900), dicoms.uid(901), "CT", "", "", "", ("MONOCHROME2",), 1, ("",), frames)
    return SeriesTemplate(series, None, None)


def test_instances_come_in_the_order_of_the_planes(origin, tmp_path):
    found = uids_of(origin, Folder(tmp_path), ["CT.nii.gz"])
    assert found["read"] == {
        "StudyInstanceUID": dicoms.uid(900),
        "SeriesInstanceUID": dicoms.uid(1),
        "FrameOfReferenceUID": dicoms.uid(901),
        "SOPInstanceUIDs": [dicoms.uid(1, n) for n in (2, 1, 3)],
    }
    assert found["written"] == {}


def test_uids_of_a_file_that_was_written_are_read_from_it(origin, tmp_path):
    dicoms.save(dicoms.slice_of(dicoms.values()[0], (0, 0, 0), 7, series=8), tmp_path / "CT.seg.dcm")
    assert uids_of(origin, Folder(tmp_path), ["CT.nii.gz", "CT.seg.dcm"])["written"] == {
        "CT.seg.dcm": {
            "StudyInstanceUID": dicoms.uid(900),
            "SeriesInstanceUID": dicoms.uid(8),
            "SOPInstanceUID": dicoms.uid(8, 7),
        }
    }
    (tmp_path / "CT.seg.dcm").write_text("no image")
    with pytest.raises(OutputError, match="cannot be read back"):
        uids_of(origin, Folder(tmp_path), ["CT.seg.dcm"])

"""UIDs of what a case read and wrote: they identify images in an archive, and name no patient."""

from collections.abc import Sequence
from typing import Any

import pydicom

from segpipe.errors import OutputError
from segpipe.formats.dicom.names import has_suffix
from segpipe.formats.dicom.source import SeriesTemplate
from segpipe.formats.dicom.stored import UNREADABLE
from segpipe.storage import Store
from segpipe.storage.files import output_errors

LEVELS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


def uids_of(template: object, output: Store, names: Sequence[str]) -> dict[str, Any]:
    """Study, series and instances that were read, and those of each DICOM file that was written.

    Raises:
        OutputError: a file that was written cannot be read.
    """
    assert isinstance(template, SeriesTemplate)
    series = template.series
    read = {
        "StudyInstanceUID": series.study,
        "SeriesInstanceUID": series.uid,
        "FrameOfReferenceUID": series.frame_of_reference,
        "SOPInstanceUIDs": list(series.instances),
    }
    return {"read": read, "written": {name: _written(output, name) for name in names if has_suffix(name)}}


def _written(output: Store, name: str) -> dict[str, str]:
    with output_errors(output.path(name)), output.local(name) as path:
        try:
            data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(LEVELS))
            return {level: str(data[level].value) for level in LEVELS}
        except UNREADABLE as error:
            raise OutputError(f"{output.path(name)} cannot be read back: {type(error).__name__}") from error

"""Write the mask of a series: a NIfTI volume on the series' own grid."""

from dataclasses import replace

from segpipe.formats.dicom.source import Origin
from segpipe.formats.nifti.sink import NiftiSink
from segpipe.formats.sink import Sink, Target


def series_sink(target: Target) -> Sink:
    """The sink of a mask or a confidence of a series."""
    assert isinstance(target.origin, Origin)
    return NiftiSink(replace(target, origin=target.origin.nifti))

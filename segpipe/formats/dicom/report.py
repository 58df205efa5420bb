"""A measurement report (TID 1500) of a mask: the volume of every class, and the largest lesions where they were measured."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from highdicom import sr
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian

from segpipe.formats.dicom.concepts import concepts_of, schemes, text
from segpipe.formats.dicom.reference import UTF8, Authorship, Reference, derived_uid, drop_clock, light_images
from segpipe.formats.style import Segment

NUMBER = 2000
"""Added to the number of the source's series."""

MM3_PER_ML = 1000

PROCEDURES: Mapping[str, Code] = {
    "CT": codes.cid100.CTUnspecifiedBodyRegion,
    "MR": codes.cid100.MRIUnspecifiedBodyRegion,
}
"""Procedure of a modality; of others, an imaging procedure."""

LENGTHS: Mapping[str, Code] = {
    "longest_in_plane_mm": codes.cid7470.LongAxis,
    "perpendicular_mm": codes.cid7470.ShortAxis,
    "longest_mm": codes.cid7470.Diameter,
}
"""Concept of each length of ``lesions.csv``; the last is in space."""

MOST_LESIONS = 100
"""Largest lesions that a report lists: viewers show a report as one page."""

Lesion = Mapping[str, Any]
"""A row of ``lesions.csv``."""


def measurement_report(
    reference: Reference, segmentation: Dataset, shown: Mapping[Segment, int], lesions: Sequence[Lesion], author: Authorship
) -> Any:
    """A report of the volume of every segment, and of the largest lesions.

    Args:
        reference: source of the mask.
        segmentation: header of the SEG, which the report refers to.
        shown: segments of the SEG in the order of their numbers, with their voxels.
        lesions: rows of ``lesions.csv``.
        author: what made the mask.
    """
    common, listed = reference.common, sorted(lesions, key=lambda row: -row["voxels"])[:MOST_LESIONS]
    groups = [*_volumes(reference, segmentation, shown), *_lesions(reference, segmentation, shown, listed)]
    content = sr.MeasurementReport(_context(author), PROCEDURES.get(common.Modality, codes.cid100.ImagingProcedure), groups)
    report = sr.Comprehensive3DSR(
        evidence=[*light_images(reference), segmentation],
        content=content[0],
        series_instance_uid=author.series_uid(reference, "SR"),
        series_number=NUMBER + reference.number,
        sop_instance_uid=author.uid(reference, "SR", segmentation.SOPInstanceUID, json.dumps(list(map(dict, listed)))),
        instance_number=1,
        is_complete=True,
        is_final=False,
        is_verified=False,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_description="segpipe SR",
        specific_character_set=UTF8,
        content_date=common.ContentDate,
        content_time=common.ContentTime,
        coding_schemes=schemes([*shown]),
        **author.equipment,
    )
    drop_clock(report)
    return report


def _context(author: Authorship) -> sr.ObservationContext:
    """The observer is a program, not a person."""
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=derived_uid("observer", author.model),
        name="segpipe, not a medical device",
        manufacturer_name="segpipe",
        model_name="segpipe",
        serial_number=author.model[:16],
    )
    return sr.ObservationContext(observer_device_context=sr.ObserverContext(codes.DCM.Device, device))


def _volumes(reference: Reference, segmentation: Dataset, shown: Mapping[Segment, int]) -> Iterator[Any]:
    """A group per segment. One without voxels has no region that a volume could refer to, and 0 ml."""
    for number, (segment, voxels) in enumerate(shown.items(), 1):
        shared = _finding(segment, derived_uid(segmentation.SOPInstanceUID, str(number)), text(segment.name))
        shared["measurements"] = [_volume(voxels * reference.cell / MM3_PER_ML)]
        if voxels:
            region = _region(reference, segmentation, number)
            yield sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=region, **shared)
        else:
            yield sr.MeasurementsAndQualitativeEvaluations(**shared)


def _finding(segment: Segment, uid: str, name: str) -> dict[str, Any]:
    category, kind = concepts_of(segment)
    return {"tracking_identifier": sr.TrackingIdentifier(uid, name), "finding_type": kind, "finding_category": category}


def _region(reference: Reference, segmentation: Dataset, number: int) -> sr.ReferencedSegment:
    series = sr.SourceSeriesForSegmentation(reference.series)
    return sr.ReferencedSegment(segmentation.SOPClassUID, segmentation.SOPInstanceUID, number, source_series=series)


def _volume(ml: float, **more: Any) -> sr.Measurement:
    return sr.Measurement(codes.SCT.Volume, round(ml, 6), MILLILITER, **more)


MILLILITER = Code("ml", "UCUM", "milliliter")


def _lesions(
    reference: Reference, segmentation: Dataset, shown: Mapping[Segment, int], lesions: Sequence[Lesion]
) -> Iterator[Any]:
    """A group per lesion, with its centroid: a segment holds all lesions of a class, so none has a segment of its own."""
    by_name = {segment.name: segment for segment in shown}
    for row in lesions:
        if (segment := by_name.get(row["class_name"])) is None:
            continue  # a background that the user measures
        number = str(row["component"])
        shared = _finding(segment, derived_uid(segmentation.SOPInstanceUID, "lesion", number), text(f"lesion {number}"))
        yield sr.MeasurementsAndQualitativeEvaluations(**shared, measurements=[*_sizes(reference, row)])


def _sizes(reference: Reference, row: Lesion) -> Iterator[sr.Measurement]:
    place = np.array([[float(row[f"centroid_{axis}_lps_mm"]) for axis in "xyz"]])
    point = sr.CoordinatesForMeasurement3D("POINT", place, reference.common.FrameOfReferenceUID)
    yield _volume(float(row["ml"]), referenced_coordinates=[point])
    for column, name in LENGTHS.items():
        yield sr.Measurement(name, float(row[column]), codes.UCUM.Millimeter)

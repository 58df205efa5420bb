"""A measurement report (TID 1500) of a mask: the volume of every class, and the largest lesions where they were measured."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from highdicom import sr
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian

from segpipe import __version__
from segpipe.formats.dicom.concepts import concepts_of, schemes, text
from segpipe.formats.dicom.reference import (
    MULTI,
    SINGLE,
    UTF8,
    Authorship,
    SourceReference,
    derived_uid,
    drop_clock,
    evidence_images,
)
from segpipe.formats.style import Segment
from segpipe.geometry.grid import MM3_PER_ML

NUMBER = 2000
"""Added to the number of the source's series."""


DIGITS = 10
"""Decimals of a volume, as in ``areas.csv``."""

MILLILITER = Code("ml", "UCUM", "milliliter")

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
    reference: SourceReference,
    segmentation: Dataset,
    shown: Mapping[Segment, int],
    lesions: Sequence[Lesion],
    author: Authorship,
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
    algorithm = sr.AlgorithmIdentification(author.title, author.model, [f"segpipe {__version__}"])
    about = _About(reference, segmentation, algorithm)
    groups = [*about.volumes(shown), *about.lesions(shown, listed)]
    content = sr.MeasurementReport(_context(author), PROCEDURES.get(common.Modality, codes.cid100.ImagingProcedure), groups)
    report = sr.Comprehensive3DSR(
        evidence=_evidence(reference, segmentation),
        content=content[0],
        series_instance_uid=author.series_uid(reference, "SR"),
        series_number=NUMBER + reference.number,
        sop_instance_uid=author.uid(
            reference, "SR", segmentation.SOPInstanceUID, author.title, json.dumps([*map(dict, listed)])
        ),
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


def _evidence(reference: SourceReference, segmentation: Dataset) -> list[Dataset]:
    """Source and SEG; the SEG first where highdicom may not know the class of the source: it copies patient and study of
    the first."""
    images = evidence_images(reference)
    known = images[0].SOPClassUID in (*SINGLE, *MULTI)
    return [*images, segmentation] if known else [segmentation, *images]


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


@dataclass(frozen=True, slots=True)
class _About:
    """The objects that measurement groups refer to."""

    reference: SourceReference
    segmentation: Dataset
    algorithm: sr.AlgorithmIdentification

    def volumes(self, shown: Mapping[Segment, int]) -> Iterator[Any]:
        """A group per segment. One without voxels has no region that a volume could refer to, and 0 ml."""
        for number, (segment, voxels) in enumerate(shown.items(), 1):
            shared = self._finding(segment, (str(number),), text(segment.name))
            shared["measurements"] = [_volume(voxels * self.reference.cell / MM3_PER_ML)]
            if voxels:
                yield sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
                    referenced_segment=self._region(number), **shared
                )
            else:
                yield sr.MeasurementsAndQualitativeEvaluations(**shared)

    def lesions(self, shown: Mapping[Segment, int], rows: Sequence[Lesion]) -> Iterator[Any]:
        """A group per lesion, with its centroid and the image that is nearest to it.

        A segment holds all lesions of a class, so none has a segment of its own to refer to.
        """
        by_name = {segment.name: segment for segment in shown}
        for row in rows:
            if (segment := by_name.get(row["class_name"])) is None:
                continue  # a background that the user measures
            number = str(row["component"])
            shared = self._finding(segment, ("lesion", number), f"lesion {number}")
            place = [float(row[f"centroid_{axis}_lps_mm"]) for axis in "xyz"]
            sizes = [*self._sizes(row, place)]
            yield sr.MeasurementsAndQualitativeEvaluations(**shared, measurements=sizes, source_images=[self._image(place)])

    def _finding(self, segment: Segment, parts: Sequence[str], name: str) -> dict[str, Any]:
        category, kind = concepts_of(segment)
        identifier = sr.TrackingIdentifier(derived_uid(self.segmentation.SOPInstanceUID, *parts), name)
        finding = {"finding_type": kind, "finding_category": category}
        return {"tracking_identifier": identifier, "algorithm_id": self.algorithm, **finding}

    def _region(self, number: int) -> sr.ReferencedSegment:
        series, file = sr.SourceSeriesForSegmentation(self.reference.series), self.segmentation
        return sr.ReferencedSegment(file.SOPClassUID, file.SOPInstanceUID, number, source_series=series)

    def _sizes(self, row: Lesion, place: Sequence[float]) -> Iterator[sr.Measurement]:
        frame = self.reference.common.FrameOfReferenceUID
        point = sr.CoordinatesForMeasurement3D("POINT", np.array([place]), frame)
        yield _volume(float(row["ml"]), referenced_coordinates=[point])
        for column, name in LENGTHS.items():
            yield sr.Measurement(name, float(row[column]), codes.UCUM.Millimeter)

    def _image(self, place: Sequence[float]) -> sr.SourceImageForMeasurementGroup:
        source = self.reference.nearest(place)
        frames = None if source.frame is None else [source.frame]
        return sr.SourceImageForMeasurementGroup(source.sop_class, source.sop_instance, frames)


def _volume(ml: float, **more: Any) -> sr.Measurement:
    return sr.Measurement(codes.SCT.Volume, float(f"{ml:.{DIGITS}g}"), MILLILITER, **more)

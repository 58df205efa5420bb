"""A secondary capture of a mask: pictures of slices with the classes in colour, for archives that cannot show a SEG."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import highdicom
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, MultiFrameTrueColorSecondaryCaptureImageStorage

from segpipe.formats.dicom.reference import NOT_A_DEVICE, UTF8, Authorship, Reference, drop_clock
from segpipe.formats.dicom.seg import Labels, shows
from segpipe.formats.style import Segment

NUMBER = 3000
"""Added to the number of the source's series."""

MOST_FRAMES = 32
"""Slices that are shown, so that a file has at most 25 MB."""

MOST_SIDE = 512
"""Rows and columns of a picture: of larger slices, every second, third, ... pixel is shown."""

OPACITY = 0.35
"""Of a class; its outline is opaque."""

ENDS = 0.5, 99.5
"""Percentiles of the values that are black and white if the source has no window."""

Values = Callable[[int], NDArray[Any]]
"""Values ``(rows, columns)`` of a plane of the source."""


def secondary_capture(
    reference: Reference, values: Values, labels: Labels, present: NDArray[np.bool_], author: Authorship
) -> Any:
    """Pictures of slices that have a class, evenly chosen if there are many; of a mask without any, the middle slice.

    Args:
        reference: source of the mask.
        values: gives the values of a plane of the source.
        labels: the mask, on the planes of the source.
        present: whether a plane has a segment, shape ``(planes, segments)``.
        author: what made the mask.
    """
    planes = chosen(present)
    step = -(-max(reference.shape) // MOST_SIDE)
    grey = [values(k)[::step, ::step].astype(np.float32) for k in planes]
    low, high = reference.window or _ends(grey)
    pictures = [
        overlaid(shade(plane, low, high), labels.plane(k)[:, ::step, ::step], labels.segments)
        for k, plane in zip(planes, grey, strict=True)
    ]
    kind = ("SC", json.dumps([planes, step, low, high]))
    capture = _header(reference, author, author.uid(reference, *kind))
    _describe(capture, reference, planes, pictures)
    return capture


def chosen(present: NDArray[np.bool_], most: int = MOST_FRAMES) -> list[int]:
    """Numbers of the planes that are shown."""
    found = np.flatnonzero(present.any(axis=1))
    if not len(found):
        return [len(present) // 2]
    picked = np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int)
    return [int(k) for k in found[picked]]


def _ends(planes: Sequence[NDArray[np.float32]]) -> tuple[float, float]:
    values = np.concatenate([plane[np.isfinite(plane)] for plane in planes] or [np.zeros(1, np.float32)])
    low, high = np.percentile(values, ENDS) if len(values) else (0, 1)
    return float(low), float(high)


def shade(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    """Values as grey; black where there is no number."""
    shares = np.nan_to_num((values - low) / max(high - low, 1e-6), nan=0.0, posinf=1.0, neginf=0.0)
    return np.asarray((shares.clip(0, 1) * 255).round(), np.uint8)


def overlaid(grey: NDArray[np.uint8], labels: NDArray[Any], segments: Sequence[Segment]) -> NDArray[np.uint8]:
    """A picture ``(rows, columns, 3)`` with each class tinted and outlined in its colour."""
    picture = np.repeat(grey[..., None], 3, axis=2)
    for segment in segments:
        shown, color = shows(labels, segment), np.array(segment.color[:3], np.float32)
        picture[shown] = (picture[shown] * (1 - OPACITY) + color * OPACITY).round().astype(np.uint8)
        picture[shown & ~_inner(shown)] = segment.color[:3]
    return picture


def _inner(shown: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels whose four neighbours are shown, too; beyond the border there is nothing."""
    wide = np.pad(shown, 1)
    return np.asarray(wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:])


def _header(reference: Reference, author: Authorship, instance: str) -> Any:
    """The modules of patient, study, series and equipment."""
    common = reference.common
    capture: Any = highdicom.SOPClass(
        study_instance_uid=common.StudyInstanceUID,
        series_instance_uid=author.series_uid(reference, "SC"),
        series_number=NUMBER + reference.number,
        sop_instance_uid=instance,
        sop_class_uid=MultiFrameTrueColorSecondaryCaptureImageStorage,
        instance_number=1,
        modality="OT",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        patient_id=common.PatientID,
        patient_name=common.PatientName,
        patient_birth_date=common.PatientBirthDate,
        patient_sex=common.PatientSex,
        accession_number=common.AccessionNumber,
        study_id=common.StudyID,
        study_date=common.StudyDate,
        study_time=common.StudyTime,
        series_description="segpipe SC",
        specific_character_set=UTF8,
        content_date=common.ContentDate,
        content_time=common.ContentTime,
        **author.equipment,
    )
    drop_clock(capture)
    return capture


def _describe(capture: Dataset, reference: Reference, planes: Sequence[int], pictures: Sequence[NDArray[np.uint8]]) -> None:
    """The modules of the image."""
    capture.ConversionType = "WSD"
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.DerivationDescription = NOT_A_DEVICE
    capture.BurnedInAnnotation = "NO"
    capture.PatientOrientation = None
    capture.SamplesPerPixel, capture.PhotometricInterpretation, capture.PlanarConfiguration = 3, "RGB", 0
    capture.BitsAllocated, capture.BitsStored, capture.HighBit, capture.PixelRepresentation = 8, 8, 7, 0
    capture.Rows, capture.Columns = pictures[0].shape[:2]
    capture.NumberOfFrames = len(pictures)
    capture.FrameIncrementPointer = 0x00182001  # PageNumberVector
    capture.PageNumberVector = [*range(1, len(pictures) + 1)]
    capture.SourceImageSequence = [_source(reference, k) for k in planes]
    data = b"".join(picture.tobytes() for picture in pictures)
    capture.PixelData = data + b"\0" * (len(data) % 2)
    capture["PixelData"].VR = "OB"


def _source(reference: Reference, plane: int) -> Dataset:
    source, instance = Dataset(), reference.planes[plane]
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = instance.sop_class, instance.sop_instance
    if instance.frame is not None:
        source.ReferencedFrameNumber = instance.frame
    purpose = highdicom.sr.CodedConcept.from_code(codes.cid7202.SourceImageForImageProcessingOperation)
    source.PurposeOfReferenceCodeSequence = [purpose]
    return source

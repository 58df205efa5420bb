"""A secondary capture of a mask: pictures of slices with the classes in colour, for archives that cannot show a SEG."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
from numpy.typing import NDArray
from pydicom import DataElement, Dataset, dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, MultiFrameTrueColorSecondaryCaptureImageStorage

from segpipe.errors import OutputError
from segpipe.formats.dicom.reference import NOT_A_DEVICE, STATED, UTF8, Authorship, SourceReference, drop_clock
from segpipe.formats.dicom.seg import PIXEL_DATA_HEAD, SegmentedPlanes, shows
from segpipe.formats.style import Segment

NUMBER = 3000
"""Added to the number of the source's series."""

MOST_FRAMES = 32
"""Slices that are shown, so that a file has at most 25 MB."""

MOST_SIDE = 512
"""Rows and columns of a picture: of larger slices, every second, third, ... pixel is shown."""

OPACITY = 0.35
"""Opacity of the area of a class; its outline is opaque."""

ENDS = 0.5, 99.5
"""Percentiles of the values that are black and white if the source has no window."""

CHUNK = 2**20

Values = Callable[[int], NDArray[Any]]
"""Values ``(rows, columns)`` of a plane of the source; called twice for a plane if the source has no window."""


@dataclass(frozen=True, eq=False, slots=True)
class Pictures:
    """The pictures of a mask; each is drawn when it is written."""

    values: Values
    labels: SegmentedPlanes
    planes: Sequence[int]
    """Planes that are shown, in order."""
    step: int
    """Distance of the rows and columns that are shown."""
    window: tuple[float, float]
    """Values that are dark and bright."""
    inverted: bool

    def images(self) -> Iterator[NDArray[np.uint8]]:
        """Images ``(rows, columns, 3)``."""
        for k in self.planes:
            grey = shade(self.values(k)[:: self.step, :: self.step], *self.window, inverted=self.inverted)
            yield overlaid(grey, self.labels.plane(k)[:, :: self.step, :: self.step], self.labels.segments)


def pictures_of(reference: SourceReference, values: Values, labels: SegmentedPlanes, counts: NDArray[np.int64]) -> Pictures:
    """Pictures of some slices of a mask.

    Args:
        reference: source of the mask.
        values: gives the values of a plane of the source.
        labels: the mask, on the planes of the source.
        counts: voxels of each segment in each plane, shape ``(planes, segments)``.
    """
    planes, step = chosen(counts), -(-max(reference.shape) // MOST_SIDE)
    window = reference.window or _ends(values(k)[::step, ::step] for k in planes)
    return Pictures(values=values, labels=labels, planes=planes, step=step, window=window, inverted=reference.inverted)


def write_capture(path: Path, reference: SourceReference, pictures: Pictures, author: Authorship) -> None:
    """Write pictures to a new file, one by one, and compare the file with them.

    Raises:
        OutputError: it does not read back.
    """
    what = json.dumps([pictures.planes, pictures.step, pictures.window])
    capture, digest = _header(reference, author, author.uid(reference, "SC", what)), hashlib.sha256()
    _describe(capture, reference, pictures)
    with tempfile.TemporaryFile(dir=path.parent) as pixels:
        for image in pictures.images():
            digest.update(image.data)
            pixels.write(image.data)
        pixels.write(b"\0" * (pixels.tell() % 2))
        pixels.seek(0)
        capture.add(DataElement("PixelData", "OB", pixels))
        capture.save_as(path, enforce_file_format=True)
    if _pixels_digest(path) != digest.digest():
        raise OutputError("it does not read back as it was written")


def _pixels_digest(path: Path) -> bytes:
    """SHA-256 of the pixels of a file."""
    with path.open("rb") as stream:
        header = dcmread(stream, stop_before_pixels=True)
        left, digest = header.NumberOfFrames * header.Rows * header.Columns * 3, hashlib.sha256()
        stream.seek(PIXEL_DATA_HEAD, 1)
        while left > 0 and (chunk := stream.read(min(left, CHUNK))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.digest()


def chosen(counts: NDArray[np.int64], most: int = MOST_FRAMES) -> list[int]:
    """Numbers of the planes that are shown: of each class the one that has most of it; then others, evenly.

    Of a mask without any class, the middle one. Counts have the shape ``(planes, segments)``.
    """
    found = np.flatnonzero(counts.any(axis=1))
    if not len(found):
        return [len(counts) // 2]
    best = np.unique(counts.argmax(axis=0)[counts.any(axis=0)])
    if len(best) >= most:
        return _evenly(best, most)
    return sorted([*map(int, best), *_evenly(np.setdiff1d(found, best), most - len(best))])


def _evenly(numbers: NDArray[np.int64], most: int) -> list[int]:
    picked = np.linspace(0, len(numbers) - 1, min(most, len(numbers))).round().astype(int)
    return [int(n) for n in numbers[picked]]


def _ends(planes: Iterator[NDArray[Any]]) -> tuple[float, float]:
    """Means of the percentiles of planes."""
    finite = (plane[np.isfinite(plane)] for plane in planes)
    ends = [np.percentile(values, ENDS) for values in finite if len(values)]
    low, high = np.mean(ends, axis=0).tolist() if ends else (0.0, 1.0)
    return low, high


def shade(values: NDArray[Any], low: float, high: float, *, inverted: bool = False) -> NDArray[np.uint8]:
    """Values as grey, the low ones dark unless ``inverted``; black where there is no number."""
    numbers = values.astype(np.float32)
    shares = ((numbers - low) / max(high - low, 1e-6)).clip(0, 1)
    shares = 1 - shares if inverted else shares
    return np.asarray((np.nan_to_num(shares, nan=0.0) * 255).round(), np.uint8)


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


def _header(reference: SourceReference, author: Authorship, instance: str) -> Any:
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
    for keyword in STATED:
        if keyword in common:
            capture[keyword] = common[keyword]
    capture.Laterality = None
    drop_clock(capture)
    return capture


def _describe(capture: Dataset, reference: SourceReference, pictures: Pictures) -> None:
    """The modules of the image."""
    capture.ConversionType = "WSD"
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.DerivationDescription = NOT_A_DEVICE
    capture.BurnedInAnnotation = "YES" if reference.annotated else "NO"
    if reference.lossy:
        capture.LossyImageCompression = "01"
    capture.PatientOrientation = None
    capture.SamplesPerPixel, capture.PhotometricInterpretation, capture.PlanarConfiguration = 3, "RGB", 0
    capture.BitsAllocated, capture.BitsStored, capture.HighBit, capture.PixelRepresentation = 8, 8, 7, 0
    capture.Rows, capture.Columns = (-(-side // pictures.step) for side in reference.shape)
    if (ratio := _aspect(reference.spacing)) != [1, 1]:
        capture.PixelAspectRatio = ratio
    capture.NumberOfFrames = number = len(pictures.planes)
    if number > 1:
        capture.FrameIncrementPointer = 0x00182001  # PageNumberVector
        capture.PageNumberVector = [*range(1, number + 1)]
    capture.SourceImageSequence = [_source(reference, k) for k in pictures.planes]


def _aspect(spacing: tuple[float, float]) -> list[int]:
    """Height and width of a pixel as whole numbers."""
    ratio = Fraction(spacing[0] / spacing[1]).limit_denominator(1000)
    return [ratio.numerator, ratio.denominator]


def _source(reference: SourceReference, plane: int) -> Dataset:
    source, instance = Dataset(), reference.planes[plane]
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = instance.sop_class, instance.sop_instance
    if instance.frame is not None:
        source.ReferencedFrameNumber = instance.frame
    purpose = highdicom.sr.CodedConcept.from_code(codes.cid7202.SourceImageForImageProcessingOperation)
    source.PurposeOfReferenceCodeSequence = [purpose]
    return source

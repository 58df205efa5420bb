"""The attributes that a derived DICOM file copies from its source (patient, study, instances, geometry), and its UIDs."""

import uuid
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)
from pydicom.valuerep import DA, TM, DSfloat

from segpipe import __version__
from segpipe.formats.dicom.series import Series

REQUIRED = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
)
"""Attributes of the Patient and General Study modules that every file of a study has, perhaps empty (type 2)."""

STATED = ("IssuerOfPatientID", "PatientIdentityRemoved", "DeidentificationMethod")
"""Attributes of the Patient module that say how to read the others; nothing else of the module is repeated."""

SEXES = ("M", "F", "O")

DATES = (
    ("ContentDate", "ContentTime"),
    ("AcquisitionDate", "AcquisitionTime"),
    ("SeriesDate", "SeriesTime"),
    ("StudyDate", "StudyTime"),
)
"""Dates and times of the source, the first of which is also that of a derived file, so that every run writes equal bytes."""

DISPLAY = ("WindowCenter", "WindowWidth", "BurnedInAnnotation")
"""Attributes that say how to show a slice."""

LONG_AGO = "19700101", "000000"
"""Date and time if the source has none."""

UTF8 = "ISO_IR 192"
"""Character set of derived files, so that names of classes may have any letters."""

SINGLE = (CTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage)
MULTI = (EnhancedCTImageStorage, EnhancedMRImageStorage)
"""SOP classes that highdicom takes for images of one frame, or of several, whatever the images are."""

EQUIPMENT = "segpipe"

NOT_A_DEVICE = "Written by segpipe, which is not a medical device"


@dataclass(frozen=True, slots=True)
class Instance:
    """The source of one plane of a mask."""

    sop_class: str
    sop_instance: str
    frame: int | None = None
    """Number of the frame in a multi-frame instance, from 1 on."""


@dataclass(frozen=True)
class SourceReference:
    """The source of a mask, plane by plane; picklable."""

    common: Dataset
    """Attributes of ``REQUIRED`` and ``STATED``, the UIDs of study and frame of reference, modality, date and time."""
    series: str
    """Series Instance UID of the source."""
    number: int
    """Series Number of the source; 0 if it has none."""
    planes: tuple[Instance, ...]
    positions: tuple[tuple[float, float, float], ...]
    """Image Position (Patient) of each plane in mm (LPS)."""
    orientation: tuple[float, ...]
    """Image Orientation (Patient): the directions along a row and along a column."""
    spacing: tuple[float, float]
    """Distance between rows and between columns in mm."""
    stated_thickness: float | None
    shape: tuple[int, int]
    """Rows and columns of a plane."""
    window: tuple[float, float] | None = None
    """Values that a CT shows as black and as white; elsewhere, each slice may have a window of its own."""
    inverted: bool = False
    """Whether the source shows low values bright (MONOCHROME1)."""
    annotated: bool = False
    """Whether the source has text in its pixels (BurnedInAnnotation)."""
    lossy: bool = False
    """Whether the source was compressed with loss."""

    @property
    def thickness(self) -> float:
        """Thickness of a plane in mm; their distance if the source does not say."""
        return self.stated_thickness if self.stated_thickness and self.stated_thickness > 0 else self._gap or 1.0

    @cached_property
    def gap(self) -> float:
        """Distance between neighbouring planes in mm; the thickness if there is one plane."""
        return self._gap or self.thickness

    @property
    def _gap(self) -> float:
        """Distance between neighbouring planes in mm; 0 if there is one plane."""
        along = self._along
        return float(abs(along[-1] - along[0]) / (len(along) - 1)) if len(along) > 1 else 0.0

    @property
    def _normal(self) -> NDArray[np.float64]:
        """The direction across the planes, of length 1; the audit takes directions whose length is off by 1 %."""
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        return np.asarray(normal / np.linalg.norm(normal), np.float64)

    @property
    def _along(self) -> NDArray[np.float64]:
        """Positions along the normal of the planes."""
        return np.asarray(np.array(self.positions) @ self._normal, np.float64)

    def nearest(self, place: Sequence[float]) -> Instance:
        """The source of the plane that is nearest to a place in mm (LPS)."""
        return self.planes[int(np.abs(self._along - np.array(place) @ self._normal).argmin())]

    @property
    def cell(self) -> float:
        """Volume of a voxel in mm3."""
        return self.spacing[0] * self.spacing[1] * self.gap

    @property
    def files(self) -> list[Instance]:
        """All files of the source, without duplicates."""
        return list(dict.fromkeys(replace(plane, frame=None) for plane in self.planes))

    @property
    def is_multiframe(self) -> bool:
        """Whether planes are frames of one multi-frame file or of a concatenation."""
        return self.planes[0].frame is not None


def reference_of(series: Series, header: Dataset) -> SourceReference:
    """The source of a mask whose planes are the frames of a series.

    Args:
        series: its frames have passed the audit, and are in the order of the planes.
        header: of the file of any frame, without pixels.
    """
    first = series.frames[0]
    several = len(series.files) < len(series.frames)
    assert first.directions is not None
    assert first.spacing is not None
    with lenient():
        return SourceReference(
            common=_common(header, series),
            series=series.uid,
            number=int(series.number) if series.number.isdigit() else 0,
            planes=tuple(Instance(series.sop_class, f.instance, f.number + 1 if several else None) for f in series.frames),
            positions=tuple(frame.position for frame in series.frames if frame.position is not None),
            orientation=(*first.directions[0], *first.directions[1]),
            spacing=first.spacing,
            stated_thickness=first.thickness,
            shape=first.shape,
            window=_window(header) if series.modality == "CT" else None,
            inverted=series.photometric == ("MONOCHROME1",),
            annotated=header.get("BurnedInAnnotation") == "YES",
            lossy=series.lossy,
        )


def tags() -> list[str]:
    """Keywords of all that a reference takes from a header."""
    return [*REQUIRED, *STATED, *(keyword for pair in DATES for keyword in pair), *DISPLAY]


def _window(header: Dataset) -> tuple[float, float] | None:
    """The first window that the source states (PS3.3, C.11.2.1.2)."""
    center, width = (np.ravel(header.get(keyword) or []) for keyword in ("WindowCenter", "WindowWidth"))
    if not len(center) or not len(width) or float(width[0]) <= 1:
        return None
    middle, half = float(center[0]) - 0.5, (float(width[0]) - 1) / 2
    return middle - half, middle + half


def _common(header: Dataset, series: Series) -> Dataset:
    """Attributes that derived files repeat; invalid values are left empty, as the standard lets them be."""
    common = Dataset()
    for keyword in REQUIRED:
        setattr(common, keyword, header.get(keyword) or None)
    for keyword in STATED:
        if header.get(keyword):
            setattr(common, keyword, header.get(keyword))
    if common.get("PatientIdentityRemoved") == "YES" and "DeidentificationMethod" not in common:
        common.DeidentificationMethod = "UNKNOWN"
    if common.PatientSex not in SEXES:
        common.PatientSex = None
    for keyword, kind in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
        setattr(common, keyword, _valid(getattr(common, keyword), kind))
    common.StudyInstanceUID = series.study
    common.FrameOfReferenceUID = series.frame_of_reference or derived_uid("frame", series.uid)
    common.Modality = series.modality or "OT"
    common.ContentDate, common.ContentTime = _moment(header)
    return common


def _valid(value: Any, kind: type) -> str | None:
    try:
        return str(value) if value and kind(str(value)) else None
    except ValueError:
        return None


def _moment(header: Dataset) -> tuple[str, str]:
    """Date and time of the source."""
    for date, time in DATES:
        if day := _valid(header.get(date), DA):
            return day, _valid(header.get(time), TM) or LONG_AGO[1]
    return LONG_AGO


def derived_uid(*parts: str) -> str:
    """A UID that follows from texts, so that every run gives the same (PS3.5, B.2: ``2.25.`` and a UUID as a number)."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, chr(0).join(map(str, parts))).int}"


@dataclass(frozen=True, slots=True)
class Authorship:
    """The model and version that made a mask, and the UIDs of files derived from its content."""

    model: str
    """SHA-256 of model and contract."""
    content: str
    """SHA-256 of all that the file shows."""
    title: str = EQUIPMENT
    """Name of the model, for people."""

    def uid(self, reference: SourceReference, *kind: str) -> str:
        """UID of an object of this kind that is derived from the planes of a series."""
        frames = ((plane.sop_instance, plane.frame) for plane in reference.planes)
        sources = (instance if frame is None else f"{instance} {frame}" for instance, frame in frames)
        return derived_uid(__version__, self.model, self.content, *kind, *sources)

    def series_uid(self, reference: SourceReference, kind: str) -> str:
        """UID of the series that holds the objects of this kind."""
        return derived_uid(__version__, self.model, kind, reference.series)

    @property
    def equipment(self) -> dict[str, Any]:
        """Attributes of the Enhanced General Equipment module."""
        return {
            "manufacturer": EQUIPMENT,
            "manufacturer_model_name": EQUIPMENT,
            "software_versions": __version__,
            "device_serial_number": self.model[:16],
        }


@contextmanager
def lenient() -> Iterator[None]:
    """No warnings: values of the source that break a rule of the standard are copied, and a warning would show them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def light_images(reference: SourceReference) -> list[Dataset]:
    """Headers in the form that highdicom derives files from; of one row and one column each, since its functional
    groups need only know which plane shows which segment."""
    return [_multiframe(reference)] if reference.is_multiframe else [*_single_frames(reference)]


def _image(reference: SourceReference, instance: Instance) -> Dataset:
    image = Dataset()
    image.update(reference.common)
    image.SOPClassUID, image.SOPInstanceUID = instance.sop_class, instance.sop_instance
    image.SeriesInstanceUID = reference.series
    image.Rows = image.Columns = 1
    if reference.lossy:
        image.LossyImageCompression = "01"  # derived images say it, too (PS3.3, C.7.6.1.1.5)
    return image


def evidence_images(reference: SourceReference) -> list[Dataset]:
    """A header per file of the source, in the form that highdicom expects as evidence."""
    return [_image(reference, file) for file in reference.files]


def _single_frames(reference: SourceReference) -> Iterable[Dataset]:
    for instance, position in zip(reference.planes, reference.positions, strict=True):
        image = _image(reference, instance)
        _set_measures(image, reference)
        image.ImageOrientationPatient = decimals(*reference.orientation)
        image.ImagePositionPatient = decimals(*position)
        yield image


def _set_measures(item: Dataset, reference: SourceReference) -> None:
    item.PixelSpacing = decimals(*reference.spacing)
    (item.SliceThickness,) = decimals(reference.thickness)
    (item.SpacingBetweenSlices,) = decimals(reference.gap)


def decimals(*numbers: float) -> list[DSfloat]:
    """Numbers as DICOM's decimal strings, of 16 characters at most."""
    return [DSfloat(number, auto_format=True) for number in numbers]


def _multiframe(reference: SourceReference) -> Dataset:
    """A header of the selected frames alone, numbered like the planes, as if all belonged to the first file."""
    image = _image(reference, reference.planes[0])
    image.NumberOfFrames = len(reference.planes)
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = decimals(*reference.orientation)
    _set_measures(measures, reference)
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    image.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for position in reference.positions:
        frame, place = Dataset(), Dataset()
        place.ImagePositionPatient = decimals(*position)
        frame.PlanePositionSequence = [place]
        frames.append(frame)
    image.PerFrameFunctionalGroupsSequence = frames
    return image


def drop_clock(header: Dataset) -> None:
    """Remove the times at which highdicom made a file, so that every run writes the same bytes."""
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
        header.pop(keyword, None)
    for item in header.get("ContributingEquipmentSequence", ()):
        item.pop("ContributionDateTime", None)

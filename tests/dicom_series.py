"""Small DICOM series that tests make: headers in any orientation, with or without pixels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian

from segpipe.formats.dicom.series import Frame, Series

UID = "1.2.826.0.1.3680043.8.498.7"

ORIENTATIONS = {
    "axial": (1, 0, 0, 0, 1, 0),
    "axial, feet first": (-1, 0, 0, 0, 1, 0),
    "axial, prone": (-1, 0, 0, 0, -1, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "coronal, from behind": (-1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "sagittal, from the right": (0, -1, 0, 0, 0, 1),
    "oblique": (0.8, 0.6, 0, -0.48, 0.64, 0.6),
}
"""Image Orientation (Patient) of eight series; the last is turned about two axes."""

PATIENT = {"PatientName": "Doe^Jane", "PatientID": "MRN-0815-J", "PatientBirthDate": "19610203", "PatientSex": "F"}


def slices(
    shape: Sequence[int] = (6, 10, 12),
    orientation: Sequence[float] = ORIENTATIONS["axial"],
    spacing: tuple[float, float, float] = (2.5, 0.75, 0.5),
    origin: Sequence[float] = (-20.0, 31.5, 7.25),
    **more: Any,
) -> list[Dataset]:
    """Headers of a series of CT without pixels, one per plane; ``spacing`` is that of planes, rows and columns in mm."""
    normal = np.cross(orientation[:3], orientation[3:])
    places = [np.array(origin) + k * spacing[0] * normal for k in range(shape[0])]
    return [_slice(k, shape, orientation, spacing, place, more) for k, place in enumerate(places)]


def _slice(
    k: int,
    shape: Sequence[int],
    orientation: Sequence[float],
    spacing: tuple[float, float, float],
    position: NDArray[np.float64],
    more: dict[str, Any],
) -> Dataset:
    header = _header(CTImageStorage, f"{UID}.3.{k + 1}", shape, more)
    header.InstanceNumber = k + 1
    header.ImagePositionPatient = [f"{x:.8g}" for x in position]
    header.ImageOrientationPatient = [f"{x:.8g}" for x in orientation]
    header.PixelSpacing = list(spacing[1:])
    header.SliceThickness = spacing[0]
    return header


def _header(sop_class: str, instance: str, shape: Sequence[int], more: dict[str, Any]) -> Dataset:
    header = Dataset()
    header.SOPClassUID, header.SOPInstanceUID = sop_class, instance
    header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = f"{UID}.1", f"{UID}.2", f"{UID}.4"
    header.Modality, header.SeriesNumber, header.StudyID, header.AccessionNumber = "CT", 3, "S1", "A1"
    header.StudyDate = header.SeriesDate = header.ContentDate = "20240102"
    header.StudyTime = header.SeriesTime = header.ContentTime = "030405"
    header.ReferringPhysicianName = "Roe^Richard"
    header.Rows, header.Columns = shape[1:]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
    header.RescaleIntercept, header.RescaleSlope = 0, 1
    for keyword, value in {**PATIENT, **more}.items():
        setattr(header, keyword, value)
    return header


def enhanced(shape: Sequence[int] = (6, 10, 12), spacing: tuple[float, float, float] = (2.5, 0.75, 0.5)) -> Dataset:
    """The header of one multi-frame CT with axial frames, the topmost first."""
    header = _header(EnhancedCTImageStorage, f"{UID}.3.1", shape, {})
    header.NumberOfFrames = shape[0]
    orientation, measures, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = list(ORIENTATIONS["axial"])
    measures.PixelSpacing, measures.SliceThickness = list(spacing[1:]), spacing[0]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    header.SharedFunctionalGroupsSequence, header.PerFrameFunctionalGroupsSequence = [shared], []
    for k in range(shape[0]):
        place, frame = Dataset(), Dataset()
        place.ImagePositionPatient = [-20, 31.5, (shape[0] - 1 - k) * spacing[0]]
        frame.PlanePositionSequence = [place]
        header.PerFrameFunctionalGroupsSequence.append(frame)
    return header


def series_of(headers: Sequence[Dataset], frames: Sequence[int] | None = None) -> Series:
    """The series of some headers, whose planes lie in their order, or of the frames of one multi-frame header."""
    first = headers[0]
    if frames is None:
        kept = tuple(_frame(k, 0, header, header, header) for k, header in enumerate(headers))
    else:
        shared, each = first.SharedFunctionalGroupsSequence[0], first.PerFrameFunctionalGroupsSequence
        orientation, measures = shared.PlaneOrientationSequence[0], shared.PixelMeasuresSequence[0]
        kept = tuple(_frame(0, n, each[n].PlanePositionSequence[0], orientation, measures, first) for n in frames)
    frame = str(first.get("FrameOfReferenceUID", ""))
    texts = (first.SeriesInstanceUID, first.StudyInstanceUID, frame, first.Modality, "", str(first.SeriesNumber))
    return Series(*texts, first.SOPClassUID, ("MONOCHROME2",), 1, (ExplicitVRLittleEndian,), kept)


def _frame(
    k: int, number: int, place: Dataset, orientation: Dataset, measures: Dataset, header: Dataset | None = None
) -> Frame:
    header = place if header is None else header
    directions = [float(x) for x in orientation.ImageOrientationPatient]
    return Frame(
        f"IM{k:04}",
        number,
        str(header.SOPInstanceUID),
        tuple(float(x) for x in place.ImagePositionPatient),
        (tuple(directions[:3]), tuple(directions[3:])),
        tuple(float(x) for x in measures.PixelSpacing),
        (header.Rows, header.Columns),
        thickness=measures.SliceThickness if measures.SliceThickness is None else float(measures.SliceThickness),
    )


def affine(headers: Sequence[Dataset]) -> NDArray[np.float64]:
    """Matrix ``(4, 4)`` from an index ``(plane, row, column)``, and 1, to LPS in mm (PS3.3, C.7.6.2.1.1)."""
    first, last = headers[0], headers[-1]
    rows, columns = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
    start, end = (np.array(header.ImagePositionPatient, float) for header in (first, last))
    matrix = np.eye(4)
    matrix[:3, 0] = (end - start) / max(1, len(headers) - 1)
    matrix[:3, 1] = columns * float(first.PixelSpacing[0])
    matrix[:3, 2] = rows * float(first.PixelSpacing[1])
    matrix[:3, 3] = start
    return matrix


def save(folder: Path, headers: Sequence[Dataset], voxels: NDArray[np.int16]) -> list[Path]:
    """Write a series with its voxels ``(planes, rows, columns)``, one file per plane."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k, (header, plane) in enumerate(zip(headers, voxels, strict=True)):
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
        header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
        header.PixelData = plane.astype("<i2").tobytes()
        paths.append(folder / f"IM{k:04}")
        header.save_as(paths[-1], enforce_file_format=True)
    return paths

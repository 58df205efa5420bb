"""DICOM series for tests, written by pydicom."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)

from segpipe.formats.dicom.series import Frame

CLASSES = {"CT": CTImageStorage, "MR": MRImageStorage, "PT": PositronEmissionTomographyImageStorage}

ROOT = "1.2.826.0.1.3680043.10.1.77"

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

PATIENT = "Mustermann^Erika"


def uid(*numbers: int) -> str:
    return ".".join([ROOT, *map(str, numbers)])


def values(shape: tuple[int, ...] = (6, 9, 11), seed: int = 0) -> NDArray[np.int16]:
    """Seeded values of 12 bits, ``(planes, rows, columns)``."""
    return np.random.default_rng(seed).integers(0, 4096, shape).astype(np.int16)


def positions(count: int, step: float = 2.5, orientation: Sequence[float] = AXIAL, first: Any = (-10.0, -20.0, 30.0)) -> Any:
    """Positions of planes one above the other, ``(count, 3)``."""
    normal = np.cross(orientation[:3], orientation[3:])
    return np.array(first) + np.arange(count)[:, None] * step * normal


def header(number: int, series: int = 1, modality: str = "CT") -> FileDataset:
    """A file without pixels and place; it names a patient."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CLASSES[modality]
    meta.MediaStorageSOPInstanceUID = uid(series, number)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.PatientName, data.PatientID, data.PatientBirthDate, data.PatientSex = PATIENT, "4711", "19700101", "O"
    data.StudyInstanceUID, data.SeriesInstanceUID = uid(900), uid(series)
    data.FrameOfReferenceUID = uid(901)
    data.StudyDate, data.StudyTime, data.AccessionNumber, data.ReferringPhysicianName, data.StudyID = (
        "20260101",
        "",
        "",
        "",
        "",
    )
    data.Modality, data.SeriesNumber, data.InstanceNumber = modality, series, number
    data.SeriesDescription = f"series {series}"
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    return data


def put_pixels(data: Dataset, pixels: NDArray[Any]) -> None:
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = pixels.shape[-2:]
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<")).tobytes()


def slice_of(pixels: NDArray[Any], position: Iterable[float], number: int, **tags: Any) -> FileDataset:
    """One slice; ``series`` and ``modality`` choose the header, all other tags are set last."""
    data = header(number, tags.pop("series", 1), tags.pop("modality", "CT"))
    data.ImagePositionPatient = [f"{n:.10g}"[:16] for n in position]
    data.ImageOrientationPatient = list(AXIAL)
    data.PixelSpacing, data.SliceThickness = [0.7, 0.8], 2.5
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    put_pixels(data, pixels)
    for key, value in tags.items():
        setattr(data, key, value)
    return data


def save(data: FileDataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def write(folder: Path, pixels: NDArray[Any] | None = None, places: Any = None, suffix: str = ".dcm", **tags: Any) -> Path:
    """A series, a file per plane, the first plane at the first position; lists of tags have a value per plane."""
    pixels = values() if pixels is None else pixels
    orientation = tags.get("ImageOrientationPatient", AXIAL)
    usual = orientation[0] if isinstance(orientation, Each) else orientation
    places = positions(len(pixels), orientation=usual) if places is None else places
    for n, (plane, place) in enumerate(zip(pixels, places, strict=True)):
        own = {key: value[n] if isinstance(value, Each) else value for key, value in tags.items()}
        save(slice_of(plane, place, n + 1, **own), folder / f"IM{n:04}{suffix}")
    return folder


class Each(list[Any]):
    """A value for each plane."""


def enhanced(path: Path, pixels: NDArray[Any], places: Any, slopes: Sequence[float], times: Sequence[int] = ()) -> Path:
    """One multi-frame file; with ``times``, frames are of several times."""
    data = header(1, 5, "MR")
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = EnhancedMRImageStorage
    data.NumberOfFrames = len(pixels)
    put_pixels(data, pixels)
    shared = Dataset()
    shared.PixelMeasuresSequence = Items([_dataset(PixelSpacing=[0.7, 0.8], SliceThickness=2.5)])
    shared.PlaneOrientationSequence = Items([_dataset(ImageOrientationPatient=list(AXIAL))])
    data.SharedFunctionalGroupsSequence = Items([shared])
    data.PerFrameFunctionalGroupsSequence = Items()
    for n, (place, slope) in enumerate(zip(places, slopes, strict=True)):
        own = Dataset()
        own.PlanePositionSequence = Items([_dataset(ImagePositionPatient=list(place))])
        own.PixelValueTransformationSequence = Items([_dataset(RescaleSlope=slope, RescaleIntercept=0, RescaleType="US")])
        if times:
            own.FrameContentSequence = Items([_dataset(TemporalPositionIndex=times[n])])
        data.PerFrameFunctionalGroupsSequence.append(own)
    return save(data, path)


def concatenate(path: Path, counts: Sequence[int], *, total: bool = True) -> list[Path]:
    """Divide a multi-frame file into several with so many frames each; their names are in another order."""
    whole = pydicom.dcmread(path)
    pixels, paths, start = whole.pixel_array, list[Path](), 0
    for k, count in enumerate(counts):
        data = pydicom.dcmread(path)
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = uid(5, 100 + k)
        data.ConcatenationUID, data.InConcatenationNumber, data.ConcatenationFrameOffsetNumber = uid(7), k + 1, start
        data.SOPInstanceUIDOfConcatenationSource = whole.SOPInstanceUID
        if total:
            data.InConcatenationTotalNumber = len(counts)
        data.NumberOfFrames = count
        data.PerFrameFunctionalGroupsSequence = whole.PerFrameFunctionalGroupsSequence[start : start + count]
        put_pixels(data, pixels.reshape(-1, *pixels.shape[-2:])[start : start + count])
        paths.append(save(data, path.with_name(f"{path.stem}{9 - k}.dcm")))
        start += count
    path.unlink()
    return paths


def _dataset(**tags: Any) -> Dataset:
    data = Dataset()
    for key, value in tags.items():
        setattr(data, key, value)
    return data


def frame(number: int, series: int = 1) -> Frame:
    """The header of an axial slice, as an index has it."""
    directions = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    return Frame(f"{number}.dcm", 0, uid(series, number), (0.0, 0.0, 2.5 * number), directions, (0.7, 0.8), (9, 11))


def compress(path: Path, syntax: int) -> None:
    """Compress the pixels of a file, with one of ``gdcm.TransferSyntax``."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()

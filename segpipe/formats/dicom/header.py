"""Read the header of a DICOM file up to its pixels, without tags that name a patient."""

import errno
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydicom
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from segpipe.formats.dicom.elements import (
    SPECIFIC_TAGS,
    TAG_OF,
    NotDicomError,
    digest_of,
    integer_of,
    sequence_of,
    text_of,
    values_of,
)
from segpipe.formats.dicom.frames import frames_of
from segpipe.formats.dicom.names import PREAMBLE, is_one
from segpipe.formats.dicom.series import Frame, Series
from segpipe.formats.dicom.stored import UNREADABLE, error_text
from segpipe.storage.content import describe

FIRST_BYTES = 2**12
"""Bytes of a file that are read at first; the file meta information, about 300 bytes, is in them."""

WHOLE = "copy it again, or write it with what is missing, as dcmconv does"

META_LENGTH = b"\x02\x00\x00\x00UL\x04\x00"
"""The first bytes of the file meta information: the tag of its group length (0002,0000), then four bytes (PS3.10, 7.1)."""

PIXEL_DATA = {True: b"\xe0\x7f\x10\x00", False: b"\x7f\xe0\x00\x10"}
"""The tag of pixels that are integers, in files that are little endian and others (PS3.3, section C.7.6.3.1.4)."""

NO_IMAGES = frozenset(
    {"SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "REG", "FID", "DOC", "RWV", "ANN", "M3D", "SM"}
)
"""Modalities whose objects are no planes of a volume to be labelled, pixels or not."""

NO_IMAGE_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.66",  # raw data, registrations, fiducials, segmentations, surfaces
    "1.2.840.10008.5.1.4.1.1.88",  # structured reports
    "1.2.840.10008.5.1.4.1.1.481",  # radiotherapy
    "1.2.840.10008.5.1.4.1.1.11.",  # presentation states
    "1.2.840.10008.5.1.4.1.1.104",  # encapsulated documents
    "1.2.840.10008.5.1.4.1.1.77.1.6",  # whole slides
)
"""Beginnings of SOP classes of the same kind (PS3.4, annex B)."""

IMAGE_CLASS = "Image Storage"
"""In the names of SOP classes whose objects have rows and columns."""


@dataclass(frozen=True, slots=True)
class Concatenation:
    """Position of a file in a concatenation: one image whose frames lie in several files (PS3.3, C.7.6.16.2.2.4)."""

    uid: str
    number: int
    """From 1."""
    total: int
    """Number of files; 0 if it is not stated."""


@dataclass(frozen=True, slots=True)
class Header:
    """The facts in the header of one file."""

    name: str
    """Name of the file below the searched folder."""
    series: Series
    """The series with the frames of this file alone."""
    instance_number: int
    is_image: bool
    is_scout: bool
    concatenation: Concatenation | None = None
    """None if all frames of the image are in this file."""

    @property
    def order(self) -> tuple[int, int, str]:
        """Key by which the files of a series are sorted."""
        return 0 if self.concatenation is None else self.concatenation.number, self.instance_number, self.name


def read_header(path: str, name: str) -> Header:
    """Read a file up to its pixels.

    Raises:
        NotDicomError: it is damaged, or something else.
        OSError: it cannot be read.
    """
    if not is_one(path):
        raise NotDicomError(describe(path) or f"{path} is no DICOM file: it has no DICM at byte {PREAMBLE}: {WHOLE}")
    try:
        with Path(path).open("rb") as stream:
            state = os.fstat(stream.fileno())
            _check_packing(path, stream.read(FIRST_BYTES))
            stream.seek(0)
            data = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=SPECIFIC_TAGS)
            at = stream.tell()
            rest = _AfterHeader(state.st_size - at, stream.read(4))
        header = _header(path, name, data, rest)
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a seek to an invalid offset
            raise
        raise NotDicomError(f"{path} cannot be read as DICOM: {type(error).__name__}: {error_text(error)}") from error
    when = state.st_size, state.st_mtime_ns
    frames = tuple(replace(frame, state=when) for frame in header.series.frames)
    return replace(header, series=replace(header.series, frames=frames))


def _check_packing(path: str, first: bytes) -> None:
    """Refuse a file that is packed as a whole, before it is unpacked: a short one may unpack to more than all memory.

    The file meta information is parsed only if the file's first bytes may have such a syntax, or do not have all of it.
    """
    length, after = first[PREAMBLE + 4 : PREAMBLE + 12], PREAMBLE + 16
    whole = length == META_LENGTH and after + int.from_bytes(first[after - 4 : after], "little") <= len(first)
    if whole and DeflatedExplicitVRLittleEndian.encode() not in first:
        return
    syntax = read_file_meta_info(path).get("TransferSyntaxUID")
    if syntax is not None and UID(syntax).is_deflated:
        raise NotDicomError(
            f"{path}: its transfer syntax must not pack the whole file, got {UID(syntax).name}: unpack it first, as with "
            f"dcmconv +te {path} out.dcm"
        )


@dataclass(frozen=True, slots=True)
class _AfterHeader:
    """The bytes that follow a header."""

    length: int
    tag: bytes
    """The first four bytes."""


def _header(path: str, name: str, data: Any, rest: _AfterHeader) -> Header:
    modality, sop_class = text_of(data, "Modality"), text_of(data, "SOPClassUID")
    no_image = modality in NO_IMAGES or sop_class.startswith(NO_IMAGE_CLASSES)
    is_image = not no_image and TAG_OF["Rows"] in data and TAG_OF["Columns"] in data
    if not sop_class or (is_image and not text_of(data, "SeriesInstanceUID")):
        raise ValueError(f"it has no {'SeriesInstanceUID' if sop_class else 'SOPClassUID'}: copy it again")
    if not (no_image or is_image) and IMAGE_CLASS in UID(sop_class).name:  # its slice would be missing from the volume
        raise ValueError("it is an image, and ends before its rows and columns: copy it again")
    return Header(
        name,
        _series(path, data, rest, is_image=is_image),
        integer_of(data, "InstanceNumber"),
        is_image,
        "LOCALIZER" in _image_type(data),
        _concatenation(data),
    )


def _concatenation(data: Any) -> Concatenation | None:
    if not (uid := text_of(data, "ConcatenationUID")):
        return None
    number, total = (integer_of(data, f"InConcatenation{what}") for what in ("Number", "TotalNumber"))
    return Concatenation(uid, number, total)


def _image_type(data: Any) -> list[str]:
    return [str(part).upper() for part in values_of(data, "ImageType")]


def _series(path: str, data: Any, rest: _AfterHeader, *, is_image: bool) -> Series:
    syntax = str(data.file_meta.get("TransferSyntaxUID", ""))
    frames = tuple(frames_of(path, data)) if is_image else ()
    return Series(
        uid=text_of(data, "SeriesInstanceUID"),
        study=text_of(data, "StudyInstanceUID"),
        frame_of_reference=text_of(data, "FrameOfReferenceUID"),
        modality=text_of(data, "Modality"),
        description=text_of(data, "SeriesDescription"),
        number=text_of(data, "SeriesNumber"),
        sop_class=text_of(data, "SOPClassUID"),
        photometric=(text_of(data, "PhotometricInterpretation"),),
        samples=integer_of(data, "SamplesPerPixel", 1),
        syntaxes=(syntax,),
        frames=frames,
        unusable=_unusable(path, data, syntax, rest) or _unusable_scale(frames) if is_image else "",
        lossy=text_of(data, "LossyImageCompression") == "01",
        patient_id=digest_of(data, "PatientID"),
        patient_name=digest_of(data, "PatientName"),
    )


def _truncation(path: str, data: Any, syntax: str, left: int) -> str:
    """The reason why a file is truncated, judged by its length; empty if it is not."""
    if left <= 8:
        return f"{path} ends before its pixels: copy it again"
    uid = UID(syntax) if syntax else None
    if uid is None or uid.is_private or uid.is_compressed or uid.is_deflated:
        return ""
    frames = max(1, integer_of(data, "NumberOfFrames", 1))
    samples, bits = integer_of(data, "SamplesPerPixel", 1), integer_of(data, "BitsAllocated", 16)
    needed = integer_of(data, "Rows") * integer_of(data, "Columns") * frames * samples * bits // 8
    if left - (8 if uid.is_implicit_VR else 12) >= needed:
        return ""
    return f"{path} is cut: its pixels take {needed:,} bytes, and {left:,} are left of it: copy it again"


def _unusable(path: str, data: Any, syntax: str, rest: _AfterHeader) -> str:
    """The reason why pixels of a file have no modality values; empty if they have."""
    return (
        _truncation(path, data, syntax, rest.length)
        or _no_values(path, data, syntax, rest.tag)
        or _contradiction(path, data)
    )


def _no_values(path: str, data: Any, syntax: str, tag: bytes) -> str:
    """The reason why a file holds something other than a slice of values; empty if it does not."""
    if "MOSAIC" in _image_type(data):
        return (
            f"{path}: an image must be one slice, and ImageType says MOSAIC, slices of a volume side by side: convert the "
            "series to NIfTI first, as with dcm2niix"
        )
    if tag != PIXEL_DATA[not syntax or UID(syntax).is_little_endian]:
        return (
            f"{path}: pixels must be integers, in Pixel Data (7FE0,0010), and it has others, such as Float Pixel Data: "
            "convert it to NIfTI first"
        )
    if sequence_of(data, "ModalityLUTSequence"):
        return (
            f"{path}: values must follow from the pixels by RescaleSlope and RescaleIntercept, and the file has a table, "
            "ModalityLUTSequence (0028,3000): apply it first, as with pydicom.pixels.apply_modality_lut, and write NIfTI"
        )
    return ""


def _contradiction(path: str, data: Any) -> str:
    """The reason why elements of a header cannot be right together; empty if they can."""
    stored, allocated = integer_of(data, "BitsStored", 16), integer_of(data, "BitsAllocated", 16)
    if not 1 <= stored <= min(allocated, 64):
        return f"{path}: BitsStored must be 1 to BitsAllocated, {allocated}, got {stored}: copy it again"
    if (high := integer_of(data, "HighBit", stored - 1)) != stored - 1:
        return (
            f"{path}: HighBit must be BitsStored - 1 (PS3.5, 8.1.1), got {high} for {stored} bits: shift the pixels to "
            f"the low bits if they are not there, and set HighBit to {stored - 1}, as with dcmodify -m HighBit={stored - 1}"
        )
    each, count = sequence_of(data, "PerFrameFunctionalGroupsSequence"), integer_of(data, "NumberOfFrames", 1)
    if each and len(each) != count:
        return (
            f"{path}: PerFrameFunctionalGroupsSequence must have an item for each frame, and has {len(each)} for "
            f"NumberOfFrames {count}: copy it again"
        )
    return ""


def _unusable_scale(frames: Sequence[Frame]) -> str:
    """The reason why slope and intercept of a frame give no values; empty if they do."""
    for frame in frames:
        if not (math.isfinite(frame.slope) and frame.slope and math.isfinite(frame.intercept)):
            return (
                f"{frame.path}: RescaleSlope must be a number but 0, and RescaleIntercept a number, got {frame.slope:g} "
                f"and {frame.intercept:g}: copy it again"
            )
    return ""

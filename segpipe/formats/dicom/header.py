"""Read the header of a DICOM file up to its pixels; no tag that names a patient is asked for."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_file_meta_info
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from segpipe.errors import SegpipeError, one_line
from segpipe.formats.dicom.names import PREAMBLE, is_one
from segpipe.formats.dicom.series import Frame, Series, Vector
from segpipe.formats.dicom.stored import UNREADABLE, error_text
from segpipe.storage.content import describe

TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "FrameOfReferenceUID",
    "Modality",
    "SeriesDescription",
    "SeriesNumber",
    "InstanceNumber",
    "ImageType",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "EchoNumbers",
    "EchoTime",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "DiffusionBValue",
    "AcquisitionNumber",
    "StackID",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "RescaleSlope",
    "RescaleIntercept",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "ModalityLUTSequence",
    "LossyImageCompression",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]

TAG_OF = {keyword: Tag(keyword) for keyword in (*TAGS, "EffectiveEchoTime", "FrameAcquisitionNumber", "FrameType")}

SPECIFIC_TAGS: list[BaseTag | int] = [TAG_OF[keyword] for keyword in TAGS]
"""Found once: pydicom takes a third of the time of a header to find the tags of so many keywords."""

UNSIGNED_SHORT = frozenset({"Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation"})
"""Elements of two bytes without a sign."""

MOST_FRAMES = 2**16
"""Frames of a file; the largest dynamic series have about 20,000."""

FIRST_BYTES = 2**12
"""Bytes of a file that are read at first; the file meta information, about 300 bytes, is in them."""

WHOLE = "copy it again, or write it with what is missing, as dcmconv does"

META_LENGTH = b"\x02\x00\x00\x00UL\x04\x00"
"""The first bytes of the file meta information: the tag of its group length (0002,0000), then four bytes (PS3.10, 7.1)."""

PIXEL_DATA = {True: b"\xe0\x7f\x10\x00", False: b"\x7f\xe0\x00\x10"}
"""The tag of pixels that are integers, in files that are little endian and others (PS3.3, section C.7.6.3.1.4)."""

ASCII_TEXT = (
    frozenset(TAGS) - UNSIGNED_SHORT - {"DiffusionBValue", "SeriesDescription", "TemporalPositionIndex", "EffectiveEchoTime"}
)
"""Elements that are stored as text of ASCII alone."""

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


class NotDicomError(SegpipeError):
    """A file that cannot be read as DICOM."""


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


def read_header(path: str, name: str) -> Header:
    """Read a file up to its pixels.

    Raises:
        NotDicomError: it cannot be read.
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
    modality, sop_class = _text(data, "Modality"), _text(data, "SOPClassUID")
    no_image = modality in NO_IMAGES or sop_class.startswith(NO_IMAGE_CLASSES)
    is_image = not no_image and TAG_OF["Rows"] in data and TAG_OF["Columns"] in data
    if not sop_class or (is_image and not _text(data, "SeriesInstanceUID")):
        raise ValueError(f"it has no {'SeriesInstanceUID' if sop_class else 'SOPClassUID'}: copy it again")
    return Header(
        name,
        _series(path, data, rest, is_image=is_image),
        _integer(data, "InstanceNumber"),
        is_image,
        "LOCALIZER" in _image_type(data),
    )


def _image_type(data: Any) -> list[str]:
    return [str(part).upper() for part in _values(data, "ImageType")]


def _series(path: str, data: Any, rest: _AfterHeader, *, is_image: bool) -> Series:
    syntax = str(data.file_meta.get("TransferSyntaxUID", ""))
    frames = tuple(_frames(path, data)) if is_image else ()
    return Series(
        uid=_text(data, "SeriesInstanceUID"),
        study=_text(data, "StudyInstanceUID"),
        frame_of_reference=_text(data, "FrameOfReferenceUID"),
        modality=_text(data, "Modality"),
        description=_text(data, "SeriesDescription"),
        number=_text(data, "SeriesNumber"),
        sop_class=_text(data, "SOPClassUID"),
        photometric=(_text(data, "PhotometricInterpretation"),),
        samples=_integer(data, "SamplesPerPixel", 1),
        syntaxes=(syntax,),
        frames=frames,
        unusable=_unusable(path, data, syntax, rest) or _unusable_scale(frames) if is_image else "",
        lossy=_text(data, "LossyImageCompression") == "01",
    )


def _truncation(path: str, data: Any, syntax: str, left: int) -> str:
    """The reason why a file is truncated, judged by its length; empty if it is not."""
    if left <= 8:
        return f"{path} ends before its pixels: copy it again"
    uid = UID(syntax) if syntax else None
    if uid is None or uid.is_private or uid.is_compressed or uid.is_deflated:
        return ""
    frames = max(1, _integer(data, "NumberOfFrames", 1))
    samples, bits = _integer(data, "SamplesPerPixel", 1), _integer(data, "BitsAllocated", 16)
    needed = _integer(data, "Rows") * _integer(data, "Columns") * frames * samples * bits // 8
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
    if _sequence(data, "ModalityLUTSequence"):
        return (
            f"{path}: values must follow from the pixels by RescaleSlope and RescaleIntercept, and the file has a table, "
            "ModalityLUTSequence (0028,3000): apply it first, as with pydicom.pixels.apply_modality_lut, and write NIfTI"
        )
    return ""


def _contradiction(path: str, data: Any) -> str:
    """The reason why elements of a header cannot be right together; empty if they can."""
    stored, allocated = _integer(data, "BitsStored", 16), _integer(data, "BitsAllocated", 16)
    if not 1 <= stored <= min(allocated, 64):
        return f"{path}: BitsStored must be 1 to BitsAllocated, {allocated}, got {stored}: copy it again"
    each, count = _sequence(data, "PerFrameFunctionalGroupsSequence"), _integer(data, "NumberOfFrames", 1)
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


def _frames(path: str, data: Any) -> Iterator[Frame]:
    shared = _first_item(data, "SharedFunctionalGroupsSequence")
    each = _sequence(data, "PerFrameFunctionalGroupsSequence")
    if each is None or not len(each):
        count = max(1, _integer(data, "NumberOfFrames", 1))
        if count > MOST_FRAMES:
            raise NotDicomError(f"{path}: NumberOfFrames must be at most {MOST_FRAMES:,}, got {count:,}: copy it again")
        for number in range(count):
            # frames without functional groups have one position at most
            yield _frame(path, number, data, [data] if count == 1 else [])
        return
    for number, own in enumerate(each):
        groups = [item for part in (own, shared) if part is not None for item in _items(part)]
        yield _frame(path, number, data, groups)


def _items(part: Any) -> Iterator[Any]:
    """The first item of each functional group, and of the groups in it."""
    for item in _first_items(part):
        yield item
        yield from _first_items(item)


def _first_items(item: Any) -> Iterator[Any]:
    """The first item of each sequence, but of private ones: Philips repeats there what a frame was converted from."""
    return (e.value[0] for e in item if e.VR == "SQ" and len(e.value) and not e.tag.is_private)


def _frame(path: str, number: int, data: Any, groups: list[Any]) -> Frame:
    def values(keyword: str) -> list[float]:
        return next((list(map(float, _values(group, keyword))) for group in groups if TAG_OF[keyword] in group), [])

    position, orientation, spacing = (
        values("ImagePositionPatient"),
        values("ImageOrientationPatient"),
        values("PixelSpacing"),
    )
    slope, intercept = values("RescaleSlope"), values("RescaleIntercept")
    thickness = values("SliceThickness")
    return Frame(
        path=path,
        number=number,
        instance=_text(data, "SOPInstanceUID"),
        position=_vector(position),
        directions=_directions(orientation),
        spacing=(spacing[0], spacing[1]) if len(spacing) == 2 else None,
        shape=(_integer(data, "Rows"), _integer(data, "Columns")),
        slope=slope[0] if slope else 1.0,
        intercept=intercept[0] if intercept else 0.0,
        is_scaled=bool(slope or intercept),
        thickness=thickness[0] if thickness else None,
        bits=_integer(data, "BitsStored", 16),
        signed=_integer(data, "PixelRepresentation") == 1,
        keys=tuple(_keys(groups)),
        padding=_padding(data),
    )


def _padding(data: Any) -> tuple[int, int] | None:
    """The least and the largest stored value that stands for no value (PS3.3, section C.7.5.1.1.2)."""
    value, limit = _pixel_value(data, "PixelPaddingValue"), _pixel_value(data, "PixelPaddingRangeLimit")
    if value is None:
        return None
    limit = value if limit is None else limit
    return min(value, limit), max(value, limit)


def _pixel_value(data: Any, keyword: str) -> int | None:
    """An element of two bytes with the sign of the pixels; the sign that the file gives it may be another one."""
    raw = data.get_item(TAG_OF[keyword])
    if raw is None or not isinstance(raw.value, bytes) or len(raw.value) < 2:
        return None
    order: Literal["little", "big"] = "little" if raw.is_little_endian else "big"
    return int.from_bytes(raw.value[:2], order, signed=_integer(data, "PixelRepresentation") == 1)


def _keys(groups: list[Any]) -> Iterator[tuple[str, str]]:
    """Keywords and values of attributes that distinguish planes at one position."""
    for key, keywords in KEYWORDS_OF_KEYS.items():
        for keyword in keywords:
            found = next((values for group in groups if (values := _values(group, keyword))), None)
            if found:
                yield key, "\\".join(map(str, found))
                break


KEYWORDS_OF_KEYS = {
    "StackID": ("StackID",),
    "EchoNumbers": ("EchoNumbers",),
    "EchoTime": ("EffectiveEchoTime", "EchoTime"),
    "TemporalPosition": ("TemporalPositionIndex", "TemporalPositionIdentifier"),
    "DiffusionBValue": ("DiffusionBValue",),
    "AcquisitionNumber": ("AcquisitionNumber", "FrameAcquisitionNumber"),
    "ImageType": ("FrameType", "ImageType"),
}
"""For each key, its keywords in enhanced and in other files."""


def _vector(values: list[float]) -> Vector | None:
    return (values[0], values[1], values[2]) if len(values) == 3 else None


def _directions(values: list[float]) -> tuple[Vector, Vector] | None:
    if len(values) != 6:
        return None
    a, b, c, d, e, f = values
    return (a, b, c), (d, e, f)


def _values(data: Any, keyword: str) -> list[Any]:
    """The values of an element; none if it is absent or empty."""
    raw = data.get_item(TAG_OF[keyword])
    if raw is None:
        return []
    if isinstance(raw, RawDataElement) and keyword in ASCII_TEXT:  # five times as fast as pydicom's conversion
        text = (raw.value or b"").decode("latin-1").strip(" \0")
        return text.split("\\") if text else []
    if (
        isinstance(raw, RawDataElement)
        and keyword in UNSIGNED_SHORT
        and raw.VR in (None, "US")
        and len(raw.value or b"") == 2
    ):
        return [int.from_bytes(raw.value or b"", "little" if raw.is_little_endian else "big")]
    value = data[raw.tag].value
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, (list, tuple, MultiValue)) else [value]


def _text(data: Any, keyword: str) -> str:
    values = _values(data, keyword)
    return one_line(values[0]) if values else ""


def _integer(data: Any, keyword: str, default: int = 0) -> int:
    values = _values(data, keyword)
    return int(float(values[0])) if values else default


def _sequence(data: Any, keyword: str) -> Any:
    """The items of a sequence; None if it is absent. Without ``Dataset.get``, which looks for the keyword first."""
    tag = TAG_OF[keyword]
    return data[tag].value if tag in data else None


def _first_item(data: Any, keyword: str) -> Any:
    items = _sequence(data, keyword)
    return items[0] if items is not None and len(items) else None

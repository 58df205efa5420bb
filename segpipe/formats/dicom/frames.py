"""The frames of a DICOM file: one of a plain file, or those of an enhanced one, by their functional groups."""

from collections.abc import Iterator
from typing import Any

from segpipe.formats.dicom.elements import (
    TAG_OF,
    NotDicomError,
    first_item_of,
    integer_of,
    pixel_value_of,
    sequence_of,
    text_of,
    values_of,
)
from segpipe.formats.dicom.series import Frame, Vector

MOST_FRAMES = 2**16
"""Frames of a file; the largest dynamic series have about 20,000."""


def frames_of(path: str, data: Any) -> Iterator[Frame]:
    """The frames of a header, in the order of the file; without functional groups, each has the file's own attributes.

    Raises:
        NotDicomError: NumberOfFrames is above ``MOST_FRAMES``.
    """
    shared = first_item_of(data, "SharedFunctionalGroupsSequence")
    each = sequence_of(data, "PerFrameFunctionalGroupsSequence")
    if each is None or not len(each):
        count = max(1, integer_of(data, "NumberOfFrames", 1))
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
        return next((list(map(float, values_of(group, keyword))) for group in groups if TAG_OF[keyword] in group), [])

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
        instance=text_of(data, "SOPInstanceUID"),
        position=_vector(position),
        directions=_directions(orientation),
        spacing=(spacing[0], spacing[1]) if len(spacing) == 2 else None,
        shape=(integer_of(data, "Rows"), integer_of(data, "Columns")),
        slope=slope[0] if slope else 1.0,
        intercept=intercept[0] if intercept else 0.0,
        is_scaled=bool(slope or intercept),
        thickness=thickness[0] if thickness else None,
        bits=integer_of(data, "BitsStored", 16),
        signed=integer_of(data, "PixelRepresentation") == 1,
        keys=tuple(_keys(groups)),
        padding=_padding(data),
    )


def _padding(data: Any) -> tuple[int, int] | None:
    """The least and the largest stored value that stands for no value (PS3.3, section C.7.5.1.1.2)."""
    value, limit = pixel_value_of(data, "PixelPaddingValue"), pixel_value_of(data, "PixelPaddingRangeLimit")
    if value is None:
        return None
    limit = value if limit is None else limit
    return min(value, limit), max(value, limit)


def _keys(groups: list[Any]) -> Iterator[tuple[str, str]]:
    """Keywords and values of attributes that distinguish planes at one position."""
    for key, keywords in KEYWORDS_OF_KEYS.items():
        for keyword in keywords:
            found = next((values for group in groups if (values := values_of(group, keyword))), None)
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

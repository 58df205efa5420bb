"""Decode planes of DICOM files to the values of their modality, such as Hounsfield units."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import as_pixel_options, pixel_array
from pydicom.uid import UID

from segpipe.errors import SourceError, one_line
from segpipe.formats.dicom.header import UNREADABLE
from segpipe.formats.dicom.series import Frame, Series

UNDECODABLE = (*UNREADABLE, RuntimeError, MemoryError)
"""What pydicom and its decoders raise for damaged pixels."""

INTEGERS = ("u1", "i2", "u2", "i4")

KEYWORDS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}

PIXEL_TAGS = [
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
]


def value_type(frames: Sequence[Frame]) -> np.dtype[Any]:
    """The smallest type of the values of all frames: integers if all slopes and intercepts are, else float32."""
    if any(frame.slope != int(frame.slope) or frame.intercept != int(frame.intercept) for frame in frames):
        return np.dtype("f4")
    ends = [end for frame in frames for end in _range(frame)]
    fitting = (t for t in INTEGERS if np.iinfo(t).min <= min(ends) and max(ends) <= np.iinfo(t).max)
    return np.dtype(next(fitting, "f8"))


def _range(frame: Frame) -> tuple[float, float]:
    """What the stored bits of a frame may mean at least and at most."""
    low, high = (-(2 ** (frame.bits - 1)), 2 ** (frame.bits - 1) - 1) if frame.signed else (0, 2**frame.bits - 1)
    ends = low * frame.slope + frame.intercept, high * frame.slope + frame.intercept
    return min(ends), max(ends)


def check_decodable(path: str, series: Series) -> None:
    """Check that the pixels are one grey value each, in a syntax that an installed library decodes.

    Raises:
        SourceError: they are not.
    """
    kinds = [kind for kind in series.photometric if kind not in ("MONOCHROME1", "MONOCHROME2")]
    if kinds or series.samples > 1:
        raise SourceError(
            f"{path}: a pixel must be one grey value, and PhotometricInterpretation is {(kinds or series.photometric)[0]}, "
            "so that colours stand for values: take the series that the scanner wrote, not a picture of it"
        )
    if len(series.photometric) > 1:
        raise SourceError(f"{path}: slices must have one PhotometricInterpretation, got {' and '.join(series.photometric)}")
    for syntax in series.syntaxes:
        _check_syntax(path, syntax)


def _check_syntax(path: str, syntax: str) -> None:
    try:
        there = get_decoder(UID(syntax)).is_available
    except NotImplementedError:
        there = False
    if not there:
        raise SourceError(
            f"{path}: no installed library decodes its transfer syntax, {UID(syntax).name or 'none'} ({syntax}): "
            "convert the series to Explicit VR Little Endian first"
        )


class Decoder:
    """Decodes frames; a multi-frame file stays open, with its header, between its frames."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._path = ""
        self._stream: BinaryIO | None = None
        self._options: dict[str, Any] = {}

    def plane(self, frame: Frame, *, alone: bool) -> NDArray[Any]:
        """The values of a frame, ``(rows, columns)``.

        Args:
            frame: which.
            alone: whether its file has no other frame.

        Raises:
            SourceError: the file cannot be read or decoded, or its values do not fit.
        """
        try:
            stored = np.asarray(pixel_array(pydicom.dcmread(frame.path), raw=True) if alone else self._one_of(frame))
        except UNDECODABLE as error:
            raise SourceError(
                f"{frame.path}: its pixels cannot be decoded: {type(error).__name__}: {one_line(error)[:300]}: copy it again"
            ) from error
        stored = stored.reshape(stored.shape[-2:]) if stored.size == frame.shape[0] * frame.shape[1] else stored
        if stored.shape != frame.shape:
            raise SourceError(f"{frame.path}: its pixels must be {frame.shape}, got {stored.shape}: copy it again")
        return self._values(frame, stored)

    def _one_of(self, frame: Frame) -> Any:
        if frame.path != self._path or self._stream is None:
            self._open(frame.path)
        assert self._stream is not None
        decoder = get_decoder(self._options["transfer_syntax_uid"])
        return decoder.as_array(self._stream, index=frame.number, raw=True, **self._options)[0]

    def _open(self, path: str) -> None:
        """Read the header, and stay at the first byte of the pixels (PS3.5, section 7.1)."""
        self.close()
        self._stream = Path(path).open("rb")  # noqa: SIM115 - until ``close``
        data = pydicom.dcmread(self._stream, stop_before_pixels=True, specific_tags=list(PIXEL_TAGS))
        syntax = UID(data.file_meta.TransferSyntaxUID)
        order = "little" if syntax.is_little_endian else "big"
        head = self._stream.read(8 if syntax.is_implicit_VR else 12)
        tag = int.from_bytes(head[:2], order) << 16 | int.from_bytes(head[2:4], order)  # type: ignore[arg-type]
        self._options = as_pixel_options(data) | {"transfer_syntax_uid": syntax, "pixel_keyword": KEYWORDS[tag]}
        if not syntax.is_implicit_VR:
            self._options["pixel_vr"] = head[4:6].decode()
        self._path = path

    def _values(self, frame: Frame, stored: NDArray[Any]) -> NDArray[Any]:
        """Stored values times slope plus intercept (PS3.3, section C.7.6.16.2.9)."""
        whole = self._dtype.kind != "f"
        values: NDArray[Any] = stored
        if (frame.slope, frame.intercept) != (1, 0):
            slope, intercept = (int(frame.slope), int(frame.intercept)) if whole else (frame.slope, frame.intercept)
            values = stored.astype("i8" if whole else "f8") * slope + intercept
        if whole and stored.size:
            limits = np.iinfo(self._dtype)
            low, high = values.min(), values.max()
            if low < limits.min or high > limits.max:
                raise SourceError(
                    f"{frame.path}: its values, {low:g} to {high:g}, must fit BitsStored, {frame.bits}: write the file again"
                )
        return values.astype(self._dtype, copy=False)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream, self._path = None, ""

"""Decode planes of DICOM files to the values of their modality, such as Hounsfield units."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from segpipe.errors import SourceError
from segpipe.formats.dicom.decoder_process import decode_in_process
from segpipe.formats.dicom.series import Frame, Series
from segpipe.formats.dicom.stored import UNDECODABLE, Reader, error_text

INTEGERS = ("u1", "i2", "u2", "i4")


def value_type(frames: Sequence[Frame]) -> np.dtype[Any]:
    """The smallest type of the values of all frames: integers if all slopes and intercepts are, else float32."""
    if any(frame.slope != int(frame.slope) or frame.intercept != int(frame.intercept) for frame in frames):
        return np.dtype("f4")
    ends = [end for frame in frames for end in _range(frame)]
    fitting = (t for t in INTEGERS if np.iinfo(t).min <= min(ends) and max(ends) <= np.iinfo(t).max)
    return np.dtype(next(fitting, "f8"))


def _range(frame: Frame) -> tuple[float, float]:
    """The smallest and the largest value that the stored bits of a frame can have."""
    ends = [end * frame.slope + frame.intercept for end in stored_range(frame)]
    return min(ends), max(ends)


def stored_range(frame: Frame) -> tuple[int, int]:
    """The smallest and the largest number that the stored bits of a frame can have."""
    return (-(2 ** (frame.bits - 1)), 2 ** (frame.bits - 1) - 1) if frame.signed else (0, 2**frame.bits - 1)


def scaled(frame: Frame, stored: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Stored values times slope plus intercept, before they are made ``dtype`` (PS3.3, section C.7.6.16.2.9)."""
    if (frame.slope, frame.intercept) == (1, 0):
        return stored
    whole = dtype.kind != "f"
    slope, intercept = (int(frame.slope), int(frame.intercept)) if whole else (frame.slope, frame.intercept)
    return stored.astype("i8" if whole else "f8") * slope + intercept


def padding_of(frames: Sequence[Frame], dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """The least and the largest value of each plane that stand for no value, ``(2, frames)``; None if no plane has any.

    A plane without them has a range that holds no value.
    """
    if all(frame.padding is None for frame in frames):
        return None
    ranges = [_padding(frame, dtype) for frame in frames]
    return np.array(ranges).T


def check_padding(frames: Sequence[Frame]) -> None:
    """Check that padding still differs from other pixels without the bits above BitsStored, which are ignored.

    Raises:
        SourceError: they are not.
    """
    for frame in frames:
        low, high = stored_range(frame)
        if frame.padding is not None and not low <= frame.padding[0] <= frame.padding[1] <= high:
            kept = (frame.padding[0] - low) % 2**frame.bits + low
            value = kept * frame.slope + frame.intercept
            raise SourceError(
                f"{frame.path}: PixelPaddingValue must fit BitsStored, {low} to {high}, got {frame.padding[0]}, which reads "
                f"as {kept}: --nodata {value:g} takes such pixels as invalid, --nodata none as values"
            )


def _padding(frame: Frame, dtype: np.dtype[Any]) -> tuple[float, float]:
    if frame.padding is None:
        return np.inf, -np.inf
    ends = scaled(frame, np.array(frame.padding), dtype)
    ends = ends.astype(dtype) if dtype.kind == "f" else ends
    return float(ends.min()), float(ends.max())


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
    """Decodes frames to values."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._reader = Reader(decode_in_process)

    def plane(self, frame: Frame, *, alone: bool) -> NDArray[Any]:
        """The values of a frame, ``(rows, columns)``.

        Args:
            frame: which.
            alone: whether its file has no other frame.

        Raises:
            SourceError: the file cannot be read or decoded, or its values do not fit.
        """
        try:
            stored = self._reader.read(frame.path, frame.number, alone=alone)
        except UNDECODABLE as error:
            raise SourceError(
                f"{frame.path}: its pixels cannot be decoded: {type(error).__name__}: {error_text(error)}: copy it again"
            ) from error
        stored = stored.reshape(stored.shape[-2:]) if stored.size == frame.shape[0] * frame.shape[1] else stored
        if stored.shape != frame.shape:
            raise SourceError(f"{frame.path}: its pixels must be {frame.shape}, got {stored.shape}: copy it again")
        return self._values(frame, stored)

    def _values(self, frame: Frame, stored: NDArray[Any]) -> NDArray[Any]:
        low, high = (int(stored.min()), int(stored.max())) if stored.size else (0, 0)
        least, most = stored_range(frame)
        if low < least or high > most:
            raise SourceError(
                f"{frame.path}: its pixels, {low} to {high} as stored, must fit BitsStored, {frame.bits}: set BitsStored "
                "and HighBit to the depth of the pixels, or write the pixels again without the bits above"
            )
        return scaled(frame, stored, self._dtype).astype(self._dtype, copy=False)

    def close(self) -> None:
        """Close the file that was read last."""
        self._reader.close()

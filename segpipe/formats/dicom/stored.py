"""Read the stored pixels of single frames, each with a library that raises for damaged data, or in a process of its own."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import as_pixel_options, pixel_array
from pydicom.uid import (
    JPEG2000,
    UID,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from segpipe.errors import one_line
from segpipe.messages.redaction import without_quotes

UNREADABLE = (
    InvalidDicomError,
    BytesLengthException,
    NotImplementedError,
    RecursionError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
    EOFError,
    OSError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
)
"""Errors of pydicom for damaged files."""

UNDECODABLE = (*UNREADABLE, RuntimeError)
"""Errors of pydicom and its decoders for damaged pixels."""

SAFE_PLUGINS = {
    JPEGBaseline8Bit: ("pillow", 8),
    JPEGExtended12Bit: ("pillow", 8),
    JPEG2000Lossless: ("pillow", 16),
    JPEG2000: ("pillow", 16),
    JPEGLSLossless: ("pyjpegls", 16),
    JPEGLSNearLossless: ("pyjpegls", 16),
    RLELossless: ("pydicom", 64),
}
"""Libraries that raise for damaged data, where GDCM may abort the process; and their largest BitsStored."""

PIXEL_KEYWORDS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}

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

MOST_QUOTED = 300
"""Characters of an error of pydicom in messages."""


def error_text(error: Exception) -> str:
    """The message of pydicom without its quotations, which may be values of tags."""
    return without_quotes(one_line(error))[:MOST_QUOTED]


DecodeInProcess = Callable[[str, int, bool], NDArray[Any]]
"""Decodes in another process. Arguments: path, number of the frame, whether the file has no other frame."""


def plugin_of(syntax: UID, bits: int) -> str | None:
    """The plugin of pydicom for a transfer syntax; empty for pixels that are not compressed, None if none is safe."""
    if not syntax.is_compressed:
        return ""
    plugin, most = SAFE_PLUGINS.get(syntax, ("", 0))
    return plugin if plugin and bits <= most and plugin in get_decoder(syntax).available_plugins else None


class Reader:
    """Reads stored pixels; a multi-frame file stays open, with its header, between its frames."""

    def __init__(self, decode_in_process: DecodeInProcess | None = None) -> None:
        """Args:
        decode_in_process: decodes what no library decodes safely; None: any library may decode it here.
        """
        self._decode_in_process = decode_in_process
        self._path = ""
        self._stream: BinaryIO | None = None
        self._options: dict[str, Any] = {}

    def read(self, path: str, number: int, *, alone: bool) -> NDArray[Any]:
        """The stored pixels of a frame.

        Raises one of ``UNDECODABLE``.
        """
        return self._alone(path) if alone else self._one_of(path, number)

    def _alone(self, path: str) -> NDArray[Any]:
        data = pydicom.dcmread(path)
        plugin = plugin_of(UID(data.file_meta.TransferSyntaxUID), int(data.BitsStored))
        if plugin is None and self._decode_in_process is not None:
            return self._decode_in_process(path, 0, True)
        return np.asarray(pixel_array(data, raw=True, decoding_plugin=plugin or ""))

    def _one_of(self, path: str, number: int) -> NDArray[Any]:
        if path != self._path or self._stream is None:
            self._open(path)
        assert self._stream is not None
        syntax = self._options["transfer_syntax_uid"]
        plugin = plugin_of(syntax, int(self._options["bits_stored"]))
        if plugin is None and self._decode_in_process is not None:
            return self._decode_in_process(path, number, False)
        decoder = get_decoder(syntax)
        return decoder.as_array(self._stream, index=number, raw=True, decoding_plugin=plugin or "", **self._options)[0]

    def _open(self, path: str) -> None:
        """Read the header, and stay at the first byte of the pixels (PS3.5, section 7.1)."""
        self.close()
        self._stream = Path(path).open("rb")  # noqa: SIM115 - until ``close``
        data = pydicom.dcmread(self._stream, stop_before_pixels=True, specific_tags=list(PIXEL_TAGS))
        syntax = UID(data.file_meta.TransferSyntaxUID)
        order = "little" if syntax.is_little_endian else "big"
        head = self._stream.read(8 if syntax.is_implicit_VR else 12)
        tag = int.from_bytes(head[:2], order) << 16 | int.from_bytes(head[2:4], order)  # type: ignore[arg-type]
        self._options = as_pixel_options(data) | {"transfer_syntax_uid": syntax, "pixel_keyword": PIXEL_KEYWORDS[tag]}
        if not syntax.is_implicit_VR:
            self._options["pixel_vr"] = head[4:6].decode()
        self._path = path

    def close(self) -> None:
        """Close the file that was read last; the reader may open others."""
        if self._stream is not None:
            self._stream.close()
        self._stream, self._path = None, ""

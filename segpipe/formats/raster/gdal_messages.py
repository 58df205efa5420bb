"""Messages of GDAL and its codecs: every warning and error, including those that no GDAL call returns.

GDAL reports much damage by a message alone and goes on with the pixels that it has. rasterio logs such messages in the
thread that made the call. GDAL's own threads, which decode JPEG 2000 and blocks in parallel, bypass rasterio and write to
GDAL's log, which is a file in memory here.
"""

import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partialmethod
from importlib import import_module
from typing import Any

from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

DESCRIPTIVE = (
    "ImageDescription|DocumentName|PageName|PageNumber|Make|Model|Software|DateTime|Artist|HostComputer|Copyright|"
    "TargetPrinter|XResolution|YResolution|ResolutionUnit|XPosition|YPosition|HalftoneHints|RichTIFFIPTC|Photoshop|"
    "XMLPacket|ICC Profile"
)
"""libtiff's names of tags that describe a picture or its printing."""

HARMLESS = (
    # libtiff sorts the tags itself; every reader reads such a file alike.
    r"tags are not sorted in ascending order",
    # TIFF 6.0: a file without the tag has one strip.
    r"RowsPerStrip not defined \.\.\. assuming all one strip",
    # TIFF 6.0 separates copyrights by such a byte, and others pad texts with it. GDAL's own tags, also texts, define
    # georeferencing and validity.
    r'ASCII value for tag "(?!G|TIFF_)[^"]*" contains null byte in value',
    # Tags for printing or cataloguing.
    rf'([Ww]rong data type \d+|[Ii]ncorrect (count|value)|Incompatible type) for( field)? "({DESCRIPTIVE})"',
    # TIFF 6.0 requires a tag that defines samples beyond colour, and many writers of bands omit it: GDAL takes them for
    # bands, not alpha. Samples are stored alike.
    r"Sum of Photometric type-related color channels and ExtraSamples doesn't match SamplesPerPixel",
    # A COG whose tags were edited: GDAL then reads it like any TIFF.
    r"This file used to have optimizations in its layout",
    # Colour profiles are not applied: models take pixels as stored.
    r"libpng: iCCP: |libpng: (known incorrect )?sRGB profile|libpng: cHRM: |libpng: gAMA: ",
    # Texts, times, print sizes and colours for palette displays. A wrong checksum is damage.
    r"libpng: (tEXt|zTXt|iTXt|pHYs|tIME|oFFs|sPLT|hIST|bKGD|sBIT): (?!.*CRC)|libpng: Ignoring invalid time value|"
    r"libpng: sPLT chunk has bad length",
    # rasterio asks for 64-bit nodata as a float; validity.py uses GDAL's masks instead.
    r"GetNoDataValue\(\) returns an approximate value of the true nodata value",
    # EXIF describes the camera, except for the orientation, which is read without GDAL, and whose damage is noted.
    r"(E[Xx][Ii][Ff]|IFD1) [Dd]irectory|Could not read all directories|byte from image header|"
    r"EXIF metadata truncated|EXIF data type|EXIF header size|Too many bytes in tag: \d+, ignoring tag|"
    r"Not a TIFF file, bad (magic|version) number \d+ \(0x|libpng: eXIf: ",
    # A request that is retried; a final failure has another message.
    r"Retrying again in",
    # A missing sidecar. A missing raster is an error of the call.
    r"HTTP (error code|response code).*\b(403|404)\b|response_code=(403|404)\b",
)
"""Messages that do not concern pixels, mask or georeferencing, each with the reason. Any other message while reading ends
the case. No other came up in the rasters of public test suites, nor in files of tifffile, Pillow, imagecodecs and GDAL."""

_HARMLESS = re.compile("|".join(HARMLESS))

_WARNED = re.compile(r"^CPLE_\w+(?::| in )(.*)$", re.DOTALL)
"""Form of warnings in rasterio's log."""

_LOGGED = re.compile(r"^(?:ERROR|Warning) \d+: (.*)", re.MULTILINE)
"""Form of messages in GDAL's own log."""

_OPENS_LOG = ("CPL_LOG", "CPL_MAX_ERROR_REPORTS")


_ERROR = "GDAL signalled an error"
"""Start of the form in which rasterio logs errors, as information; GDAL's message is the last argument."""

LOGGING = ("rasterio._err", "rasterio._env")
"""Modules of rasterio that log what GDAL says; each has its logger in its variable ``log``."""


class _CapturingLogger:
    """Stands in for the logger of a module of rasterio: captures GDAL's messages in a thread that listens, then logs them.

    Whether the logger passes something on does not matter: programs set its level, add filters, and disable it, as
    ``logging.config.dictConfig`` does with all loggers that it does not name.
    """

    captured = threading.local()

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)

    def log(self, level: int, form: str, *values: Any) -> None:
        messages = getattr(self.captured, "messages", None)
        if messages is not None and (text := _words(level, form, values)) is not None:
            messages.append(text)
        self._logger.log(level, form, *values)

    info = partialmethod(log, logging.INFO)
    warning = partialmethod(log, logging.WARNING)
    error = partialmethod(log, logging.ERROR)


def _words(level: int, form: str, values: tuple[Any, ...]) -> str | None:
    """GDAL's message; None if it is neither a warning nor an error."""
    if form.startswith(_ERROR) and values:
        return str(values[-1]).strip()
    text = form % values if values else form
    if level < logging.WARNING and not text.startswith((_ERROR, "Unknown error number")):
        return None
    warned = _WARNED.match(text)
    return (text if warned is None else warned[1]).strip()


def _capture_bytes(unraisable: Any) -> bool:
    """Collect a message that rasterio could not log because its bytes are not UTF-8; return whether it is one."""
    error, messages = unraisable.exc_value, getattr(_CapturingLogger.captured, "messages", None)
    if not isinstance(error, UnicodeDecodeError) or not str(unraisable.object).startswith("rasterio."):
        return False
    if messages is not None:
        messages.append(as_text(error))
    return True


def as_text(error: UnicodeDecodeError) -> str:
    """The undecodable bytes as text, with replacement characters."""
    return bytes(error.object).decode(errors="replace")


class _Log:
    """GDAL's log, a file in memory, for the messages of threads that bypass rasterio."""

    def __init__(self) -> None:
        self._file = os.memfd_create("gdal-log", os.MFD_CLOEXEC)
        _open_log(f"/proc/{os.getpid()}/fd/{self._file}")
        self.is_used = self.size > 0
        """Whether GDAL writes to it; False if GDAL had opened another log before."""

    @property
    def size(self) -> int:
        return os.fstat(self._file).st_size

    def since(self, start: int) -> list[str]:
        if (more := self.size - start) <= 0:
            return []
        return _LOGGED.findall(os.pread(self._file, more, start).decode(errors="replace"))


def _open_log(path: str) -> None:
    """Make GDAL open its log, which it does once per process, at the first error outside rasterio's environment."""
    # set briefly in the process's environment: options set by rasterio may belong to one thread
    before = {key: os.environ.get(key) for key in _OPENS_LOG}
    os.environ.update(zip(_OPENS_LOG, (path, "0"), strict=True))  # 0: no limit of 1,000 messages
    thread = threading.Thread(target=_err)
    thread.start()
    thread.join()
    for key, value in before.items():
        os.environ.pop(key) if value is None else os.environ.update({key: value})


def _err() -> None:
    try:
        DatasetReader("/vsimem/segpipe/no-such-raster", sharing=False)
    except RasterioError:
        return


_lock = threading.Lock()
_log: _Log | None = None


def listen() -> bool:
    """Collect GDAL's messages from now on in every thread; return whether GDAL's own threads are included."""
    return _listening().is_used


def _listening() -> _Log:
    global _log  # noqa: PLW0603 - GDAL has one per process
    with _lock:
        for name in LOGGING:
            module = import_module(name)
            if not isinstance(module.log, _CapturingLogger):
                module.log = _CapturingLogger(module.log)  # type: ignore[attr-defined]
        _watch_unraisable()
        if _log is None:
            _log = _Log()
        return _log


class _Hook:
    """Handles exceptions that a callback of GDAL could not raise; passes others on to the previous hook."""

    def __init__(self, before: Callable[[Any], object]) -> None:
        self._before = before

    def __call__(self, unraisable: Any) -> None:
        if not _capture_bytes(unraisable):
            self._before(unraisable)


def _watch_unraisable() -> None:
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)


class Messages:
    """GDAL's messages since this object was made: those of its thread, and of GDAL's own threads for any thread."""

    def __init__(self) -> None:
        self._log = _listening()
        self._start = self._log.size
        self.own: list[str] = []

    def logged(self) -> list[str]:
        """Messages of GDAL's own threads."""
        return self._log.since(self._start)

    def all(self) -> list[str]:
        """Messages of this block, and those of GDAL's own threads meanwhile."""
        return [*self.own, *self.logged()]


def harmful(said: Iterable[str]) -> list[str]:
    """Messages that are not known to be harmless."""
    return [message for message in said if not _HARMLESS.search(message)]


@contextmanager
def messages() -> Iterator[Messages]:
    """Collect GDAL's messages in this thread and in GDAL's own threads; an enclosing listener gets them, too."""
    before, found = getattr(_CapturingLogger.captured, "messages", None), Messages()
    _CapturingLogger.captured.messages = found.own
    try:
        yield found
    finally:
        _CapturingLogger.captured.messages = before
        if before is not None:
            before.extend(found.own)

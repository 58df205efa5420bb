"""What GDAL and its codecs say while they work: every warning and error, those included that no call of GDAL returns.

GDAL reports much damage by a message alone and goes on with the pixels that it has. rasterio logs such messages in the
thread that made the call. GDAL's own threads, which decode JPEG 2000 and blocks side by side, have no part in that: they
write to GDAL's log, which is a file in memory here.
"""

import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

DESCRIPTIVE = (
    "ImageDescription|DocumentName|PageName|PageNumber|Make|Model|Software|DateTime|Artist|HostComputer|Copyright|"
    "TargetPrinter|XResolution|YResolution|ResolutionUnit|XPosition|YPosition|HalftoneHints|RichTIFFIPTC|Photoshop|"
    "XMLPacket|ICC Profile"
)
"""libtiff's names of tags that describe a picture or say how it is printed."""

HARMLESS = (
    # libtiff sorts the tags of a directory itself; every reader takes such a file alike.
    r"tags are not sorted in ascending order",
    # TIFF 6.0: a file without the tag has one strip.
    r"RowsPerStrip not defined \.\.\. assuming all one strip",
    # TIFF 6.0 parts a copyright by such a byte, and others fill a text with them. GDAL's own tags, which are texts as well,
    # say where pixels lie and which are valid.
    r'ASCII value for tag "(?!G|TIFF_)[^"]*" contains null byte in value',
    # Of tags for whoever prints or files a picture.
    rf'([Ww]rong data type \d+|[Ii]ncorrect (count|value)|Incompatible type) for( field)? "({DESCRIPTIVE})"',
    # TIFF 6.0 asks for a tag that says what samples beyond colour are, and many writers of bands leave it out: GDAL takes
    # them for bands, and for no alpha. Samples are stored alike.
    r"Sum of Photometric type-related color channels and ExtraSamples doesn't match SamplesPerPixel",
    # A COG whose tags were edited: GDAL reads it like any TIFF from then on.
    r"This file used to have optimizations in its layout",
    # Colour profiles are not applied: classes come of pixels as they are stored.
    r"libpng: iCCP: |libpng: (known incorrect )?sRGB profile|libpng: cHRM: |libpng: gAMA: ",
    # Texts, times, how large a picture prints, and colours for screens that have few. A wrong checksum is damage.
    r"libpng: (tEXt|zTXt|iTXt|pHYs|tIME|oFFs|sPLT|hIST|bKGD|sBIT): (?!.*CRC)|libpng: Ignoring invalid time value|"
    r"libpng: sPLT chunk has bad length",
    # rasterio asks for nodata of 64 bits as a float; validity.py takes GDAL's masks for it.
    r"GetNoDataValue\(\) returns an approximate value of the true nodata value",
    # EXIF describes the camera, but for the orientation, which is read apart from GDAL, and whose damage is noted.
    r"(E[Xx][Ii][Ff]|IFD1) [Dd]irectory|Could not read all directories|byte from image header|"
    r"EXIF metadata truncated|EXIF data type|EXIF header size|Too many bytes in tag: \d+, ignoring tag|"
    r"Not a TIFF file, bad (magic|version) number \d+ \(0x|libpng: eXIf: ",
    # A request that is made again; if it fails for good, GDAL says so in another message.
    r"Retrying again in",
    # A sidecar that is not there. A raster that is not there is an error of the call.
    r"HTTP (error code|response code).*\b(403|404)\b|response_code=(403|404)\b",
)
"""Messages that say nothing of pixels, mask or place, each with the reason. All others that GDAL says while it reads end
the case. No other came up in the rasters of public test suites, nor in files of tifffile, Pillow, imagecodecs and GDAL."""

_HARMLESS = re.compile("|".join(HARMLESS))

_WARNED = re.compile(r"^CPLE_\w+(?::| in )(.*)$", re.DOTALL)
"""How rasterio words warnings in its log."""

_LOGGED = re.compile(r"^(?:ERROR|Warning) \d+: (.*)", re.MULTILINE)
"""How GDAL words them in its own."""

_OPENS_LOG = ("CPL_LOG", "CPL_MAX_ERROR_REPORTS")


class _Listener(logging.Filter):
    """Keeps what rasterio logs of GDAL in a thread that listens; lets pass what the root logger would."""

    heard = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        messages = getattr(self.heard, "messages", None)
        if messages is not None and (text := _words(record)) is not None:
            messages.append(text)
        return record.levelno >= logging.getLogger().getEffectiveLevel()


def _words(record: logging.LogRecord) -> str | None:
    """GDAL's own words; None if they are no warning and no error. rasterio logs errors as information."""
    if record.msg.startswith("GDAL signalled") and isinstance(record.args, tuple):
        return str(record.args[-1]).strip()
    text = record.getMessage()
    if record.levelno < logging.WARNING and not text.startswith("Unknown error number"):
        return None
    warned = _WARNED.match(text)
    return (text if warned is None else warned[1]).strip()


def _hear_bytes(unraisable: Any) -> bool:
    """Keep a message that rasterio could not log, since its bytes are no UTF-8; whether it is one."""
    error, messages = unraisable.exc_value, getattr(_Listener.heard, "messages", None)
    if not isinstance(error, UnicodeDecodeError) or not str(unraisable.object).startswith("rasterio."):
        return False
    if messages is not None:
        messages.append(as_text(error))
    return True


def as_text(error: UnicodeDecodeError) -> str:
    """The bytes that were to be decoded, as far as they are text."""
    return bytes(error.object).decode(errors="replace")


class _Log:
    """GDAL's log, a file in memory, which takes the messages of threads that rasterio has no part in."""

    def __init__(self) -> None:
        self._file = os.memfd_create("gdal-log", os.MFD_CLOEXEC)
        _open_log(f"/proc/{os.getpid()}/fd/{self._file}")
        self.heard = self.size > 0
        """Whether GDAL writes to it: not if it had to open a log before."""

    @property
    def size(self) -> int:
        return os.fstat(self._file).st_size

    def since(self, start: int) -> list[str]:
        if (more := self.size - start) <= 0:
            return []
        return _LOGGED.findall(os.pread(self._file, more, start).decode(errors="replace"))


def _open_log(path: str) -> None:
    """Make GDAL open its log, which it does once in a process, at the first error outside rasterio's environment."""
    # by the process' environment, for a moment: options that rasterio sets may belong to one thread
    before = {key: os.environ.get(key) for key in _OPENS_LOG}
    os.environ.update(zip(_OPENS_LOG, (path, "0"), strict=True))  # 0: not silent after 1,000 messages
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


_LISTENER = _Listener()
_lock = threading.Lock()
_log: _Log | None = None


def listen() -> bool:
    """Hear GDAL from now on, in every thread of this process; whether GDAL's own threads are heard, too."""
    return _listening().heard


def _listening() -> _Log:
    global _log  # noqa: PLW0603 - as GDAL has it: one for the process
    with _lock:
        for name in ("rasterio._err", "rasterio._env"):
            logger = logging.getLogger(name)
            logger.addFilter(_LISTENER)  # once, however often it is added
            if logger.getEffectiveLevel() > logging.INFO:
                logger.setLevel(logging.INFO)
        _watch_unraisable()
        if _log is None:
            _log = _Log()
        return _log


class _Hook:
    """Takes what Python hands on since a callback of GDAL could not raise it; all else goes to the hook before."""

    def __init__(self, before: Callable[[Any], object]) -> None:
        self._before = before

    def __call__(self, unraisable: Any) -> None:
        if not _hear_bytes(unraisable):
            self._before(unraisable)


def _watch_unraisable() -> None:
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)


class Messages:
    """What GDAL has said since this began: in the thread that made it, and in GDAL's own threads for any thread."""

    def __init__(self) -> None:
        self._log = _listening()
        self._start = self._log.size
        self.own: list[str] = []

    def logged(self) -> list[str]:
        """Those of GDAL's own threads."""
        return self._log.since(self._start)

    def all(self) -> list[str]:
        return [*self.own, *self.logged()]


def harmful(said: Iterable[str]) -> list[str]:
    """Messages that no rule says are harmless."""
    return [message for message in said if not _HARMLESS.search(message)]


@contextmanager
def messages() -> Iterator[Messages]:
    """Hear what GDAL says meanwhile in this thread, and in its own threads; whoever listens already hears it, too."""
    before, heard = getattr(_Listener.heard, "messages", None), Messages()
    _Listener.heard.messages = heard.own
    try:
        yield heard
    finally:
        _Listener.heard.messages = before
        if before is not None:
            before.extend(heard.own)

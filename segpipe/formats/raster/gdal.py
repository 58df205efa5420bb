"""How GDAL is used everywhere: its options, its drivers, its errors."""

import errno
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import rasterio
from rasterio._env import get_gdal_config, get_proj_data_search_paths, set_gdal_config, set_proj_data_search_path
from rasterio._err import CPLE_BaseError
from rasterio._path import _parse_path, _vsi_path
from rasterio.env import getenv, hasenv, setenv
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.session import DummySession

from segpipe.errors import SegpipeError, SourceError, one_line
from segpipe.formats.cache import Cache
from segpipe.formats.raster.confine import allow_all_drivers, allow_drivers, confined
from segpipe.formats.raster.gdal_messages import Messages, as_text, harmful, listen, messages
from segpipe.formats.raster.gdal_readers import WhoseError, reading
from segpipe.formats.raster.references import check_references, servers
from segpipe.process.environment import settle
from segpipe.storage.bucket import gdal_endpoint, in_bucket, is_lonely, is_remote
from segpipe.storage.files import is_utf8
from segpipe.storage.retry import is_passing

DRIVERS = ("GTiff", "VRT", "JP2OpenJPEG", "PNG", "JPEG", "WEBP", "BMP", "HFA")
"""Formats that are opened. An explicit list: a file must not decide by its content which of GDAL's 150 drivers reads it.
The sources of a VRT are GDAL's to open, by the drivers of ``confine.py``; the record names them."""

CACHE_MB, MOST_CACHE_MB = 128, 1024
"""GDAL's block cache, which is one for the process: at least what most cases need, at most what any gets."""

OPTIONS = {
    # GDAL's shortcut for a PNG that is read whole does not tell of one that ends early, alone or within a VRT.
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",
    # A truncated JPEG decodes as grey with a warning only: such a mask would hide the damage.
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "YES",
    # A file that says how its pixels are computed does not say it in Python.
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    # From GDAL 3.12 on; references.py sees to it in any.
    "GDAL_VRT_RAWRASTERBAND_ALLOWED_SOURCE": "SIBLING_OR_CHILD_OF_VRT_PATH",
    # What is opened again is asked for again: it may have changed.
    "CPL_VSIL_CURL_NON_CACHED": "/vsis3/:/vsicurl/:/vsigs/:/vsiaz/:/vsiadls/:/vsioss/:/vsiswift/",
}

NETWORK_OPTIONS = {
    "GDAL_HTTP_MAX_RETRY": "2",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    # a connection that is silent for a minute has failed; without these GDAL waits for ever
    "GDAL_HTTP_LOW_SPEED_TIME": "60",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1",
}
"""For requests, unless the environment says otherwise."""


_cache = 0
"""Bytes, as set in this process."""


def cache_bytes(room: int) -> int:
    """Size of a cache for blocks of so many bytes, within its bounds."""
    return min(max(CACHE_MB * 2**20, room + room // 8), MOST_CACHE_MB * 2**20)


def make_room(room: int = 0) -> None:
    """Let the cache hold blocks of so many bytes from now on; it never shrinks.

    Not an option of the environment: that belongs to a thread, and takes the cache of all with it when it is left.
    """
    global _cache  # noqa: PLW0603 - as GDAL has it: one for the process
    if (size := cache_bytes(room)) > _cache:
        # in bytes: rasterio hands the number to GDAL, past the option's own "small numbers are MB"
        set_gdal_config("GDAL_CACHEMAX", size)
        _cache = size


@contextmanager
def unchanged_gdal() -> Iterator[None]:
    """At the end GDAL's cache, its drivers and the places of PROJ's data are as before, for others who use rasterio."""
    global _cache  # noqa: PLW0603 - as GDAL has it: one for the process
    with rasterio.Env(session=DummySession()):  # rasterio sets the places when it first enters one
        size, places = get_gdal_config("GDAL_CACHEMAX"), get_proj_data_search_paths()
    try:
        yield
    finally:
        allow_all_drivers()
        set_gdal_config("GDAL_CACHEMAX", size)
        _cache = 0
        for place in places[:1]:
            set_proj_data_search_path(place)


TOO_WIDE = (
    "a row of windows touches blocks of {:,.0f} MB, of which {:,} MB stay decoded: blocks are read again and again. "
    "Make it a file in tiles with gdal_translate -of COG"
)


class BlockCache(Cache):
    """GDAL's block cache."""

    def size(self, blocks: int) -> int:
        return cache_bytes(blocks)

    def grow(self, blocks: int) -> None:
        make_room(blocks)

    def notes(self, blocks: int) -> list[str]:
        return [TOO_WIDE.format(blocks / 2**20, MOST_CACHE_MB)] if blocks > MOST_CACHE_MB * 2**20 else []


def gdal_options(decoders: int = 1) -> rasterio.Env:
    """The environment that every thread that touches GDAL enters; credentials are GDAL's own to find.

    Args:
        decoders: threads that share the blocks of one window.
    """
    settle()
    make_room()
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    # rasterio compares nodata values with the limits of float32
    warnings.filterwarnings("ignore", "overflow encountered in cast", RuntimeWarning, module="rasterio")
    network = {key: value for key, value in NETWORK_OPTIONS.items() if key not in os.environ}
    heard = listen()
    threads = {"GDAL_NUM_THREADS": decoders if heard else 1} if decoders > 1 or not heard else {}
    return rasterio.Env(session=DummySession(), **OPTIONS, **threads, **network, **gdal_endpoint())


def decoders() -> int | None:
    """Threads that decode the blocks of a window, as set in this thread; None for a word such as ``ALL_CPUS``."""
    threads = getenv().get("GDAL_NUM_THREADS", 1) if hasenv() else 1
    return int(threads) if str(threads).isdecimal() else None


def decode_with(threads: int) -> None:
    """Let so many threads share the blocks of a window, in this thread's environment from now on."""
    setenv(GDAL_NUM_THREADS=most_decoders(threads))


def most_decoders(threads: int) -> int:
    """``threads``, or 1 if segpipe cannot receive GDAL's log: messages of GDAL's other threads would be lost."""
    return threads if listen() else 1


@contextmanager
def opening(path: str) -> Iterator[None]:
    """How GDAL opens a path: a folder of a bucket is not listed where nothing lies beside an object."""
    if in_bucket(path) and is_lonely(path):
        with rasterio.Env(session=DummySession(), GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
            yield
    else:
        yield


def decoding(threads: int) -> rasterio.Env:
    """In which so many threads share the blocks of what is read at one go."""
    return rasterio.Env(session=DummySession(), GDAL_NUM_THREADS=threads)


def at_one_go() -> rasterio.Env:
    """In which a PNG that is known to have its end is read whole."""
    return rasterio.Env(session=DummySession(), GDAL_PNG_WHOLE_IMAGE_OPTIM="YES")


class _Name(str):
    """A path that is no UTF-8: GDAL takes the bytes of the operating system, rasterio asks for those of UTF-8."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        del encoding, errors
        return os.fsencode(str(self))


def any_name(path: str) -> str:
    """A path for rasterio to read, whatever bytes it is of."""
    return path if is_utf8(path) else _Name(path)


def open_raster(path: str, *, remote: bool = False) -> DatasetReader:
    """A dataset of one of the formats that are opened; one handle, for one thread.

    Args:
        path: what GDAL opens.
        remote: whether a file of this machine may lead to servers, and a VRT on a server to anything.

    Raises:
        SourceError: it leads where it may not.
        RasterioError: GDAL does not open it.
    """
    allow_drivers(remote=remote)
    name = gdal_name(path)
    with opening(path), confined(stays_here(path, remote=remote)):
        if may_be_vrt := not servers(name) or ".vrt" in name.lower() or name.startswith("vrt://"):
            check_references(name, remote=remote)
        # rasterio.open takes one driver only; what it returns takes several. To see whether the bytes of a file on a server
        # are a VRT would take two requests more for each, so its name says
        drivers = [name for name in DRIVERS if may_be_vrt or name != "VRT"]
        return DatasetReader(any_name(path), driver=drivers, sharing=False)


def stays_here(path: str, *, remote: bool) -> bool:
    """Whether nothing but this machine may be asked for a case."""
    return not (remote or servers(gdal_name(path)))


def gdal_name(path: str) -> str:
    """What rasterio gives to GDAL for a URL of this machine or of an archive, as ``file:///a.tif`` and ``zip:///a.zip!/b.tif``."""
    schemes = {*path.partition("://")[0].lower().split("+")} if "://" in path else set()
    return str(_vsi_path(_parse_path(path))) if schemes & {"file", "zip", "tar", "gzip"} else path


READ_BYTES = 2**23

FAILED_REQUEST = re.compile(r"(response_code=|HTTP response code(:| on .*:) *)(0|429|5\d\d)\b|CURL error")

DAMAGED = "{}: GDAL says: {}: if the file is sound, rewrite it: gdal_translate IN OUT"


@contextmanager
def gdal_errors(kind: type[SegpipeError], what: str) -> Iterator[None]:
    """Turn GDAL's errors into one of ours: what was done, to which path, and GDAL's own words.

    So is a request that failed without an error of GDAL's: GDAL warns of it, and may go on as if zeros had been stored.
    """
    with messages() as heard:
        try:
            yield
        except (RasterioError, CPLE_BaseError, UnicodeDecodeError, OSError, MemoryError) as error:
            cause = _failed_request(heard.own) or error
            raise kind(f"{what}: {_root(cause)}") from cause
        if (fault := _failed_request(heard.own)) is not None:
            raise kind(f"{what}: {_root(fault)}") from fault


def _failed_request(heard: Sequence[str]) -> OSError | None:
    failed = [text for text in heard if FAILED_REQUEST.search(text) and "Retrying" not in text]
    return OSError(errno.EAGAIN, failed[-1]) if failed else None


@contextmanager
def source_errors(what: str, files: Iterable[str]) -> Iterator[None]:
    """``gdal_errors`` where files are read; so is all that GDAL says and goes on, if it is not known to be harmless.

    GDAL has the same words for a disk that fails and a file that is damaged; the operating system has not, so it is asked.

    Raises:
        WhoseError: it cannot be told of which thread's file GDAL spoke; ``pinned`` reads again.
    """
    try:
        with reading() as shared, gdal_errors(SourceError, what), messages() as heard:
            yield
            _refuse_damage(what, heard, shared)
    except SourceError as error:
        if error.__cause__ is not None and not is_passing(error):
            with _as_source_error(what):
                for file in files:
                    _read_through(file)
        raise


def _refuse_damage(what: str, heard: Messages, shared: Callable[[], bool]) -> None:
    _refuse(what, heard.own)
    if said := [text for text in heard.logged() if FAILED_REQUEST.search(text) or harmful([text])]:
        if shared():
            raise WhoseError(f"{what}: GDAL says: {said[0]}")
        _refuse(what, said)


def _refuse(what: str, said: Sequence[str]) -> None:
    if (fault := _failed_request(said)) is not None:
        raise SourceError(f"{what}: {one_line(fault.strerror)}") from fault
    if damage := harmful(said):
        raise SourceError(DAMAGED.format(what, one_line(damage[0]))) from RasterioError(damage[0])


@contextmanager
def _as_source_error(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_passing(error):
            raise SourceError(f"{what}: {error.strerror}") from error


def _read_through(file: str) -> None:
    if not is_remote(file) and Path(file).is_file():
        with Path(file).open("rb", buffering=0) as stream:
            while stream.read(READ_BYTES):
                pass


def _root(error: BaseException) -> str:
    """GDAL's first word: rasterio's own message often only points at the chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, UnicodeDecodeError):  # of GDAL's words, which repeat what is in a file
        return as_text(error)
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return one_line(told) or type(error).__name__

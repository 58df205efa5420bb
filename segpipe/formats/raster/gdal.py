"""GDAL's options, drivers, cache and errors, as used everywhere."""

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

from segpipe.errors import SegpipeError, SourceError, of_system, one_line, with_limit
from segpipe.formats.cache import Cache
from segpipe.formats.raster.confine import allow_all_drivers, allow_drivers, confined
from segpipe.formats.raster.gdal_messages import Messages, as_text, harmful, listen, messages
from segpipe.formats.raster.gdal_readers import ReadableError, UnattributedError, reading
from segpipe.formats.raster.references import check_references, servers
from segpipe.formats.raster.vrt_pool import changes, forget_failed, is_doubtful, note_opened
from segpipe.process.environment import clean_environment
from segpipe.storage.existence import is_file
from segpipe.storage.files import is_utf8
from segpipe.storage.paths import in_bucket, is_remote
from segpipe.storage.retry import is_passing
from segpipe.storage.s3 import gdal_endpoint, is_lonely

DRIVERS = ("GTiff", "VRT", "JP2OpenJPEG", "PNG", "JPEG", "WEBP", "BMP", "HFA")
"""Formats that are opened. The list is explicit: a file's content must not decide which of GDAL's 150 drivers reads it.
GDAL opens the sources of a VRT by itself, with the drivers of ``confine.py``; the record names them."""

CACHE_MB, MOST_CACHE_MB = 128, 1024
"""Bounds in MB of GDAL's block cache, of which a process has one: enough for most cases, and the most that any gets."""

OPTIONS = {
    # GDAL's shortcut for whole PNGs does not report a truncated one, alone or within a VRT.
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",
    # A truncated JPEG decodes as grey with only a warning: such a mask would hide the damage.
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "YES",
    # Pixel functions in Python are not run.
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    # Since GDAL 3.12; references.py enforces it for any version.
    "GDAL_VRT_RAWRASTERBAND_ALLOWED_SOURCE": "SIBLING_OR_CHILD_OF_VRT_PATH",
    # A reopened file is requested again: it may have changed.
    "CPL_VSIL_CURL_NON_CACHED": "/vsis3/:/vsicurl/:/vsigs/:/vsiaz/:/vsiadls/:/vsioss/:/vsiswift/",
}

NETWORK_OPTIONS = {
    "GDAL_HTTP_MAX_RETRY": "2",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    # a connection that is silent for a minute has failed; without these GDAL waits forever
    "GDAL_HTTP_LOW_SPEED_TIME": "60",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1",
}
"""Options for requests, unless the environment sets them."""


_cache = 0
"""Bytes, as set in this process."""


def cache_bytes(blocks: int) -> int:
    """Size of a cache for that many bytes of blocks, within its bounds."""
    return min(max(CACHE_MB * 2**20, blocks + blocks // 8), MOST_CACHE_MB * 2**20)


def grow_cache(blocks: int = 0) -> None:
    """Grow the cache to hold that many bytes of blocks from now on; it never shrinks.

    This is not an option of the environment, which belongs to one thread and resets the cache of all threads on exit.
    """
    global _cache  # noqa: PLW0603 - GDAL has one per process
    if (size := cache_bytes(blocks)) > _cache:
        # in bytes: rasterio bypasses the option's own rule that small numbers are MB
        set_gdal_config("GDAL_CACHEMAX", size)
        _cache = size


@contextmanager
def unchanged_gdal() -> Iterator[None]:
    """Restore GDAL's cache, its drivers and the paths of PROJ's data at the end, for other users of rasterio."""
    global _cache  # noqa: PLW0603 - GDAL has one per process
    with rasterio.Env(session=DummySession()):  # rasterio sets these paths on its first entry
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
        grow_cache(blocks)

    def notes(self, blocks: int) -> list[str]:
        return [TOO_WIDE.format(blocks / 2**20, MOST_CACHE_MB)] if blocks > MOST_CACHE_MB * 2**20 else []


def gdal_options(decoders: int = 1) -> rasterio.Env:
    """The environment that every thread enters before it uses GDAL; GDAL finds credentials by itself.

    Args:
        decoders: threads that decode the blocks of one window together.
    """
    clean_environment()
    grow_cache()
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
    """Set how many threads decode the blocks of a window in this thread's environment from now on."""
    setenv(GDAL_NUM_THREADS=most_decoders(threads))


def most_decoders(threads: int) -> int:
    """``threads``, or 1 if segpipe cannot receive GDAL's log: messages of GDAL's other threads would be lost."""
    return threads if listen() else 1


@contextmanager
def opening(path: str) -> Iterator[None]:
    """Options for opening a path: GDAL does not list a bucket's folder where an object has no sidecars."""
    if in_bucket(path) and is_lonely(path):
        with rasterio.Env(session=DummySession(), GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
            yield
    else:
        yield


def decoding(threads: int) -> rasterio.Env:
    """Environment in which that many threads decode the blocks of one read."""
    return rasterio.Env(session=DummySession(), GDAL_NUM_THREADS=threads)


def at_one_go() -> rasterio.Env:
    """Environment in which a PNG that is known to be complete is read whole."""
    return rasterio.Env(session=DummySession(), GDAL_PNG_WHOLE_IMAGE_OPTIM="YES")


class _Name(str):
    """A path that is not UTF-8: GDAL takes the operating system's bytes, but rasterio encodes to UTF-8."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        del encoding, errors
        return os.fsencode(str(self))


def any_name(path: str) -> str:
    """A path that rasterio can read, whatever its bytes."""
    return path if is_utf8(path) else _Name(path)


def open_raster(path: str, *, remote: bool = False) -> DatasetReader:
    """Open a dataset of one of the accepted formats; one handle, for one thread.

    Args:
        path: path or URL for GDAL.
        remote: whether a local file may refer to servers, and a VRT on a server to anything.

    Raises:
        SourceError: it refers to something that it may not.
        RasterioError: GDAL cannot open it.
    """
    allow_drivers(remote=remote)
    name = gdal_name(path)
    with opening(path), confined(stays_here(path, remote=remote)):
        if may_be_vrt := not servers(name) or ".vrt" in name.lower() or name.startswith("vrt://"):
            check_references(name, remote=remote)
        # rasterio.open takes one driver only, DatasetReader several. Detecting a VRT on a server by its bytes would take two
        # more requests per file, so the name decides
        drivers = [name for name in DRIVERS if may_be_vrt or name != "VRT"]
        dataset = DatasetReader(any_name(path), driver=drivers, sharing=False)
        note_opened(dataset)
        return dataset


def open_vrt(text: str, *, remote: bool = False) -> DatasetReader:
    """Open a VRT that segpipe has written, whose sources were checked by ``open_raster``; one handle, for one thread."""
    allow_drivers(remote=remote)
    with confined(to_this_machine=not remote):
        dataset = DatasetReader(any_name(text), driver=["VRT"], sharing=False)
        note_opened(dataset)
        return dataset


def stays_here(path: str, *, remote: bool) -> bool:
    """Whether a case may be read from this machine only."""
    return not (remote or servers(gdal_name(path)))


def gdal_name(path: str) -> str:
    """Path that rasterio passes to GDAL for local and archive URLs: ``file:///a.tif``, ``zip:///a.zip!/b.tif``."""
    schemes = {*path.partition("://")[0].lower().split("+")} if "://" in path else set()
    return str(_vsi_path(_parse_path(path))) if schemes & {"file", "zip", "tar", "gzip"} else path


READ_BYTES = 2**23

FAILED_REQUEST = re.compile(r"(response_code=|HTTP response code(:| on .*:) *)(0|429|5\d\d)\b|CURL error")

DAMAGED = "{}: GDAL says: {}: if the file is sound, rewrite it: gdal_translate IN OUT"


@contextmanager
def gdal_errors(kind: type[SegpipeError], what: str) -> Iterator[None]:
    """Turn GDAL's errors into ``kind``: what was done, to which path, and GDAL's message.

    A failed request for which GDAL raises no error counts, too: GDAL warns and may go on as if zeros had been stored.
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
    """``gdal_errors`` for reading: also refuse every message of GDAL that is not known to be harmless.

    GDAL reports a failing disk and a damaged file alike; reading the file through the operating system distinguishes them.

    Raises:
        UnattributedError: GDAL's message may concern another thread's file; ``pinned`` reads again.
        ReadableError: the files can be read; ``pinned`` reads again, too.
    """
    try:
        before = changes()
        with reading() as shared, gdal_errors(SourceError, what), messages() as heard:
            yield
            _refuse_damage(what, heard, shared)
            if shared() and is_doubtful(before):
                raise UnattributedError(f"{what}: a source of a VRT failed in another thread")
    except SourceError as error:
        if error.__cause__ is not None:
            forget_failed()
        if error.__cause__ is not None and not is_passing(error):
            readable: list[str] = []  # none of a file that this user may not read
            with _as_source_error(what):
                readable = [file for file in files if _read_through(file)]
            if readable:
                raise ReadableError(str(error)) from error.__cause__
        raise


def _refuse_damage(what: str, heard: Messages, shared: Callable[[], bool]) -> None:
    _refuse(what, heard.own)
    if said := [text for text in heard.logged() if FAILED_REQUEST.search(text) or harmful([text])]:
        if shared():
            raise UnattributedError(f"{what}: GDAL says: {said[0]}")
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
            raise SourceError(f"{what}: {of_system(error)}") from error


def _read_through(file: str) -> bool:
    """Read a local file to its end; False if there is none."""
    if is_remote(file) or not is_file(file):
        return False
    with Path(file).open("rb", buffering=0) as stream:
        while stream.read(READ_BYTES):
            pass
    return True


def _root(error: BaseException) -> str:
    """GDAL's original message: rasterio's own often only points at the chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, UnicodeDecodeError):  # GDAL's message repeats bytes of a file
        return as_text(error)
    message = of_system(error) if isinstance(error, OSError) else str(error)
    return with_limit(one_line(message)) or type(error).__name__

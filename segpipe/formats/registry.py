"""Every format that is read: how its files are found, opened, and what its masks are written by.

A new format is a line in ``FORMATS``. Its modules are imported when the first of its cases is opened.
"""

import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

from segpipe.contract import Contract
from segpipe.errors import SourceError
from segpipe.formats.cache import Cache
from segpipe.formats.identity import Beside, Identity, are_same_files
from segpipe.formats.sink import Sink, Target
from segpipe.formats.source import Source
from segpipe.formats.style import Color
from segpipe.overrides import AS_STORED, Overrides
from segpipe.process.extras import install
from segpipe.storage import Store

Opener = Callable[[str, Contract, Overrides], Source]

CONFIDENCE = ".confidence"
"""What stands between the name of a case and the suffix of its confidence."""


def _unverified(files: Sequence[str]) -> list[str]:
    """``Format.verify`` of a format that has no checksums, or compares them whenever it reads."""
    del files
    return []


def _draft_and_copy(elements: float, full: float, packed: float) -> float:
    """``Format.drafts`` of a mask that is written as it is, then packed."""
    del elements
    return full + packed


@dataclass(frozen=True, slots=True)
class Format:
    """A family of file formats."""

    name: str
    suffixes: tuple[str, ...]
    """In lower case, with their dots, of the files that are cases: ``.nii``, ``.nii.gz``."""
    open: Opener
    sink: Callable[[Target], Sink]
    outputs: tuple[str, ...]
    """Suffixes of all files that its sinks may write."""
    owns: Callable[[Store, str], bool]
    """Whether segpipe has written a file of the output, by the file's content; the name ends with one of ``outputs``."""
    environment: Callable[[int], AbstractContextManager[object]] = lambda _: nullcontext()
    """What a thread enters that uses sources and sinks; the number of threads that may share the decoding of a window."""
    drafts: Callable[[float, float, float], float] = _draft_and_copy
    """Bytes on disk before a mask has its name, by its elements, their bytes, and its likely size packed."""
    cache: Callable[[], Cache] = Cache
    """Of the decoded blocks that ``Source.memory`` counts."""
    is_same_input: Callable[[str, Sequence[Identity], str, Beside, bool], bool] = are_same_files
    """Whether what would be read of a case now is what a record says was read then: the place and the files that it names,
    the path of the case, what has been seen of folders, and whether a case of this machine may lead to servers."""
    verify: Callable[[Sequence[str]], list[str]] = _unverified
    """Compare files with their checksums; a note for each that has none."""
    style: Callable[[Mapping[int, str], Mapping[int, Color]], bytes] | None = None
    """QGIS's style of a mask, by the names and colours of its values; None where QGIS does not open such masks."""
    extra: str | None = None
    """Optional dependency that it needs."""
    area_columns: tuple[str, ...] = ()
    """Columns at the end of ``areas.csv`` that only runs with such cases have: ``ml`` for volumes."""


def _open_raster(path: str, contract: Contract, overrides: Overrides) -> Source:
    from segpipe.formats.raster.source import RasterSource

    return RasterSource(path, contract, overrides)


def _raster_sink(target: Target) -> Sink:
    from segpipe.formats.raster.sink import mask_sink

    return mask_sink(target)


def _is_own_raster(output: Store, name: str) -> bool:
    from segpipe.formats.raster.sink import is_own_raster

    return is_own_raster(output, name)


def _gdal_options(threads: int) -> AbstractContextManager[object]:
    from segpipe.formats.raster.gdal import gdal_options

    options: AbstractContextManager[object] = gdal_options(threads)
    return options


def _raster_drafts(elements: float, full: float, packed: float) -> float:
    from segpipe.formats.raster.sink import draft_bytes

    return draft_bytes(elements, full, packed)


def _gdal_cache() -> Cache:
    from segpipe.formats.raster.gdal import BlockCache

    return BlockCache()


def _qgis_style(names: Mapping[int, str], colors: Mapping[int, Color]) -> bytes:
    from segpipe.formats.raster.qml import qgis_style

    return qgis_style(names, colors)


def _is_same_raster(place: str, files: Sequence[Identity], path: str, beside: Beside, remote: bool) -> bool:
    from segpipe.formats.raster.origin import is_same_input

    return is_same_input(place, files, path, beside, remote=remote)


def _verify_rasters(files: Sequence[str]) -> list[str]:
    from segpipe.formats.raster.tiff import verify_files

    return verify_files(files)


def _verify_volumes(files: Sequence[str]) -> list[str]:
    from segpipe.formats.nifti.header import is_packed, source_errors

    notes = []
    for path in files:
        with source_errors(path):
            if not is_packed(path):
                notes.append(f"{path} is not verified: a file that is not packed has no checksum")
    return notes


def _open_volume(path: str, contract: Contract, overrides: Overrides) -> Source:
    from segpipe.formats.nifti.source import NiftiSource

    return NiftiSource(path, contract, overrides)


def _volume_sink(target: Target) -> Sink:
    from segpipe.formats.nifti.sink import NiftiSink

    return NiftiSink(target)


def _is_own_volume(output: Store, name: str) -> bool:
    from segpipe.formats.nifti.sink import is_own_volume

    return is_own_volume(output, name)


RASTER = "raster"
"""The format of whatever has the suffix of no other: GDAL says what it is."""

FORMATS: dict[str, Format] = {
    family.name: family
    for family in (
        Format(
            RASTER,
            (".tif", ".tiff", ".vrt", ".jp2", ".j2k", ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".img"),
            _open_raster,
            _raster_sink,
            (".tif", ".png", ".tif.aux.xml"),
            _is_own_raster,
            environment=_gdal_options,
            drafts=_raster_drafts,
            cache=_gdal_cache,
            is_same_input=_is_same_raster,
            verify=_verify_rasters,
            style=_qgis_style,
        ),
        Format(
            "nifti",
            (".nii", ".nii.gz"),
            _open_volume,
            _volume_sink,
            (".nii", ".nii.gz"),
            _is_own_volume,
            verify=_verify_volumes,
            extra="medical",
            area_columns=("ml",),
        ),
    )
}


def by_suffix() -> dict[str, Format]:
    """The format of each suffix that a folder is searched for."""
    return {suffix: family for family in FORMATS.values() for suffix in family.suffixes}


def split_suffix(name: str, known: Container[str]) -> tuple[str, str]:
    """Stem and suffix of a file's name or path, the suffix of two words where these are known together.

    >>> split_suffix("a/T1.NII.gz", {".nii.gz"}), split_suffix("a/b.c.tif", {".tif"}), split_suffix("a.b/.c", {})
    (('a/T1', '.NII.gz'), ('a/b.c', '.tif'), ('a.b/.c', ''))
    """
    stem, last = os.path.splitext(name)  # noqa: PTH122 - of 100,000 names
    shorter, before = os.path.splitext(stem)  # noqa: PTH122
    if before and (before + last).lower() in known:
        return shorter, before + last
    return (name, "") if last == "." else (stem, last)


def format_of(name: str, known: dict[str, Format] | None = None) -> str:
    """Name of the format of a file by its suffix; a raster where no format has it.

    Args:
        name: of a file, or its path.
        known: ``by_suffix()``, for whoever asks for many.
    """
    known = by_suffix() if known is None else known
    family = known.get(split_suffix(name, known)[1].lower())
    return RASTER if family is None else family.name


def open_path(name: str, path: str, contract: Contract, overrides: Overrides = AS_STORED) -> Source:
    """Open what lies at a path as a format of this name.

    Raises:
        SourceError: it cannot be opened, or an optional dependency is not installed.
    """
    family = FORMATS[name]
    with _extra_of(family, path):
        return family.open(path, contract, overrides)


@contextmanager
def _extra_of(family: Format, path: str) -> Iterator[None]:
    """Name the command that installs what a format lacks."""
    try:
        yield
    except ModuleNotFoundError as error:
        if family.extra is None or (error.name or "").partition(".")[0] == "segpipe":
            raise
        raise SourceError(
            f"{path}: {' and '.join(family.suffixes)} files need {error.name}, which is not installed: "
            f"run {install(family.extra)}"
        ) from error


@contextmanager
def environment(threads: int = 1) -> Iterator[None]:
    """What every thread enters that opens cases, reads them or writes masks, of whatever format.

    Args:
        threads: that may share the decoding of one window.
    """
    with ExitStack() as stack:
        for family in FORMATS.values():
            stack.enter_context(family.environment(threads))
        yield


def kinds(families: Sequence[Format]) -> list[str]:
    """What the names of the masks and confidences of some formats end with, behind the name of their case."""
    return [kind + suffix for kind in ("", CONFIDENCE) for family in families for suffix in family.outputs]

"""The table of formats: how files are found and opened, and which sink writes their masks.

A new format is a line in ``FORMATS``. Its modules are imported when its first case is opened.
"""

import os
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.errors import OutputError, SourceError
from segpipe.formats.cache import Cache
from segpipe.formats.case import RASTER as RASTER  # noqa: PLC0414
from segpipe.formats.case import Case, ChannelFiles, Choice, FamilyCases, Finder
from segpipe.formats.channels import files_of, per_channel
from segpipe.formats.identity import Beside, Identity, are_same_files
from segpipe.formats.sink import Derived, Sink, Space, Target
from segpipe.formats.source import Source
from segpipe.formats.style import Color
from segpipe.geometry.grid import Grid
from segpipe.geometry.windows import Window
from segpipe.overrides import AS_STORED, Overrides
from segpipe.process.extras import install
from segpipe.storage import Store

Opener = Callable[[Case, Contract, Overrides], Source]

CONFIDENCE = ".confidence"
"""Text between the name of a case and the suffix of its confidence."""


def _unverified(files: Sequence[str]) -> list[str]:
    """``Format.verify`` of a format that has no checksums, or that compares them at every read."""
    del files
    return []


def _draft_and_copy(elements: float, full: float, packed: float) -> float:
    """``Format.drafts`` of a mask that is written unpacked and then packed."""
    del elements
    return full + packed


def _is_same_file(place: str, files: Sequence[Identity], case: Case, beside: Beside, remote: bool) -> bool:
    """``Format.is_same_input`` of a format whose cases are files without sidecar files."""
    now = {beside.named(path) for path in files_of(case)}
    return now <= {file["path"] for file in files} and are_same_files(place, files, case.path, beside, remote)


class OpenMask(Protocol):
    """A mask that is open; for one thread."""

    @property
    def grid(self) -> Grid:
        """The grid of its file."""
        ...

    @property
    def bands(self) -> int:
        """Number of its bands."""
        ...

    def read(self, window: Window, band: int = 0) -> NDArray[Any]:
        """Labels of a window in a band, counted from 0.

        Raises:
            OutputError: they cannot be read.
        """
        ...


@dataclass(frozen=True, slots=True)
class Format:
    """A family of file formats."""

    name: str
    suffixes: tuple[str, ...]
    """Suffixes of the files that are cases, in lower case with their dots, such as ``.nii`` and ``.nii.gz``."""
    open: Opener
    sink: Callable[[Target], Sink]
    outputs: tuple[str, ...]
    """Suffixes of all files that the format's sinks may write."""
    owns: Callable[[Store, str], bool]
    """Whether the content of a file in the output shows that segpipe wrote it; its name ends with one of ``outputs``."""
    environment: Callable[[int], AbstractContextManager[object]] = lambda _: nullcontext()
    """Context that a thread enters to use sources and sinks. Argument: the number of threads that may decode one window."""
    drafts: Callable[[float, float, float], float] = _draft_and_copy
    """Bytes on disk while a mask is written. Arguments: its elements, their bytes, and its likely packed size in bytes."""
    cache: Callable[[], Cache] = Cache
    """The cache that holds the decoded blocks that ``Source.memory`` counts."""
    is_same_input: Callable[[str, Sequence[Identity], Case, Beside, bool], bool] = _is_same_file
    """Whether a case is unchanged since its record was written. Arguments: path and files in the record, the case now,
    recent listings of folders, and whether a local case may refer to servers."""
    verify: Callable[[Sequence[str]], list[str]] = _unverified
    """Compare files with their checksums; return a note for each file without one."""
    style: Callable[[Mapping[int, str], Mapping[int, Color]], bytes] | None = None
    """Make QGIS's style of a mask from the names and colours of its values; None if QGIS does not open such masks."""
    extra: str | None = None
    """The extra of segpipe that the format needs; None if it needs none."""
    read_mask: Callable[[Path], tuple[NDArray[Any], Grid]] | None = None
    """Read a mask that a sink wrote: its bands ``(bands, *grid)``, and the grid of its file; None: the format cannot."""
    open_mask: Callable[[Path], AbstractContextManager["OpenMask"]] | None = None
    """Open a mask that a sink wrote, to read it window by window; None: the format cannot."""
    unchanged: Callable[[], AbstractContextManager[object]] = nullcontext
    """Context at whose end the state that the format's library has for the whole process is as before."""
    release: Callable[[], None] = lambda: None
    """Free what the format keeps, between two openings of a case in this process, for the next one."""
    area_columns: tuple[str, ...] = ()
    """Columns at the end of ``areas.csv`` in runs with cases of this format: ``ml`` for volumes."""
    per_channel: bool = False
    """Whether a case may have one file per channel."""
    derives: bool = False
    """Whether its sinks write the files of ``Target.derived``."""
    derived_space: Callable[[Derived, int, float], Space] = lambda *_: Space()
    """Disk space of these files. Arguments: which files, and the classes and elements of the mask."""
    derived_memory: Callable[[Derived, int, int], float] = lambda *_: 0.0
    """Bytes of memory while they are written. Arguments: which files, the classes, and the size of the longest axis."""
    uids: Callable[[object, Store, Sequence[str]], dict[str, Any]] | None = None
    """Returns the UIDs of what was read and written, for the audit of a run. Arguments: ``Source.origin``, the output, and
    the names of the files that were written. None for formats without UIDs."""
    finder: Finder | None = None
    """Finds its cases if they have several files, or names without a suffix; None: each file is a case."""

    @property
    def element(self) -> str:
        """Unit of the elements of its cases: ``px`` or ``voxel``."""
        return "voxel" if "ml" in self.area_columns else "px"


def _open_raster(case: Case, contract: Contract, overrides: Overrides) -> Source:
    from segpipe.formats.raster.source import RasterSource

    return RasterSource(case.path, contract, overrides)


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


def _read_raster_mask(path: Path) -> tuple[NDArray[Any], Grid]:
    from segpipe.formats.raster.mask import read_mask

    return read_mask(path)


def _open_raster_mask(path: Path) -> AbstractContextManager[OpenMask]:
    from segpipe.formats.raster.mask import open_mask

    return open_mask(path)


def _read_volume_mask(path: Path) -> tuple[NDArray[Any], Grid]:
    from segpipe.formats.nifti.mask import read_mask

    return read_mask(path)


def _unchanged_gdal() -> AbstractContextManager[object]:
    from segpipe.formats.raster.gdal import unchanged_gdal

    return unchanged_gdal()


def _raster_drafts(elements: float, full: float, packed: float) -> float:
    from segpipe.formats.raster.sink import draft_bytes

    return draft_bytes(elements, full, packed)


def _gdal_cache() -> Cache:
    from segpipe.formats.raster.gdal import BlockCache

    return BlockCache()


def _qgis_style(names: Mapping[int, str], colors: Mapping[int, Color]) -> bytes:
    from segpipe.formats.raster.qml import qgis_style

    return qgis_style(names, colors)


def _is_same_raster(place: str, files: Sequence[Identity], case: Case, beside: Beside, remote: bool) -> bool:
    from segpipe.formats.raster.origin import is_same_input

    return is_same_input(place, files, case.path, beside, remote=remote)


def _verify_rasters(files: Sequence[str]) -> list[str]:
    from segpipe.formats.raster.tiff import verify_files

    return verify_files(files)


def _verify_volumes(files: Sequence[str]) -> list[str]:
    from segpipe.formats.volume.file import is_packed, source_errors

    notes = []
    for path in files:
        with source_errors(path):
            if not is_packed(path):
                notes.append(f"{path} is not verified: a file that is not packed has no checksum")
    return notes


def _open_volume(case: Case, contract: Contract, overrides: Overrides) -> Source:
    from segpipe.formats.nifti.source import NiftiSource

    return NiftiSource(case.path, contract, overrides)


def _release(*modules: str) -> Callable[[], None]:
    """A function that frees the state of modules in this process, if they were imported."""

    def release() -> None:
        for module in modules:
            if (found := sys.modules.get(module)) is not None:
                found.release()

    return release


def _released(*modules: str) -> Callable[[], AbstractContextManager[None]]:
    """A context at whose end the state of modules is free."""

    @contextmanager
    def released() -> Iterator[None]:
        try:
            yield
        finally:
            _release(*modules)()

    return released


VOLUMES, SERIES, DECODER = "segpipe.formats.volume.spool", "segpipe.formats.dicom.spool", "segpipe.formats.dicom.apart"
"""Modules that keep something for the next opening of a case."""


def _may_be_dicom(name: str) -> bool:
    from segpipe.formats.dicom.names import may_be

    return may_be(name)


def _is_dicom(path: str) -> bool:
    from segpipe.formats.dicom.names import is_one

    return is_one(path)


def _find_series(files: Sequence[tuple[str, str]], choice: Choice) -> FamilyCases:
    from segpipe.formats.dicom.names import cases_of

    return cases_of(files, choice)


def _open_series(case: Case, contract: Contract, overrides: Overrides) -> Source:
    from segpipe.formats.dicom.source import SeriesSource

    return SeriesSource(case, contract, overrides)


def _series_sink(target: Target) -> Sink:
    from segpipe.formats.dicom.sink import series_sink

    return series_sink(target)


def _is_own_series_file(output: Store, name: str) -> bool:
    from segpipe.formats.dicom.sink import is_own_file

    return is_own_file(output, name)


def _is_same_series(place: str, files: Sequence[Identity], case: Case, beside: Beside, remote: bool) -> bool:
    from segpipe.formats.dicom.source import is_same_series

    del remote
    return is_same_series(place, files, case, beside)


def _series_space(derived: Derived, classes: int, voxels: float) -> Space:
    from segpipe.formats.dicom.space import derived_space

    return derived_space(derived, classes, voxels)


def _series_memory(derived: Derived, classes: int, planes: int) -> float:
    from segpipe.formats.dicom.space import derived_memory

    return derived_memory(derived, classes, planes)


def _series_uids(origin: object, output: Store, names: Sequence[str]) -> dict[str, Any]:
    from segpipe.formats.dicom.uids import uids_of

    return uids_of(origin, output, names)


def _verify_series(files: Sequence[str]) -> list[str]:
    return [f"{len(files)} DICOM files are not verified: they have no checksums"]


def _volume_sink(target: Target) -> Sink:
    from segpipe.formats.nifti.sink import NiftiSink

    return NiftiSink(target)


def _open_nrrd(case: Case, contract: Contract, overrides: Overrides) -> Source:
    from segpipe.formats.nrrd.source import NrrdSource

    return NrrdSource(case.path, contract, overrides)


def _nrrd_sink(target: Target) -> Sink:
    from segpipe.formats.nrrd.sink import NrrdSink

    return NrrdSink(target)


def _is_own_nrrd(output: Store, name: str) -> bool:
    from segpipe.formats.nrrd.sink import is_own_nrrd

    return is_own_nrrd(output, name)


def _read_nrrd_mask(path: Path) -> tuple[NDArray[Any], Grid]:
    from segpipe.formats.nrrd.mask import read_mask

    return read_mask(path)


def _verify_nrrd(files: Sequence[str]) -> list[str]:
    from segpipe.formats.nrrd.header import is_packed

    return [f"{path} is not verified: a file that is not packed has no checksum" for path in files if not is_packed(path)]


def _is_own_volume(output: Store, name: str) -> bool:
    from segpipe.formats.nifti.sink import is_own_volume

    return is_own_volume(output, name)


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
            read_mask=_read_raster_mask,
            open_mask=_open_raster_mask,
            unchanged=_unchanged_gdal,
        ),
        Format(
            "nifti",
            (".nii", ".nii.gz"),
            _open_volume,
            _volume_sink,
            (".nii", ".nii.gz"),
            _is_own_volume,
            verify=_verify_volumes,
            unchanged=_released(VOLUMES),
            release=_release(VOLUMES),
            read_mask=_read_volume_mask,
            per_channel=True,
            extra="medical",
            area_columns=("ml",),
        ),
        Format(
            "nrrd",
            (".nrrd", ".nhdr"),
            _open_nrrd,
            _nrrd_sink,
            (".nrrd",),
            _is_own_nrrd,
            verify=_verify_nrrd,
            unchanged=_released(VOLUMES),
            release=_release(VOLUMES),
            read_mask=_read_nrrd_mask,
            per_channel=True,
            extra="medical",
            area_columns=("ml",),
        ),
        Format(
            "dicom",
            (".dcm", ".dicom", ".ima"),
            _open_series,
            _series_sink,
            (".nii", ".nii.gz", ".seg.dcm", ".sr.dcm", ".sc.dcm"),
            _is_own_series_file,
            is_same_input=_is_same_series,
            verify=_verify_series,
            unchanged=_released(SERIES, DECODER),
            release=_release(SERIES),
            read_mask=_read_volume_mask,
            extra="medical",
            area_columns=("ml",),
            derives=True,
            derived_space=_series_space,
            derived_memory=_series_memory,
            uids=_series_uids,
            finder=Finder(_may_be_dicom, _is_dicom, _find_series),
        ),
    )
}


def element_of(cases: Iterable[Case]) -> str:
    """``voxel`` if all cases are volumes, else ``px``."""
    return "voxel" if {FORMATS[name].element for name in {case.format for case in cases}} == {"voxel"} else "px"


def by_suffix() -> dict[str, Format]:
    """The format of each suffix; a search of a folder finds files with these suffixes."""
    return {suffix: family for family in FORMATS.values() for suffix in family.suffixes}


def split_suffix(name: str, known: Container[str]) -> tuple[str, str]:
    """Stem and suffix of a file's name or path; a suffix such as ``.nii.gz`` is kept whole if it is in ``known``.

    >>> split_suffix("a/T1.NII.gz", {".nii.gz"}), split_suffix("a/b.c.tif", {".tif"}), split_suffix("a.b/.c", {})
    (('a/T1', '.NII.gz'), ('a/b.c', '.tif'), ('a.b/.c', ''))
    """
    stem, last = os.path.splitext(name)  # noqa: PTH122 - fast for 100,000 names
    shorter, before = os.path.splitext(stem)  # noqa: PTH122
    if before and (before + last).lower() in known:
        return shorter, before + last
    return (name, "") if last == "." else (stem, last)


def format_of(name: str, known: dict[str, Format] | None = None) -> str:
    """Name of the format of a file by its suffix; ``RASTER`` if no format has this suffix.

    Args:
        name: name or path of the file.
        known: result of ``by_suffix()``, to save time over many calls.
    """
    known = by_suffix() if known is None else known
    family = known.get(split_suffix(name, known)[1].lower())
    return RASTER if family is None else family.name


def format_at(path: str) -> str:
    """Name of the format of a file of this machine: by its suffix, or by its content where that may be any."""
    name = os.path.basename(path)  # noqa: PTH119
    finders = [(f.name, f.finder) for f in FORMATS.values() if f.finder is not None and format_of(name) == RASTER]
    return next((own for own, finder in finders if finder.may_be(name) and finder.is_one(path)), format_of(name))


def open_case(case: Case, contract: Contract, overrides: Overrides = AS_STORED) -> Source:
    """Open a case with its format.

    Raises:
        SourceError: it cannot be opened, or an optional dependency is not installed.
    """
    if isinstance(case.index, ChannelFiles):
        return _open_channels(case, contract, overrides)
    family = FORMATS[case.format]
    with _extra_of(family, case.path):
        return family.open(case, contract, overrides)


def _open_channels(case: Case, contract: Contract, overrides: Overrides) -> Source:
    """Open a case with one file per channel; the first one's format writes the mask."""
    from segpipe.formats.stacked import Stacked

    each = [(replace(one, format=format_of(one.path)), own) for one, own in per_channel(case, contract)]
    return Stacked([open_case(one, own, overrides) for one, own in each])


def find_in_family(name: str, files: Sequence[tuple[str, str]], choice: Choice) -> FamilyCases:
    """The cases of the format ``name``, which has a finder, among some files.

    Raises:
        SourceError: an optional dependency is not installed.
    """
    family = FORMATS[name]
    if family.finder is None or not files:
        return FamilyCases()
    with _extra_of(family, files[0][1]):
        return family.finder.find(files, choice)


def read_mask(name: str, output: Store, file: str) -> tuple[NDArray[Any], Grid]:
    """Read a mask of the format ``name``: its bands ``(bands, *grid)``, and the grid of its file.

    Raises:
        OutputError: it is not there, or is damaged.
        SourceError: an optional dependency is not installed.
    """
    family, path = FORMATS[name], output.path(file)
    if family.read_mask is None or not output.has(file):
        raise OutputError(f"{path} must be a mask that segpipe wrote, and cannot be read: run again with the same output")
    with _extra_of(family, path), output.local(file) as local:
        return family.read_mask(local)


@contextmanager
def _extra_of(family: Format, path: str) -> Iterator[None]:
    """If an optional dependency of a format is missing, raise an error with the command that installs it."""
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
    """Context that every thread enters before it opens cases, reads them or writes masks, for all formats.

    Args:
        threads: number of threads that may decode one window together.
    """
    with ExitStack() as stack:
        for family in FORMATS.values():
            stack.enter_context(family.environment(threads))
        yield


@contextmanager
def unchanged() -> Iterator[None]:
    """Context at whose end the libraries of all formats are as before in this process."""
    with ExitStack() as stack:
        for family in FORMATS.values():
            stack.enter_context(family.unchanged())
        yield


def release() -> None:
    """Free what formats keep in this process for the next opening of a case."""
    for family in FORMATS.values():
        family.release()


def kinds(families: Sequence[Format]) -> list[str]:
    """The endings of the names of masks and confidences of some formats, after the name of the case."""
    return [kind + suffix for kind in ("", CONFIDENCE) for family in families for suffix in family.outputs]

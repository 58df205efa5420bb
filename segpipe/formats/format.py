"""What the table of formats knows of a family of files."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.formats.cache import Cache
from segpipe.formats.case import Case, Finder
from segpipe.formats.channels import files_of
from segpipe.formats.identity import FolderListings, Identity, are_same_files, unhidden
from segpipe.formats.sink import Derived, MapSink, Sink, Space, Target
from segpipe.formats.source import Source
from segpipe.formats.style import Color, Style
from segpipe.geometry.grid import Grid
from segpipe.geometry.windows import Window
from segpipe.overrides import Overrides
from segpipe.storage import Store

Opener = Callable[[Case, Contract, Overrides], Source]


def _unverified(files: Sequence[str]) -> list[str]:
    """``Format.verify`` of a format that has no checksums, or that compares them at every read."""
    del files
    return []


def _draft_and_copy(elements: float, full: float, packed: float) -> float:
    """``Format.drafts`` of a mask that is written unpacked and then packed."""
    del elements
    return full + packed


def _is_same_file(place: str, files: Sequence[Identity], case: Case, listings: FolderListings, remote: bool) -> bool:
    """``Format.is_same_input`` of a format whose cases are files without sidecar files."""
    now = {listings.named(path) for path in files_of(case)}
    files = unhidden(files, now)
    return now <= {file["path"] for file in files} and are_same_files(place, files, case.path, listings, remote)


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
class MapFormat:
    """How masks of a format are joined to a map."""

    style: Callable[[Path], Style]
    """The style of a mask that a sink wrote."""
    sink: Callable[[Store, str, Grid, Style, float], MapSink]
    """The sink of a map: the output, the name of the file with suffix, the grid, the style, and the largest share of the
    map that is written and not left."""


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
    is_same_input: Callable[[str, Sequence[Identity], Case, FolderListings, bool], bool] = _is_same_file
    """Whether a case is unchanged since its record was written. Arguments: path and files in the record, the case now,
    recent listings of folders, and whether a local case may refer to servers."""
    files: Callable[[Case], Sequence[str]] = files_of
    """The files of a case that the search found; for the names that are hidden if cases are not named after their paths."""
    verify: Callable[[Sequence[str]], list[str]] = _unverified
    """Compare files with their checksums; return a note for each file without one."""
    style: Callable[[Mapping[int, str], Mapping[int, Color]], bytes] | None = None
    """Make QGIS's style of a mask from the names and colours of its values; None if QGIS does not open such masks."""
    extra: str | None = None
    """The extra of segpipe that the format needs; None if it needs none."""
    read_mask: Callable[[Path], tuple[NDArray[Any], Grid]] | None = None
    """Read a mask that a sink wrote: its bands ``(bands, *grid)``, and the grid of its file; None: the format cannot."""
    open_mask: Callable[[Path], AbstractContextManager[OpenMask]] | None = None
    """Open a mask that a sink wrote, to read it window by window; None: the format cannot."""
    maps: MapFormat | None = None
    """How masks are joined to a map; None: they cannot be."""
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
    """Returns the UIDs of what was read and written, for the audit of a run. Arguments: ``Source.template``, the output, and
    the names of the files that were written. None for formats without UIDs."""
    finder: Finder | None = None
    """Finds its cases if they have several files, or names without a suffix; None: each file is a case."""

    @property
    def element(self) -> str:
        """Unit of the elements of its cases: ``px`` or ``voxel``."""
        return "voxel" if "ml" in self.area_columns else "px"

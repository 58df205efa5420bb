"""The protocol of sinks, which write masks; every format implements it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from segpipe.formats.style import Style
from segpipe.geometry.grid import Grid
from segpipe.geometry.windows import Window
from segpipe.storage import Store

OVERVIEWS = 4 / 3
"""Pixels of a raster with its overviews, each half as wide and high as the one before, relative to its own pixels."""


@dataclass(frozen=True, slots=True)
class Derived:
    """Which files are derived from a finished mask and written beside it, for formats that have them."""

    seg: Literal["binary", "labelmap", "none"] = "none"
    """DICOM Segmentation."""
    report: bool = False
    """DICOM measurement report, and secondary capture."""
    model: str = ""
    """Name of the model, which a report states."""


@dataclass(frozen=True, slots=True)
class Space:
    """Disk space of files."""

    likely: float = 0.0
    """Bytes."""
    most: float = 0.0
    files: int = 0
    """Number of files."""


@dataclass(frozen=True, slots=True)
class Target:
    """The file that a sink writes, and its place."""

    output: Store
    stem: str
    """Name in the output without suffix; the sink adds its suffix."""
    grid: Grid
    """Grid of the case; every pixel is written once."""
    style: Style
    template: object = None
    """``Source.template`` of the case."""
    spare: bool = False
    """Whether most processors are idle when the mask is finished, because the network runs on a device."""
    derived: Derived = Derived()
    tables: Callable[[], Mapping[str, Sequence[Mapping[str, Any]]]] = dict
    """The rows of each statistic of the case, by its name; for ``finish``."""


class Sink(Protocol):
    """Writes a mask or a confidence, in any order of windows; no file has its final name before ``finish``."""

    name: str
    """Name of the main file, with suffix."""
    size: int
    """Size of the finished main file in bytes."""

    def files(self) -> Sequence[str]:
        """Names of all files that ``finish`` may write, the main file first."""
        ...

    def write(self, window: Window, values: NDArray[Any]) -> None:
        """Write values of shape ``(bands, *window.shape)``; every pixel must be written once."""
        ...

    def finish(self) -> list[str]:
        """Complete all files, give them their final names, and return these names.

        Raises:
            OutputError: a file cannot be written, or does not read back as it was written.
        """
        ...

    def discard(self) -> None:
        """Remove unfinished files; safe to call twice, and after ``finish``."""
        ...


class MapSink(Sink, Protocol):
    """Writes a map, of which parts may have no data."""

    def leave(self, window: Window) -> None:
        """Leave a window without data instead of writing it."""
        ...

"""Masks being written: one protocol for every family of formats."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from segpipe.formats.style import Style
from segpipe.geometry.grid import Grid
from segpipe.geometry.windows import Window
from segpipe.storage import Store


@dataclass(frozen=True, slots=True)
class Target:
    """What a sink writes, and where."""

    output: Store
    stem: str
    """Name in the output without suffix: the sink adds its own."""
    grid: Grid
    """Of the case: every pixel of it is written once."""
    style: Style
    origin: object = None
    """``Source.origin`` of the case."""
    spare: bool = False
    """Whether most processors are free while it is finished: the network runs on a device."""


class Sink(Protocol):
    """A mask, or a confidence, being written in any order of windows; nothing has its name before ``finish``."""

    name: str
    """Of its main file, with suffix."""
    size: int
    """Bytes of the main file, once it is finished."""

    def files(self) -> Sequence[str]:
        """Names of all files that ``finish`` may leave, the main file first."""
        ...

    def write(self, window: Window, values: NDArray[Any]) -> None:
        """Write ``(bands, *window.shape)``; every pixel once."""
        ...

    def finish(self) -> list[str]:
        """Write all files in their final form and give them their names, which come back.

        Raises:
            OutputError: they cannot be written, or do not hold what was written to them.
        """
        ...

    def discard(self) -> None:
        """Leave nothing half-written; safe to call twice, and after ``finish``."""
        ...

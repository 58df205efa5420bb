"""The protocol of statistics: each sees every box of a case once, in any order, and the states of parts can be merged."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segpipe.formats.source import Invalid, Pixels
from segpipe.geometry.windows import Window

Row = dict[str, Any]
State = dict[str, NDArray[Any]]
"""Arrays by name; none holds objects."""


@dataclass(frozen=True, eq=False, slots=True)
class Box:
    """A finished box of a case."""

    window: Window
    labels: NDArray[Any]
    """Shape ``(bands, *window.shape)``."""
    confidence: NDArray[np.uint8] | None = None
    """Shape ``(bands, *window.shape)``; None where it was not asked for."""
    pixels: Callable[[], tuple[Pixels, Invalid | None]] | None = None
    """Reads the stored pixels ``(channels, *window.shape)``, and where they are invalid, from the case a second time, once
    for all statistics. A run whose statistics do not call it pays nothing."""


class Statistic(Protocol):
    """Something that is counted of a case. Rows depend neither on the order of boxes nor on how the case was cut."""

    def add(self, box: Box) -> None:
        """Count a box; no two boxes of a case overlap."""
        ...

    @property
    def state(self) -> State:
        """All that has been counted so far, for ``merge``; small compared with the case."""
        ...

    def merge(self, state: State) -> None:
        """Add the state of another part of the case, of the same grid and contract."""
        ...

    def rows(self) -> list[Row]:
        """The table of the case, in values that JSON can hold."""
        ...

"""What a statistic of a case is: it sees every box once, in any order, and parts of a case add up."""

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
    """Reads the stored pixels ``(channels, *window.shape)`` and where they are invalid: only a statistic that calls it pays
    for them."""


class Statistic(Protocol):
    """What is counted of a case. Rows do not depend on the order of boxes, nor on which part of the case they were in."""

    def add(self, box: Box) -> None:
        """Count a box; no two boxes of a case overlap."""
        ...

    @property
    def state(self) -> State:
        """All that has been counted, for ``merge``; small beside the case."""
        ...

    def merge(self, state: State) -> None:
        """Add what was counted of another part of the case, on the same grid under the same contract."""
        ...

    def rows(self) -> list[Row]:
        """The table of the case: values that JSON holds."""
        ...

"""The protocol of statistics: each gets every box of a case once, in any order, and states of parts can be merged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segpipe.formats.source import Invalid, Pixels
from segpipe.geometry.windows import Window
from segpipe.pipeline.decide import Checked

Row = dict[str, Any]
State = dict[str, NDArray[Any]]
"""Arrays by name; none has dtype ``object``."""


@dataclass(frozen=True, eq=False, slots=True)
class Box:
    """A finished box of a case."""

    window: Window
    labels: NDArray[Any]
    """Labels, shape ``(bands, *window.shape)``."""
    confidence: NDArray[np.uint8] | None = None
    """Confidence, shape ``(bands, *window.shape)``; None if it was not requested."""
    pixels: Callable[[], tuple[Pixels, Invalid | None]] | None = None
    """Reads the stored pixels ``(channels, *window.shape)`` and their invalid mask from the case a second time, but only
    once for all statistics. It costs nothing if no statistic calls it."""
    tags: Callable[[], tuple[NDArray[np.float64], NDArray[np.float64]] | None] | None = None
    """``Source.tags``: scale and offset of each channel; opens the case as ``pixels`` does."""
    checked: Sequence[Checked] = ()
    """With an audit: how sure the box is, for each window that it finishes."""


class Statistic(Protocol):
    """A statistic of one case. Its rows depend neither on the order of boxes nor on how the case was cut."""

    def add(self, box: Box) -> None:
        """Count a box; no two boxes of a case overlap."""
        ...

    @property
    def state(self) -> State:
        """Everything counted so far, for ``merge``; small compared with the case."""
        ...

    def merge(self, state: State) -> None:
        """Add the state of another part of the same case; grid and contract must be equal."""
        ...

    def rows(self) -> list[Row]:
        """The table of the case, with values that JSON can represent."""
        ...

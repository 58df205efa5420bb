"""Opened cases: one protocol for every family of formats."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segpipe.geometry.grid import Grid
from segpipe.geometry.windows import Window

Pixels = NDArray[Any]
Invalid = NDArray[np.bool_]

Scene = Mapping[str, Mapping[str, str]]
"""Metadata that describe a scene by domain, ``""`` for the general one."""

Begun = Callable[[], tuple[Pixels, Invalid | None]]


class Source(Protocol):
    """An opened case, for one thread; that thread is inside ``registry.environment`` while it uses it."""

    @property
    def grid(self) -> Grid:
        """Where its array lies."""
        ...

    dtype: np.dtype[Any]
    """Type of the stored pixels."""
    files: tuple[str, ...]
    """Everything that its pixels come from: the file, and whatever else is read with it."""
    scene: Scene
    """Metadata that describe the scene: when, where and by what it was taken."""
    separable: bool
    """Whether pixels do not depend on what else is read with them; then neighbouring windows may be read at one go."""

    @property
    def origin(self) -> object:
        """What the sink of the same format needs to know of the case beside its grid: picklable, opaque to all between."""
        ...

    @property
    def block(self) -> int:
        """Bytes of the largest block that is decoded whole; 0 where any part of the case can be read by itself."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What a reader of the record should know about how it was read; some pixels may be looked at for it."""
        ...

    def read(self, window: Window) -> tuple[Pixels, Invalid | None]:
        """Stored pixels ``(channels, *window.shape)``, and where they are invalid; None if nowhere.

        The window lies inside the case.
        """
        ...

    def begin(self, window: Window, threads: int | None = None) -> Begun:
        """Decode a window; the callable that is returned ends ``read``, once, in whichever thread calls it.

        Args:
            window: inside the case.
            threads: that may share the decoding of this window and of those after it; None: as before.
        """
        ...

    def empty(self, window: Window) -> bool:
        """Whether a window is known to have no valid pixel before any is decoded; False where that is not known."""
        ...

    def memory(self, shape: tuple[int, ...]) -> int:
        """Bytes of decoded blocks that a window of this shape can touch, wherever it lies."""
        ...

    def near(self, place: tuple[float, ...], most: int) -> Window:
        """A box of ``most`` pixels a side or less that is quickly read, near a place given as a share of each axis."""
        ...

    def tags(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Scale and offset of each channel, as the file says; None where stored numbers are what they stand for."""
        ...

    def close(self) -> None: ...

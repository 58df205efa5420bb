"""The protocol of sources, which are opened cases; every format implements it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segpipe.geometry.grid import Grid
from segpipe.geometry.windows import Window

Pixels = NDArray[Any]
Invalid = NDArray[np.bool_]

Scene = Mapping[str, Mapping[str, str]]
"""Metadata that describe a scene, by domain; ``""`` is the default domain."""

Begun = Callable[[], tuple[Pixels, Invalid | None]]


class Source(Protocol):
    """An opened case, for use by one thread, which must be inside ``registry.environment``."""

    @property
    def grid(self) -> Grid:
        """The grid of the case's array."""
        ...

    dtype: np.dtype[Any]
    """Type of the stored pixels."""
    files: tuple[str, ...]
    """All files that the pixels come from: the main file, and every other file that is read with it."""
    scene: Scene
    """Metadata that describe the scene: when, where and by what it was taken."""
    separable: bool
    """Whether the pixels of a window do not depend on the request that reads them; then one request may read neighbouring
    windows."""

    @property
    def unpacked(self) -> int:
        """Bytes that a process takes in TMPDIR while it reads the case; 0 if the files are read in place."""
        ...

    @property
    def template(self) -> object:
        """Data that the sink of the same format needs besides the grid; picklable, opaque to other code."""
        ...

    @property
    def block(self) -> int:
        """Bytes of the largest block that must be decoded whole; 0 if any part of the case can be read by itself."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Notes for the record on how the case is read; computing them may read some pixels."""
        ...

    def read(self, window: Window) -> tuple[Pixels, Invalid | None]:
        """Stored pixels ``(channels, *window.shape)``, and where they are invalid; None if nowhere.

        The window lies inside the case.
        """
        ...

    def begin(self, window: Window, threads: int | None = None) -> Begun:
        """Decode a window; call the returned function once, in any thread, to get the result of ``read``.

        Args:
            window: window inside the case.
            threads: number of threads that decode this window and later ones; None: unchanged.
        """
        ...

    def empty(self, window: Window) -> bool:
        """Whether a window is known, without decoding it, to have no valid pixel; False if this is unknown."""
        ...

    def memory(self, shape: tuple[int, ...]) -> int:
        """Largest number of bytes of decoded blocks that a window of this shape can touch, at any position."""
        ...

    def near(self, place: tuple[float, ...], most: int) -> Window:
        """A box of at most ``most`` pixels a side that is quick to read, near a place given as a share of each axis."""
        ...

    def tags(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Scale and offset of each channel from the file's tags; None if stored values are physical values."""
        ...

    def close(self) -> None:
        """Close its files; the source cannot be read any more."""
        ...

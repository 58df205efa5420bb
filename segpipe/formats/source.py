"""Opened cases: one protocol, and a folder beside this file for each family of formats."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segpipe.geometry.grid import Grid
from segpipe.geometry.windows import Window

Pixels = NDArray[Any]
Invalid = NDArray[np.bool_]


Begun = Callable[[], tuple[Pixels, Invalid | None]]


class Source(Protocol):
    """An opened case."""

    @property
    def grid(self) -> Grid:
        """Where its array lies."""
        ...

    dtype: np.dtype[Any]
    """Type of the stored pixels."""
    picture: bool
    """A plain picture without georeferencing, whose mask is a picture too."""
    files: tuple[str, ...]
    """Everything that its pixels come from: the file, its sidecars, the sources of a VRT."""
    scene: Mapping[str, Mapping[str, str]]
    """Metadata that describe the scene, by GDAL's domain."""

    resampled: bool
    """Whether pixels may depend on what else is read with them."""

    @property
    def block(self) -> int:
        """Bytes of a block of its pixels, which is decoded whole."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the record should know about how it was read; some pixels are looked at for it."""
        ...

    def read(self, window: Window) -> tuple[Pixels, Invalid | None]:
        """Stored pixels ``(channels, *window.shape)``, and where they are invalid; None if nowhere.

        The window lies inside the case.
        """
        ...

    def begin(self, window: Window) -> Begun:
        """Decode a window; what comes back ends ``read``, once, in whatever thread does so for all windows."""
        ...

    def decode_with(self, threads: int) -> None:
        """Let so many threads share the blocks of what is read at one go from now on."""
        ...

    def room(self, shape: tuple[int, ...]) -> int:
        """Bytes of decoded blocks that windows of this shape can touch."""
        ...

    def near(self, place: tuple[float, ...], most: int) -> Window:
        """A box of ``most`` pixels a side or less that is quickly read, near a place given as a share of each axis."""
        ...

    def tags(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scale and offset of each channel, as the file says."""
        ...

    def close(self) -> None: ...

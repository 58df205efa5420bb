"""What somebody drew on a picture with an annotation tool: objects of a label, of outlines and runs of pixels.

Coordinates are pixels from the upper left corner of the picture; the centre of the first pixel is (0.5, 0.5).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Float
from segpipe.errors import InputError
from segpipe.geometry.windows import Window

MOST_PIXELS = 2**40


@dataclass(frozen=True, eq=False)
class Outline:
    """A closed line; pixels whose centre lies within belong to the object, by the even-odd rule if it crosses itself."""

    points: Float
    """x and y, shape ``(points, 2)``."""


@dataclass(frozen=True, eq=False)
class PixelRuns:
    """Pixels of a box, in runs that are outside and inside by turns."""

    ends: NDArray[np.int64]
    """Index in the box after each run; the first run is outside."""
    start: tuple[int, int]
    """First row and column of the box."""
    shape: tuple[int, int]
    by_column: bool
    """Whether runs go down the columns of the box (COCO), not along its rows (CVAT)."""

    @classmethod
    def of(cls, counts: Sequence[int], start: tuple[int, int], shape: tuple[int, int], *, by_column: bool) -> "PixelRuns":
        """Runs from their lengths in pixels, as COCO and CVAT store them.

        Raises:
            ValueError: they do not fill the box.
        """
        total, most = sum(counts), shape[0] * shape[1]
        if min(shape) < 1 or most > MOST_PIXELS or any(count < 0 for count in counts) or total > most:
            raise ValueError(f"runs must fill a box of {shape[1]} x {shape[0]} pixels, and have {total}")
        if by_column and total != most:
            raise ValueError(f"runs must fill {shape[1]} x {shape[0]} pixels, and have {total}")
        return cls(np.cumsum(np.array(counts, np.int64)), start, shape, by_column)

    def within(self, window: Window) -> NDArray[np.bool_]:
        """Which pixels of a window belong to the object."""
        row = np.arange(window.start[0], window.stop[0])[:, None] - self.start[0]
        col = np.arange(window.start[1], window.stop[1])[None] - self.start[1]
        inside = (row >= 0) & (row < self.shape[0]) & (col >= 0) & (col < self.shape[1])
        index = col * self.shape[0] + row if self.by_column else row * self.shape[1] + col
        run = np.searchsorted(self.ends, np.where(inside, index, 0), side="right")
        return np.asarray(inside & (run % 2 == 1) & (run < len(self.ends)))


@dataclass(frozen=True, eq=False)
class Drawn:
    """One object."""

    label: str
    areas: tuple[Outline | PixelRuns, ...]


@dataclass(frozen=True, eq=False)
class Annotated:
    """One picture; later objects lie over earlier ones."""

    path: Path
    """File of the annotations."""
    name: str
    """Name of the file of the picture, with the folders that the tool knows."""
    size: tuple[int, int] | None
    """Rows and columns, if the tool says so."""
    objects: tuple[Drawn, ...]
    problems: tuple[str, ...] = ()
    """Objects that have no area."""
    other_name: str | None = None
    """Name before the tool renamed the file."""


def outline(points: Sequence[Sequence[float]] | Float) -> Outline:
    """A checked outline from the corners ``(x, y)`` that a tool wrote.

    Raises:
        ValueError: there are fewer than 3, or some are not finite.
    """
    found = np.asarray(points, np.float64)
    if found.ndim != 2 or found.shape[1] != 2 or len(found) < 3:
        raise ValueError("a polygon must have 3 points of 2 numbers at least")
    if not np.isfinite(found).all() or np.abs(found).max() > 1e9:
        raise ValueError("coordinates of a polygon must be finite")
    return Outline(found)


def rectangle(left: float, top: float, right: float, bottom: float, *, turned: float = 0.0) -> Outline:
    """A rectangle, turned clockwise around its middle by some degrees."""
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float64)
    if not turned:
        return outline(corners)
    angle, middle = np.radians(turned), corners.mean(axis=0)
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return outline((corners - middle) @ matrix + middle)


def ellipse(x: float, y: float, across: float, along: float) -> Outline:
    """An ellipse by its middle and its half axes, as a polygon of 360 corners."""
    angle = np.radians(np.arange(360))
    return outline(np.stack([x + across * np.cos(angle), y + along * np.sin(angle)], axis=1))


def refused(path: Path, what: str, error: Exception) -> InputError:
    """The error of a file that is not as it should be."""
    return InputError(f"{path}: {what}: {error}: export it again")

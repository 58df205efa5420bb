"""A case with one file per channel, all on one grid."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import SourceError
from segpipe.formats.source import Begun, Invalid, Pixels, Source
from segpipe.geometry.voxel_grid import VoxelGrid, furthest_apart
from segpipe.geometry.windows import Window
from segpipe.messages.printable import dims

APART = 0.1
"""Largest distance, in voxels, between the same corner of two channels: registered series differ by rounding."""


class Stacked:
    """Opened volumes of one channel each, as one volume; a voxel is valid where it is valid in all of them.

    Args:
        sources: at least one, in the order of the channels.

    Raises:
        SourceError: they do not have the same grid.
    """

    separable = True

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources, self._first = sources, sources[0]
        for other in sources[1:]:
            _check_grids(self._first, other)
        self.grid = self._first.grid
        self.dtype: np.dtype[Any] = np.result_type(*(source.dtype for source in sources))
        self.files = tuple(file for source in sources for file in source.files)
        self.scene: Mapping[str, Mapping[str, str]] = {}
        self.template = self._first.template

    @property
    def notes(self) -> Sequence[str]:
        """The notes on all channels, each once."""
        return tuple(dict.fromkeys(note for source in self._sources for note in source.notes))

    @property
    def block(self) -> int:
        return max(source.block for source in self._sources)

    @property
    def unpacked(self) -> int:
        return sum(source.unpacked for source in self._sources)

    def memory(self, shape: tuple[int, ...]) -> int:
        return sum(source.memory(shape) for source in self._sources)

    def empty(self, window: Window) -> bool:
        return any(source.empty(window) for source in self._sources)

    def begin(self, window: Window, threads: int | None = None) -> Begun:
        ends = [source.begin(window, threads) for source in self._sources]

        def stacked() -> tuple[Pixels, Invalid | None]:
            channels = [end() for end in ends]
            pixels = np.concatenate([pixels.astype(self.dtype, copy=False) for pixels, _ in channels])
            masks = [invalid for _, invalid in channels if invalid is not None]
            return pixels, np.logical_or.reduce(masks) if masks else None

        return stacked

    def read(self, window: Window) -> tuple[Pixels, Invalid | None]:
        return self.begin(window)()

    def near(self, place: tuple[float, ...], most: int) -> Window:
        return self._first.near(place, most)

    def tags(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        found = [source.tags() for source in self._sources]
        if all(tags is None for tags in found):
            return None
        each = [(np.ones(1), np.zeros(1)) if tags is None else tags for tags in found]
        return np.concatenate([scale for scale, _ in each]), np.concatenate([offset for _, offset in each])

    def close(self) -> None:
        for source in self._sources:
            source.close()


def _check_grids(first: Source, other: Source) -> None:
    """Check that two volumes have the same grid, in the model's orientation.

    Raises:
        SourceError: they differ; the message has both files and the figures.
    """
    one, two = first.grid, other.grid
    assert isinstance(one, VoxelGrid)
    assert isinstance(two, VoxelGrid)
    both, mend = f"{first.files[0]} and {other.files[0]}", "resample one to the grid of the other"
    if one.shape != two.shape:
        sizes = " and ".join(dims(grid.shape) for grid in (one, two))
        raise SourceError(f"{both}: channels of a case must have one grid, got {sizes} voxels: {mend}")
    apart = furthest_apart(np.array(one.affine), np.array(two.affine), one.shape)
    if not apart <= APART * min(one.spacing):
        raise SourceError(
            f"{both}: channels of a case must have one grid, got affines that lie {apart:.4g} mm apart at a corner, "
            f"{_rows(one)} and {_rows(two)}: {mend}"
        )


def _rows(grid: VoxelGrid) -> str:
    return str([[round(float(n), 4) for n in row] for row in np.array(grid.affine)[:3]])

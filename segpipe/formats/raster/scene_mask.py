"""The mask that comes with a scene, read on the scene's grid: nearest, at the centres of pixels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer
from pyproj.exceptions import ProjError

from segpipe.array_types import Float, Integers
from segpipe.contract import any_contract
from segpipe.errors import SourceError, on_failure
from segpipe.formats.raster.readback import same_crs
from segpipe.formats.raster.source import RasterSource
from segpipe.formats.source import Invalid
from segpipe.geometry.raster_grid import RasterGrid
from segpipe.geometry.reference import NowhereError, horizontal, transformer
from segpipe.geometry.windows import Window
from segpipe.overrides import Overrides
from segpipe.validity import Condition

AT_ONCE = 2**24
"""Most pixels of a mask that are read at once, unless a single row of the scene needs more."""

LATTICE = 65
"""Points along each axis of a scene at which the place of its mask is checked."""


class MaskLimit:
    """A mask on its own grid: pixels of the scene count where it says so; beyond it none does.

    Args:
        path: of the mask.
        grid: of the scene.
        conditions: on the values of valid pixels.
        remote: whether a local mask may refer to servers.

    Raises:
        SourceError: it cannot be opened, has no such band, or lies elsewhere.
    """

    def __init__(self, path: str, grid: RasterGrid, conditions: Sequence[Condition], *, remote: bool = False) -> None:
        bands = sorted({condition.band for condition in conditions})
        self._path, self._conditions = path, [(bands.index(one.band), one) for one in conditions]
        overrides = Overrides(tuple(bands), nodata="none", ignore_alpha=True, remote=remote)
        self._source = RasterSource(path, any_contract(len(bands)), overrides)
        with on_failure(self._source.close):
            self._place = MaskPlacement(path, grid, self._source.grid)
            _check_integers(path, self._source.dtype, conditions)
            self._ratio = self._checked(grid.shape)
        self.files = self._source.files
        self.notes = self._place.notes
        self.bounds = Window.whole(grid.shape)

    def _checked(self, shape: tuple[int, ...]) -> list[float]:
        """Rows and columns of the mask per row and column of the scene; refuses a mask that lies elsewhere."""
        steps = [LATTICE if self._place.moves else size for size in shape]
        rows, cols = (
            np.linspace(0.5, size - 0.5, count, dtype=np.float64) for size, count in zip(shape, steps, strict=True)
        )
        places = self._place(rows, cols)
        there = [(place >= 0) & (place < size) for place, size in zip(places, self._source.grid.shape, strict=True)]
        if not (there[0] & there[1]).any():
            raise SourceError(
                f"{self._path} must lie on its scene, and lies elsewhere: name the scene's own mask, or correct its CRS"
            )
        return [float(np.ptp(place)) / size for place, size in zip(places, shape, strict=True)]

    def invalid(self, window: Window) -> Invalid | None:
        """Mask of the pixels of a window of the scene that are not valid; None if all are."""
        valid = self._valid(window)
        return None if valid.all() else ~valid

    def _valid(self, window: Window) -> NDArray[np.bool_]:
        rows, cols = self._place(
            *(np.arange(a, b, dtype=np.float64) + 0.5 for a, b in zip(window.start, window.stop, strict=True))
        )
        height, width = self._source.grid.shape
        start = max(0, int(rows.min())), max(0, int(cols.min()))
        stop = min(height, int(rows.max()) + 1), min(width, int(cols.max()) + 1)
        if start[0] >= stop[0] or start[1] >= stop[1]:
            return np.zeros(window.shape, np.bool_)
        box = Window(start, stop)
        if box.size > AT_ONCE and window.shape[0] > 1:
            (top, left), (bottom, right), middle = window.start, window.stop, sum((window.start[0], window.stop[0])) // 2
            halves = Window((top, left), (middle, right)), Window((middle, left), (bottom, right))
            return np.concatenate([self._valid(half) for half in halves])
        good, inside = self._good(box), (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
        at = tuple(np.clip(n - low, 0, size - 1) for n, low, size in zip((rows, cols), start, box.shape, strict=True))
        return np.asarray(good[at] & inside)

    def _good(self, box: Window) -> NDArray[np.bool_]:
        """Which pixels of a box of the mask meet all conditions."""
        values, bad = self._source.read(box)
        good = np.ones(box.shape, np.bool_) if bad is None else ~bad
        for k, condition in self._conditions:
            good &= condition.valid(values[k])
        return good

    def memory(self, shape: tuple[int, ...]) -> int:
        own = (int(n * ratio) + 2 for n, ratio in zip(shape, self._ratio, strict=True))
        return self._source.memory(tuple(map(min, own, self._source.grid.shape)))

    def close(self) -> None:
        """Close the mask."""
        self._source.close()


class MaskPlacement:
    """Where pixels of a scene lie on its mask.

    Args:
        path: of the mask, for messages.
        grid: of the scene.
        own: of the mask.

    Raises:
        SourceError: it is not known.
    """

    def __init__(self, path: str, grid: RasterGrid, own: RasterGrid) -> None:
        self._there = grid.transform is not None and own.transform is not None
        if not self._there and grid.shape != own.shape:
            sizes = " and ".join(f"{one.shape[1]} x {one.shape[0]}" for one in (grid, own))
            raise SourceError(
                f"{path} must have a geotransform, as the scene must, or the same size; they have {sizes} pixels: "
                "give it the place of the scene, as with gdal_translate -a_srs -a_ullr"
            )
        self._grid, self._own = grid.transform, own.transform
        self._between = self._transformer(path, grid, own) if self._there else None
        straight = self._there and all(t.b == 0 == t.d for t in (grid.transform, own.transform) if t is not None)
        self.moves = self._there and (self._between is not None or not straight)
        """Whether rows and columns depend on each other."""
        said = f"the mask of valid pixels is read in its own CRS, {own}"
        self.notes: tuple[str, ...] = () if self._between is None else (said,)

    def _transformer(self, path: str, grid: RasterGrid, own: RasterGrid) -> Transformer | None:
        """From the CRS of the scene to the mask's; None if they are the same, or one is not stated."""
        if grid.crs is None or own.crs is None or same_crs(grid.crs, own.crs):
            return None
        try:
            return transformer(horizontal(grid.crs), horizontal(own.crs))
        except (NowhereError, ProjError) as error:
            raise SourceError(
                f"{path} must be in the CRS of its scene, or one that converts to it, got {own} and {grid}: {error}"
            ) from error

    def __call__(self, rows: Float, cols: Float) -> tuple[Integers, Integers]:
        """Row and column on the mask of each pair of a row and a column of the scene; they broadcast against each other.

        Args:
            rows, cols: of points, such as 0.5 for the centre of the first pixel; one axis each.
        """
        if self._grid is None or self._own is None or not self._there:
            return _whole(rows[:, None]), _whole(cols[None, :])
        t, own = self._grid, ~self._own
        if not self.moves:
            x, y = t.a * cols + t.c, t.e * rows + t.f
            return _whole((own.e * y + own.f)[:, None]), _whole((own.a * x + own.c)[None, :])
        x = t.a * cols[None, :] + t.b * rows[:, None] + t.c
        y = t.d * cols[None, :] + t.e * rows[:, None] + t.f
        if self._between is not None:
            x, y = self._between.transform(x, y)
        with np.errstate(invalid="ignore"):
            return _whole(own.d * x + own.e * y + own.f), _whole(own.a * x + own.b * y + own.c)


def _whole(place: Any) -> Integers:
    """Index of the pixel that holds a place; far outside where it does not exist."""
    found = np.where(np.isfinite(place), np.floor(place), -1.0)
    return np.asarray(np.clip(found, -(2.0**31), 2.0**31).astype(np.int64))


def _check_integers(path: str, dtype: np.dtype[Any], conditions: Sequence[Condition]) -> None:
    if dtype.kind not in "iu" and any(condition.kind == "bits" for condition in conditions):
        raise SourceError(f"{path} must hold integers for bits, got {dtype}: give values, such as 4-7,11")

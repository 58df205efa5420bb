"""Size of each class in polygons over a mask: exactextract's coverage of pixels times their true areas.

Coverage is a float of 32 bits there, so the sums of a polygon are brought to its exact area in pixels at the end.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from exactextract.feature import Feature, FeatureSource, JSONFeature
from exactextract.operation import Operation
from exactextract.processor import RasterSequentialProcessor
from exactextract.raster import RasterSource
from exactextract.writer import Writer
from numpy.typing import NDArray

from segpipe.formats.registry import OpenMask
from segpipe.geometry.cells import Cells
from segpipe.geometry.windows import Window
from segpipe.zones.overlap import Shared
from segpipe.zones.polygons import Shapes

CELLS = 4_000_000
"""Pixels of a mask in memory at once: 12 bytes each, for the label and its area."""
MOST_CORRECTION = 1e-6
"""Largest difference between the sums of floats of 32 bits and an area that is rounding."""

Float = NDArray[np.float64]
OPERATIONS = ("count", "unique", "frac", "weighted_frac", "weighted_mean", "weighted_sum")


@dataclass(frozen=True, eq=False)
class Layer:
    """A mask, and what its pixels count."""

    mask: OpenMask
    cells: Cells
    """The areas of its pixels."""
    labels: Sequence[int]
    """All that the mask may hold, nodata included."""
    nodata: int | None = None
    shared: Shared | None = None
    """Which pixels count in another mask; None: none do."""


@dataclass(frozen=True, eq=False)
class Amounts:
    """What lies in each polygon; rows are polygons, columns are positions of labels, and one for what counts elsewhere."""

    pixels: Float
    sizes: Float
    """In m²."""

    @property
    def all_pixels(self) -> Float:
        return np.asarray(self.pixels.sum(axis=1))


def measure(shapes: Shapes, layer: Layer, band: int = 0) -> Amounts:
    """Sum coverage, and coverage times area, of each label in each polygon.

    Args:
        shapes: polygons in pixels, x the column and y the rows left below.
        layer: the mask.
        band: of the mask, from 0.

    Raises:
        ForeignLabelError: the mask holds another label.
    """
    columns = len(layer.labels) + 1
    amounts = Amounts(np.zeros((len(shapes), columns)), np.zeros((len(shapes), columns)))
    if not len(shapes):
        return amounts
    values, weights = _Labels(layer, band), _Sizes(layer.cells)
    operations = [Operation(name, name, values, weights if name.startswith("weighted") else None) for name in OPERATIONS]
    polygons, results = _Polygons(shapes), _Results(amounts)
    processor = RasterSequentialProcessor(polygons, results, operations, ["k"])
    processor.set_max_cells_in_memory(CELLS)
    processor.process()
    return _corrected(amounts, shapes, layer.mask.grid.shape)


class ForeignLabelError(Exception):
    """A mask holds a label that is no class of it."""


def _positions(labels: Sequence[int]) -> NDArray[np.int32]:
    """From a label to its position, counted from 1; 0 where there is none."""
    lookup = np.zeros(max(2**16, max(labels) + 2), np.int32)  # all that 16 bits can hold
    lookup[list(labels)] = np.arange(1, len(labels) + 1)
    return lookup


def _corrected(amounts: Amounts, shapes: Shapes, shape: tuple[int, ...]) -> Amounts:
    """The same with the exact area of each polygon in pixels, where the difference is one of rounding."""
    exact, found = areas_within(shapes, shape), amounts.all_pixels
    factor = np.ones(len(shapes))
    np.divide(exact, found, out=factor, where=found > 0)
    factor[np.abs(factor - 1) > MOST_CORRECTION] = 1
    return Amounts(amounts.pixels * factor[:, None], amounts.sizes * factor[:, None])


def areas_within(shapes: Shapes, shape: tuple[int, ...]) -> Float:
    """Area of each polygon within a grid, in pixels."""
    import shapely

    bounds = shapely.bounds(shapes)
    beyond = (bounds[:, :2] < 0).any(axis=1) | (bounds[:, 2] > shape[1]) | (bounds[:, 3] > shape[0])
    inside = shapes.copy()
    inside[beyond] = shapely.intersection(_valid(inside[beyond]), shapely.box(0, 0, shape[1], shape[0]))
    return np.asarray(shapely.area(inside))


def _valid(shapes: Shapes) -> Shapes:
    """Rounding, as of another CRS, may have made a polygon invalid."""
    import shapely

    return np.asarray(shapely.make_valid(shapes))


class _Grid(RasterSource):  # type: ignore[misc]
    """A grid of pixels as exactextract sees it, from 0 with its first row on top; every pixel has a value."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.set_name(name)  # operations whose rasters have the same names share their sums
        self.shape = shape

    def res(self) -> tuple[float, float]:
        return 1.0, 1.0

    def extent(self) -> tuple[float, float, float, float]:
        return 0.0, 0.0, float(self.shape[1]), float(self.shape[0])

    def nodata_value(self) -> None:
        return None

    def srs_wkt(self) -> None:
        return None


class _Labels(_Grid):
    """The position of each pixel's label; without data is one of them."""

    def __init__(self, layer: Layer, band: int) -> None:
        super().__init__("labels", layer.mask.grid.shape)
        self._layer, self._band, self._positions = layer, band, _positions(layer.labels)

    def read_window(self, x: int, y: int, wide: int, tall: int) -> NDArray[np.int32]:
        if not wide * tall:
            return np.zeros((tall, wide), np.int32)
        window = Window((y, x), (y + tall, x + wide))
        labels = self._layer.mask.read(window, self._band)
        known = np.minimum(labels, len(self._positions) - 1) if labels.itemsize > 2 else labels
        found: NDArray[np.int32] = self._positions[known]
        if not found.all():
            raise ForeignLabelError(str(int(labels[found == 0][0])))
        if self._layer.shared is not None:
            found[self._layer.shared.elsewhere(window, labels == self._layer.nodata)] = len(self._layer.labels) + 1
        return found


class _Sizes(_Grid):
    """The area of each pixel in m²."""

    def __init__(self, cells: Cells) -> None:
        super().__init__("sizes", cells.shape)
        self._cells = cells

    def read_window(self, x: int, y: int, wide: int, tall: int) -> Float:
        return self._cells.of_elements((y, x), (y + tall, x + wide))


class _Polygon(Feature):  # type: ignore[misc]
    def __init__(self, number: int, wkb: bytes) -> None:
        super().__init__()
        self._number, self._wkb = number, wkb

    def geometry(self) -> bytes:
        return self._wkb

    def get(self, name: str) -> int:  # noqa: ARG002 - it has one field
        return self._number

    def fields(self) -> list[str]:
        return ["k"]


class _Polygons(FeatureSource):  # type: ignore[misc]
    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self._shapes = shapes

    def count(self) -> int:
        return len(self._shapes)

    def __iter__(self) -> Iterator[_Polygon]:
        import shapely

        for number, shape in enumerate(self._shapes):
            yield _Polygon(number, shapely.to_wkb(shape))

    def srs_wkt(self) -> None:
        return None


class _Results(Writer):  # type: ignore[misc]
    """Puts what was found in each polygon into the row of that polygon."""

    def __init__(self, amounts: Amounts) -> None:
        super().__init__()
        self._amounts = amounts

    def add_operation(self, operation: Any) -> None:
        del operation

    def write(self, feature: Any) -> None:
        copy = JSONFeature()
        feature.copy_to(copy)
        found = copy.feature["properties"]
        if not found["count"]:
            return
        row, column = found["k"], np.asarray(found["unique"]) - 1
        self._amounts.pixels[row, column] = found["frac"] * found["count"]
        # positions begin with 1, so that the mean is none by zero
        self._amounts.sizes[row, column] = found["weighted_frac"] * (found["weighted_sum"] / found["weighted_mean"])

    def finish(self) -> None: ...

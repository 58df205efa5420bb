"""Size of each class in polygons over a mask: exactextract's coverage of pixels times their true areas.

exactextract stores coverage as 32-bit floats, so a polygon's sums are corrected at the end to its exact area in pixels.
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
from segpipe.overlap.shared import Shared
from segpipe.vectors.surfaces import Shapes

CELLS = 4_000_000
"""Number of mask pixels in memory at once: 12 bytes each, for the label and its area."""
MOST_CORRECTION = 1e-6
"""Largest relative difference between sums of 32-bit floats and the exact area that counts as rounding."""

Float = NDArray[np.float64]
OPERATIONS = ("count", "unique", "frac", "weighted_frac", "weighted_mean", "weighted_sum")


@dataclass(frozen=True, eq=False)
class Layer:
    """A mask, the areas of its pixels, and its labels."""

    mask: OpenMask
    cells: Cells
    """Areas of the pixels."""
    labels: Sequence[int]
    """All labels that the mask may hold, including nodata."""
    nodata: int | None = None
    shared: Shared | None = None
    """The pixels that count in another mask; None: no pixels do."""


@dataclass(frozen=True, eq=False)
class Amounts:
    """Amounts in each polygon; rows are polygons, columns are positions of labels, and one for what counts elsewhere."""

    pixels: Float
    sizes: Float
    """Areas in m²."""

    @property
    def all_pixels(self) -> Float:
        return np.asarray(self.pixels.sum(axis=1))


def measure(shapes: Shapes, layer: Layer, band: int = 0) -> Amounts:
    """Sum coverage, and coverage times area, of each label in each polygon.

    Args:
        shapes: polygons in pixels, x the column, y the number of rows above the bottom edge.
        layer: the mask.
        band: band of the mask, from 0.

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
    """A mask holds a label that is not one of its classes."""


def _positions(labels: Sequence[int]) -> NDArray[np.int32]:
    """Lookup table from a label to its position, counted from 1; 0 for unknown labels."""
    lookup = np.zeros(max(2**16, max(labels) + 2), np.int32)  # all that 16 bits can hold
    lookup[list(labels)] = np.arange(1, len(labels) + 1)
    return lookup


def _corrected(amounts: Amounts, shapes: Shapes, shape: tuple[int, ...]) -> Amounts:
    """Scale the amounts to the exact area of each polygon in pixels if they differ only by rounding."""
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
    """Repair polygons that rounding, for example in another CRS, has made invalid."""
    import shapely

    return np.asarray(shapely.make_valid(shapes))


class _Grid(RasterSource):  # type: ignore[misc]
    """A grid of pixels in exactextract's terms: origin 0, first row on top, a value in every pixel."""

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
    """The position of each pixel's label; nodata has a position, too."""

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
    """Stores the result of each polygon in its row."""

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
        # positions start at 1, so that the mean is not 0
        self._amounts.sizes[row, column] = found["weighted_frac"] * (found["weighted_sum"] / found["weighted_mean"])

    def finish(self) -> None: ...

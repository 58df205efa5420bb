"""Sums over polygons of the pixels of each label, and of their true areas, block by block of a mask."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Float
from segpipe.formats.registry import OpenMask
from segpipe.geometry.cells import Cells
from segpipe.geometry.windows import Window
from segpipe.process.machine import reuse_freed_memory
from segpipe.results.overlap.shared import Shared
from segpipe.results.zones.coverage import Boxes, Edges, coverage
from segpipe.vectors.surfaces import Shapes

BLOCK = (512, 1024)
"""Rows and columns of a mask in memory at once: its arrays fit into caches, and the C library reuses their memory."""
BATCH = 2**18
"""Pixels of the boxes of polygons that are measured at once; a single polygon may have more, up to a block."""


@dataclass(frozen=True, eq=False)
class MeasuredMask:
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


class ForeignLabelError(Exception):
    """A mask holds a label that is not one of its classes."""


def measure(shapes: Shapes, layer: MeasuredMask, band: int = 0) -> Amounts:
    """Sum coverage, and coverage times area, of each label in each polygon.

    Args:
        shapes: polygons in pixels, x the column, y the number of rows above the bottom edge.
        layer: the mask.
        band: band of the mask, from 0.

    Raises:
        ForeignLabelError: the mask holds another label.
    """
    import shapely

    reuse_freed_memory()
    columns = len(layer.labels) + 2  # the first is for pixels beyond a block
    amounts = Amounts(np.zeros((len(shapes), columns)), np.zeros((len(shapes), columns)))
    positions, (rows, _) = _positions(layer.labels), layer.mask.grid.shape
    bounds = shapely.bounds(shapes).reshape(-1, 4)
    extents = np.stack([rows - bounds[:, 3], bounds[:, 0], rows - bounds[:, 1], bounds[:, 2]], axis=1)
    for block in _blocks(layer.mask.grid.shape):
        which, boxes = _touching(extents, block)
        if len(which):
            for part, pixels, sizes in _sums(shapes[which], boxes, _Pixels.read(layer, positions, band, boxes)):
                amounts.pixels[which[part]] += pixels.reshape(-1, columns)
                amounts.sizes[which[part]] += sizes.reshape(-1, columns)
    return Amounts(amounts.pixels[:, 1:], amounts.sizes[:, 1:])


def _positions(labels: Sequence[int]) -> NDArray[np.int32]:
    """Lookup table from a label to its position, counted from 1; 0 for unknown labels."""
    lookup = np.zeros(max(2**16, max(labels) + 2), np.int32)  # all that 16 bits can hold
    lookup[list(labels)] = np.arange(1, len(labels) + 1)
    return lookup


def _blocks(shape: tuple[int, ...]) -> Iterator[Window]:
    for start in product(*(range(0, size, side) for size, side in zip(shape, BLOCK, strict=True))):
        yield Window(start, tuple(min(a + side, size) for a, side, size in zip(start, BLOCK, shape, strict=True)))


def _touching(extents: Float, block: Window) -> tuple[NDArray[np.int64], Boxes]:
    """The polygons that touch a block, and their boxes in it."""
    low, high = np.floor(extents[:, :2]), np.ceil(extents[:, 2:])
    start, stop = np.maximum(low, block.start), np.minimum(high, block.stop)
    which = np.flatnonzero((start < stop).all(axis=1))
    (top, left), (bottom, right) = start[which].astype(np.int64).T, stop[which].astype(np.int64).T
    return which, Boxes(top, left, bottom, right)


@dataclass(frozen=True, eq=False)
class _Pixels:
    """Pixels of a part of a mask, with one column more."""

    top: int
    left: int
    positions: NDArray[np.int32]
    """Position of the label of each pixel; 0 in the additional column."""
    sizes: Float
    """Area of each pixel in m²."""
    columns: int
    """Number of positions, with 0."""
    rows: int
    """Rows of the mask."""

    @classmethod
    def read(cls, layer: MeasuredMask, positions: NDArray[np.int32], band: int, boxes: Boxes) -> "_Pixels":
        """The pixels of the smallest window with all boxes."""
        start, stop = (int(boxes.top.min()), int(boxes.left.min())), (int(boxes.bottom.max()), int(boxes.right.max()))
        found = _widened(_found(layer, positions, Window(start, stop), band))
        sizes = _widened(layer.cells.of_elements(start, stop))
        return cls(*start, found, sizes, len(layer.labels) + 2, layer.mask.grid.shape[0])

    def of(self, values: NDArray[Any], boxes: Boxes) -> NDArray[Any]:
        """Values of the pixels of boxes, box after box."""
        corners = (boxes.top - self.top, boxes.bottom - self.top, boxes.left - self.left, boxes.right - self.left + 1)
        each = zip(*(corner.tolist() for corner in corners), strict=True)
        return np.concatenate([values[a:b, c:d].ravel() for a, b, c, d in each])


def _widened(values: NDArray[Any]) -> NDArray[Any]:
    """The same with a column of zeros at the right."""
    wide = np.zeros((values.shape[0], values.shape[1] + 1), values.dtype)
    wide[:, :-1] = values
    return wide


def _found(layer: MeasuredMask, positions: NDArray[np.int32], window: Window, band: int) -> NDArray[np.int32]:
    """The position of each pixel's label."""
    labels = layer.mask.read(window, band)
    known = np.minimum(labels, len(positions) - 1) if labels.itemsize > 2 else labels
    found: NDArray[np.int32] = positions[known]
    if not found.all():
        raise ForeignLabelError(str(int(labels[found == 0][0])))
    if layer.shared is not None:
        found[layer.shared.elsewhere(window, labels == layer.nodata)] = len(layer.labels) + 1
    return found


def _sums(shapes: Shapes, boxes: Boxes, pixels: _Pixels) -> Iterator[tuple[slice, Float, Float]]:
    """Pixels and areas of each polygon and position, for some polygons after others."""
    for part in _batches(boxes):
        some = boxes[part]
        covered = coverage(Edges.of(shapes[part], pixels.rows), some)
        count = len(some.size) * pixels.columns
        key = np.repeat(np.arange(0, count, pixels.columns), some.size)
        key += pixels.of(pixels.positions, some)
        counted = np.asarray(np.bincount(key, covered, count), np.float64)
        covered *= pixels.of(pixels.sizes, some)
        yield part, counted, np.asarray(np.bincount(key, covered, count), np.float64)


def _batches(boxes: Boxes) -> Iterator[slice]:
    """Polygons whose boxes together have about ``BATCH`` pixels."""
    group = boxes.first // BATCH
    edges = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(group)]
    yield from map(slice, edges[:-1], edges[1:])

"""The grid of a mosaic: the common grid of its masks, or else the one that the user names."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from affine import Affine
from rasterio.crs import CRS

from segpipe.array_types import Float
from segpipe.errors import OverlapError
from segpipe.geometry.extents import SAMPLES
from segpipe.geometry.lookup import wrap_length
from segpipe.geometry.raster_grid import RasterGrid, parse_crs
from segpipe.geometry.reference import CrsFacts, crs_name, horizontal, transformer
from segpipe.messages.printable import printable

MOST_DRIFT = 1e-3
"""Largest offset between the pixels of two grids that count as aligned, as a share of a pixel."""
MOST_SIDE = 2**31 - 1
"""Most rows or columns of a raster in GDAL."""
MOST_PIXELS = 2**42
"""Most pixels of a mosaic: the places of its blocks take 12 bytes per 262,144 pixels in the file, and 1.5 GB of memory."""

Placed = tuple[str, RasterGrid]
"""Name and grid of a mask."""


@dataclass(frozen=True)
class GridRequest:
    """What the user says of the grid."""

    crs: str | None = None
    resolution: float | None = None
    """Pixel size in the unit of the CRS."""


@dataclass(frozen=True)
class MosaicGrid:
    """The grid of a mosaic."""

    grid: RasterGrid
    reprojected: Sequence[str]
    """Names of the masks whose pixels are not those of the grid: each pixel of the grid takes the one in which its centre
    lies."""


def mosaic_grid(masks: Sequence[Placed], request: GridRequest) -> MosaicGrid:
    """The grid that holds all masks.

    Raises:
        OverlapError: their CRSs or pixel sizes differ, and the user names none; or the grid would be too large.
    """
    crs = _crs(masks, request)
    inside = [one for one in masks if _same_crs(one[1], crs)]
    lattice = _lattice(inside, request)
    bounds = _bounds([grid for _, grid in masks], crs, lattice)
    start, stop = _on_earth(np.floor(bounds[0] + MOST_DRIFT), np.ceil(bounds[1] - MOST_DRIFT), crs, lattice)
    cols, rows = (int(n) for n in stop - start)
    _refuse_large(rows, cols, lattice)
    grid = RasterGrid((rows, cols), crs, lattice * Affine.translation(int(start[0]), int(start[1])))
    fits = {name for name, own in inside if _is_on(lattice, own)}
    return MosaicGrid(grid, [name for name, _ in masks if name not in fits])


def _refuse_large(rows: int, cols: int, lattice: Affine) -> None:
    if max(cols, rows) > MOST_SIDE or rows * cols > MOST_PIXELS:
        least = max(math.sqrt(rows * cols / MOST_PIXELS), max(cols, rows) / MOST_SIDE)
        raise OverlapError(
            f"a mosaic may have {MOST_PIXELS / 1e6:,.0f} Mpx, and {MOST_SIDE:,} rows or columns, got {rows:,} x "
            f"{cols:,}: give --resolution {_rounded_up(least * abs(lattice.determinant) ** 0.5)} or coarser, or run again "
            "with the cases of one region and the same --output, and join those"
        )


def _rounded_up(size: float) -> str:
    """A pixel size with two digits, no finer than this one."""
    step: float = 10.0 ** (math.floor(math.log10(size)) - 1)
    return f"{math.ceil(size * 1.001 / step) * step:.6g}"


def _crs(masks: Sequence[Placed], request: GridRequest) -> CRS:
    if request.crs is not None:
        try:
            return parse_crs(request.crs)
        except ValueError as error:
            raise OverlapError(f"--crs {error}") from None
    name, first = masks[0]
    assert first.crs is not None  # it has a ground
    for other, grid in masks[1:]:
        if not _same_crs(grid, first.crs):
            raise OverlapError(
                f"a mosaic has one CRS, and {printable(name)} is in {first} and {printable(other)} in {grid}: "
                f"name one with --crs, such as --crs {first}"
            )
    return first.crs


def _same_crs(grid: RasterGrid, crs: CRS) -> bool:
    return grid.crs is not None and (grid.crs == crs or horizontal(grid.crs).equals(horizontal(crs)))


def _lattice(inside: Sequence[Placed], request: GridRequest) -> Affine:
    """From column and row to coordinates, with an origin at which pixels of the grid may begin."""
    if request.resolution is not None:
        plain = Affine.scale(request.resolution, -request.resolution)
        return next((_transform(grid) for _, grid in inside if _is_on_scale(plain, grid)), plain)
    if not inside:
        raise OverlapError("--crs is the CRS of no mask, so that its pixels need a size: give --resolution, too")
    (name, first), *rest = inside
    lattice = _transform(first)
    for other, grid in rest:
        if not _is_on_scale(lattice, grid):
            raise OverlapError(
                f"a mosaic has pixels of one size and direction: those of {printable(name)} are {_sized(first)}, of "
                f"{printable(other)} {_sized(grid)}: give --resolution {_sized(first).split(' x ')[0]}, or another size"
            )
    return lattice


def _transform(grid: RasterGrid) -> Affine:
    assert grid.transform is not None  # it has a ground
    return grid.transform


def _sized(grid: RasterGrid) -> str:
    t = _transform(grid)
    return f"{math.hypot(t.a, t.d):.10g} x {math.hypot(t.b, t.e):.10g}"


def _is_on_scale(lattice: Affine, grid: RasterGrid) -> bool:
    """Whether pixels have the same size and direction, so that none is lost or repeated over the whole grid."""
    relative = ~lattice * _transform(grid)
    bends = (relative.a - 1, relative.b, relative.d, relative.e - 1)
    return float(max(map(abs, bends))) * max(grid.shape) < MOST_DRIFT


def _is_on(lattice: Affine, grid: RasterGrid) -> bool:
    """Whether the pixels of a grid are pixels of the lattice."""
    relative = ~lattice * _transform(grid)
    shift = max(abs(relative.c - round(relative.c)), abs(relative.f - round(relative.f)))
    return _is_on_scale(lattice, grid) and shift < MOST_DRIFT


def _bounds(grids: Sequence[RasterGrid], crs: CRS, lattice: Affine) -> Float:
    """Least and largest column and row of all grids in a lattice, ``(2, 2)``."""
    turn, inverse, found = wrap_length(CrsFacts(horizontal(crs), crs_name(crs))), ~lattice, []
    outlines = [_ends(_outline(grid, crs), inverse, turn) for grid in grids]
    if turn:
        wide = [(grid, y) for grid, (x, y) in zip(grids, outlines, strict=True) if np.ptp(x) > turn / 2]
        reached = [(pole, y) for grid, y in wide if (pole := _pole_within(grid, crs)) is not None]
        around = [_whole_turn(y[0] if math.isnan(pole) else pole, turn) for pole, y in reached]
        outlines = _within_a_turn([*_unwrapped(outlines, turn), *around], turn)
    for x, y in outlines:
        col, row = inverse * (x, y)
        found.append(((col.min(), row.min()), (col.max(), row.max())))
    each = np.array(found)
    return np.stack([each[:, 0].min(axis=0), each[:, 1].max(axis=0)])


def _on_earth(start: Float, stop: Float, crs: CRS, lattice: Affine) -> tuple[Float, Float]:
    """First and last column and row, limited to the poles and to one turn around the Earth."""
    facts = CrsFacts(horizontal(crs), crs_name(crs))
    if not facts.is_plain or lattice.b or lattice.d:
        return start, stop
    poles = sorted((pole - lattice.f) / lattice.e for pole in (-math.pi / 2 / facts.radians, math.pi / 2 / facts.radians))
    first, last = math.ceil(poles[0] - 0.5 - MOST_DRIFT), math.floor(poles[1] + 0.5 + MOST_DRIFT)  # by centres of pixels
    cols = math.ceil(2 * math.pi / facts.radians / abs(lattice.a) - MOST_DRIFT)
    return np.maximum(start, (start[0], first)), np.minimum(stop, (start[0] + cols, last))


CORNERS = 3
"""Sampled points along an axis that is straight in the CRS: both ends, and the middle, the reference for wrapping."""


def _outline(grid: RasterGrid, crs: CRS) -> tuple[Float, Float]:
    """Points of a grid in a CRS.

    Raises:
        OverlapError: none has coordinates there.
    """
    same = _same_crs(grid, crs)
    axes = [np.linspace(0, size, CORNERS if same else SAMPLES) for size in grid.shape]
    rows, cols = (values.ravel() for values in np.meshgrid(*axes, indexing="ij"))
    t = _transform(grid)
    x, y = t.a * cols + t.b * rows + t.c, t.d * cols + t.e * rows + t.f
    if not same:
        assert grid.crs is not None
        x, y = transformer(horizontal(grid.crs), horizontal(crs)).transform(x, y)
    there = np.isfinite(x) & np.isfinite(y)
    if not there.any():
        raise OverlapError(f"--crs must be a CRS in which all masks have a place, got {crs_name(crs)}: name another")
    return x[there], y[there]


def _ends(outline: tuple[Float, Float], inverse: Affine, turn: float | None) -> tuple[Float, Float]:
    """The extreme points of an outline alone: a whole outline takes 70 kB, and there may be thousands."""
    x, y = outline
    if turn:
        x = x - turn * np.rint((x - x[len(x) // 2]) / turn)
    col, row = inverse * (x, y)  # type: ignore[operator]  # its types know no arrays
    kept = [at for values in (x, col, row) for at in (values.argmin(), values.argmax())]
    return x[kept], y[kept]


def _unwrapped(outlines: Sequence[tuple[Float, Float]], turn: float) -> list[tuple[Float, Float]]:
    """Outlines moved by full turns so that they lie close together: grids on both sides of the antimeridian are one map."""
    middles = np.array([(x.min() + x.max()) / 2 for x, _ in outlines])
    places = np.sort(middles % turn)
    gaps = np.diff(np.append(places, places[0] + turn))
    if turn - gaps.max() >= np.ptp(middles) - turn * 1e-6:
        return list(outlines)
    start = places[(int(np.argmax(gaps)) + 1) % len(places)]
    moved = start + (middles - start) % turn
    base = turn * np.rint(np.median(moved) / turn)  # close to the usual range of coordinates
    return [(x + shift, y) for (x, y), shift in zip(outlines, moved - middles - base, strict=True)]


def _pole_within(grid: RasterGrid, crs: CRS) -> float | None:
    """Latitude of the pole inside a grid, in the unit of a CRS (NaN if that is projected); None if there is no pole inside.

    Such a grid covers all longitudes, although its sampled points may miss the map's borders.
    """
    target = CrsFacts(horizontal(crs), crs_name(crs))
    if _same_crs(grid, crs) or grid.crs is None:
        return None
    geodetic = target.crs if target.is_plain else target.geodetic
    quarter = math.pi / 2 / (target.radians if target.is_plain else target.geodetic_radians)
    between, inverse = transformer(geodetic, horizontal(grid.crs)), ~_transform(grid)
    for pole in (-quarter, quarter):
        x, y = between.transform(0.0, pole)
        if math.isfinite(x) and math.isfinite(y):
            col, row = inverse * (x, y)
            if 0 < row < grid.shape[0] and 0 < col < grid.shape[1]:
                return pole if target.is_plain else math.nan
    return None


def _whole_turn(y: float, turn: float) -> tuple[Float, Float]:
    return np.array([-turn / 2, turn / 2]), np.array([y, y])


def _within_a_turn(outlines: Sequence[tuple[Float, Float]], turn: float) -> list[tuple[Float, Float]]:
    """Clip outlines that together span more than 360 degrees to one turn, from the western end of the widest."""
    west, east = (np.array([end(x) for x, _ in outlines]) for end in (np.min, np.max))
    if east.max() - west.min() <= turn:
        return list(outlines)
    start = west[np.argmax(east - west)]
    return [(np.clip(x, start, start + turn), y) for x, y in outlines]

"""Check that a finished raster reads back as it was meant."""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from affine import Affine
from pyproj import CRS as PROJ
from pyproj.exceptions import CRSError
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.io import DatasetReader
from rasterio.rpc import RPC

from segpipe.formats.style import UNUSED, Style
from segpipe.geometry.raster_grid import RasterGrid

PIXEL_TOLERANCE = 1e-6
"""Share of a pixel by which a corner may move: tie points are sums of doubles."""

ULPS = 8
"""Units in the last place by which a coordinate may differ for the same reason."""

RELATIVE = 1e-12

WKT = "WKT2_2019"


def lost(dataset: DatasetReader, grid: RasterGrid, style: Style, *, picture: bool = False) -> list[str]:
    """Names of properties that do not read back equal; PNG cannot store descriptions and scale."""
    checks = [*_place(dataset, grid), *_pixels(dataset, grid, style), ("colours", _colors(dataset, style))]
    if not picture:
        checks.append(("band descriptions", list(dataset.descriptions) == list(style.bands)))
        checks.append(("scale", set(dataset.scales) == {style.scale}))
    return [name for name, kept in checks if not kept]


def _place(dataset: DatasetReader, grid: RasterGrid) -> Iterator[tuple[str, bool]]:
    points, points_crs = dataset.gcps
    yield "CRS", same_crs(dataset.crs, grid.crs)
    yield "transform", same_transform(dataset.transform, grid.transform or Affine.identity(), grid.shape)
    yield "control points", _same_points(points, grid.gcps) and (not grid.gcps or same_crs(points_crs, grid.gcps_crs))
    yield "RPCs", _same_rpcs(dataset.rpcs, grid.rpcs)


def _pixels(dataset: DatasetReader, grid: RasterGrid, style: Style) -> Iterator[tuple[str, bool]]:
    yield "size", dataset.shape == tuple(grid.shape)
    yield "type", dataset.dtypes == (style.dtype,) * len(style.bands)
    yield "nodata", dataset.nodatavals == (style.nodata,) * len(style.bands)
    found = dataset.tags()
    yield "tags", all(_folded(found.get(key, "")) == _folded(value) for key, value in (style.tags or {}).items())


def _folded(text: str) -> str:
    """Collapse white space, which XML readers, GDAL's included, do not preserve."""
    return " ".join(text.split())


def _colors(dataset: DatasetReader, style: Style) -> bool:
    return style.colors is None or dataset.colormap(1) == UNUSED | style.colors


def same_crs(found: CRS | None, meant: CRS | None) -> bool:
    """Whether two CRSs agree in all but names. No CRS may come back as GDAL's unnamed local one."""
    if found is None or meant is None:
        return found is meant or _unnamed(found or meant)
    return _equal(str(found.to_wkt(version=WKT)), str(meant.to_wkt(version=WKT)))


def _unnamed(crs: CRS | None) -> bool:
    """Whether a CRS is GDAL's unnamed local one, made for a GeoTIFF with AREA_OR_POINT or a transform but no CRS."""
    return crs is not None and crs.wkt.startswith(('LOCAL_CS["unnamed"', 'ENGCRS["unnamed"'))


@lru_cache(64)
def _equal(found: str, meant: str) -> bool:
    """Compare CRSs with PROJ: GDAL's comparison ignores a datum shift.

    The result is cached: it takes longer than writing a mask, and the cases of a folder share few CRSs.
    """
    if found == meant:
        return True
    try:
        return bool(PROJ.from_wkt(found).equals(PROJ.from_wkt(meant)))
    except CRSError:
        return False


def same_transform(found: Affine, meant: Affine, shape: Sequence[int]) -> bool:
    """Whether all corners of a grid are where they should be."""
    rows, cols = shape
    return all(_near(found, meant, corner) for corner in ((0, 0), (cols, 0), (0, rows), (cols, rows)))


def _near(found: Affine, meant: Affine, corner: tuple[int, int]) -> bool:
    for (a, b, c), (d, e, f) in ((tuple(found)[0:3], tuple(meant)[0:3]), (tuple(found)[3:6], tuple(meant)[3:6])):
        x, y = a * corner[0] + b * corner[1] + c, d * corner[0] + e * corner[1] + f
        if not abs(x - y) <= PIXEL_TOLERANCE * max(abs(d), abs(e)) + ULPS * math.ulp(max(abs(f), abs(y))):
            return False
    return True


def _same_points(found: Sequence[GroundControlPoint], meant: Sequence[GroundControlPoint]) -> bool:
    def numbers(points: Sequence[GroundControlPoint]) -> list[float]:
        return [float(n) for p in points for n in (p.row, p.col, p.x, p.y, p.z or 0.0)]

    return len(found) == len(meant) and _close(numbers(found), numbers(meant))


def _same_rpcs(found: RPC | None, meant: RPC | None) -> bool:
    if found is None or meant is None:
        return found is meant
    ours, theirs = _flat(found), _flat(meant)
    return ours.keys() == theirs.keys() and _close(list(ours.values()), [theirs[key] for key in ours])


def _flat(rpcs: RPC) -> dict[str, float]:
    """All numbers of RPCs by name; unknown errors come back as -1 or not at all."""
    found: dict[str, float] = {}
    values: dict[str, Any] = rpcs.to_dict()
    for key, value in values.items():
        if isinstance(value, list):
            found |= {f"{key}{i}": float(n) for i, n in enumerate(value)}
        elif not key.startswith("err") or value not in (None, 0, -1):
            found[key] = float(value)
    return found


def _close(found: Sequence[float], meant: Sequence[float]) -> bool:
    return all(math.isclose(a, b, rel_tol=RELATIVE, abs_tol=RELATIVE) for a, b in zip(found, meant, strict=True))

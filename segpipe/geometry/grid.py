"""Where the array of a case lies."""

import math
from dataclasses import dataclass, replace

from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.io import DatasetReader
from rasterio.rpc import RPC

from segpipe.errors import one_line


@dataclass(frozen=True)
class Grid:
    """CRS and affine transform of a raster, or nothing for a plain picture; carried unchanged from input to mask."""

    shape: tuple[int, ...]
    """Pixels per spatial axis: (rows, cols)."""
    crs: CRS | None = None
    transform: Affine | None = None
    """From (column, row) to the CRS, finite and invertible; None where there is none."""
    defect: str | None = None
    """Why the transform that the file has is none."""
    gcps: tuple[GroundControlPoint, ...] = ()
    gcps_crs: CRS | None = None
    rpcs: RPC | None = None
    area_or_point: str | None = None

    @property
    def georeferenced(self) -> bool:
        return bool(self.crs or self.transform or self.gcps or self.rpcs)

    def __str__(self) -> str:
        if self.crs:
            code = self.crs.to_epsg()
            return f"EPSG:{code}" if code else str(self.crs.to_wkt())
        return "ground control points" if self.gcps else "no CRS"


def parse_crs(text: str) -> CRS:
    """A CRS that a user names.

    Raises:
        ValueError: it is none that PROJ knows.
    """
    try:
        return CRS.from_user_input(text)
    except CRSError as error:
        raise ValueError(f"must be a code such as EPSG:32633, or WKT, got {text[:80]}: {one_line(error)}") from None


def read_grid(dataset: DatasetReader, crs: str | None = None) -> Grid:
    """The georeferencing of a dataset as it is, or with another CRS."""
    gcps, gcps_crs = dataset.gcps
    transform, defect = (None, None) if gcps else usable(dataset.transform)
    grid = Grid(
        shape=dataset.shape,
        crs=dataset.crs,
        transform=transform,
        defect=defect,
        gcps=tuple(gcps),
        gcps_crs=gcps_crs,
        rpcs=dataset.rpcs,
        area_or_point=dataset.tags().get("AREA_OR_POINT"),
    )
    return grid if crs is None else with_crs(grid, parse_crs(crs))


def usable(transform: Affine) -> tuple[Affine | None, str | None]:
    """A transform that can be one, or why it cannot. The identity is what GDAL gives where a file has none."""
    listed = ", ".join(f"{v:g}" for v in transform.to_gdal())
    if not all(map(math.isfinite, transform[:6])):
        return None, f"the geotransform must be of finite numbers, got {listed}"
    if transform.determinant == 0:
        return None, f"the geotransform must give pixels a width and a height, got {listed}"
    return (None, None) if transform.is_identity else (transform, None)


def with_crs(grid: Grid, crs: CRS) -> Grid:
    """A grid under another CRS; as it is where it has neither transform nor control points that the CRS would place."""
    if grid.gcps:
        return replace(grid, gcps_crs=crs)
    return grid if grid.transform is None else replace(grid, crs=crs)


def crs_notes(dataset: DatasetReader, grid: Grid, crs: str | None) -> list[str]:
    """What a user's CRS has come to: where it took the place of another, or of none, and where it places nothing."""
    if crs is None:
        return []
    if not grid.gcps and grid.transform is None:
        return ["--crs places nothing: the file has neither a geotransform nor control points"]
    stated = dataset.gcps[1] if grid.gcps else dataset.crs
    if stated == parse_crs(crs):
        return []
    return [f"the CRS is {crs} by --crs; the file says {stated.to_string() if stated else 'none'}"]

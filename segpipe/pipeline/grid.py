"""Where the array of a case lies."""

from dataclasses import dataclass

from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.rpc import RPC


@dataclass(frozen=True)
class Grid:
    """CRS and affine transform of a raster, or nothing for a plain picture; carried unchanged from input to mask."""

    shape: tuple[int, ...]
    """Pixels per spatial axis: (rows, cols)."""
    crs: CRS | None = None
    transform: Affine | None = None
    """From (column, row) to the CRS; None without georeferencing."""
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

"""The polygons of ``--zones``, named by a column, with a list of problems for each."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyproj import CRS

from segpipe.vectors.file import Selection, read_surfaces
from segpipe.vectors.surfaces import Shapes, bounds_of, digest_of

if TYPE_CHECKING:
    from geopandas import GeoDataFrame


@dataclass(frozen=True, eq=False)
class Zones:
    """The polygons of a file, in its order."""

    selection: Selection
    names: tuple[str, ...]
    """Value of the column of each polygon, or its number from 1."""
    shapes: Shapes
    """Valid polygons in ``crs``, without heights; empty if a zone has none."""
    crs: CRS
    problems: tuple[tuple[str, ...], ...]
    """Problems of each polygon."""
    digest: str = field(repr=False)
    """Hash of shapes and CRS."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Minimum x and y, maximum x and y, over all polygons."""
        return bounds_of(self.shapes)


def read_zones(selection: Selection) -> Zones:
    """Read the polygons of a file and repair them.

    Raises:
        ZonesError: no such file, layer or column, no CRS, or no polygon.
        InstallationError: an optional dependency is missing.
    """
    read = read_surfaces(selection)
    names, named_problems = _names(read.frame, selection.column)
    both = tuple(tuple(a) + tuple(b) for a, b in zip(named_problems, read.problems, strict=True))
    return Zones(
        selection=selection,
        names=names,
        shapes=read.shapes,
        crs=read.crs,
        problems=both,
        digest=digest_of(read.shapes, read.crs),
    )


def _names(frame: "GeoDataFrame", column: str | None) -> tuple[tuple[str, ...], list[list[str]]]:
    """The name of each zone, and problems with the names."""
    if column is None:
        return tuple(str(k + 1) for k in range(len(frame))), [[] for _ in range(len(frame))]
    import pandas

    values = frame[column]
    names = ["" if lost else _name(value) for value, lost in zip(values, pandas.isna(values), strict=True)]
    count = pandas.Series(names).value_counts()
    return tuple(names), [["no id"] if not name else ["duplicated id"] * int(count[name] > 1) for name in names]


def _name(value: Any) -> str:
    """An id as text; a column of numbers with missing values holds floats."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

"""GeoJSON (RFC 7946) as text, written ring by ring.

A polygon may have millions of vertices: with GDAL's driver, a map of 2.6 million polygons took more than 520 s and 1 GiB.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segpipe.vectors.surfaces import Shapes, surfaces

if TYPE_CHECKING:
    import pyarrow

DIGITS = 9
"""Decimals of longitudes and latitudes: 0.1 mm."""
POINTS = 2**17
"""Vertices whose text is in memory at once; at least one ring is."""
ROWS = 2**13
"""Rows of a batch whose geometries are in memory at once."""
COLUMNS = "columns"
"""Member of the file with the names of its columns, by which ``columns_of`` knows it."""
HEAD = 2**16
"""Bytes in which the columns of a file stand."""

Strings = Any
"""A pyarrow array of strings."""


def write_geojson(path: Path, columns: Sequence[str], batches: "Iterator[pyarrow.RecordBatch]", *, on_earth: bool) -> None:
    """Write rows whose last column is the geometry as WKB; its name is not among ``columns``.

    Args:
        path: file to write.
        columns: names of the other columns.
        batches: rows.
        on_earth: coordinates are longitudes, which may go on across the antimeridian, and latitudes; otherwise pixels.
    """
    with path.open("wb") as stream:
        stream.write(_head(columns))
        first = True
        for batch in batches:
            for start in range(0, len(batch), ROWS):
                for text in _features(batch.slice(start, ROWS), first=first, on_earth=on_earth):
                    stream.write(text)
                    first = False
        stream.write(b"\n]}\n")


def columns_of(path: Path) -> list[str]:
    """The columns of a file that ``write_geojson`` has written; none of any other."""
    with path.open("rb") as stream:
        line = stream.readline(HEAD)
    try:
        found = json.loads(line + b"]}").get(COLUMNS, [])
    except (ValueError, AttributeError):
        return []
    return list(found) if isinstance(found, list) else []


def _head(columns: Sequence[str]) -> bytes:
    members = {"type": "FeatureCollection", COLUMNS: list(columns)}
    return json.dumps(members, ensure_ascii=False)[:-1].encode() + b', "features": [\n'


@dataclass(frozen=True, eq=False)
class _Rings:
    """The rings of some geometries, in order."""

    points: NDArray[np.float64]
    start: NDArray[np.int64]
    """First point of each ring, and the number of points."""
    part: NDArray[np.int64]
    """Polygon of each ring."""
    feature: NDArray[np.int64]

    @classmethod
    def of(cls, shapes: Shapes) -> "_Rings":
        import shapely

        parts, feature = shapely.get_parts(shapes, return_index=True)
        rings, part = shapely.get_rings(parts, return_index=True)
        points = shapely.get_coordinates(rings)
        start = np.append(0, np.cumsum(shapely.get_num_coordinates(rings)))
        return cls(points, start, part, feature[part])

    def groups(self) -> Iterator[slice]:
        """Rings that have about ``POINTS`` points together."""
        group = self.start[:-1] // POINTS
        edges = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(group)]
        yield from map(slice, edges[:-1], edges[1:])


def _features(batch: "pyarrow.RecordBatch", *, first: bool, on_earth: bool) -> Iterator[memoryview]:
    """Text of features, a group of rings after another."""
    import shapely

    shapes = shapely.from_wkb(batch.column(batch.num_columns - 1).to_numpy(zero_copy_only=False))
    shapes = within_a_turn(shapes) if on_earth else shapes
    multi = shapely.get_type_id(shapes) == shapely.GeometryType.MULTIPOLYGON
    heads, rings = _heads(batch, multi, first=first), _Rings.of(shapes)
    opening, closing = _brackets(rings, multi)
    for group in rings.groups():
        yield _written(rings, group, heads, (opening[group], closing[group]), DIGITS if on_earth else None)


def within_a_turn(shapes: Shapes) -> Shapes:
    """Polygons with longitudes from -180 to 180, cut at the antimeridian (RFC 7946, section 3.1.9)."""
    import shapely

    bounds = shapely.bounds(shapes)
    beyond = np.flatnonzero((bounds[:, 0] < -180) | (bounds[:, 2] > 180))
    if not beyond.size:
        return shapes
    found, pieces = shapes.copy(), list[Shapes]()
    for turn in (-360.0, 0.0, 360.0):
        cut = shapely.intersection(shapes[beyond], shapely.box(-180 - turn, -90, 180 - turn, 90))
        pieces.append(shapely.transform(cut, lambda xy, turn=turn: xy + np.array([turn, 0.0])))
    found[beyond] = surfaces(shapely.union_all(np.stack(pieces, axis=1), axis=1))
    found[beyond] = shapely.orient_polygons(found[beyond])
    return found


def _brackets(rings: _Rings, multi: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What stands before and after each ring: 0 between the rings of a polygon, 1 between polygons, 2 or 3 around a
    polygon or multipolygon."""
    opens, last = np.diff(rings.part, prepend=-1) != 0, np.diff(rings.part, append=-1) != 0
    begins, ends = np.diff(rings.feature, prepend=-1) != 0, np.diff(rings.feature, append=-1) != 0
    whole = 2 + multi[rings.feature]
    return np.where(begins, whole, opens), np.where(ends, whole, last)


def _written(
    rings: _Rings, group: slice, heads: Strings, brackets: tuple[NDArray[np.int64], ...], digits: int | None
) -> memoryview:
    """Text of a group of rings."""
    import pyarrow
    import pyarrow.compute as pc

    opening, closing = brackets
    feature = rings.feature[group]
    before = pyarrow.array([",", ",[", "[", "[["]).take(pyarrow.array(opening))
    after = pyarrow.array(["", "]", "]}}", "]]}}"]).take(pyarrow.array(closing))
    head = heads.take(pyarrow.array(np.where(opening > 1, feature, len(heads) - 1)))
    text = pc.binary_join_element_wise(head, before, "[[", _points(rings, group, digits), "]]", after, "")
    data = text.buffers()[2]
    return memoryview(data)[: int(pc.sum(pc.binary_length(text)).as_py())]


def _points(rings: _Rings, group: slice, digits: int | None) -> Strings:
    """Coordinates of the points of each ring, without its outermost brackets."""
    import pyarrow
    import pyarrow.compute as pc

    start = rings.start[group.start : group.stop + 1]
    points = rings.points[start[0] : start[-1]]
    points = points if digits is None else np.round(points, digits)
    x, y = (pyarrow.array(np.ascontiguousarray(axis)).cast(pyarrow.string()) for axis in points.T)
    pairs = pc.binary_join_element_wise(x, y, ",")
    return pc.binary_join(pyarrow.ListArray.from_arrays(pyarrow.array(start - start[0], pyarrow.int32()), pairs), "],[")


def _heads(batch: "pyarrow.RecordBatch", multi: NDArray[np.bool_], *, first: bool) -> Strings:
    """Text of each feature before its coordinates, and an empty one at the end."""
    import pyarrow
    import pyarrow.compute as pc

    begin = [",\n" * (not (first and k == 0)) + '{"type":"Feature","properties":{' for k in range(min(2, len(batch)))]
    parts: list[Any] = [pyarrow.array(begin).take(pyarrow.array(np.minimum(np.arange(len(batch)), 1)))]
    for k, name in enumerate(batch.schema.names[:-1]):
        parts += [f"{',' * (k > 0)}{json.dumps(name)}:", _values(batch.column(k))]
    kinds = pyarrow.array(['"Polygon"', '"MultiPolygon"']).take(pyarrow.array(multi.astype(np.int64)))
    found = pc.binary_join_element_wise(*parts, '},"geometry":{"type":', kinds, ',"coordinates":', "")
    return pyarrow.concat_arrays([found, pyarrow.array([""])])


def _values(column: "pyarrow.Array") -> Strings:
    """JSON of the values of a column."""
    import pyarrow
    import pyarrow.compute as pc

    kind = pyarrow.types
    if kind.is_string(column.type):
        coded = column.dictionary_encode()
        words = [json.dumps(word, ensure_ascii=False) for word in coded.dictionary.to_pylist()]
        text = pyarrow.array(words, pyarrow.string()).take(coded.indices)
    else:
        text = column.cast(pyarrow.string())
    if kind.is_floating(column.type):  # a number without a point would be an integer for readers
        text = pc.if_else(pc.match_substring_regex(text, "[.e]"), text, pc.binary_join_element_wise(text, ".0", ""))
    return pc.fill_null(text, "null")

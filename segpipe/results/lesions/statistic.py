"""Lesions: every connected component of a class, with its size, place, diameters, confidence and intensity."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.geometry.grid import MM3_PER_ML, Grid, Measure
from segpipe.pipeline.decision import CONFIDENCE_TOP
from segpipe.pipeline.memory import LESION_SLAB
from segpipe.results.areas import rounded
from segpipe.results.lesions import exact
from segpipe.results.lesions.axes import VolumeAxes, axes_of
from segpipe.results.lesions.components import Components, LabelLayer, Table, by_size, slabs
from segpipe.results.lesions.outlines import Ruler, at, places, world_box
from segpipe.results.lesions.rule import LesionRule
from segpipe.results.statistics import Box, Row, State

DIGITS = 4
"""Decimals of positions and lengths: a tenth of a micrometre, beyond any grid's accuracy."""

FIRST = ("case", "class_id", "class_name", "component", "voxels", "size", "unit")
VOLUME = (
    "ml",
    "touches_border",
    *(f"centroid_{axis}" for axis in "ijk"),
    *(f"box_{axis}_{end}" for axis in "ijk" for end in ("start", "stop")),
    *(f"centroid_{axis}_{space}_mm" for space in ("ras", "lps") for axis in "xyz"),
    *(f"box_{axis}_{end}_{space}_mm" for space in ("ras", "lps") for axis in "xyz" for end in ("min", "max")),
    "longest_in_plane_mm",
    "perpendicular_mm",
    "plane_k",
    "longest_mm",
)
IMAGE = (
    "touches_border",
    *(f"centroid_{axis}" for axis in "ij"),
    *(f"box_{axis}_{end}" for axis in "ij" for end in ("start", "stop")),
    "centroid_x",
    "centroid_y",
    "longest",
    "perpendicular",
    "length_unit",
)
CONFIDENCE = ("confidence_mean", "confidence_max")
INTENSITY = ("intensity_mean", "intensity_min", "intensity_max")


class Lesions:
    """The components of a case. The table depends neither on the order of boxes nor on how the case was cut."""

    def __init__(self, grid: Grid, contract: Contract, rule: LesionRule) -> None:
        self._axes, self._grid, self._contract, self.rule = axes_of(grid), grid, contract, rule
        self._classes = [c for c in contract.mask_classes if c.id in rule.classes]
        self._bands = [k for k, c in enumerate(contract.mask_classes) if c.id in rule.classes]
        self._components = Components(self._axes.shape, len(self._classes), least=self._least, named=rule.instances)
        self._scale: NDArray[np.float64] | None = None
        self._lookup = self._class_lookup()
        self._ruler = Ruler(self._axes.steps)

    @property
    def _least(self) -> int:
        """Fewest voxels of a listed component."""
        return max(1, math.ceil(self.rule.min_size / self._axes.size * (1 - 1e-9)))

    def _class_lookup(self) -> NDArray[np.uint16]:
        """Position in the rule's classes from 1, by label; 0 for other labels."""
        lookup = np.zeros(2**16, np.uint16)
        lookup[[c.id for c in self._classes]] = np.arange(1, len(self._classes) + 1)
        return lookup

    def add(self, box: Box) -> None:
        """Count the components of a box."""
        self.name(box)

    def name(self, box: Box) -> NDArray[np.int32] | None:
        """Count the components of a box; return their names for ``numbers``, shape ``(bands, *box)``, if they have any."""
        axes, start = self._axes, self._axes.start(box.window)
        labels = axes.array(box.labels)
        confidence = None if box.confidence is None else axes.array(box.confidence)
        named = [
            self._components.add(
                (start[0] + low, *start[1:]),
                list(self._layers(labels[:, low:high], None if confidence is None else confidence[:, low:high])),
                None if box.pixels is None else self._pixels(box, low, high),
            )
            for low, high in slabs(labels.shape[1:], LESION_SLAB)
        ]
        whole = [part for part in named if part is not None]
        return np.ascontiguousarray(axes.back(self._all_bands(np.concatenate(whole, axis=1)))) if whole else None

    def _all_bands(self, names: NDArray[np.int32]) -> NDArray[np.int32]:
        """Names by layer as bands of the mask."""
        if self._contract.task != "multilabel":
            return names
        bands = np.full((len(self._contract.mask_classes), *names.shape[1:]), -1, np.int32)
        bands[self._bands] = names
        return bands

    def _layers(self, labels: NDArray[Any], confidence: NDArray[np.uint8] | None) -> Iterator[LabelLayer]:
        if self._contract.task != "multilabel":
            yield LabelLayer(self._lookup[labels[0]], None if confidence is None else np.ascontiguousarray(confidence[0]))
            return
        for position, band in enumerate(self._bands, 1):
            present = np.where(labels[band] == 1, np.uint16(position), np.uint16(0))
            yield LabelLayer(present, None if confidence is None else np.ascontiguousarray(confidence[band]))

    def _pixels(self, box: Box, low: int, high: int) -> Callable[[], NDArray[Any]]:
        def read() -> NDArray[Any]:
            assert box.pixels is not None
            stored, _ = box.pixels()
            if stored.dtype.kind == "f":  # sums, minima and maxima are computed in float32
                stored = stored.astype(np.float32)
            if self._scale is None:
                scale = None if box.tags is None else box.tags()
                one = (np.ones(len(stored)), np.zeros(len(stored)))
                self._scale = np.stack([np.broadcast_to(each, len(stored)) for each in (scale or one)]).astype(np.float64)
            return np.ascontiguousarray(self._axes.array(stored)[:, low:high])

        return read

    @property
    def state(self) -> State:
        return self._components.state | ({} if self._scale is None else {"scale": self._scale})

    def merge(self, state: State) -> None:
        self._components.merge(state)
        self._scale = state.get("scale", self._scale)

    def counts(self) -> list[Row]:
        """Numbers of components per class: listed, too small, and left out because there are too many."""
        kinds = self._components.finished()[0].get("kind", np.zeros(0, np.int64))
        left = self._components.left
        return [
            {
                "class_id": c.id,
                "class_name": c.name,
                "listed": int((kinds == k).sum()),
                "below_min_size": int(left.small[k, 0]),
                "voxels_below_min_size": int(left.small[k, 1]),
                "not_listed": int(left.excess[k, 0]),
                "voxels_not_listed": int(left.excess[k, 1]),
            }
            for k, c in enumerate(self._classes, 1)
        ]

    def rows(self) -> list[Row]:
        """One row per component, by class, then by size in descending order, then by first voxel."""
        table, owner, point = self._components.finished()
        rows = []
        for number, row in enumerate(_listed(table), 1):
            first, stop = np.searchsorted(owner, (row, row + 1))
            one = {key: column[row] for key, column in table.items()}
            rows.append(self._row(number, one, places(point[first:stop], self._axes.shape)))
        return rows

    def numbers(self) -> list[NDArray[np.uint16]]:
        """Number in the table of each name, 0 if not listed: one array per merged part, else one."""
        table = self._components.finished()[0]
        order = _listed(table)
        number = np.zeros(len(order) + 1, np.uint16)  # the last element is for name -1
        number[order] = np.arange(1, len(order) + 1)
        return [number[names] for names in self._components.names()]

    def _row(self, number: int, one: dict[str, Any], points: NDArray[np.int64]) -> Row:
        c, voxels = self._classes[int(one["kind"]) - 1], int(one["voxels"])
        centroid = [int(total) / voxels for total in one["sums"]]
        return {
            "class_id": c.id,
            "class_name": c.name,
            "component": number,
            "voxels": voxels,
            **self._size(voxels, centroid),
            "touches_border": _touches(one, self._axes),
            **_in_voxels(one, centroid, self._axes),
            **(self._in_volume(centroid, points) if self._axes.unit == "mm" else self._in_image(centroid, points)),
            **_confidences(one, voxels),
            **self._intensities(one, voxels),
        }

    @cached_property
    def _measure(self) -> Measure | None:
        return self._grid.measure

    def _size(self, voxels: int, centroid: Sequence[float]) -> Row:
        """Area or volume as in ``areas.csv``; for a raster, with the size of a pixel at the centroid."""
        measure = self._measure
        if measure is None:
            return {"size": None, "unit": "px"}
        place = [int(i) for i in centroid[-len(self._grid.shape) :]]
        size = voxels * float(measure.sizes([np.array([i, i + 1]) for i in place]).ravel()[0])
        row: Row = {"size": rounded(size / measure.per_unit), "unit": measure.unit}
        return row | ({"ml": rounded(size / MM3_PER_ML)} if measure.unit == "mm3" else {})

    def _in_volume(self, centroid: Sequence[float], points: NDArray[np.int64]) -> Row:
        axes = self._axes
        low, high = world_box(points, axes.steps, axes.origin)
        found = self._ruler(points)
        place = at(centroid, axes.steps, axes.origin)
        return {
            **_spaces("centroid_{}_{}_mm", place),
            **_box_in_spaces(low.tolist(), high.tolist()),
            "longest_in_plane_mm": _length(found.in_plane),
            "perpendicular_mm": _length(found.perpendicular),
            "plane_k": int(points[0, 0]) + found.plane,
            "longest_mm": _length(found.longest),
        }

    def _in_image(self, centroid: Sequence[float], points: NDArray[np.int64]) -> Row:
        world = self._grid.world(np.array(centroid[-len(self._grid.shape) :]))
        found = self._ruler(points)
        return {
            "centroid_x": None if world is None else rounded(float(world[0])),
            "centroid_y": None if world is None else rounded(float(world[1])),
            "longest": _length(found.longest if self._axes.volume else found.in_plane),
            "perpendicular": _length(found.perpendicular),
            "length_unit": self._axes.unit,
        }

    def _intensities(self, one: dict[str, Any], voxels: int) -> Row:
        """Mean, minimum and maximum of the pixels, in the units given by the file's scale and offset."""
        if "intensity" not in one or self._scale is None:
            return {}
        row: Row = {}
        for k, names in enumerate(intensity_columns(self._contract)):
            scale, offset = self._scale[:, k].tolist()
            stored = (exact.mean(one["intensity"][k], voxels), float(one["darkest"][k]), float(one["brightest"][k]))
            middle, *ends = (rounded(value * scale + offset) for value in stored)
            row |= dict(zip(names, (middle, *sorted(ends)), strict=True))
        return row


def _listed(table: Table) -> NDArray[np.int64]:
    """Rows of a table in the order of the list."""
    if not table:
        return np.zeros(0, np.int64)
    order = by_size(table)
    return order[np.argsort(table["kind"][order], kind="stable")]


def _touches(one: dict[str, Any], axes: VolumeAxes) -> bool:
    """Whether a component touches the border of the case, and so may continue beyond it."""
    bounds = zip(one["low"].tolist(), one["high"].tolist(), axes.shape, strict=True)
    return any(low == 0 or high == size for low, high, size in list(bounds)[0 if axes.volume else 1 :])


def _in_voxels(one: dict[str, Any], centroid: Sequence[float], axes: VolumeAxes) -> Row:
    """Centroid and box as indices of the file's own axes, the fastest first, as nibabel and GDAL count them."""
    names, row = "ijk" if axes.volume else "ij", Row()
    for name, axis in zip(names, (2, 1, 0), strict=False):
        row[f"centroid_{name}"] = round(centroid[axis], DIGITS)
    for name, axis in zip(names, (2, 1, 0), strict=False):
        row |= {f"box_{name}_start": int(one["low"][axis]), f"box_{name}_stop": int(one["high"][axis])}
    return row


def _spaces(name: str, place: Sequence[float]) -> Row:
    """Coordinates in mm with x to the right and y anterior (RAS), and with both reversed (LPS)."""
    ras = {name.format(axis, "ras"): _length(value) for axis, value in zip("xyz", place, strict=True)}
    lps = {name.format(axis, "lps"): _length(sign * v) for axis, sign, v in zip("xyz", (-1, -1, 1), place, strict=True)}
    return ras | lps


def _box_in_spaces(low: Sequence[float], high: Sequence[float]) -> Row:
    row = Row()
    for space, signs in (("ras", (1, 1, 1)), ("lps", (-1, -1, 1))):
        for axis, sign, a, b in zip("xyz", signs, low, high, strict=True):
            ends = (a, b) if sign > 0 else (-b, -a)
            row |= {f"box_{axis}_{end}_{space}_mm": _length(value) for end, value in zip(("min", "max"), ends, strict=True)}
    return row


def _length(value: float) -> float:
    return round(float(value), DIGITS) + 0.0  # no negative zero


def _confidences(one: dict[str, Any], voxels: int) -> Row:
    if "confidence" not in one:
        return {}
    mean, most = int(one["confidence"]) / voxels / CONFIDENCE_TOP, int(one["surest"]) / CONFIDENCE_TOP
    return {"confidence_mean": round(mean, DIGITS), "confidence_max": round(most, DIGITS)}


def intensity_columns(contract: Contract) -> list[tuple[str, ...]]:
    """Names of the three columns of each channel; with the channel's name, or its number, if there are several."""
    channels = contract.channels
    names = [str(k + 1) for k in range(channels)] if isinstance(channels, int) else channels
    return [INTENSITY] if len(names) == 1 else [tuple(f"{column}_{name}" for column in INTENSITY) for name in names]

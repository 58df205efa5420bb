"""From labelled points to a design: which class each has on the map, in which stratum it lies, and how large that is."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

import numpy as np

from segpipe.accuracy.design import SIMPLE, STRATIFIED, check_sampled, check_sizes, unlikely_as_simple
from segpipe.accuracy.draw import pixel_areas
from segpipe.accuracy.estimate import Design
from segpipe.accuracy.estimators import Sample, Strata
from segpipe.accuracy.points import Labelled, Point, SampleDesign
from segpipe.accuracy.population import Population, positions
from segpipe.array_types import Bools, Float, Integers
from segpipe.errors import InputError
from segpipe.formats.registry import OpenMask
from segpipe.geometry.lookup import PixelsOf
from segpipe.geometry.raster_grid import RasterGrid, ground_of
from segpipe.geometry.windows import Window
from segpipe.messages.names import Names
from segpipe.messages.printable import first_few, printable
from segpipe.vectors.file import LON_LAT

if TYPE_CHECKING:
    from geopandas import GeoSeries

OTHER = "stratified by another map (Stehman 2014)"
UNEQUAL = "stratified, pixels of unequal area (Tyukavina et al. 2025)"
ALIKE = 1e-3
"""Relative difference of the areas of pixels up to which they count as equal in words; in numbers each has its own."""
SHOWN = 5
POINT = re.compile(r"(?<=\d)\.0+$")
"""Decimals of a whole number, as pandas writes ids of classes in a column with gaps."""


@dataclass(frozen=True, eq=False)
class Survey:
    """Labelled points, each with its place in map and strata; arrays have the shape ``(points,)``."""

    strata: Sequence[str]
    pixels: Integers
    """Number of pixels of each stratum, shape ``(strata,)``."""
    areas: Float
    """Area of each stratum, shape ``(strata,)``."""
    unit: str
    classes: Sequence[str]
    """Classes of the map."""
    mapped_areas: Float | None
    """None if unknown."""
    stratum: Integers
    mapped: Integers
    """Position in the classes; -1 off the map."""
    area: Float
    """Area of the pixel at each point."""
    labels: Sequence[str]
    ids: Sequence[int]
    """Ids of the classes, by which labels may name them."""
    method: str
    missing: int = 0
    """Number of points of the design that the file does not have."""


def survey_of(labelled: Labelled, drawn: SampleDesign | None, population: Population | None, *, simple: bool) -> Survey:
    """The points of a sample that ``segpipe sample`` drew, of this map or another, or of one that somebody else drew.

    Raises:
        InputError: points and design, or points and map, do not belong together.
    """
    if drawn is None:
        if population is None:
            raise InputError("points without the file of their design need the map: give --map, the output of its run")
        return _of_map(labelled, population, simple=simple)
    if simple:
        raise InputError("the sample was drawn in strata, as the file of its design says: leave --design simple out")
    survey = _of_design(labelled, drawn)
    if population is None or population.identity == drawn.identity:
        return survey if population is None else replace(survey, ids=population.ids)
    mapped, _ = locate(population, _places(labelled, drawn))
    mapped_areas = population.areas.sum(axis=0)
    return replace(
        survey, classes=population.classes, mapped=mapped, mapped_areas=mapped_areas, ids=population.ids, method=OTHER
    )


def _of_design(labelled: Labelled, drawn: SampleDesign) -> Survey:
    points = [_point(drawn, number) for number in _numbers(labelled)]
    names, stratum = [one.name for one in drawn.strata], np.array([point.stratum for point in points], np.int64)
    pixels, areas = np.array([one.pixels for one in drawn.strata]), np.array([one.area for one in drawn.strata], np.float64)
    area = np.array([point.area for point in points], np.float64)
    return Survey(
        strata=names,
        pixels=pixels,
        areas=areas,
        unit=drawn.unit,
        classes=names,
        mapped_areas=areas,
        stratum=stratum,
        mapped=stratum,
        area=area,
        labels=labelled.labels,
        ids=(),
        method=STRATIFIED,
        missing=len(drawn.points) - len(points),
    )


def _numbers(labelled: Labelled) -> Sequence[int]:
    if labelled.ids is None:
        raise InputError("labelled points must keep the column id of their sample, by which the design knows them")
    return labelled.ids


def _point(drawn: SampleDesign, number: int) -> Point:
    if not 1 <= number <= len(drawn.points):
        raise InputError(
            f"points and design must be of one sample, and the design has no point {number}: it has 1 to {len(drawn.points)}"
        )
    return drawn.points[number - 1]


def _places(labelled: Labelled, drawn: SampleDesign) -> "GeoSeries":
    """Where the points of a design lie."""
    import geopandas

    points = [_point(drawn, number) for number in _numbers(labelled)]
    series = np.empty(len(points), object)
    for crs in {point.crs for point in points}:
        own = [k for k, point in enumerate(points) if point.crs == crs]
        xy = geopandas.points_from_xy([points[k].x for k in own], [points[k].y for k in own], crs=crs)
        series[own] = np.asarray(geopandas.GeoSeries(xy).to_crs(LON_LAT))
    return geopandas.GeoSeries(series, crs=LON_LAT)


def _of_map(labelled: Labelled, population: Population, *, simple: bool) -> Survey:
    if labelled.frame is None or labelled.frame.crs is None:
        raise InputError(
            "points without the file of their design must have coordinates and a CRS: give a vector file with both"
        )
    mapped, area = locate(population, labelled.frame.geometry)
    pixels, areas = population.pixels.sum(axis=0), population.areas.sum(axis=0)
    names, stratum, method = population.classes, np.maximum(mapped, 0), STRATIFIED
    if simple:
        names, pixels, areas = ("map",), pixels.sum(keepdims=True), areas.sum(keepdims=True)
        stratum, method = np.zeros_like(mapped), SIMPLE
    return Survey(
        strata=names,
        pixels=pixels,
        areas=areas,
        unit=population.unit,
        classes=population.classes,
        mapped_areas=population.areas.sum(axis=0),
        stratum=stratum,
        mapped=mapped,
        area=area,
        labels=labelled.labels,
        ids=population.ids,
        method=method,
    )


def locate(population: Population, points: "GeoSeries") -> tuple[Integers, Float]:
    """The class of the map at each point, -1 where it has none, and the area of the pixel there.

    Where cases overlap, the first by name that has a class counts.
    """
    mapped, area = np.full(len(points), -1, np.int64), np.zeros(len(points))
    for record in population.cases:
        with population.open(record) as mask:
            grid = mask.grid
            assert isinstance(grid, RasterGrid)
            there = {k: place for k, place in _on_grid(grid, points) if mapped[k] < 0}
            for (k, (row, col)), size in zip(there.items(), _areas(mask, list(there.values())), strict=True):
                labels = mask.read(Window((row, col), (row + 1, col + 1)))
                mapped[k], area[k] = positions(labels, population.ids)[0, 0], size
    return mapped, area


def _areas(mask: OpenMask, places: Sequence[tuple[int, int]]) -> Float:
    return pixel_areas(mask, np.array(places)) if places else np.empty(0)


def _on_grid(grid: RasterGrid, points: "GeoSeries") -> Iterator[tuple[int, tuple[int, int]]]:
    """Points that lie on a grid, with row and column of their pixels."""
    assert grid.transform is not None
    there = points.to_crs(grid.crs.to_wkt() if grid.crs else None)
    empty = np.asarray(there.is_empty | there.isna())
    if not empty.all() and not (there[~empty].geom_type == "Point").all():
        raise InputError("samples must be points, and some of the geometries are others: give points, such as centroids")
    x, y = (np.asarray(there.get_coordinates()[axis].reindex(range(len(points)))) for axis in "xy")
    place = PixelsOf(ground_of(grid), grid.shape, None, turns=True)(np.column_stack([x, y]))
    cols, rows = place[:, 0], grid.shape[0] - place[:, 1]
    with np.errstate(invalid="ignore"):
        inside = (rows >= 0) & (rows < grid.shape[0]) & (cols >= 0) & (cols < grid.shape[1])
    for k in np.flatnonzero(inside):
        yield int(k), (int(rows[k]), int(cols[k]))


def design_of_survey(survey: Survey) -> Design:
    """The design of labelled points; points without a label, or off the map, are left out with a warning.

    Raises:
        InputError: no point is left, or no label is a class of the map, or a stratum has no point.
    """
    has_label = np.array([bool(label) for label in survey.labels], bool)
    kept = has_label & (survey.mapped >= 0)
    warnings = list(_left_out(survey, has_label))
    if not kept.any():
        raise InputError(f"the sample must have labelled points on the map, and has none: {'; '.join(warnings)}")
    classes, reference = _references(survey, [label for label, own in zip(survey.labels, kept, strict=True) if own])
    warnings += _unknown(survey, classes)
    sample = Sample(
        survey.stratum[kept], survey.mapped[kept], reference, np.ones(int(kept.sum()), np.int64), survey.area[kept]
    )
    if survey.method == SIMPLE and survey.mapped_areas is not None:
        counts = np.bincount(sample.mapped, minlength=len(survey.classes))
        warnings += unlikely_as_simple(survey.classes, counts, survey.mapped_areas / survey.mapped_areas.sum())
    more = np.zeros(len(classes) - len(survey.classes))
    mapped = None if survey.mapped_areas is None else np.append(survey.mapped_areas, more)
    names, sample, known = _strata(survey, sample)
    area, method = float(survey.areas.sum()), _method(survey, sample)
    return Design(
        classes=classes,
        strata=names,
        sample=sample,
        known=known,
        area=area,
        mapped=mapped,
        unit=survey.unit,
        method=method,
        warnings=tuple(warnings),
    )


def _strata(survey: Survey, sample: Sample) -> tuple[Sequence[str], Sample, Strata]:
    """Strata that have pixels, and the sample with their positions."""
    n = np.bincount(sample.stratum, minlength=len(survey.strata))
    check_sampled(survey.strata, survey.areas, n, survey.unit)
    check_sizes(survey.strata, n, survey.pixels)
    held = survey.pixels > 0
    known = Strata(survey.pixels[held].astype(np.float64), n[held] / survey.pixels[held])
    names = [name for name, there in zip(survey.strata, held, strict=True) if there]
    return names, replace(sample, stratum=(np.cumsum(held) - 1)[sample.stratum]), known


def _method(survey: Survey, sample: Sample) -> str:
    unequal = np.ptp(sample.area) > ALIKE * sample.area.max()
    return UNEQUAL if unequal and survey.method != SIMPLE else survey.method


def _left_out(survey: Survey, has_label: Bools) -> Iterator[str]:
    total = len(survey.labels)
    if survey.missing:
        yield (
            f"not in the file: {survey.missing:,} of {total + survey.missing:,} points of the design: if these are hard "
            "ones, estimates are biased"
        )
    if empty := int((~has_label).sum()):
        yield f"without a label, and left out: {empty:,} of {total:,} points: if these are hard ones, estimates are biased"
    off = np.flatnonzero(has_label & (survey.mapped < 0))
    if len(off):
        few = first_few((k + 1 for k in off), SHOWN)
        yield f"off the map, or where it has no data, and left out: {len(off):,} of {total:,} points, rows {few}"


def _references(survey: Survey, labels: Sequence[str]) -> tuple[list[str], Integers]:
    """All classes, those that only the reference has last, and the position of each label."""
    known = {name: k for k, name in enumerate(survey.classes)}
    named = Names.of(known, {number: k for k, number in enumerate(survey.ids)})
    classes, found = list(survey.classes), list[int]()
    for label in labels:
        k = known.get(label, named.find(POINT.sub("", label)))
        if k is None:
            k = known[label] = len(classes)
            classes.append(label)
        found.append(k)
    if min(found) >= len(survey.classes):
        raise InputError(
            f"labels must be classes of the map, {first_few(survey.classes, SHOWN)}, and none is: there are "
            f"{first_few(sorted({*labels}), SHOWN)}"
        )
    return classes, np.array(found, np.int64)


def _unknown(survey: Survey, classes: Sequence[str]) -> Iterator[str]:
    """Labels that are no class of the map, with suggestions."""
    for name in classes[len(survey.classes) :]:
        near = get_close_matches(name, survey.classes, 1)
        meant = f": {near[0]} is; is it meant?" if near else ""
        yield f"label {printable(name)} is no class of the map{meant}"

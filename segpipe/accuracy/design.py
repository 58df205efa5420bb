"""The design of a sample, which decides what can be estimated from it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from segpipe.accuracy.estimate import Design
from segpipe.accuracy.estimators import Sample, Strata
from segpipe.array_types import Float, Integers
from segpipe.errors import InputError

STRATIFIED = "stratified by the classes of the map (Olofsson et al. 2014)"
SIMPLE = "simple random sample"
FAR = 4.0
"""Warn if the number of units of a class is this many standard deviations away from that of a simple random sample."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """Counts of a sample, and what the map says of its classes."""

    mapped: tuple[str, ...]
    """Classes of the map, one per row."""
    reference: tuple[str, ...]
    """Classes of the reference, one per column."""
    counts: Integers
    """Units of the sample, shape ``(map, reference)``."""
    area: Float
    """Mapped area of each class of the map."""
    pixels: Integers | None = None
    """Mapped pixels of each class of the map, for the finite-population correction."""
    unit: str = ""


def design_of(matrix: Matrix, *, simple: bool = False) -> Design:
    """The design of a confusion matrix: stratified by the map's classes, or a simple random sample.

    Raises:
        InputError: a class that the map has is in no sample, or one that it does not have is.
    """
    if not simple:
        _check(matrix)
    classes = (*matrix.mapped, *(name for name in matrix.reference if name not in matrix.mapped))
    mapped, found = np.nonzero(matrix.counts)
    reference = np.array([classes.index(name) for name in matrix.reference])[found]
    stratum, strata, known = _simple(matrix, mapped) if simple else _stratified(matrix, mapped)
    sample = Sample(stratum, mapped, reference, matrix.counts[mapped, found], np.ones(len(mapped)))
    area = np.append(matrix.area, np.zeros(len(classes) - len(matrix.mapped)))
    shares = matrix.area / matrix.area.sum()
    unlikely = unlikely_as_simple(matrix.mapped, matrix.counts.sum(axis=1), shares) if simple else ()
    warnings = (*_unmatched(matrix), *unlikely)
    method = SIMPLE if simple else STRATIFIED
    return Design(
        classes=classes,
        strata=strata,
        sample=sample,
        known=known,
        area=float(matrix.area.sum()),
        mapped=area,
        unit=matrix.unit,
        method=method,
        warnings=warnings,
    )


def _stratified(matrix: Matrix, mapped: Integers) -> tuple[Integers, Sequence[str], Strata]:
    """The stratum of each row, their names, and their sizes; a class that the map does not have is no stratum."""
    held = matrix.area > 0
    n = matrix.counts.sum(axis=1)[held]
    fraction = np.zeros(len(n)) if matrix.pixels is None else n / matrix.pixels[held]
    position = np.cumsum(held) - 1
    names = [name for name, there in zip(matrix.mapped, held, strict=True) if there]
    return position[mapped], names, Strata(matrix.area[held], fraction)


def _simple(matrix: Matrix, mapped: Integers) -> tuple[Integers, Sequence[str], Strata]:
    n = int(matrix.counts.sum())
    if not n:
        raise InputError("the sample must have units, and every count of the matrix is 0")
    fraction = 0.0 if matrix.pixels is None else n / int(matrix.pixels.sum())
    return np.zeros_like(mapped), ["map"], Strata(np.array([matrix.area.sum()]), np.array([fraction]))


def _check(matrix: Matrix) -> None:
    check_sampled(matrix.mapped, matrix.area, matrix.counts.sum(axis=1), matrix.unit)
    for name, area, n in zip(matrix.mapped, matrix.area, matrix.counts.sum(axis=1), strict=True):
        if not area and n:
            raise InputError(f"{name} has {n} units in the sample and no mapped area: give its area")


def check_sampled(names: Sequence[str], areas: Float, n: Integers | Float, unit: str) -> None:
    """Make sure that something is known of each stratum.

    Raises:
        InputError: one that has an area has no units in the sample.
    """
    for name, area, units in zip(names, areas, n, strict=True):
        if area > 0 and not units:
            raise InputError(
                f"each stratum must have units in the sample, and {name}, {area:g} {unit or 'of area'}, has none: "
                "label some there, or add its area to a class that it is like"
            )


def check_sizes(names: Sequence[str], n: Integers, pixels: Integers) -> None:
    """Make sure that no stratum has more units in the sample than pixels.

    Raises:
        InputError: one has.
    """
    for name, units, size in zip(names, n, pixels, strict=True):
        if units > size:
            raise InputError(f"{name} has {units} units in the sample and {size} pixels: give all pixels of the stratum")


def _unmatched(matrix: Matrix) -> Iterator[str]:
    """Classes that only the map, or only the reference has: often another spelling."""
    only = [name for name in matrix.reference if name not in matrix.mapped]
    lacking = [name for name in matrix.mapped if name not in matrix.reference]
    if only:
        yield f"classes of the reference that the map does not have: {', '.join(only)}; they have no user's accuracy"
    if lacking:
        yield f"classes of the map that the reference does not have: {', '.join(lacking)}; all their units count as wrong"


def unlikely_as_simple(names: Sequence[str], counts: Integers, shares: Float) -> Iterator[str]:
    """A class with many more or fewer units than a simple random sample would have."""
    n = int(counts.sum())
    for name, units, part in zip(names, counts, shares, strict=True):
        if abs(units - n * part) > FAR * math.sqrt(n * part * (1 - part)) + 1:
            yield (
                f"the design does not fit: {units} of {n} units are in {name}, which covers {part:.2%} of the map; "
                "a sample that was stratified by the map must be estimated so"
            )
            return

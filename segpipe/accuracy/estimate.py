"""Areas and accuracy of a map, estimated from a sample of it, with standard errors and confidence intervals."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from segpipe.accuracy.estimators import Ratio, Sample, Strata, counts, largest_unseen, ratio, select, total
from segpipe.accuracy.intervals import Interval, exact, is_small, normal
from segpipe.array_types import Float, Integers

OVERALL = "overall"


@dataclass(frozen=True, eq=False)
class Design:
    """A sample of a map, and what is known of the map."""

    classes: Sequence[str]
    """Classes of map and reference."""
    strata: Sequence[str]
    sample: Sample
    known: Strata
    area: float
    """Area of all strata, in ``unit``."""
    mapped: Float | None = None
    """Area of each class on the map, shape ``(classes,)``; None if unknown."""
    unit: str = ""
    method: str = ""
    """Name of the estimators, for people."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Estimate:
    """One estimated quantity of one class, or of the whole map."""

    class_name: str
    """``overall`` for the overall accuracy."""
    quantity: str
    """``area``, ``share``, ``users_accuracy``, ``producers_accuracy`` or ``overall_accuracy``."""
    value: float | None
    """None if it cannot be estimated: a class that the map does not have has no user's accuracy."""
    error: float | None = None
    interval: Interval | None = None
    unit: str = ""


@dataclass(frozen=True, eq=False)
class Estimates:
    """All estimates of a map."""

    design: Design
    rows: tuple[Estimate, ...]
    level: float
    matrix: Float = field(repr=False)
    """Estimated share of the area that is mapped as one class and is of another, shape ``(map, reference)``."""
    warnings: tuple[str, ...] = ()

    def of(self, class_name: str, quantity: str) -> Estimate:
        """One estimate."""
        return next(row for row in self.rows if (row.class_name, row.quantity) == (class_name, quantity))


@dataclass(frozen=True, slots=True)
class Level:
    """Confidence level, and whether small samples get exact intervals."""

    level: float = 0.95
    exact: bool = True


def estimate(design: Design, level: Level = Level()) -> Estimates:
    """Areas, overall, user's and producer's accuracy of a map."""
    rows = [*_overall(design, level), *(row for k in range(len(design.classes)) for row in _class(design, k, level))]
    return Estimates(design, tuple(rows), level.level, _matrix(design), (*design.warnings, *_warnings(design)))


def _overall(design: Design, level: Level) -> Iterator[Estimate]:
    sample = design.sample
    right = ratio(sample, design.known, select(sample, sample.mapped == sample.reference), sample.area)
    yield _row(OVERALL, "overall_accuracy", right, level)


def _class(design: Design, k: int, level: Level) -> Iterator[Estimate]:
    sample, known, name = design.sample, design.known, design.classes[k]
    mapped, found = select(sample, sample.mapped == k), select(sample, sample.reference == k)
    both = select(sample, (sample.mapped == k) & (sample.reference == k))
    yield from _areas(design, name, found, level)
    yield _row(name, "users_accuracy", ratio(sample, known, both, mapped), level)
    yield _producers(design, name, ratio(sample, known, both, found), found, level)


def _areas(design: Design, name: str, found: Float, level: Level) -> Iterator[Estimate]:
    """The area of a class, and its share of the map."""
    sample, known = design.sample, design.known
    area, error = total(sample, known, found)
    alike = ratio(sample, known, found, sample.area)
    assert alike is not None
    share = Ratio(area / design.area, error / design.area, alike.units, alike.varies)
    if alike.varies and alike.error and error:  # units of unequal area: more variance than that of their share
        share = replace(share, units=alike.units * (alike.error / share.error) ** 2)
    limits = _interval(share, level)
    in_unit = Interval(limits.low * design.area, limits.high * design.area, limits.kind)
    yield Estimate(class_name=name, quantity="area", value=area, error=error, interval=in_unit, unit=design.unit)
    yield Estimate(name, "share", share.value, share.error, limits)


def _producers(design: Design, name: str, found: Ratio | None, x: Float, level: Level) -> Estimate:
    """Producer's accuracy; with no omission in the sample, the lower limit allows for the class in strata without it."""
    row = _row(name, "producers_accuracy", found, level)
    if found is None or row.interval is None or found.error or found.value < 1 or not level.exact:
        return row
    held, hidden = total(design.sample, design.known, x)[0], largest_unseen(design.sample, design.known, x, level.level)
    low = min(row.interval.low, held / (held + hidden))
    return Estimate(name, row.quantity, row.value, row.error, Interval(low, 1.0, "exact"))


def _row(name: str, quantity: str, found: Ratio | None, level: Level) -> Estimate:
    if found is None:
        return Estimate(name, quantity, None)
    return Estimate(name, quantity, found.value, found.error, _interval(found, level))


def _interval(found: Ratio, level: Level) -> Interval:
    if level.exact and 0 <= found.value <= 1 and (not found.varies or is_small(found.value, found.units)):
        return exact(found.value, found.units, level.level)
    return normal(found.value, found.error, level.level)


def _matrix(design: Design) -> Float:
    sample, size = design.sample, len(design.classes)
    cell = sample.mapped * size + sample.reference
    each = design.known.weight[sample.stratum] * sample.count * sample.area
    each /= counts(sample, design.known)[sample.stratum]
    return np.asarray(np.bincount(cell, each, size**2).reshape(size, size) / each.sum())


def _warnings(design: Design) -> Iterator[str]:
    n = counts(design.sample, design.known)
    for name, units in zip(design.strata, n, strict=True):
        if units == 1:
            yield (
                f"stratum {name} has one sample, from which no variance can be estimated: the largest one is taken for "
                "areas and overall accuracy, but errors of producer's accuracies may be too small; label at least two there"
            )
    held: Integers = np.unique(np.concatenate([design.sample.mapped, design.sample.reference]))
    for k in sorted(set(range(len(design.classes))) - set(held.tolist())):
        yield f"class {design.classes[k]} is in no sample: its area is estimated as 0"

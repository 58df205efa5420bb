"""Scores of the boundaries of classes: how far those of map and reference are apart, on the ground or in the body.

The boundary of a class is made of the corners between pixels at which some of the pixels around are of the class and others
are not. Corners beside a pixel that does not count, and the edge of a case, are no boundary: what lies behind is unknown.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Float, Integers
from segpipe.errors import InstallationError
from segpipe.geometry.windows import Window
from segpipe.process.extras import install

if TYPE_CHECKING:
    from types import ModuleType

Pair = tuple[Integers, Integers]
"""Positions of classes in reference and map, -1 where a pixel does not count."""

Read = Callable[[Window], Pair]

SLACK = 1e-9
"""Relative difference up to which a distance counts as the tolerance."""


@dataclass(frozen=True, slots=True)
class BoundaryScores:
    """One class of one case; None where map or reference do not have its boundary."""

    f1: float | None
    """Harmonic mean of the shares of both boundaries that lie within the tolerance of the other (Csurka et al. 2013)."""
    surface_dice: float | None
    """Share of both boundaries together that does (Nikolov et al. 2018)."""
    iou: float | None
    """IoU of the pixels of a class within the tolerance of its boundary (Cheng et al. 2021)."""
    hd95: float | None
    """The larger of the 95th percentiles of the distances from each boundary to the other."""
    intersection: int = 0
    """Pixels of ``iou``, to be added up over cases."""
    union: int = 0


@dataclass(frozen=True)
class Compared:
    """A case and its reference, which are read window by window."""

    read: Read
    shape: Sequence[int]
    spacing: Sequence[float]
    """Size of a pixel along each axis."""
    classes: int
    """Number of classes."""
    step: int
    """Rows, or planes, that are read at once."""

    def window(self, start: int, stop: int) -> Pair:
        """Labels of some rows, or planes."""
        return self.read(Window((start, *(0 for _ in self.shape[1:])), (stop, *self.shape[1:])))


def boundary_scores(compared: Compared, tolerance: float) -> list[BoundaryScores]:
    """Scores of each class of a case, with a tolerance in the unit of its spacing.

    Raises:
        InstallationError: an optional dependency is missing.
    """
    compared = _without_single(compared)
    corners, bands = _gathered(compared), _bands(compared, tolerance)
    limit = tolerance * (1 + SLACK)
    return [
        _scores(_distances(reference, mapped, compared.spacing), limit, *map(int, bands[k]))
        for k, (reference, mapped) in enumerate(zip(*corners, strict=True))
    ]


def _without_single(compared: Compared) -> Compared:
    """The case without axes of length 1, along which nothing begins or ends: one slice of a volume is an image."""
    kept = [axis for axis, n in enumerate(compared.shape) if n > 1] or [0]

    def read(window: Window) -> Pair:
        start, stop = [0] * len(compared.shape), [1] * len(compared.shape)
        for axis, first, last in zip(kept, window.start, window.stop, strict=True):
            start[axis], stop[axis] = first, last
        reference, mapped = compared.read(Window(tuple(start), tuple(stop)))
        return reference.reshape(window.shape), mapped.reshape(window.shape)

    shape, spacing = [compared.shape[axis] for axis in kept], [compared.spacing[axis] for axis in kept]
    return replace(compared, read=read, shape=shape, spacing=spacing)


def check_installed() -> None:
    """Make sure that the optional dependency is there.

    Raises:
        InstallationError: it is not.
    """
    _scipy()


def _scipy() -> "tuple[ModuleType, ModuleType]":
    try:
        import scipy.ndimage
        import scipy.spatial
    except ModuleNotFoundError as error:
        raise InstallationError(
            f"--boundary needs {error.name}, which is not installed: run {install('evaluate')}"
        ) from None
    return scipy.ndimage, scipy.spatial


def _gathered(compared: Compared) -> list[list[Integers]]:
    """Corners of the boundary of each class of the reference, and of the map, each of shape ``(corners, axes)``."""
    none = np.empty((0, len(compared.shape)), np.int64)
    parts = [[[none] for _ in range(compared.classes)] for _ in range(2)]
    for start in range(0, max(compared.shape[0] - 1, 0), compared.step):
        pair = compared.window(start, min(start + compared.step + 1, compared.shape[0]))
        for own, labels in zip(parts, pair, strict=True):
            for k, corners in _corners(labels):
                corners[:, 0] += start
                own[k].append(corners)
    return [[np.concatenate(each) for each in own] for own in parts]


def _corners(labels: Integers) -> Iterator[tuple[int, Integers]]:
    """Corners between pixels, by index of the pixel before them, at which a class begins or ends."""
    around = [labels[tuple(slice(at, size - 1 + at) for at, size in zip(each, labels.shape, strict=True))]
              for each in product((0, 1), repeat=labels.ndim)]  # fmt: skip
    varied, counted = np.zeros(around[0].shape, bool), around[0] >= 0
    for one in around[1:]:
        varied |= one != around[0]
        counted &= one >= 0
    places = np.argwhere(varied & counted)
    if not len(places):
        return
    each = np.stack([one[tuple(places.T)] for one in around], axis=1)
    for k in np.unique(each):
        yield int(k), places[(each == k).any(axis=1)]


def _distances(reference: Integers, mapped: Integers, spacing: Sequence[float]) -> tuple[Float, Float]:
    """From each corner of the reference to the nearest one of the map, and the other way; empty if one has none."""
    if not len(reference) or not len(mapped):
        return np.full(len(reference), np.inf), np.full(len(mapped), np.inf)
    tree = _scipy()[1].cKDTree
    first, second = reference * np.array(spacing), mapped * np.array(spacing)
    return tree(second).query(first)[0], tree(first).query(second)[0]


def _scores(distances: tuple[Float, Float], limit: float, intersection: int, union: int) -> BoundaryScores:
    iou = intersection / union if union else None
    reference, mapped = distances
    if not len(reference) and not len(mapped):
        return BoundaryScores(f1=None, surface_dice=None, iou=iou, hd95=None, intersection=intersection, union=union)
    near = [np.count_nonzero(one <= limit) for one in distances]
    both = len(reference) + len(mapped)
    shares = [n / len(one) if len(one) else 0.0 for n, one in zip(near, distances, strict=True)]
    f1 = 2 * shares[0] * shares[1] / sum(shares) if sum(shares) else 0.0
    there = len(reference) and len(mapped)
    hd95 = max(float(np.percentile(one, 95)) for one in distances) if there else None
    return BoundaryScores(f1=f1, surface_dice=sum(near) / both, iou=iou, hd95=hd95, intersection=intersection, union=union)


def _bands(compared: Compared, tolerance: float) -> Integers:
    """Pixels near the boundary of each class in both, and in either of map and reference: shape ``(classes, 2)``."""
    found, halo = np.zeros((compared.classes, 2), np.int64), math.ceil(tolerance / compared.spacing[0])
    step = max(compared.step, halo)  # each row is read three times at most
    for start in range(0, compared.shape[0], step):
        low, stop = max(start - halo, 0), min(start + step, compared.shape[0])
        pair = compared.window(low, min(stop + halo, compared.shape[0]))
        own = slice(start - low, stop - low)
        for k in np.union1d(*(np.unique(one[one >= 0]) for one in pair)).astype(int):
            one, other = (_near(labels, k, compared.spacing, tolerance)[own] for labels in pair)
            found[k] += np.count_nonzero(one & other), np.count_nonzero(one | other)
    return found


def _near(labels: Integers, k: int, spacing: Sequence[float], tolerance: float) -> NDArray[np.bool_]:
    """Pixels of a class that lie within the tolerance of one of another class."""
    others = (labels != k) & (labels >= 0)
    if not others.any():
        return np.zeros(labels.shape, bool)
    away = _scipy()[0].distance_transform_edt(~others, sampling=spacing)
    return np.asarray((labels == k) & (away <= tolerance * (1 + SLACK)))

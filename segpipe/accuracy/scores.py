"""Scores of a confusion matrix."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Float, Integers

LARGE = 0.8
"""Share of a class from which the overall accuracy says little."""
MOST_NUMBERS = 2**22
"""How often each case is drawn, in memory at once: 32 MB."""
QUANTITIES = ("iou", "dice", "precision", "recall")
SUMMARIES = ("mean_iou", "frequency_weighted_iou", "mean_dice", "overall_accuracy", "mean_accuracy", "kappa")


@dataclass(frozen=True, eq=False)
class Margins:
    """Diagonals and sums of matrices of shape ``(..., reference, map)``; shape ``(..., classes)``.

    They are all that scores need: 5 kB for a case of 200 classes, whose matrix takes 320 kB.
    """

    hits: Integers
    """Pixels of each class in the reference and on the map."""
    support: Integers
    """Pixels of each class in the reference."""
    mapped: Integers

    @classmethod
    def of(cls, matrix: Integers) -> "Margins":
        """Those of one matrix, or of several."""
        return cls(np.diagonal(matrix, axis1=-2, axis2=-1).copy(), matrix.sum(axis=-1), matrix.sum(axis=-2))

    @classmethod
    def stacked(cls, cases: Sequence["Margins"]) -> "Margins":
        """Those of several cases, shape ``(cases, classes)``."""
        return cls(*(np.array([getattr(case, name) for case in cases]) for name in ("hits", "support", "mapped")))

    def drawn(self, times: Integers) -> "Margins":
        """Sums over cases, each counted ``times`` ``(draws, cases)``: by floats, which are exact up to 2**53 pixels."""
        weights = times.astype(np.float64)
        return Margins(*((weights @ each).astype(np.int64) for each in (self.hits, self.support, self.mapped)))


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of matrices of shape ``(..., reference, map)``; NaN where a score has no meaning.

    Per class, shape ``(..., classes)``: a class that is neither in the reference nor on the map has none. Means are over the
    classes that have a score.
    """

    support: Integers
    """Pixels of each class in the reference."""
    mapped: Integers
    iou: Float
    dice: Float
    precision: Float
    recall: Float
    mean_iou: Float
    frequency_weighted_iou: Float
    mean_dice: Float
    overall_accuracy: Float
    mean_accuracy: Float
    """Mean of the recall of the classes that the reference has."""
    kappa: Float
    """Cohen's (1960): agreement beyond that of chance."""


def scores(margins: Margins) -> Scores:
    """All scores of one matrix, or of several."""
    hits, support, mapped = margins.hits, margins.support, margins.mapped
    union, total = support + mapped - hits, support.sum(axis=-1)
    iou, dice = _over(hits, union), _over(2 * hits, support + mapped)
    recall, overall = _over(hits, support), _over(hits.sum(axis=-1), total)
    chance = _over((support.astype(np.float64) * mapped).sum(axis=-1), total.astype(np.float64) ** 2)
    weighted = _over((support * np.nan_to_num(iou)).sum(axis=-1), total)
    return Scores(
        support=support,
        mapped=mapped,
        iou=iou,
        dice=dice,
        precision=_over(hits, mapped),
        recall=recall,
        mean_iou=_mean(iou),
        frequency_weighted_iou=weighted,
        mean_dice=_mean(dice),
        overall_accuracy=overall,
        mean_accuracy=_mean(recall),
        kappa=_over(overall - chance, 1 - chance),
    )


def _over(part: NDArray[np.generic], whole: NDArray[np.generic]) -> Float:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(whole) == 0, np.nan, np.divide(part, whole))


def _mean(values: Float) -> Float:
    """Over the last axis, without NaN."""
    held = ~np.isnan(values)
    return _over(np.where(held, values, 0).sum(axis=-1), held.sum(axis=-1))


def bootstrap(margins: Margins, draws: int, seed: int, level: float) -> dict[str, Float]:
    """Limits of the scores of all cases together, if other cases of the kind had been taken (percentile bootstrap).

    Args:
        margins: shape ``(cases, classes)``.
        draws: number of samples of the cases, each with as many as there are.
        seed: of the draws.
        level: of confidence.

    Returns:
        Low and high per score: shape ``(2,)``, of classes ``(2, classes)``; NaN where no draw has one.
    """
    cases, rng = len(margins.hits), np.random.default_rng(seed)
    at_once = max(1, MOST_NUMBERS // cases)
    sizes = [min(at_once, draws - first) for first in range(0, draws, at_once)]
    parts = [scores(margins.drawn(rng.multinomial(cases, np.full(cases, 1 / cases), size=size))) for size in sizes]
    tail = ((1 - level) / 2, (1 + level) / 2)
    names = (*QUANTITIES, *SUMMARIES)
    return {name: _quantiles(np.concatenate([getattr(part, name) for part in parts]), tail) for name in names}


def _quantiles(values: Float, at: Sequence[float]) -> Float:
    """Quantiles along the first axis, ignoring NaN."""
    flat = values.reshape(len(values), -1)
    found = np.full((len(at), flat.shape[1]), np.nan)
    for k, column in enumerate(flat.T):
        held = column[~np.isnan(column)]
        if len(held):
            found[:, k] = np.quantile(held, at)
    return found.reshape(len(at), *values.shape[1:])

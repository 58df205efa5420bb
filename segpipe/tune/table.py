"""Build the table of results: costs and agreement of the candidates, which are Pareto-optimal, and the best one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from segpipe.geometry.windows import Tiling
from segpipe.tune.candidates import Axes, Candidate, TunedNetwork
from segpipe.tune.labels import Count
from segpipe.tune.speed import Speed

NOISE_OF_SPEED = 0.03
"""Relative difference of speed below which two candidates count as equally fast; then more equal labels win."""


@dataclass(frozen=True)
class Row:
    """A candidate with its fastest batch."""

    candidate: Candidate
    batch: int
    tiles_per_megapixel: float
    seconds_per_megapixel: float
    """Per megapixel of output, including overlaps and pixels behind borders; all calls in flight."""
    seam_error: float
    """Share of labels that differ from the same file's reference."""
    equal: float
    """Share of labels that equal the first file's reference."""
    mean_iou: float | None
    """Against true labels, if they are given."""
    times_as_fast: float
    """Speed relative to the first file with its contract's tiling, at its fastest batch."""
    front: bool = False
    """Whether it is Pareto-optimal in speed and equal labels."""
    best: bool = False


def make_rows(
    counts: Mapping[Candidate, Count],
    speeds: Mapping[tuple[TunedNetwork, Axes, int], Speed],
    tiles_per_megapixel: Callable[[Tiling], float],
    is_good: Callable[[Row, Row], bool],
) -> list[Row]:
    """Rows, the fastest first; the first candidate is the basis of comparison.

    Args:
        counts: compared labels of each candidate.
        speeds: of each file, tile and batch.
        tiles_per_megapixel: what a tiling costs.
        is_good: whether a row, compared with the first one, may be recommended.
    """
    rows = [_row(candidate, count, speeds, tiles_per_megapixel(candidate.tiling)) for candidate, count in counts.items()]
    own = rows[0].seconds_per_megapixel
    rows = [replace(row, times_as_fast=own / row.seconds_per_megapixel) for row in rows]
    best = _best([row for row in rows if is_good(row, rows[0])])
    rows = [replace(row, front=not any(_beats(other, row) for other in rows), best=row is best) for row in rows]
    return sorted(rows, key=lambda row: (row.seconds_per_megapixel, -row.equal))


def _row(candidate: Candidate, count: Count, speeds: Mapping[tuple[TunedNetwork, Axes, int], Speed], tiles: float) -> Row:
    key = candidate.network, candidate.tiling.tile
    batch = _batch({b: speed for (network, tile, b), speed in speeds.items() if (network, tile) == key})
    return Row(
        candidate=candidate,
        batch=batch,
        tiles_per_megapixel=tiles,
        seconds_per_megapixel=tiles * speeds[(*key, batch)].seconds,
        seam_error=count.seams / count.compared if count.compared else 0.0,
        equal=count.equal / count.compared if count.compared else 1.0,
        mean_iou=count.mean_iou,
        times_as_fast=1.0,
    )


def agrees(least: float) -> Callable[[Row, Row], bool]:
    """A row may be recommended if at least this share of its labels equals the reference of the first file."""
    return lambda row, _: row.equal >= least


def loses_at_most(loss: float) -> Callable[[Row, Row], bool]:
    """A row may be recommended if its mean IoU is at most this much below that of the first candidate."""

    def is_good(row: Row, first: Row) -> bool:
        return row.mean_iou is not None and first.mean_iou is not None and first.mean_iou - row.mean_iou <= loss

    return is_good


def _batch(speeds: Mapping[int, Speed]) -> int:
    """The smallest batch that is as fast as the fastest, among those that were measured in all rounds."""
    rounds = max(len(speed.rounds) for speed in speeds.values())
    seconds = {batch: speed.seconds for batch, speed in speeds.items() if len(speed.rounds) == rounds}
    return min(b for b, took in seconds.items() if took <= min(seconds.values()) * (1 + NOISE_OF_SPEED))


def _beats(a: Row, b: Row) -> bool:
    as_good = a.seconds_per_megapixel <= b.seconds_per_megapixel and a.equal >= b.equal
    return as_good and (a.seconds_per_megapixel < b.seconds_per_megapixel or a.equal > b.equal)


def _best(good: list[Row]) -> Row | None:
    """The fastest row; of equally fast ones the one with most equal labels, and the contract's own first."""
    if not good:
        return None
    limit = min(row.seconds_per_megapixel for row in good) * (1 + NOISE_OF_SPEED)
    return max(
        (row for row in good if row.seconds_per_megapixel <= limit), key=lambda row: (row.equal, row.candidate.is_own)
    )

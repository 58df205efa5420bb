"""Label a box with the pipeline's own stages, and compare labels with those of whole-image inference."""

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.accuracy.scores import Margins, scores
from segpipe.array_types import Integers
from segpipe.formats.case import Case
from segpipe.geometry.windows import Cover, Tiling, Window
from segpipe.network.scaling import Scaling
from segpipe.overrides import Overrides
from segpipe.pipeline.blend import blend
from segpipe.pipeline.decide import decide
from segpipe.pipeline.decision import Decision, Labels
from segpipe.pipeline.infer import LoadedModel, infer, load_model
from segpipe.pipeline.opening import CaseInfo
from segpipe.pipeline.tiles import Tile, batches, patch_of
from segpipe.tune.candidates import Candidate, TunedNetwork
from segpipe.tune.places import Axes, BoxSource, TunePlace
from segpipe.tune.truth import TrueLabels

HELD = Case("held", "a box in memory")

PERIODS = 1.5
"""Extent of the comparison along an axis, in tiles of the contract, rounded to whole steps of the candidate."""


@dataclass(frozen=True)
class LaidTiling:
    """Where a tiling is laid on a place, and the part where labels are compared: whole steps, as on an endless case."""

    laid: Window
    counted: Window


def sample(place: TunePlace, tiling: Tiling, wanted: Axes) -> LaidTiling:
    """Place a tiling on a place that covers at least two windows per axis, or its whole case.

    A whole case is tiled as in a run. On a larger one, the necessary number of windows is laid with exactly the requested
    overlap; labels are compared from the middle of the first window to the middle of the last.
    """
    axes = _axes(tiling)
    places = zip(axes, place.window.shape, place.whole, wanted, strict=True)
    laid = [(0, size) if whole else axis.laid(size, most) for axis, size, whole, most in places]
    counted = [ends if whole else axis.counted(ends) for axis, ends, whole in zip(axes, laid, place.whole, strict=True)]
    return LaidTiling(Window.spanning(laid), Window.spanning(counted))


Ends = tuple[int, int]


@dataclass(frozen=True)
class _Axis:
    """A tiling along one axis."""

    tile: int
    step: int
    align: int
    margin: int

    def laid(self, size: int, wanted: int) -> Ends:
        """The middle of ``size`` pixels; its length is a tile and a whole number of steps."""
        steps = steps_for(self.step, wanted) + 2 * self.mirrored
        length = self.tile + self.step * min(steps, (size - self.tile) // self.step)
        start = (size - length) // 2 // self.align * self.align
        return start, start + length

    def counted(self, laid: Ends) -> Ends:
        half, more = self.tile // 2, self.mirrored * self.step
        return laid[0] + half + more, laid[1] - (self.tile - half) - more

    @property
    def mirrored(self) -> int:
        """Steps at each end whose scores depend on mirrored pixels, beyond half a tile: an endless case has none."""
        return max(0, -(-(self.margin - self.tile // 2) // self.step))


def _axes(tiling: Tiling) -> list[_Axis]:
    return [_Axis(*axis) for axis in zip(tiling.tile, tiling.step, tiling.align, tiling.margin, strict=True)]


def steps_for(step: int, wanted: int) -> int:
    """Number of whole steps in about ``wanted`` pixels."""
    return max(1, round(wanted / step))


def extent(tiling: Tiling, wanted: Axes) -> Axes:
    """Pixels that the windows of a sample cover on an endless case."""
    axes = _axes(tiling)
    steps = (steps_for(axis.step, most) + 2 * axis.mirrored for axis, most in zip(axes, wanted, strict=True))
    return tuple(axis.tile + axis.step * count for axis, count in zip(axes, steps, strict=True))


def segment(model: LoadedModel, tiling: Tiling, held: BoxSource, scaling: Scaling, calls: int) -> Labels:
    """Labels ``(bands, *box)`` of a box, decided as in a run whose case is the box."""
    cover = Cover(held.grid.shape, tiling)
    info = CaseInfo(grid=held.grid, files=[], notes=(), cover=cover, opened=0.0, part=cover.whole)
    decision = Decision(model.spec.contract, model.spec.blend_on, model.arrays)
    labels: NDArray[Any] = np.empty((decision.bands, *cover.shape), decision.dtype)
    with closing(infer(model, batches(_tiles(info, held, scaling), model.spec.batch), calls)) as scored:
        for box in decide(blend(scored, model.arrays), decision, confidence=False):
            labels[(slice(None), *box.window.slices)] = box.labels
    return labels


def _tiles(info: CaseInfo, held: BoxSource, scaling: Scaling) -> Iterator[Tile]:
    for index in info.cover:
        yield Tile(HELD, info, index, patch_of(held, info.cover, index, scaling))


class Bench:
    """A file on a place: its reference labels, and the labels of its tilings."""

    def __init__(
        self, network: TunedNetwork, place: TunePlace, overrides: Overrides, calls: int, truth: TrueLabels | None = None
    ) -> None:
        self._network, self._place, self._calls, self._truth = network, place, calls, truth
        self._held, self._scaling = place.hold(network.spec, overrides)
        self.reference = self._reference()

    def _reference(self) -> Labels:
        """Reference labels: by one call on the whole box if possible, else each from the middle of a tile."""
        network, calls = self._network, self._calls
        tiling = reference_tiling(network, self._held.grid.shape)
        spec = network.with_tiling(tiling)
        if tiling.tile != network.spec.tiling.tile:  # the whole box: one call, which gets all threads
            spec = replace(network.with_tiling(tiling, 1 if network.free_batch else None), threads=calls)
            calls = 1
        return segment(load_model(spec), tiling, self._held, self._scaling, calls)

    def compare(self, model: LoadedModel, candidate: Candidate, reference: Labels, wanted: Axes) -> "Count":
        """Compare a tiling's labels with the file's own reference, and with that of the first file."""
        where = sample(self._place, candidate.tiling, wanted)
        labels = segment(model, candidate.tiling, self._held.crop(where.laid), self._scaling, self._calls)
        inner, box = where.counted.slices_from(where.laid.start), where.counted.slices
        valid = self._held.valid[box]
        mine = labels[(slice(None), *inner)][:, valid]
        own, first = (of[(slice(None), *box)][:, valid] for of in (self.reference, reference))
        confusion = None if self._truth is None else self._truth.confusion(box, valid, mine[0])
        return Count(mine.size, int((mine != own).sum()), int((mine == first).sum()), confusion)


def reference_tiling(network: TunedNetwork, shape: Axes) -> Tiling:
    """One window if the network takes the whole box (``takes_whole``); else own tiles that share three quarters."""
    own = network.spec.tiling
    if network.takes_whole(shape):
        # as many strides more or less as cover the box: with a margin, the tile is no multiple of them
        tile = tuple(t + -(-(n - t) // a) * a for n, t, a in zip(shape, own.tile, own.align, strict=True))
        return replace(own, tile=tile, overlap=(0,) * len(tile))
    steps = [max(a, t // 4 // a * a) for t, a in zip(own.tile, own.align, strict=True)]
    overlap = tuple(t - one for t, one in zip(own.tile, steps, strict=True))
    return replace(own, overlap=overlap, blend="crop")


@dataclass(frozen=True)
class Count:
    """Numbers of compared labels."""

    compared: int = 0
    seams: int = 0
    """Labels that differ from the same file's reference."""
    equal: int = 0
    """Labels that equal the first file's reference."""
    confusion: Integers | None = field(default=None, compare=False)
    """Pixels by true and mapped class; None without true labels."""

    def __add__(self, other: "Count") -> "Count":
        both = [count.confusion for count in (self, other) if count.confusion is not None]
        confusion = np.sum(both, axis=0) if both else None
        return Count(self.compared + other.compared, self.seams + other.seams, self.equal + other.equal, confusion)

    @property
    def mean_iou(self) -> float | None:
        """Mean over the classes that occur; None without true labels."""
        found = math.nan if self.confusion is None else float(scores(Margins.of(self.confusion)).mean_iou)
        return None if math.isnan(found) else found

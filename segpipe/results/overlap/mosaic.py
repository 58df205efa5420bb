"""Join the masks of a run to one map, block by block: memory does not grow with the map."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.choices import OverlapRule
from segpipe.errors import OverlapError, on_failure
from segpipe.formats.registry import FORMATS, OpenMask
from segpipe.formats.style import Style
from segpipe.geometry.extents import extent
from segpipe.geometry.lookup import Lookup, common
from segpipe.geometry.raster_grid import NoGroundError, RasterGrid, ground_of
from segpipe.geometry.windows import Window
from segpipe.messages.printable import counted, printable
from segpipe.messages.steps import stepping
from segpipe.results.overlap.finished import FinishedCase, opened, opened_confidence
from segpipe.results.overlap.mask_cache import CachedMask, MaskCache
from segpipe.results.overlap.mosaic_grid import GridRequest, MosaicGrid, mosaic_grid
from segpipe.results.overlap.order import Neighbourhood
from segpipe.results.overlap.rule import Observation, goes_before
from segpipe.results.overlap.shared import Neighbour, chunks
from segpipe.storage import Store

TILE = 2048
"""Side of the blocks in which a mosaic is made: four of its own."""


@dataclass(frozen=True)
class MosaicPlan:
    """A mosaic before its pixels are read."""

    cases: Sequence[FinishedCase]
    """In the order in which they count."""
    grids: Sequence[RasterGrid]
    placement: MosaicGrid
    rule: OverlapRule
    style: Style
    """Type, nodata, colours and names, which all masks have."""


def plan_mosaic(output: Store, cases: Sequence[FinishedCase], rule: OverlapRule, request: GridRequest) -> MosaicPlan:
    """Check that masks make one map, and find its grid.

    Args:
        output: where the masks are.
        cases: sorted by name.
        rule: which case counts where several share ground.
        request: CRS and pixel size that the user names.

    Raises:
        OverlapError: models, classes or kinds of grids differ, or the rule lacks what it needs.
        OutputError: a mask cannot be read.
    """
    check_kind(cases)
    placed = [(case.case, _grid(output, case, cases[0])) for case in cases]
    extents = [extent(ground_of(grid), grid.shape) for _, grid in placed]
    rank = Neighbourhood.of(output, cases, extents, rule).rank
    placement = mosaic_grid(placed, request)
    order = sorted(range(len(cases)), key=lambda k: rank[k])
    return MosaicPlan([cases[k] for k in order], [placed[k][1] for k in order], placement, rule, _style(output, cases[0]))


def _style(output: Store, case: FinishedCase) -> Style:
    maps = FORMATS[case.format].maps
    assert maps is not None  # it has a position on the Earth
    with opened(output, case), output.local(case.mask or "") as path:
        return maps.style(path)


def check_kind(cases: Sequence[FinishedCase]) -> None:
    """Check that masks are of one model, with one set of classes.

    Raises:
        OverlapError: with the names of two that differ.
    """
    first = cases[0]
    for case in cases[1:]:
        pair = f"{printable(first.case)} and {printable(case.case)}"
        if case.model != first.model:
            raise OverlapError(f"a mosaic needs masks of one model, and those of {pair} are of two: {_MEND}")
        if (case.classes, case.nodata) != (first.classes, first.nodata):
            raise OverlapError(f"a mosaic needs masks with the same classes, and those of {pair} differ: {_MEND}")


_MEND = "keep their runs in outputs of their own"


def _grid(output: Store, case: FinishedCase, first: FinishedCase) -> RasterGrid:
    """The grid of a case, from its record or its mask.

    Raises:
        OverlapError: it has no position on the Earth.
    """
    try:
        ground_of(grid := case.grid or _opened_grid(output, case))
    except NoGroundError as error:
        pair = "" if case is first else f", as that of {printable(first.case)}"
        raise OverlapError(
            f"a mosaic needs masks with a position on the Earth{pair}, and {printable(case.case)} has none: {error}: {_MEND}"
        ) from None
    return grid


def _opened_grid(output: Store, case: FinishedCase) -> RasterGrid:
    with opened(output, case) as mask:
        assert isinstance(mask.grid, RasterGrid)  # formats whose masks can be opened have such grids
        return mask.grid


@dataclass(frozen=True)
class Forecast:
    """The size of a mosaic before its pixels are read."""

    shape: tuple[int, ...]
    pixels: int
    """Pixels in blocks on which masks may lie: only these are joined."""
    covered: int
    """The most of them on which masks may lie."""
    bytes_per_pixel: int

    @property
    def share(self) -> float:
        """Share of the mosaic that is joined."""
        return self.pixels / math.prod(self.shape)

    @property
    def covered_share(self) -> float:
        """The largest share of the mosaic on which masks may lie."""
        return self.covered / math.prod(self.shape)


Planned = Callable[[Forecast], None]
"""Callback that receives the size of a mosaic before its pixels are read."""


def write_mosaic(output: Store, plan: MosaicPlan, target: Store, name: str, planned: Planned = lambda _: None) -> list[str]:
    """Write the map, and return the names of its files.

    Raises:
        OutputError: a mask cannot be read, or the map cannot be written.
    """
    maps, style = FORMATS[plan.cases[0].format].maps, plan.style
    assert maps is not None  # the plan has a style of it
    with MaskCache() as cache:
        join = _Join.of(plan, _layers(output, plan, cache))
        planned(forecast := join.forecast)
        sink = maps.sink(target, name, plan.placement.grid, style, forecast.share)
        with on_failure(sink.discard):
            for window, layers in stepping(list(join.windows()), "joining masks in blocks"):
                if layers:
                    sink.write(window, join.joined(window, layers))
                else:
                    sink.leave(window)
            return sink.finish()


def _layers(output: Store, plan: MosaicPlan, cache: MaskCache) -> "list[_Layer]":
    """The masks that reach the mosaic, in the order in which they count; they are opened when they are read."""
    own, shape = ground_of(plan.placement.grid), plan.placement.grid.shape
    found = []
    for case, grid in zip(plan.cases, plan.grids, strict=True):
        theirs = ground_of(grid)
        if (reach := common(theirs, grid.shape, own, shape)) is not None:
            mask = CachedMask(cache, grid, partial(_opened, output, plan, case))
            confidence = (
                CachedMask(cache, grid, partial(opened_confidence, output, case)) if plan.rule == "confidence" else None
            )
            neighbour = Neighbour(mask, theirs, case.nodata, earlier=False, confidence=confidence)
            found.append(_Layer(reach, neighbour, Lookup(own, theirs, grid.shape)))
    return found


@contextmanager
def _opened(output: Store, plan: MosaicPlan, case: FinishedCase) -> Iterator[OpenMask]:
    with opened(output, case) as mask:
        if mask.bands != len(plan.style.bands):
            raise OverlapError(
                f"a mosaic needs masks of one kind, and {printable(case.case)} has {counted(mask.bands, 'band')} and "
                f"{printable(plan.cases[0].case)} {len(plan.style.bands)}: {_MEND}"
            )
        yield mask


@dataclass(frozen=True, eq=False)
class _Join:
    """Joins masks in blocks."""

    plan: MosaicPlan
    layers: "Sequence[_Layer]"
    near: "Mapping[int, Mapping[int, Sequence[_Layer]]]"
    """The masks that reach each block, in the order in which they count, by row and column of the block."""

    @classmethod
    def of(cls, plan: MosaicPlan, layers: "Sequence[_Layer]") -> "_Join":
        near: dict[int, dict[int, list[_Layer]]] = defaultdict(lambda: defaultdict(list))
        for layer in layers:
            rows, cols = (range(a // TILE, -(-b // TILE)) for a, b in zip(layer.reach.start, layer.reach.stop, strict=True))
            for row, col in product(rows, cols):
                near[row][col].append(layer)
        return cls(plan, layers, near)

    @property
    def forecast(self) -> Forecast:
        shape, style = self.plan.placement.grid.shape, self.plan.style
        pixels = sum(math.prod(_block(shape, row, col, col + 1).shape) for row, line in self.near.items() for col in line)
        reached = sum(math.prod(layer.reach.shape) for layer in self.layers)
        return Forecast(shape, pixels, min(pixels, reached), len(style.bands) * np.dtype(style.dtype).itemsize)

    def windows(self) -> "Iterator[tuple[Window, Sequence[_Layer]]]":
        """Windows of the mosaic, which hold each pixel once: blocks with the masks that reach them, and what lies between
        them, with none."""
        shape = self.plan.placement.grid.shape
        down, across = (-(-side // TILE) for side in shape)
        for row in range(down):
            line, done = self.near.get(row, {}), 0
            for col in [*sorted(line), across]:
                if done < col:
                    yield _block(shape, row, done, col), ()
                if col < across:
                    yield _block(shape, row, col, col + 1), line[col]
                done = col + 1

    def joined(self, tile: Window, layers: "Sequence[_Layer]") -> NDArray[Any]:
        """Labels of a block, ``(bands, *tile.shape)``, from the masks that reach it."""
        style = self.plan.style
        labels = np.full((len(style.bands), *tile.shape), style.nodata, style.dtype)
        best = Observation.nothing(tile.shape, confidence=self.plan.rule == "confidence")
        for layer in layers:
            for part in chunks(tile.intersection(layer.reach)):
                own = part.slices_from(tile.start)
                layer.add(part, labels[(slice(None), *own)], _cut(best, own))
        return labels


def _block(shape: tuple[int, ...], row: int, first: int, last: int) -> Window:
    """Some blocks of a row of them, ``last`` exclusive."""
    rows, cols = shape
    return Window((row * TILE, first * TILE), (min((row + 1) * TILE, rows), min(last * TILE, cols)))


def _cut(observed: Observation, own: tuple[slice, ...]) -> Observation:
    """A part of what has been found so far, to be changed in place."""
    confidence = None if observed.confidence is None else observed.confidence[own]
    return Observation(observed.covered[own], observed.seen[own], confidence)


@dataclass(frozen=True, eq=False)
class _Layer:
    """A mask as the mosaic sees it."""

    reach: Window
    """Part of the mosaic on which it may lie."""
    neighbour: Neighbour
    lookup: Lookup

    def add(self, part: Window, labels: NDArray[Any], best: Observation) -> None:
        """Take over labels where this mask goes before those that came before it in the order of cases.

        Args:
            part: a window of the mosaic.
            labels: labels of the mosaic there, ``(bands, *part.shape)``, which are changed.
            best: what is there of the masks so far, which is changed.
        """
        if best.confidence is None and best.seen.all():
            return
        if (hits := self.lookup.hits(part)) is None:
            return
        observed = self.neighbour.observed(hits)
        wins = goes_before(observed, best, earlier=False)
        if not wins.any():
            return
        for band, values in enumerate(labels):
            values[wins] = hits.of(self.neighbour.mask.read(hits.window, band))[wins]
        best.covered[wins], best.seen[wins] = True, observed.seen[wins]
        if best.confidence is not None and observed.confidence is not None:
            best.confidence[wins] = observed.confidence[wins]

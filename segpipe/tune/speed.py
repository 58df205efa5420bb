"""Time of a tile with its pixels in memory: through the model, blended and decided, as in a run."""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import cycle, islice

from segpipe.formats.source import Pixels
from segpipe.geometry.grid import BareGrid
from segpipe.geometry.windows import Cover
from segpipe.network.scaling import Scaling
from segpipe.network.spec import ModelSpec
from segpipe.pipeline.blend import blend
from segpipe.pipeline.decide import decide
from segpipe.pipeline.decision import Decision
from segpipe.pipeline.infer import LoadedModel, infer, load_model
from segpipe.pipeline.opening import CaseInfo
from segpipe.pipeline.tiles import Patch, Tile, batches, read_tile
from segpipe.tune.labels import HELD
from segpipe.tune.places import BoxSource

TIMED = 2
"""Timed tiles per call in flight; a batch if that is more."""

TILES_HELD = 4


@dataclass(frozen=True)
class Speed:
    """Seconds per tile with all calls in flight, once per round."""

    rounds: tuple[float, ...]
    relative: float
    """Time relative to the first setting, median over common rounds: a busy machine slows both."""
    seconds: float
    """Median time of the first setting, times ``relative``."""

    @property
    def spread(self) -> float:
        """Difference between the slowest and the fastest round, as a share of ``seconds``."""
        return (max(self.rounds) - min(self.rounds)) / self.seconds


def speed(rounds: Sequence[float], first: Sequence[float]) -> Speed:
    """Speed from rounds of a setting, whose first rounds coincide with rounds of the first setting."""
    relative = statistics.median(own / other for own, other in zip(rounds, first, strict=False))
    return Speed(tuple(rounds), relative, relative * statistics.median(first))


def tiles_of(held: BoxSource, scaling: Scaling, spec: ModelSpec) -> list[Pixels]:
    """Some scaled tiles with valid pixels, mirrored where the box is smaller than a tile."""
    cover = Cover(held.grid.shape, spec.tiling)
    found = (read_tile(held, cover, index, scaling)[0] for index in cover)
    return list(islice((pixels for pixels in found if pixels is not None), TILES_HELD))


def seconds_per_tile(spec: ModelSpec, tiles: Sequence[Pixels], calls: int) -> float:
    """Wall time per tile, after one batch per call to warm up."""
    model = load_model(spec)
    once, count = calls * spec.batch, calls * max(TIMED, spec.batch)
    _pass(model, tiles, once, calls)
    started = time.perf_counter()
    _pass(model, tiles, count, calls)
    return (time.perf_counter() - started) / count


def _pass(model: LoadedModel, tiles: Sequence[Pixels], count: int, calls: int) -> None:
    """Run a row of windows with the model's tile and overlap through all stages except reading and writing."""
    tiling = model.spec.tiling
    shape = (*tiling.tile[:-1], tiling.tile[-1] + (count - 1) * tiling.step[-1])
    cover = Cover(shape, tiling)
    info = CaseInfo(grid=BareGrid(shape), files=[], notes=(), cover=cover, opened=0.0, part=cover.whole)
    decision = Decision(model.spec.contract, model.spec.blend_on, model.arrays)
    with closing(infer(model, batches(_cycled(info, tiles), model.spec.batch), calls)) as scored:
        for _ in decide(blend(scored, model.arrays), decision, confidence=False):
            pass


def _cycled(info: CaseInfo, tiles: Sequence[Pixels]) -> Iterator[Tile]:
    for index, pixels in zip(info.cover, cycle(tiles), strict=False):
        yield Tile(HELD, info, index, Patch(pixels))

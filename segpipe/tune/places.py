"""Places where labels are compared: boxes of scenes or volumes, or noise, held in memory."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import InputError, OutsideError
from segpipe.export.tiles import noise, raw_tiles
from segpipe.formats.case import Case
from segpipe.formats.case_scaling import scaling_of
from segpipe.formats.registry import environment
from segpipe.formats.scope import Scope
from segpipe.formats.source import Begun, Invalid, Pixels, Scene, Source
from segpipe.geometry.grid import BareGrid
from segpipe.geometry.windows import Window
from segpipe.network.scaling import Scaling, of_input, unscaled
from segpipe.network.spec import ModelSpec
from segpipe.overrides import Overrides
from segpipe.pipeline.findings import warn_of_findings
from segpipe.pipeline.opening import CaseInfo, on_network_grid, open_checked
from segpipe.tune.settings import NOISE

Axes = tuple[int, ...]

VALID = 0.5
"""Share of valid pixels from which a box is accepted."""

LOOKS = (0.5, 0.25, 0.75)
"""Positions of boxes in a scene, as shares of the possible starts along each axis, the middle first."""

SURVEYED = 16
"""Number of scenes whose sizes determine the tiles per megapixel."""


class BoxSource:
    """A box of a case in memory, as a source."""

    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    separable = True
    scene: Scene = MappingProxyType({})
    template = None
    block = unpacked = 0

    def __init__(self, pixels: Pixels, invalid: Invalid | None, outside: Invalid | None = None) -> None:
        self._pixels, self._invalid, self._outside = pixels, invalid, outside
        self.grid, self.dtype = BareGrid(pixels.shape[1:]), pixels.dtype

    def read(self, window: Window) -> tuple[Pixels, Invalid | None]:
        box = window.slices
        return self._pixels[(slice(None), *box)], None if self._invalid is None else self._invalid[box]

    def begin(self, window: Window, threads: int | None = None) -> Begun:
        del threads
        return lambda: self.read(window)

    def empty(self, window: Window) -> bool:
        """Return False: the whole box is read at once."""
        del window
        return False

    def memory(self, shape: tuple[int, ...]) -> int:
        """Return 0: nothing is decoded."""
        del shape
        return 0

    def near(self, place: tuple[float, ...], most: int) -> Window:
        """Return the whole box: it is in memory."""
        del place, most
        return Window.whole(self.grid.shape)

    def crop(self, window: Window) -> "BoxSource":
        """A part of the box, without a copy."""
        return BoxSource(*self.read(window))

    @property
    def valid(self) -> NDArray[np.bool_]:
        """The pixels that get labels: valid ones in the area of interest."""
        valid = np.ones(self.grid.shape, bool)
        for mask in (self._invalid, self._outside):
            valid &= True if mask is None else ~mask
        return valid

    def tags(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Neutral tags: the tags of the case are already part of the scaling."""
        return np.ones(len(self._pixels)), np.zeros(len(self._pixels))

    def close(self) -> None:
        """Do nothing: a box in memory has no files."""
        ...


@dataclass(frozen=True)
class TunePlace:
    """A box of a case, or of noise if it has no case."""

    window: Window
    whole: tuple[bool, ...]
    """Per axis, whether the box covers the whole case."""
    case: Case | None = None
    seed: int = 0
    plane: int | None = None
    """Slice of a volume that contains the box, for a 2-D model; None if model and case have the same axes."""

    def hold(self, spec: ModelSpec, overrides: Overrides) -> tuple[BoxSource, Scaling]:
        """Read the box as a run does for a model, resampled if needed; return it with its scaling."""
        if self.case is None:
            return _noise(self.window.shape, spec, self.seed)
        with opened_checked(self.case, spec, overrides) as (source, info):
            scaling = of_input(scaling_of(source, spec.contract, info.box), spec.contract)
            return self.read(source, info, spec, scaling), scaling

    def read(self, source: Source, info: CaseInfo, spec: ModelSpec, scaling: Scaling | None = None) -> BoxSource:
        """Read the pixels of the box, given on the network's grid of the opened case."""
        seen = on_network_grid(source, info, spec, scaling)
        if self.plane is None:
            return BoxSource(*seen.read(self.window), _outside(info, self.window))
        pixels, invalid = seen.read(Window((self.plane, *self.window.start), (self.plane + 1, *self.window.stop)))
        return BoxSource(pixels[:, 0], None if invalid is None else invalid[0])


def _outside(info: CaseInfo, window: Window) -> Invalid | None:
    """Mask of the pixels of the network's grid that lie outside the area of interest; None if all lie inside."""
    if info.scope is None:
        return None
    if info.regridding is None:
        return info.scope.excluded(window)
    excluded = info.scope.excluded(info.regridding.needed(window))
    return None if excluded is None else ~info.regridding.seen(excluded, window)


def _noise(shape: Axes, spec: ModelSpec, seed: int) -> tuple[BoxSource, Scaling]:
    contract, dtype = spec.contract, np.dtype(spec.input_dtype)
    count = contract.input_channels
    scaled = noise((count, *shape), seed)
    if contract.scaling == "host":
        return BoxSource(scaled, None), Scaling(np.ones(count), np.zeros(count))
    (raw,) = raw_tiles([scaled], contract, str(dtype) if dtype.kind in "iu" else "uint16")
    return BoxSource(raw, None), of_input(unscaled(contract), contract)


def survey(cases: Sequence[Case], spec: ModelSpec, overrides: Overrides) -> list[Axes]:
    """Shapes of some cases, evenly chosen, as the network sees them; for a 2-D model, of their slices.

    Raises:
        SourceError: a case does not fit the model.
    """
    shapes = []
    for case in cases[:: max(1, len(cases) // SURVEYED)][:SURVEYED]:
        with suppress(OutsideError), opened_checked(case, spec, overrides) as (source, info):
            warn_of_findings(case, source, spec.contract)
            shapes.append(info.cover.shape[-len(spec.tiling.tile) :])
    return shapes


@contextmanager
def opened_checked(case: Case, spec: ModelSpec, overrides: Overrides) -> Iterator[tuple[Source, CaseInfo]]:
    """Open a case for a while."""
    source, info = open_checked(case, spec, overrides)
    with closing(source):
        yield source, info


def find_places(cases: Sequence[Case], side: Axes, count: int, spec: ModelSpec, overrides: Overrides) -> list[TunePlace]:
    """Up to ``count`` boxes of ``side`` with mostly valid pixels, from as many cases as possible; noise without cases.

    Raises:
        InputError: no valid pixel was found.
    """
    if not cases:
        window = Window.whole(side)
        return [TunePlace(window, (False,) * len(side), seed=seed) for seed in range(count)]
    looked: list[tuple[float, TunePlace]] = []
    with environment():
        some = cases if overrides.aoi is not None else cases[:: max(1, len(cases) // count)]  # most may lie outside
        for look in _looks(some, side, spec, overrides):
            looked.append(look)
            if sum(share >= VALID for share, _ in looked) == count:
                break
    best = sorted((look for look in looked if look[0] > 0), key=lambda look: -min(look[0], VALID))
    if not best:
        if overrides.aoi is not None:
            raise InputError(
                f"a case must hold valid pixels inside {overrides.aoi.path} to compare labels on, and none does"
            )
        raise InputError(f"{cases[0].path} must hold valid pixels to compare labels on, and where it was looked at are none")
    return [place for _, place in best[:count]]


def _looks(cases: Sequence[Case], side: Axes, spec: ModelSpec, overrides: Overrides) -> Iterator[tuple[float, TunePlace]]:
    """Yield candidate boxes, each once, with their share of valid pixels: the middle of every case, then elsewhere."""
    seen: set[TunePlace] = set()
    for shares, case in product(product(LOOKS, repeat=len(side)), cases):
        with suppress(OutsideError), opened_checked(case, spec, overrides) as (source, info):
            place = _place(case, info, side, shares)
            if place not in seen:
                seen.add(place)
                yield float(place.read(source, info, spec).valid.mean()), place


def _place(case: Case, info: CaseInfo, side: Axes, shares: Sequence[float]) -> TunePlace:
    shape = info.cover.shape
    planes, shape = shape[: -len(side)], shape[-len(side) :]
    size = tuple(map(min, side, shape))
    within = [(0, n) for n in shape] if info.scope is None else _bounds(info, info.scope)
    axes = zip(shape, size, within, shares, strict=True)
    start = tuple(min(max(0, int(_start(low, high, s, share))), n - s) for n, s, (low, high), share in axes)
    window = Window(start, tuple(a + n for a, n in zip(start, size, strict=True)))
    plane = int((planes[0] - 1) * shares[0]) if planes else None
    return TunePlace(window, tuple(n == s for n, s in zip(shape, size, strict=True)), case, plane=plane)


def _start(low: float, high: float, size: int, share: float) -> float:
    """Start of a box within bounds, which lie in its middle if they are smaller."""
    return low + (high - low - size) * (share if high - low > size else 0.5)


def _bounds(info: CaseInfo, scope: Scope) -> list[tuple[float, float]]:
    """Bounds of the area of interest on the network's grid, per axis."""
    ratios = [seen / own for seen, own in zip(info.cover.shape, info.grid.shape, strict=True)]
    bounds = scope.bounds
    return [(a * ratio, b * ratio) for a, b, ratio in zip(bounds.start, bounds.stop, ratios, strict=True)]


def named(places: Sequence[TunePlace]) -> str:
    """Names of the cases on which labels were compared."""
    names = dict.fromkeys(NOISE if place.case is None else place.case.name for place in places)
    return ", ".join(names)

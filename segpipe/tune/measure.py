"""Measure the candidates within a budget of seconds: labels first, then speed in alternating rounds."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from segpipe.errors import ModelError
from segpipe.formats.banded import bands_from
from segpipe.formats.case import CaseSelection as CaseChoice
from segpipe.formats.cases import find_cases
from segpipe.formats.channels import channels_of
from segpipe.formats.registry import element_of, environment
from segpipe.formats.source import Pixels
from segpipe.geometry.windows import Cover, Tiling
from segpipe.jobs.prepare import area_of
from segpipe.messages.printable import dims
from segpipe.overrides import Overrides
from segpipe.pipeline.infer import load_model
from segpipe.pipeline.memory import network_bytes
from segpipe.process.machine import memory, processors
from segpipe.results.device_kind import device_kind
from segpipe.results.schema import Values
from segpipe.tune.candidates import Axes, Candidate, TunedNetwork, batches, candidates, open_networks
from segpipe.tune.labels import PERIODS, Bench, Count, extent
from segpipe.tune.places import TunePlace, find_places, named, survey
from segpipe.tune.settings import TuneSettings
from segpipe.tune.speed import TIMED, Speed, seconds_per_tile, speed, tiles_of
from segpipe.tune.table import Row, agrees, loses_at_most, make_rows
from segpipe.tune.truth import Truth, find_truth

PLANNED = 0.9
"""Share of the budget that is planned, since estimates are rough."""

EVEN = 2
"""Rounds of speed to reserve time for before labels are compared on more than one box."""

PLACES = 4
"""Most boxes on which labels are compared."""

TILES_SHARE = 0.8
"""Share of the machine's memory that the calls in flight may take."""

SHARED_STEPS = 4
"""Windows of a reference of tiles that share a pixel, per axis."""

HOPELESS = 1.1
"""Time relative to the fastest batch of a tile above which a batch is measured only once."""

ROUNDS = 9

Setting = tuple[TunedNetwork, Axes, int]
"""The settings that determine the time of a tile: file, tile, batch."""


@dataclass(frozen=True)
class Tuned:
    """Results of the measurement."""

    rows: list[Row]
    speeds: dict[Setting, Speed]
    best: Row | None
    """The fastest row that agrees well enough."""
    compared_on: str
    reference: str
    min_agreement: float
    max_loss: float | None
    """Largest accepted loss of mean IoU, in place of ``min_agreement``."""
    flags: list[str]
    """Flags of the run that do not depend on the candidate."""
    calls: int
    seconds: float
    device: Values
    notes: list[str] = field(default_factory=list)
    element: str = "px"
    """``px`` or ``voxel``."""


def tune(settings: TuneSettings, tell: Callable[[str], None]) -> Tuned:
    """Measure labels and speed of all candidates that fit into the budget.

    Raises:
        SegpipeError: the model, one of its other files, or a scene cannot be used.
    """
    started = time.monotonic()
    with environment():
        work = _Work(settings, tell, started + settings.seconds)
        counts = work.count()
        speeds = work.time(counts)
    good = agrees(settings.min_agreement) if settings.max_loss is None else loses_at_most(settings.max_loss)
    rows = make_rows(counts, speeds, work.tiles_per_megapixel, good)
    return Tuned(
        rows=rows,
        speeds=speeds,
        best=next((row for row in rows if row.best), None),
        compared_on=work.compared_on,
        reference=work.reference,
        min_agreement=settings.min_agreement,
        max_loss=settings.max_loss,
        flags=settings.flags,
        calls=work.calls,
        seconds=time.monotonic() - started,
        device=device_kind(work.first.spec),
        notes=work.notes,
        element=work.element,
    )


class _Work:
    """State of a measurement: files, scenes, candidates and deadline."""

    def __init__(self, settings: TuneSettings, tell: Callable[[str], None], deadline: float) -> None:
        self._settings, self._tell, self._deadline = settings, tell, deadline
        self.notes: list[str] = []
        self._networks = open_networks(settings)
        self.first = self._networks[0]
        self.calls = processors() if self.first.spec.on_host else 1
        self._overrides = self._read_overrides()
        contract = self.first.spec.contract
        banded = bands_from(settings.bands_from, contract)
        together = CaseChoice(channels=channels_of(contract, None), bands=banded, validity=self._overrides.validity)
        self._cases = find_cases(settings.input, together) if settings.input else []
        self._truth = self._find_truth()
        if not self._cases:
            tell("no --input: tiles are noise, and seam error on noise says little of scenes")
        self._shapes = survey(self._cases, self.first.spec, self._overrides)
        self._wanted = tuple(round(PERIODS * t) for t in self.first.spec.tiling.tile)
        tell("timing a few tiles to plan within the budget")
        self._rates = {network: self._rate(network) for network in self._networks}
        self._several = False
        self._candidates = self._affordable(self._distinct(candidates(self._networks, settings)))
        self._several = self._can_time_batches()
        self._places = self._find_places()

    def _read_overrides(self) -> Overrides:
        """What the user says of the scenes, and the area of interest."""
        run = self._settings.of_run(self._settings.model)
        area, warnings = area_of(run)
        self.notes += warnings
        return replace(run.overrides, aoi=area)

    def _find_truth(self) -> Truth | None:
        """True labels; only the cases that have them are compared."""
        if self._settings.reference is None:
            return None
        truth = find_truth(self._settings.reference, self._settings.map_classes, self._cases, self.first.spec)
        self._cases = [case for case in self._cases if truth.has(case)]
        return truth

    def _rate(self, network: TunedNetwork) -> float:
        """Rough seconds per inferred pixel at the contract's tile."""
        (place,) = self._look(network.spec.tiling.tile, 1)
        tiles = tiles_of(*place.hold(network.spec, self._overrides), network.spec)
        return seconds_per_tile(network.spec, tiles, self.calls) / math.prod(network.spec.tiling.tile)

    def _look(self, side: Axes, count: int) -> list[TunePlace]:
        return find_places(self._cases, side, count, self.first.spec, self._overrides)

    def _distinct(self, wanted: Sequence[Candidate]) -> list[Candidate]:
        """Candidates without overlaps that give the same windows on these scenes."""
        found: dict[object, Candidate] = {}
        for candidate in wanted:
            windows = tuple(Cover(shape, candidate.tiling).starts for shape in self._shapes) or candidate.tiling
            found.setdefault((candidate.network, candidate.tiling.tile, windows), candidate)
        if len(found) < len(wanted):
            self.notes.append("overlaps that give the same windows on these scenes are listed once")
        return list(found.values())

    def _affordable(self, wanted: Sequence[Candidate]) -> list[Candidate]:
        """Candidates that fit into the budget and memory; the contracts' own in any case."""
        available = self._settings.seconds * PLANNED
        kept: list[Candidate] = []
        left_out: list[Candidate] = []
        for candidate in wanted:
            tried = [*kept, candidate]
            in_time = self._label_seconds(tried) + self._round_seconds(tried) <= available
            fits = in_time and self._fits_memory(candidate, tried)
            (kept if candidate.is_own or fits else left_out).append(candidate)
        if left_out:
            names = dict.fromkeys(f"{c.network.name} tile {_by(c.tiling.input)}" for c in left_out)
            self.notes.append(f"left out, for {self._settings.seconds:g} s: {len(left_out)} choices of {', '.join(names)}")
        return kept

    def _can_time_batches(self) -> bool:
        """Whether the budget allows for several batches; requested ones are always timed."""
        self._several = True
        needed = self._label_seconds(self._candidates) + self._round_seconds(self._candidates)
        fits = bool(self._settings.batches) or needed <= self._settings.seconds * PLANNED
        if not fits:
            self.notes.append(f"left out, for {self._settings.seconds:g} s: all batches but the smallest")
        return fits

    def _label_seconds(self, wanted: Sequence[Candidate]) -> float:
        """Seconds to label one place: the references, and each candidate."""
        side = self._side(wanted)
        networks = dict.fromkeys(candidate.network for candidate in wanted)
        shared = SHARED_STEPS ** len(side)
        references = sum(self._rates[n] * math.prod(side) * (1 if n.takes_whole(side) else shared) for n in networks)
        return references + sum(self._rates[c.network] * self._inferred(c.tiling) for c in wanted)

    def _round_seconds(self, wanted: Sequence[Candidate]) -> float:
        """Seconds of one round of speed."""
        keys = dict.fromkeys((c.network, c.tiling.tile) for c in wanted)
        return sum(self._rates[n] * math.prod(tile) * self._tiles_timed(n, tile) for n, tile in keys)

    def _tiles_timed(self, network: TunedNetwork, tile: Axes) -> int:
        """Tiles to infer when a tile is timed once in each of its batches: load, warm up, measure."""
        return self.calls * sum(2 * batch + max(TIMED, batch) for batch in self._batches(network, tile))

    def _batches(self, network: TunedNetwork, tile: Axes) -> tuple[int, ...]:
        return batches(network, tile, self._settings)[: None if self._several else 1]

    def _inferred(self, tiling: Tiling) -> int:
        """Pixels of all tiles of a sample."""
        steps = [e // one for e, one in zip(extent(tiling, self._wanted), tiling.step, strict=True)]
        endless = math.prod(steps)
        tiles = min([endless, *([max(len(Cover(shape, tiling)) for shape in self._shapes)] if self._shapes else [])])
        return tiles * math.prod(tiling.tile)

    def _side(self, wanted: Sequence[Candidate]) -> Axes:
        """Side of a place that suits all candidates, at most that of the largest case."""
        largest = [max(axis) for axis in zip(*(extent(c.tiling, self._wanted) for c in wanted), strict=True)]
        if self._shapes:
            largest = [min(n, max(axis)) for n, axis in zip(largest, zip(*self._shapes, strict=True), strict=True)]
        return tuple(largest)

    def _fits_memory(self, candidate: Candidate, wanted: Sequence[Candidate]) -> bool:
        """Whether a candidate's tiles fit in memory, and the larger box leaves a whole-box reference possible."""
        spec, tile = candidate.network.spec, candidate.tiling.tile
        largest = max(self._batches(candidate.network, tile)) * math.prod(candidate.tiling.input)
        tiles = network_bytes(spec, self.calls, batches=largest / (spec.batch * math.prod(spec.tiling.input)))
        own = self._side([c for c in wanted if c.is_own])
        fits_box = self.first.takes_whole(self._side(wanted)) or not self.first.takes_whole(own)
        return tiles <= memory() * TILES_SHARE and fits_box

    def _find_places(self) -> list[TunePlace]:
        available = self._settings.seconds * PLANNED - EVEN * self._round_seconds(self._candidates)
        count = int(available / self._label_seconds(self._candidates))
        return self._look(self._side(self._candidates), max(1, min(PLACES, count)))

    @property
    def element(self) -> str:
        """Unit of the elements of the files; of noise, that of the model's tiles."""
        return element_of(self._cases) if self._cases else "voxel" if len(self._wanted) == 3 else "px"

    @property
    def compared_on(self) -> str:
        sizes = dict.fromkeys(_by(place.window.shape) for place in self._places)
        unit = self.element.replace("voxel", "voxels")
        boxes = f"{len(self._places)} boxes" if len(self._places) > 1 else "a box"
        return f"{boxes} of {', '.join(sizes)} {unit} of {named(self._places)}"

    @property
    def reference(self) -> str:
        if self.first.takes_whole(self._side(self._candidates)):
            return f"{self.first.name} on the whole box in one call"
        return f"{self.first.name} with its tiles sharing three quarters, each label from the middle of one"

    def count(self) -> dict[Candidate, Count]:
        """Count labels of all candidates against the references, place by place; skip tiles that the model refuses."""
        counts: dict[Candidate, Count] = {}
        refused: set[tuple[TunedNetwork, Axes]] = set()
        for number, place in enumerate(self._places, 1):
            self._tell(f"labels on box {number} of {len(self._places)}, choices: {len(self._candidates)}")
            true = None if self._truth is None else self._truth.on(place, self.first.spec, self._overrides)
            benches = {n: Bench(n, place, self._overrides, self.calls, true) for n in self._networks}
            for key, own in self._by_tile():
                if key in refused:
                    continue
                try:
                    model = load_model(own[0].network.with_tiling(own[0].tiling))
                except ModelError as error:
                    refused.add(key)
                    self.notes.append(f"{key[0].name} does not take tile {_by(key[0].seen(key[1]))}: {error}")
                    continue
                for candidate in own:
                    count = benches[candidate.network].compare(model, candidate, benches[self.first].reference, self._wanted)
                    counts[candidate] = counts.get(candidate, Count()) + count
        return counts

    def _by_tile(self) -> Iterator[tuple[tuple[TunedNetwork, Axes], list[Candidate]]]:
        """Group candidates by the loaded model that they share."""
        keys = dict.fromkeys((c.network, c.tiling.tile) for c in self._candidates)
        for key in keys:
            yield key, [c for c in self._candidates if (c.network, c.tiling.tile) == key]

    def time(self, counts: dict[Candidate, Count]) -> dict[Setting, Speed]:
        """Seconds per tile for every file, tile and batch, in rounds until the budget is spent; at least one round."""
        keys = dict.fromkeys((c.network, c.tiling.tile) for c in counts)
        settings = [(n, tile, batch) for n, tile in keys for batch in self._batches(n, tile)]
        tiles = {key: self._tiles(*key) for key in keys}
        seconds: dict[Setting, list[float]] = {setting: [] for setting in settings}
        spent = 0.0
        while settings and len(seconds[settings[0]]) < ROUNDS and (not spent or time.monotonic() + spent < self._deadline):
            began = time.monotonic()
            self._tell(f"round {len(seconds[settings[0]]) + 1} of speed, settings of tile and batch: {len(settings)}")
            for setting in settings:
                seconds[setting].append(self._time(setting, tiles[setting[:2]]))
            settings = _hopeful(settings, seconds)
            spent = time.monotonic() - began
        first = next(iter(seconds.values()))
        return {setting: speed(found, first) for setting, found in seconds.items()}

    def _tiles(self, network: TunedNetwork, tile: Axes) -> list[Pixels]:
        held, scaling = self._places[0].hold(network.spec, self._overrides)
        return tiles_of(held, scaling, network.with_tiling(_with_tile(network, tile)))

    def _time(self, setting: Setting, tiles: Sequence[Pixels]) -> float:
        network, tile, batch = setting
        return seconds_per_tile(network.with_tiling(_with_tile(network, tile), batch), tiles, self.calls)

    def tiles_per_megapixel(self, tiling: Tiling) -> float:
        """Tiles per megapixel on the scenes; on an endless scene if there are none."""
        if not self._shapes:
            return 1e6 / math.prod(tiling.step)
        return 1e6 * sum(len(Cover(shape, tiling)) for shape in self._shapes) / sum(map(math.prod, self._shapes))


def _with_tile(network: TunedNetwork, tile: Axes) -> Tiling:
    own = network.spec.tiling
    shares = zip(tile, own.tile, own.overlap, own.align, strict=True)
    return replace(own, tile=tile, overlap=tuple(t * o // whole // a * a for t, whole, o, a in shares))


def _hopeful(settings: Sequence[Setting], seconds: dict[Setting, list[float]]) -> list[Setting]:
    """Drop batches that the first round has shown to be slow, except for the first setting, the basis of comparison."""
    fastest: dict[tuple[TunedNetwork, Axes], float] = {}
    for setting in settings:
        fastest[setting[:2]] = min(seconds[setting][0], fastest.get(setting[:2], math.inf))
    return [s for s in settings if s is settings[0] or seconds[s][0] <= HOPELESS * fastest[s[:2]]]


def _by(sizes: Axes) -> str:
    return str(sizes[0]) if len(set(sizes)) == 1 else dims(sizes)

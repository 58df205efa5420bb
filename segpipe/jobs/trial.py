"""Choose calls in flight and threads per call: measured on a few tiles if a run is long enough, and remembered."""

import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import OutputError, SettingsError
from segpipe.formats.source import Pixels
from segpipe.jobs.plan import Plan
from segpipe.network.averaging import AS_IT_IS
from segpipe.network.spec import ModelSpec
from segpipe.pipeline.infer import HostModel
from segpipe.pipeline.memory import network_bytes, worker_memory
from segpipe.process.machine import processors
from segpipe.results.device_kind import device_kind
from segpipe.results.run import Run
from segpipe.storage.documents import DocumentError, parse_json
from segpipe.storage.folder import Folder

PAYS = 200
"""Windows per call in flight from which a trial pays; it takes the time of up to seven windows per split."""

PAYS_IN_TURN = 16
"""Windows from which a trial pays that loads the network twice, and scores one batch each time."""

ROUNDS = 5

SECONDS = 2.0
"""Time after which no further round is started."""

CLEARLY = 0.97
"""Share of the time of one thread per call below which another split is chosen."""

REMEMBERED = 200
"""Most trials that the file keeps; the newest are kept."""


@dataclass(frozen=True, slots=True)
class Split:
    """Use of a worker's processors."""

    calls: int
    """Calls in flight."""
    threads: int
    """Threads within each call."""

    def __str__(self) -> str:
        return f"{self.calls} x {self.threads}"


@dataclass(frozen=True, slots=True)
class Trial:
    """The chosen split, and seconds per tile of each; None for a split whose scores differ from those of one thread."""

    split: Split
    seconds: Mapping[Split, float | None]

    def __str__(self) -> str:
        times = ", ".join(
            f"{c} {'gives other scores' if s is None else f'{s:.4f} s a tile'}" for c, s in self.seconds.items()
        )
        return f"calls x threads: {times}; {self.split} is taken"


def choose_split(run: Run, plan: Plan, report: Callable[[str], None]) -> tuple[Run, Plan]:
    """Return the run and its plan with the split that is fastest here; unchanged where there is nothing to choose.

    Raises:
        SettingsError: the requested threads would change scores, and so bytes.
    """
    if run.model.listed:  # each of its models has a run of its own
        return run, plan
    if run.settings.threads is not None:
        check_threads(run.model)
        return run, plan
    if not _is_open(run, plan):
        return run, plan
    file, key = memory_file(), _key(run.model, plan.calls * plan.threads)
    wanted = splits(plan.calls) if plan.threads == 1 else [Split(plan.calls, n) for n in (1, plan.threads)]
    trial = None if file is None else recall(file, key)
    if trial is not None and trial.split in wanted:
        report(f"{trial}, as {file} says")
    elif _pays(run, plan):
        trial = time_splits(run.model, wanted) if plan.threads == 1 else time_in_turn(run.model, wanted)
        store_trial(file, key, trial)
        report(str(trial))
    else:
        return run, plan
    return replace(run, model=replace(run.model, threads=trial.split.threads)), replace(plan, calls=trial.split.calls)


def check_threads(spec: ModelSpec) -> None:
    """Check that the requested threads leave every bit of the scores unchanged.

    Raises:
        SettingsError: they do not, or the device does not use threads.
    """
    if not spec.on_host:
        raise SettingsError(f"threads are those of a CPU, and the model runs on {spec.device}: leave --threads out")
    if spec.threads > 1 and not _same(*(HostModel(replace(spec, threads=n))(_tile(spec)) for n in (1, spec.threads))):
        raise SettingsError(
            f"threads must not change scores, and those of {spec.title} with {spec.threads} are not those with 1: "
            "leave --threads out"
        )


def splits(count: int) -> list[Split]:
    """Candidate splits: one thread per call first, then two, then all within one call."""
    return [Split(count // n, n) for n in dict.fromkeys((1, 2, count)) if count % n == 0]


def _is_open(run: Run, plan: Plan) -> bool:
    """Whether there is a choice, on this machine."""
    elsewhere = run.settings.scheduler is not None or run.settings.cluster is not None
    return run.model.on_host and not elsewhere and plan.calls * plan.threads > 1


def _pays(run: Run, plan: Plan) -> bool:
    windows = sum(case.windows for case in plan.opened) + len(plan.unopened)
    if plan.threads > 1:  # otherwise processors are idle
        return windows >= PAYS_IN_TURN * plan.workers
    ways = len(splits(plan.calls))
    needed = network_bytes(run.model, plan.calls, copies=ways)
    return needed < worker_memory(run.settings, plan.workers) / 2 and windows >= PAYS * plan.workers * plan.calls


def time_splits(spec: ModelSpec, wanted: Sequence[Split]) -> Trial:
    """Time splits in alternation on tiles in memory; only those whose scores equal the first one's, bit for bit.

    Args:
        spec: the model.
        wanted: splits of the same processors; the first is chosen unless another is clearly faster.
    """
    tile = _tile(spec)
    models = {split: HostModel(replace(spec, threads=split.threads)) for split in wanted}
    scores = {split: model(tile) for split, model in models.items()}
    first = wanted[0]
    seconds: dict[Split, list[float]] = {split: [] for split in wanted if _same(scores[first], scores[split])}
    began = time.perf_counter()
    while len(seconds[first]) < ROUNDS and (not seconds[first] or time.perf_counter() - began < SECONDS):
        for split, found in seconds.items():
            found.append(_time(models[split], tile, split, first.calls) / (first.calls * spec.batch))
    medians = {split: statistics.median(seconds[split]) if split in seconds else None for split in wanted}
    return Trial(fastest(seconds), medians)


def time_in_turn(spec: ModelSpec, wanted: Sequence[Split]) -> Trial:
    """Like ``time_splits``, but one split at a time and one call of each, for models whose scores fill the memory."""
    tile, digests, seconds = _tile(spec), [], {}
    for split in wanted:
        model = HostModel(replace(spec, threads=split.threads))
        started = time.perf_counter()
        scores = model(tile)
        seconds[split] = (time.perf_counter() - started) / spec.batch
        digests.append(hashlib.sha256(np.ascontiguousarray(scores).data).digest())
        del model, scores
    same = {split: seconds[split] if digest == digests[0] else None for split, digest in zip(wanted, digests, strict=True)}
    return Trial(fastest({split: [taken] for split, taken in same.items() if taken is not None}), same)


def fastest(seconds: Mapping[Split, Sequence[float]]) -> Split:
    """The first split, unless another is clearly faster in the median and faster in every round.

    Times are compared within a round, so that a machine that becomes busy slows both.
    """
    first, *others = seconds
    ratios = {split: [a / b for a, b in zip(seconds[split], seconds[first], strict=True)] for split in others}
    faster = {split: statistics.median(found) for split, found in ratios.items() if max(found) < 1}
    best = min(faster, key=lambda split: faster[split], default=first)
    return best if faster.get(best, 1) < CLEARLY else first


def _time(model: HostModel, tile: Pixels, split: Split, count: int) -> float:
    with ThreadPoolExecutor(split.calls) as pool:
        started = time.perf_counter()
        for _ in pool.map(model, [tile] * count):
            pass
        return time.perf_counter() - started


def _tile(spec: ModelSpec) -> Pixels:
    """A batch of noise, in the form of scaled or stored pixels."""
    noise = np.random.default_rng(0).normal(size=spec.batch_shape)
    return (noise if np.dtype(spec.input_dtype).kind == "f" else np.abs(noise * 30)).astype(spec.input_dtype)


def _same(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    return a.tobytes() == b.tobytes()


def memory_file() -> Path | None:
    """Path of the file with trials; None for a user without a home folder."""
    folder = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(folder) if folder else Path.home() / ".cache") / "segpipe" / "trial.json"
    except RuntimeError:
        return None


def _key(spec: ModelSpec, calls: int) -> str:
    """Hash of the model, the shape of its batch, and all facts of the machine that speed depends on."""
    facts = {"model": spec.sha256, "batch": spec.batch_shape, "calls": calls, "of": processors(), **device_kind(spec)}
    if spec.flips != AS_IT_IS:
        facts["flips"] = spec.flips
    return hashlib.sha256(json.dumps(facts, sort_keys=True, allow_nan=False).encode()).hexdigest()


def recall(file: Path, key: str) -> Trial | None:
    """Read an earlier trial; None if there is none, or the file was not written by segpipe."""
    try:
        trial = _read(file)[key]
        seconds = {
            _split(calls, threads): None if taken is None else float(taken) for calls, threads, taken in trial["seconds"]
        }
        return Trial(_split(*trial["split"]), seconds)
    except (KeyError, TypeError, ValueError):
        return None


def _split(calls: Any, threads: Any) -> Split:
    if type(calls) is not int or type(threads) is not int:
        raise TypeError
    return Split(calls, threads)


def store_trial(file: Path | None, key: str, trial: Trial) -> None:
    """Store a trial for later runs; if that fails, they measure again."""
    if file is None:
        return
    trials = {key: value for key, value in _read(file).items() if isinstance(value, dict)}
    trials[key] = {
        "split": [trial.split.calls, trial.split.threads],
        "seconds": [[split.calls, split.threads, taken] for split, taken in trial.seconds.items()],
    }
    with suppress(OutputError):
        Folder(file.parent).write_json(file.name, dict(list(trials.items())[-REMEMBERED:]))


def _read(file: Path) -> dict[str, Any]:
    try:
        content = parse_json(file.read_bytes())
    except (OSError, DocumentError):
        return {}
    return content if isinstance(content, dict) else {}

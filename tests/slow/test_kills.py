"""Promise 4 under fire: kill any process at any moment, run again, and the folder is as if nothing had happened."""

import json
import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
from scenes import (
    CASES,
    DASK,
    ONE_PROCESS,
    PROCESSES,
    SEGPIPE,
    SERIAL,
    Fork,
    Process,
    Session,
    arguments,
    assert_same,
    begin,
    begin_and_stop,
    files,
    kill,
    make_model,
    make_scenes,
    make_whole,
    nothing,
    wait,
    wait_until,
    workers,
)
from test_cli import left_of

from segpipe.formats.case import Case
from segpipe.results.parts import parts_folder

pytestmark = pytest.mark.slow

PARTS = 6


@dataclass(frozen=True)
class Moment:
    """When a process is killed, which, and how the second run goes on."""

    number: int
    kind: str
    """``plain`` or ``zscore``: the model's scaling."""
    executor: str
    victim: str
    phase: str
    delay: float
    """Seconds after the phase has begun."""
    again: str
    """Arguments of the second run."""

    def __str__(self) -> str:
        return f"{self.number}-{self.kind}-{self.executor}-{self.victim}-{self.phase}"


SPAN = {"start": 1.2, "begun": 0.3, "parts": 0.3, "join": 0.06, "after": 0.15, "end": 0.04}
"""Phases of a run, and within how many seconds of their begin somebody is killed."""

PHASES = {
    "begun": ("jobs.launch:_execute", "jobs.launch:_execute"),
    "parts": ("jobs.task_queue:ended:2", "jobs.task_queue:ended:11"),
    "join": ("jobs.task_queue:_continue:4", "jobs.task_queue:_continue:4"),
    "after": ("jobs.summary:add:1", "jobs.summary:add:4"),
    "end": ("jobs.conclude:conclude", "jobs.conclude:conclude"),
}
"""What the first process does at the begin of a phase; with ``zscore`` three cases are measured, and the small ones done,
before any part."""


def moments() -> Iterator[Moment]:
    """Drawn once and for all, the quick executor for more than half of them."""
    rng = random.Random(4)
    plans = [
        *product(["serial"], ["client", "term"], SPAN),
        *product(["serial"], ["client"], ["parts", "join"]),
        *product(["processes"], ["worker"], ["begun", "parts", "parts", "join", "after"]),
        *product(["processes"], ["client"], ["start", "begun", "parts", "join", "after"]),
        *product(["processes"], ["group"], ["parts", "join", "end"]),
        *product(["processes"], ["term"], ["begun", "parts", "join", "end"]),
        *product(["dask"], ["worker", "client", "term"], ["parts"]),
    ]
    for number, (executor, victim, phase) in enumerate(plans):
        serial = [SERIAL, f"{SERIAL} --parts {PARTS}"] * 3
        again = rng.choice([*serial, f"{PROCESSES} --parts {PARTS}", "--workers 1"])
        yield Moment(number, ["plain", "zscore"][number % 2], executor, victim, phase, rng.uniform(0, SPAN[phase]), again)


MOMENTS = list(moments())
HIT: list[bool] = []


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, two models, and what undisturbed runs of one job a case make of them."""
    root = tmp_path_factory.mktemp("kills")
    make_scenes(root)
    make_model(root / "plain.onnx", width=8)
    make_model(root / "zscore.onnx", width=8, normalize="zscore")
    for model in ("plain", "zscore"):
        make_whole(root, model)
    return root


Made = tuple[int, int]
"""What tells one making of a file from another."""


def made(path: Path) -> Made:
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns


def done_parts(out: Path) -> dict[str, dict[Path, Made]]:
    """Finished parts of cases that are not done."""
    open_cases = [name for name in CASES if not (out / f"{name}.json").is_file()]
    return {name: made_in(out / parts_folder(Case(name, ""))) for name in open_cases}


def made_in(folder: Path) -> dict[Path, Made]:
    """The parts in a folder. A run that goes on meanwhile may finish the case, and then removes them and it."""
    found = {}
    with suppress(FileNotFoundError):
        for path in folder.glob("*.npz"):
            found[path] = made(path)
    return found


def count_parts(out: Path, name: str) -> int:
    """Done or not."""
    return len(json.loads((out / parts_folder(Case(name, "")) / "plan.json").read_text())["parts"])


def done_cases(out: Path) -> dict[str, dict[Path, Made]]:
    """Masks and records of cases that are done."""
    cases = [name for name in CASES if (out / f"{name}.json").is_file()]
    return {name: {path: made(path) for path in (out / f"{name}.json", out / f"{name}.tif")} for name in cases}


def watcher(out: Path) -> Callable[[], None]:
    """Asserts, whenever it is called, that what is done by now is left as it is: parts until their case is done."""
    parts, cases = done_parts(out), done_cases(out)

    def watch() -> None:
        for name, own in parts.items():
            for path, was in own.items():
                try:
                    assert made(path) == was, f"{path} was made again"
                except FileNotFoundError:
                    assert (out / f"{name}.json").is_file(), f"{path} is gone"
        for own in cases.values():
            assert {path: made(path) for path in own} == own

    return watch


def has_begun(phase: str, out: Path) -> bool:
    if phase == "begun":
        return (out / ".segpipe.lock").exists()
    if phase == "parts":
        return len(list(out.glob(".parts/*/*.npz"))) > 1
    if phase == "join":
        return any(count_parts(out, name) == len(done) for name, done in done_parts(out).items() if done)
    done = done_cases(out)
    return "large" in done or "large/inner" in done if phase == "after" else len(done) == len(CASES)


def strike(process: Session, victim: str, rng: random.Random) -> bool:
    """Whether there was somebody to kill."""
    if process.poll() is not None:
        return False
    if victim == "worker":
        there = workers(process.pid)
        return bool(there) and kill(rng.choice(there))
    if victim == "group":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.send_signal({"client": signal.SIGKILL, "term": signal.SIGTERM}[victim])
    return True


@dataclass(frozen=True)
class Struck:
    """What came of a run of which a process was killed, if it was."""

    hit: bool
    code: int
    log: str
    session: int


def in_phase(moment: Moment, root: Path, command: list[str], out: Path) -> Session:
    """A run whose phase begins this instant."""
    entered = PHASES[moment.phase][moment.kind == "zscore"]
    if (moment.executor, moment.phase) == ("serial", "join"):
        entered = "jobs.join:join"  # in this process
    process = begin_and_stop(root, command, out.with_suffix(".log"), entered)
    assert has_begun(moment.phase, out), process.said(f"{moment.phase} has not begun")
    process.send_signal(signal.SIGCONT)
    return process


def disturbed(moment: Moment, root: Path, out: Path) -> Struck:
    """Run once, and kill somebody at the moment."""
    log = out.with_suffix(".log")
    several = moment.victim == "worker" or moment.phase in ("parts", "join")  # what goes on beside what is lost
    executor = {"serial": SERIAL, "processes": PROCESSES if several else ONE_PROCESS, "dask": DASK}[moment.executor]
    command = arguments(moment.kind, out, f"{executor} --parts {PARTS} --grace 3")
    process = Process(root, command, log) if moment.phase == "start" else in_phase(moment, root, command, out)
    time.sleep(moment.delay)
    hit = strike(process, moment.victim, random.Random(moment.number))
    code = wait(process, watcher(out) if moment.victim == "worker" else nothing)
    return Struck(hit, code, log.read_text(), process.pid)


def check_code(moment: Moment, struck: Struck, out: Path) -> None:
    """The exit code is the one that is promised; a run that could end in order has left nothing half-written."""
    assert "Traceback" not in struck.log
    # it was over while the signal was sent
    over = struck.code == 0 and len(done_cases(out)) == len(CASES)
    if moment.victim == "term" and struck.hit:
        # before Python has loaded the command there is nobody to answer, and nothing is begun
        unborn = struck.code == -signal.SIGTERM and not struck.log
        assert struck.code == 75 or unborn or over, struck.log
    elif struck.hit and moment.victim != "worker":
        assert struck.code == -signal.SIGKILL or over, struck.log
    else:
        assert struck.code == 0, struck.log
    if struck.code in {0, 75}:
        assert [name for name in files(out) if ".segpipe.lock" in name or ".drafts" in name] == []


def go_on(moment: Moment, root: Path, out: Path, log: Path) -> Fork:
    """The second run."""
    return Fork(root, arguments(moment.kind, out, moment.again)[len(SEGPIPE) :], log, forked=1)


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_whoever_is_killed_a_second_run_completes(moment, root, tmp_path):
    out = tmp_path / "out"
    struck = disturbed(moment, root, out)
    HIT.append(struck.hit)
    check_code(moment, struck, out)
    parts, cases, log = done_parts(out), done_cases(out), tmp_path / "again.log"
    planned = {name: count_parts(out, name) for name, done in parts.items() if done}
    again = go_on(moment, root, out, log)
    assert wait(again, watcher(out)) == 0, log.read_text()
    if SERIAL in moment.again:
        # one line for every part or whole case that was inferred
        inferred = re.findall(r"INFO:segpipe:(\S+): \d+ pixels blended", log.read_text())
        assert not set(inferred) & set(cases)
        for name, done in parts.items():
            assert not done or inferred.count(name) == planned[name] - len(done)
    assert_same(out, root / f"whole-{moment.kind}")
    assert left_of(struck.session) == []


@pytest.mark.parametrize(("executor", "delay"), [(PROCESSES, 0.0), (ONE_PROCESS, 0.3), (ONE_PROCESS, 0.6), (DASK, 0.3)])
def test_a_worker_that_is_killed_while_it_starts_costs_no_case(executor, delay, root, tmp_path):
    """Before it has a place in the cluster, and so before anybody restarts it."""
    out, log = tmp_path / "out", tmp_path / "log"
    process = begin(root, arguments("plain", out, executor), log)
    wait_until(lambda: workers(process.pid), process)
    time.sleep(delay)
    assert strike(process, "worker", random.Random(0))
    assert wait(process, nothing) == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    assert_same(out, root / "whole-plain")
    assert left_of(process.pid) == []


@pytest.mark.parametrize("executor", [PROCESSES, DASK], ids=["processes", "dask"])
def test_workers_that_are_always_killed_end_the_run_in_a_line(executor, root, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    process = begin(root, arguments("plain", out, executor), log)
    assert wait(process, lambda: [kill(number) for number in workers(process.pid)], every=0.03) == 1
    assert "Traceback" not in log.read_text()
    assert re.search("(?m)^error: worker processes cannot be started: .*: try --executor serial$", log.read_text())
    assert left_of(process.pid) == []


def test_most_moments_were_hit():
    assert len(MOMENTS) >= 30
    assert not HIT or sum(HIT) >= 0.85 * len(HIT)

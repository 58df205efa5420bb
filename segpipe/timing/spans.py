"""Record where time goes: spans of work and of waiting, per thread, only while a run is profiled."""

import os
import pickle
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

EVENTS = 200_000
"""Most spans in the trace of a run: what viewers can handle, and some MB. Totals count all spans."""

MAIN = "main"
"""Name of the thread that distributes work, in a trace."""

PACKED = 4096
"""Spans that are compressed at once, to a tenth of their size."""

Event = tuple[str, str, int, int, str | None, tuple[int, ...] | None]
"""Name, name of the thread, start and duration in whole microseconds since 1970, case, window."""


@dataclass(slots=True)
class Total:
    """Seconds of a stage, without those of the stages inside it."""

    wall: float = 0.0
    """Time of the one thread that distributes work, working or waiting; these add up to the wall time."""
    busy: float = 0.0
    """Time of all threads, without waiting for one another."""
    core: float = 0.0
    """Part of ``busy`` spent on a processor."""

    def add(self, other: "Total", share: float = 1.0) -> None:
        """Add another total: wall time by its share, work in full."""
        self.wall += other.wall * share
        self.busy += other.busy
        self.core += other.core


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """Record of one process for a run or a task; picklable and small."""

    host: str
    process: int
    seconds: float
    totals: dict[str, Total]
    packed: list[bytes]
    kept: int
    """Number of spans in ``packed``; below, the number of spans that were dropped."""
    dropped: int

    def events(self) -> Iterator[Event]:
        """Yield the spans: stage, thread, start and duration in µs, case and window."""
        for chunk in self.packed:
            yield from pickle.loads(zlib.decompress(chunk))


@dataclass
class _Thread(threading.local):
    """The span that a thread is in."""

    span: "_Span | None" = None


class Recorder:
    """Records all spans of a process, in the thread that made it and in others.

    Args:
        age: seconds since the start of the process, which become the stage ``start``.
    """

    def __init__(self, age: float = 0.0) -> None:
        self._began = time.perf_counter() - age
        self._epoch = time.time() - time.perf_counter()
        self._owner = threading.get_ident()
        self._lock = threading.Lock()
        self._totals: dict[str, Total] = {}
        self._events: list[Event] = []
        self._packed: list[bytes] = []
        self._kept = self._dropped = 0  # includes other processes
        self.others: list[ProcessRecord] = []
        self.inside = _Thread()
        if age:
            self._totals["start"] = Total(age, age, min(age, time.process_time()))
            self._keep("start", self._began, self._began + age, None, None)

    def ended(self, span: "_Span", stop: float, cpu: float) -> None:
        """Count a span, and keep it for the trace unless that is full."""
        own = stop - span.start - span.inner
        mine = threading.get_ident() == self._owner
        with self._lock:
            total = self._totals.setdefault(span.stage, Total())
            total.wall += own if mine else 0.0
            if not span.waits:
                total.busy += own
                total.core += cpu - span.cpu - span.inner_cpu
            self._keep(f"wait for {span.stage}" if span.waits else span.stage, span.start, stop, span.case, span.window)

    def counted(self, stage: str, seconds: float) -> None:
        """Count time that no thread was busy with."""
        with self._lock:
            self._totals.setdefault(stage, Total()).busy += seconds

    def absorb(self, taken: ProcessRecord) -> None:
        """Add the record of another process."""
        with self._lock:
            if self._kept + taken.kept > EVENTS:
                taken = replace(taken, packed=[], kept=0, dropped=taken.dropped + taken.kept)
            self._kept += taken.kept
            self.others.append(taken)

    def _keep(self, name: str, start: float, stop: float, case: str | None, window: tuple[int, ...] | None) -> None:
        if self._kept == EVENTS:
            self._dropped += 1
            return
        thread = MAIN if threading.get_ident() == self._owner else threading.current_thread().name
        # both ends are rounded down, so that inner spans stay inside outer ones
        first, last = (int((moment + self._epoch) * 1e6) for moment in (start, stop))
        self._events.append((name, thread, first, last - first, case, window))
        self._kept += 1
        if len(self._events) == PACKED:
            self._pack()

    def _pack(self) -> None:
        if self._events:
            self._packed.append(zlib.compress(pickle.dumps(self._events), 1))
            self._events = []

    def taken(self) -> ProcessRecord:
        """The record so far, without other processes."""
        with self._lock:
            self._pack()
            seconds = time.perf_counter() - self._began
            state = self._totals, self._packed, self._kept, self._dropped
            return ProcessRecord(socket.gethostname(), os.getpid(), seconds, *state)


@dataclass(slots=True, eq=False)
class _Span:
    recorder: Recorder
    stage: str
    case: str | None
    window: tuple[int, ...] | None
    waits: bool
    outer: "_Span | None" = None
    start: float = 0.0
    cpu: float = 0.0
    inner: float = 0.0
    """Seconds of the spans inside this one; below, the part of them on a processor."""
    inner_cpu: float = 0.0

    def __enter__(self) -> None:
        inside = self.recorder.inside
        if (outer := inside.span) is not None:
            self.outer, self.case, self.window = outer, self.case or outer.case, self.window or outer.window
        inside.span = self
        self.start, self.cpu = time.perf_counter(), time.thread_time()

    def __exit__(self, *error: object) -> None:
        stop, cpu = time.perf_counter(), time.thread_time()
        self.recorder.inside.span = self.outer
        if self.outer is not None:
            self.outer.inner += stop - self.start
            self.outer.inner_cpu += cpu - self.cpu
        self.recorder.ended(self, stop, cpu)


_OFF: AbstractContextManager[None] = nullcontext()
_recorder: Recorder | None = None


def span(stage: str, case: str | None = None, window: tuple[int, ...] | None = None) -> AbstractContextManager[None]:
    """Count the block as a stage; case and window default to those of the enclosing span.

    A span must end in the thread that began it, in stack order: never hold one across a ``yield``. Costs a few
    microseconds, and almost nothing when nothing is profiled.
    """
    return _OFF if _recorder is None else _Span(_recorder, stage, case, window, False)


def profiled() -> bool:
    """Whether a profile is recorded."""
    return _recorder is not None


def count(stage: str, seconds: float) -> None:
    """Count time that a device was busy with a stage, in addition to all threads."""
    if _recorder is not None:
        _recorder.counted(stage, seconds)


def waiting(stage: str) -> AbstractContextManager[None]:
    """Count waiting inside the block as wall time of a stage whose work other threads do."""
    return _OFF if _recorder is None else _Span(_recorder, stage, None, None, True)


class Timed:
    """Wraps a context manager, and counts its entry and exit as a stage."""

    def __init__(self, stage: str, context: AbstractContextManager[Any]) -> None:
        self._stage, self._context = stage, context

    def __enter__(self) -> Any:
        with span(self._stage):
            return self._context.__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        with span(self._stage):
            return self._context.__exit__(*error)


def begin(on: bool, age: float = 0.0) -> None:
    """Start recording the spans of this process, or switch it off."""
    global _recorder  # noqa: PLW0603 - one per process: library threads end spans, too
    _recorder = Recorder(age) if on else None


def end() -> Recorder | None:
    """Stop recording; return the recorder, if there is one."""
    recorder = _recorder
    begin(False)
    return recorder


def absorb(taken: ProcessRecord | None) -> None:
    """Add the record of another process."""
    if _recorder is not None and taken is not None:
        _recorder.absorb(taken)


@dataclass
class Recording:
    """Result of recording a task."""

    taken: ProcessRecord | None = None


@contextmanager
def recording(on: bool) -> Iterator[Recording]:
    """Record one task of a worker process if ``on``."""
    begin(on)
    found = Recording()
    try:
        yield found
    finally:
        recorder = end()
        found.taken = recorder.taken() if recorder is not None else None

"""Report the wall time of a run: the spans of all processes as shares that add up, and as a trace."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from segpipe.timing.spans import ProcessRecord, Recorder, Total

STAGES = (
    *("start", "model", "plan", "workers", "measure", "open", "read", "scale", "upload", "infer", "gpu", "weight"),
    *("blend", "decide", "download", "count", "clean", "write", "finish", "join", "tables", "idle", "other"),
)
"""Stages in the order of the work."""

OUTSIDE = ("start", "model", "plan", "workers", "tables", "idle")
"""Stages whose time does not depend on the amount of inference."""


@dataclass(frozen=True)
class Profile:
    """The time of a run by stage."""

    seconds: float
    """Wall time; the stages' wall times add up to it."""
    stages: dict[str, Total]
    """Times of stages, in the order of the work. Wall time is that of the thread that distributes work, averaged over
    workers; busy and core seconds are those of all threads of all processes."""
    calls: int
    """Calls of the model in flight in all processes."""
    limit: float
    """Seconds that the model alone would need for the inferred windows."""
    unserved: float
    """Share of the time of the model's calls, on a CPU, in which they had no processor."""
    processes: list[ProcessRecord]
    """Records of the processes, from which the trace is made."""

    @property
    def reached(self) -> float:
        """Ratio of the limit to the wall time."""
        return self.limit / self.seconds

    @property
    def working(self) -> float:
        """Wall time without start, planning and end."""
        return self.seconds - sum(self.stages[name].wall for name in OUTSIDE if name in self.stages)

    @property
    def dropped(self) -> int:
        """Number of spans that the trace does not include."""
        return sum(taken.dropped for taken in self.processes)

    def as_json(self) -> dict[str, Any]:
        """The profile for ``run.json``."""
        return {
            "seconds": round(self.seconds, 3),
            "limit_seconds": round(self.limit, 3),
            "reached": round(self.reached, 4),
            "calls": self.calls,
            "stages": {
                name: {
                    "seconds": round(total.wall, 4),
                    "share": round(total.wall / self.seconds, 4),
                    "busy_seconds": round(total.busy, 4),
                    "core_seconds": round(total.core, 4),
                }
                for name, total in self.stages.items()
            },
            "dropped_spans": self.dropped,
        }


def account(recorder: Recorder, *, workers: int, calls: int, on_cpu: bool) -> Profile:
    """Divide the wall time of the process that began the run.

    Its own thread either does the tasks (``serial``) or waits for workers; then it is represented by their threads: the mean
    over workers, with the time without a task as ``idle``.

    Args:
        recorder: recorder of that process.
        workers: number of worker processes.
        calls: calls of the model in flight in all workers.
        on_cpu: whether a call runs in the calling thread, so that its core-seconds are the model's own, without what other
            threads took from it. On a GPU a call only queues work, and the work itself is measured there.
    """
    own, others = recorder.taken(), recorder.others
    stages = {name: Total(t.wall, t.busy, t.core) for name, t in own.totals.items()}
    left = max(0.0, own.seconds - sum(total.wall for total in stages.values()))
    tasks = sum(taken.seconds for taken in others)
    if tasks and left:
        # lost workers are replaced: never count more timelines than were busy
        timelines = max(workers, tasks / left)
        for taken in others:
            for name, total in taken.totals.items():
                stages.setdefault(name, Total()).add(total, 1 / timelines)
        stages["idle"] = Total(left - tasks / timelines)
        left = (tasks - sum(total.wall for taken in others for total in taken.totals.values())) / timelines
    stages["other"] = Total(max(0.0, left))
    infer = stages.get("infer", Total())
    needed = infer.core if on_cpu else stages.get("gpu", infer).busy
    unserved = 1 - needed / infer.busy if on_cpu and infer.busy else 0.0
    ordered = {name: stages[name] for name in _stage_order(stages)}
    return Profile(
        seconds=own.seconds, stages=ordered, calls=calls, limit=needed / calls, unserved=unserved, processes=[own, *others]
    )


def _stage_order(stages: dict[str, Total]) -> list[str]:
    known = [name for name in STAGES if name in stages]
    return known[:-1] + [name for name in stages if name not in STAGES] + known[-1:]


def write_trace(stream: TextIO, processes: Sequence[ProcessRecord]) -> None:
    """Write spans in the Chrome trace format, for Perfetto and chrome://tracing: a row per process and thread."""
    stream.write('{"displayTimeUnit": "ms", "traceEvents": [')
    for number, event in enumerate(_trace(processes)):
        stream.write(("," if number else "") + "\n" + json.dumps(event, ensure_ascii=False, allow_nan=False))
    stream.write("\n]}\n")


def _trace(processes: Sequence[ProcessRecord]) -> Iterator[dict[str, Any]]:
    """Yield trace events. Threads are identified by name: those of one name follow one another, job by job."""
    numbers: dict[tuple[str, int], int] = {}
    rows: dict[tuple[int, str], int] = {}
    for taken in processes:
        process = numbers.setdefault((taken.host, taken.process), len(numbers) + 1)
        kind = "worker" if process > 1 else "run"
        yield _named("process_name", process, 0, f"segpipe {kind}, process {taken.process} on {taken.host}")
        for name, thread, start, duration, case, window in taken.events():
            if (process, thread) not in rows:
                rows[process, thread] = len(rows) + 1
                yield _named("thread_name", process, len(rows), thread)
            arguments = {key: value for key, value in {"case": case, "window": window}.items() if value is not None}
            where = {"pid": process, "tid": rows[process, thread], "ts": start, "dur": duration}
            yield {"name": name, "ph": "X", **where, "args": arguments}


def _named(kind: str, process: int, row: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": row, "args": {"name": name}}

"""Worker processes of this machine: started ahead, ended with whatever ends the run, and replaced when they are lost."""

import copyreg
import os
import pickle
import signal
import time
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
from command import invoke
from networks import local, pixelwise
from scenes import PATIENCE, SEGPIPE, Fork, Silent, begin, nothing, wait, wait_until, workers
from test_cli import left_of
from test_endless import endless

from segpipe import settings as settings_module
from segpipe.errors import InputError, ModelError, SourceError, WorkerError
from segpipe.formats.case import Case
from segpipe.jobs import processes, worker_process
from segpipe.jobs.launch import carry_out, resolve_executor
from segpipe.jobs.lost_workers import ALONE, RETRIES, split_job
from segpipe.jobs.orders import Alive, End, LoadAhead, PixelsDone, Ready, RunTask, Setup, TaskEnded, TaskFailed
from segpipe.jobs.plan import Job
from segpipe.jobs.prepare import prepare
from segpipe.jobs.processes import STARTS, _Attempt, _Dispatcher, _Losses, _Worker
from segpipe.jobs.task_runner import TaskRunner, Throttled
from segpipe.jobs.tasks import Halt, Outcome
from segpipe.jobs.worker import _portable
from segpipe.jobs.worker_process import LostError, _spare, spare_worker, start_worker, take_spare, tell_spare
from segpipe.network.openvino_session import Engine
from segpipe.network.read import read_spec
from segpipe.process.spawning import WORKER_ENVIRONMENT
from segpipe.results.run import Run
from segpipe.settings import Settings, load_settings


@pytest.fixture
def root(raster, tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        raster(f"in/{name}.tif", rng.integers(1, 255, (3, 70, 90), dtype=np.uint8))
    local(tmp_path / "m.onnx")
    return tmp_path


def settings(root: Path, **more) -> Settings:
    flags = {"input": (str(root / "in"),), "model": root / "m.onnx", "output": root / "out", "device": "cpu"}
    return load_settings(None, flags | more)


def awaited(worker, wanted):
    """The first report of a kind."""
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        worker.connection.poll(1)
        for report in worker.reports():
            if isinstance(report, wanted):
                return report
    raise AssertionError(f"no {wanted}")


# --- a worker -----------------------------------------------------------------------------------------------------------


def test_a_worker_carries_out_tasks_until_it_is_asked_to_end(root):
    run = Run(read_spec(settings(root)), settings(root))
    run.output.make()
    worker = start_worker({"CUDA_VISIBLE_DEVICES": "7"})
    awaited(worker, Ready)  # before that, it may not have its environment yet
    environ = Path(f"/proc/{worker.pid}/environ").read_bytes().split(b"\0")
    assert {f"{key}={value}".encode() for key, value in WORKER_ENVIRONMENT.items()} | {b"CUDA_VISIBLE_DEVICES=7"} <= {
        *environ
    }
    worker.send(Setup.of(run, 1))
    worker.send(RunTask(Job((Case("a", str(root / "in" / "a.tif")),))))
    ended = awaited(worker, TaskEnded)
    assert [(one.case.name, one.error, one.pixels) for one in ended.results] == [("a", None, 70 * 90)]
    (root / "m.onnx").write_bytes(b"")
    worker.send(RunTask(Job((Case("gone", str(root / "in" / "gone.tif")),))))
    assert "cannot be opened" in awaited(worker, TaskEnded).results[0].error  # it has its model
    worker.send(End())
    worker.join()
    assert active_children() == []
    assert {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "MALLOC_ARENA_MAX")} == dict.fromkeys(
        ("CUDA_VISIBLE_DEVICES", "MALLOC_ARENA_MAX"), None
    )


def test_a_worker_that_cannot_load_the_model_says_why_with_each_task(root):
    run = Run(read_spec(settings(root)), settings(root))
    pixelwise(root / "m.onnx")
    worker = start_worker()
    awaited(worker, Ready)
    worker.send(Setup.of(run, 1))
    worker.send(RunTask(Job((Case("a", str(root / "in" / "a.tif")),))))
    error = awaited(worker, TaskFailed).error
    assert isinstance(error, ModelError)
    assert "has changed since this run began" in str(error)
    worker.close()


def test_a_worker_ends_with_its_connection_and_is_told_from_one_that_was_killed():
    worker = start_worker()
    awaited(worker, Ready)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(LostError, match="its process was ended by SIGKILL"):
        awaited(worker, TaskEnded)
    other = start_worker()
    awaited(other, Ready)
    other.connection.close()
    other._process.join(PATIENCE)
    assert other._process.exitcode == 1
    assert active_children() == []


def test_no_signal_of_a_terminal_or_a_service_reaches_a_worker():
    worker = start_worker()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(worker.pid, number)  # at its first line, too
    awaited(worker, Ready)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(worker.pid, number)
    assert awaited(worker, Alive) == Alive()
    worker.close()


class UnreadableError(Exception):
    """Is made with two values, and read with one."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} {other}")


def test_errors_that_no_process_can_read_keep_their_words(monkeypatch):
    monkeypatch.delitem(copyreg.dispatch_table, UnreadableError, raising=False)  # Dask lets all be read
    kept = SourceError("it is damaged")
    assert _portable(kept) is kept
    with pytest.raises(TypeError, match="missing 1 required"):
        pickle.loads(pickle.dumps(UnreadableError("a", "b")))
    assert str(_portable(UnreadableError("a", "b"))) == "a task failed: UnreadableError: a b"


def test_progress_is_reported_at_intervals_and_in_full(root):
    told: list[int] = []
    throttled = Throttled(told.append)
    for _ in range(1000):
        throttled(3)
    throttled.flush()
    assert sum(told) == 3000
    assert len(told) < 100
    run = Run(read_spec(settings(root)), settings(root))

    def nothing():
        raise WorkerError("no model")

    with pytest.raises(WorkerError, match="no model"):
        TaskRunner(run, 1, nothing, told.append).carry_out(Job((Case("a", "a.tif"),)), lambda stop: None)


# --- a worker that is started ahead ---------------------------------------------------------------------------------------


def test_a_worker_that_is_started_ahead_is_taken_once_or_ended(root):
    with spare_worker("processes"):
        worker = take_spare()
        assert worker is not None
        assert take_spare() is None
    assert awaited(worker, Ready) == Ready()  # whoever has taken it ends it
    worker.close()
    with pytest.raises(InputError, match="no"), spare_worker("processes"):
        raise InputError("no")
    assert (active_children(), _spare) == ([], [])


def test_a_model_that_is_told_ahead_costs_no_task(root):
    run = Run(read_spec(settings(root)), settings(root))
    run.output.make()
    gone = replace(run.model, path=root / "gone.onnx", files=(root / "gone.onnx",), engine=Engine("CPU", "fp32"))
    with spare_worker("processes"):
        tell_spare(LoadAhead(gone))
        worker = take_spare()
        tell_spare(LoadAhead(gone))  # nobody hears it
    awaited(worker, Ready)
    for order in (Setup.of(run, 1), LoadAhead(gone), RunTask(Job((Case("a", str(root / "in" / "a.tif")),)))):
        worker.send(order)  # one that is late, as of another run, is passed over
    assert awaited(worker, TaskEnded).results[0].error is None
    worker.send(End())
    worker.join()


@pytest.mark.parametrize(
    ("words", "executor", "order"),
    [
        ("", None, ["worker", "settings"]),
        ("--tile 0", None, ["worker", "settings"]),  # that is refused, and the worker ended
        ("--executor serial", None, ["settings"]),
        ("--dashboard :0 --tile 0", None, ["settings"]),
        ("--dry-run", None, ["settings"]),
        ("--tile 0 --config c.toml", "processes", ["settings"]),
        ("--config c.toml", "processes", ["settings", "worker"]),
        ("--config c.toml", "serial", ["settings"]),
    ],
)
def test_a_worker_starts_as_soon_as_the_words_say_that_one_is_needed(words, executor, order, root, segpipe, monkeypatch):
    found, start, read = [], worker_process.start_worker, settings_module.load_settings
    monkeypatch.setattr(worker_process, "start_worker", lambda: (found.append("worker"), start())[1])
    monkeypatch.setattr(settings_module, "load_settings", lambda *a: (found.append("settings"), read(*a))[1])
    (root / "c.toml").write_text(f'executor = "{executor}"\n')
    command = ["run", "--input", root / "in", "--model", root / "gone.onnx", "--output", root / "out"]
    ended = segpipe(*command, *words.replace("c.toml", str(root / "c.toml")).split())
    assert ("the model must exist" in ended.stderr) == ("--tile" not in words), ended.stderr
    assert found == order
    assert (active_children(), _spare) == ([], [])


@pytest.mark.parametrize(
    "more", [{"executor": "serial"}, {"executor": "dask"}, {"scheduler": "tcp://x:1"}, {"dashboard": ":0"}]
)
def test_no_worker_is_started_ahead_for_another_executor(more, root):
    with spare_worker(settings(root, **more).runs_in):
        assert (active_children(), take_spare()) == ([], None)


@pytest.mark.parametrize(
    ("chosen", "on_cpu", "on_gpu"),
    [
        ({}, "processes", "dask"),
        ({"executor": "processes"}, "processes", "processes"),
        ({"executor": "serial"}, "serial", "serial"),
        ({"scheduler": "tcp://localhost:8786"}, "dask", "dask"),
        ({"dashboard": "127.0.0.1:0"}, "dask", "dask"),
    ],
)
def test_dask_runs_on_gpus_unless_another_executor_is_chosen(chosen, on_cpu, on_gpu):
    settings = load_settings(None, {"input": ("scenes",), "model": (Path("model.onnx"),), **chosen})
    assert resolve_executor(settings, on_host=True) == on_cpu
    assert resolve_executor(settings, on_host=False) == on_gpu


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("-i", "in", "-m", "bad.onnx"), 2, "bad.onnx"),
        (("-i", "none", "-m", "m.onnx"), 2, "none"),
        (("-i", "in", "-m", "m.onnx"), 0, "2 done before"),
    ],
    ids=["a bad model", "no input", "nothing to do"],
)
def test_a_run_that_needs_no_worker_leaves_none(arguments, code, words, root):
    if code == 0:
        assert invoke(["run", *arguments, "-o", "out", "--executor", "serial", "--device", "cpu"], root).returncode == 0
    (root / "bad.onnx").write_bytes(b"no model")
    run = begin(root, [*SEGPIPE, "run", *arguments, "-o", "out", "--device", "cpu"], root / "log")
    ended, output = wait(run), run.log.read_text()
    assert (ended, words in output) == (code, True), output
    assert "Traceback" not in output
    assert left_of(run.pid) == []


MOMENTS = [
    "network.read:read_spec",
    "jobs.worker_process:start_worker",
    "pipeline.model_check:try_out",
    "jobs.planning:make_plan",
]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["SIGINT", "SIGKILL"])
def test_a_run_that_is_ended_before_its_first_job_leaves_no_worker(moment, number, root):
    arguments = ["run", "-i", "in", "-m", "m.onnx", "-o", "out", "--device", "cpu"]
    run = Fork(root, arguments, root / "log", [(f"segpipe.{moment}", number)])
    assert wait(run) == (75 if number == signal.SIGINT else -number), run.said("another end")
    assert "Traceback" not in run.log.read_text()
    assert left_of(run.pid) == []


@pytest.mark.slow
def test_a_model_that_never_ends_leaves_no_worker_behind_ctrl_c(root):
    endless(root / "e.onnx")
    command = [*SEGPIPE, "run", "-i", "in", "-m", "e.onnx", "-o", "out", "--device", "cpu"]
    process = begin(root, command, root / "log")
    wait_until(lambda: workers(process.pid), process)
    os.killpg(process.pid, signal.SIGINT)
    assert wait(process, nothing) == 75, (root / "log").read_text()
    assert left_of(process.pid) == []


# --- the board ------------------------------------------------------------------------------------------------------------


class Process:
    """Stands for a worker process; what it is sent is kept."""

    def __init__(self) -> None:
        self.sent, self.closed = [], False

    def send(self, order) -> None:
        self.sent.append(order)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def dispatcher(root):
    prepared = prepare(settings(root, workers=2))
    dispatcher = _Dispatcher(prepared.plan, prepared.run, lambda pixels: None)
    dispatcher._workers = [_Worker(Process(), place, is_ready=True) for place in range(2)]
    return dispatcher


def both() -> Job:
    return Job((Case("a", "a.tif"), Case("b", "b.tif")))


def test_a_job_of_a_lost_worker_is_split_and_a_single_case_is_tried_again_then_alone(dispatcher):
    while dispatcher._queue:
        dispatcher._queue.take()
    assert list(dispatcher._lose(dispatcher._workers[0], "gone")) == []  # it had none
    worker = dispatcher._workers[0]
    worker.attempt = _Attempt(both())
    assert list(dispatcher._lose(worker, "gone")) == []
    assert [dispatcher._queue.take(), dispatcher._queue.take()] == split_job(both())
    attempt = _Attempt(Job((Case("a", "a.tif"),)))
    for number in range(1, RETRIES + 1):
        assert (attempt.number, list(dispatcher._repeat(attempt, LostError("gone")))) == (number, [])
        attempt = dispatcher._next()
    assert list(dispatcher._repeat(attempt, LostError("gone"))) == []
    dispatcher._workers = [
        _Worker(Process(), 0, is_ready=True, attempt=_Attempt(both())),
        _Worker(Process(), 1, is_ready=True),
    ]
    assert dispatcher._next() is None  # while another works
    dispatcher._workers[0].attempt = None
    attempt = dispatcher._next()
    assert attempt.number == ALONE
    dispatcher._workers[0].attempt = attempt
    dispatcher._again.append(_Attempt(both()))
    assert dispatcher._next() is None  # nothing beside it
    (outcome,) = dispatcher._repeat(attempt, LostError("its process was ended by SIGKILL"))
    assert outcome.error == (
        "the worker that held this case was lost again and again, or failed: its process was ended by SIGKILL"
    )


@pytest.mark.parametrize("error", [ModelError("it is another model"), WorkerError("it has no area")])
def test_a_worker_that_is_not_fit_ends_the_run(error, dispatcher):
    with pytest.raises(type(error), match=str(error)):
        list(dispatcher._repeat(_Attempt(both()), error))


def test_an_error_of_a_case_that_nobody_caught_fails_it_alone(dispatcher):
    attempt = _Attempt(Job((Case("a", "a.tif"),)))
    assert list(dispatcher._repeat(attempt, RuntimeError("a fault"))) == []
    (outcome,) = dispatcher._repeat(dispatcher._suspects.pop(), RuntimeError("a fault"))
    assert outcome.error.endswith("or failed: a fault")
    (outcome,) = dispatcher._repeat(attempt, SourceError("it is damaged"))
    assert outcome.error == "it is damaged"


def test_a_silent_worker_and_a_hanging_one_are_replaced(dispatcher, caplog):
    hanging, silent = dispatcher._workers
    hanging.attempt = _Attempt(both(), began=time.monotonic() - 10_000)
    silent.attempt, silent.silence = _Attempt(both(), began=time.monotonic()), 61.0
    assert list(dispatcher._end_hanging()) == []
    assert (dispatcher._workers, hanging.process.closed, silent.process.closed) == ([], True, True)
    assert "a and 1 more has hung for 3600 s" in caplog.text
    starting = _Worker(Process(), 0, silence=61.0)
    dispatcher._workers = [starting]
    assert list(dispatcher._end_hanging()) == []
    assert not starting.process.closed


def test_a_halt_starts_nothing_and_an_unwritable_output_gives_up_what_runs(dispatcher):
    halt = Halt()
    halt.set()
    assert list(dispatcher.carry_out(halt)) == []
    worker = dispatcher._workers[0]
    worker.attempt = _Attempt(both())
    full = Outcome(Case("c", "c.tif"), 0.0, error="full", unwritable="No space left on device")
    list(dispatcher._end_of(_Attempt(Job((full.case,))), TaskEnded([full], None)))
    assert [type(order).__name__ for order in worker.process.sent] == ["GiveUp"]
    assert dispatcher._is_ending(Halt())


def test_workers_that_are_lost_while_they_start_end_the_run_at_last(dispatcher, caplog):
    losses = _Losses(STARTS)
    for _ in range(STARTS - 1):
        losses.add("its process was ended by SIGKILL")
    assert caplog.text.count("starting again") == STARTS - 1
    with pytest.raises(
        WorkerError, match="worker processes cannot be started: its process was ended by SIGKILL: try --exec"
    ):
        losses.add("its process was ended by SIGKILL.")
    list(dispatcher._take(dispatcher._workers[0], Ready()))
    assert dispatcher._losses.count == 0
    assert isinstance(dispatcher._workers[0].process.sent[0], Setup)
    assert list(dispatcher._take(dispatcher._workers[0], PixelsDone(3))) == []


def test_a_machine_that_allows_no_process_is_told(dispatcher, monkeypatch):
    def refuse(environment):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(processes, "start_worker", refuse)
    dispatcher._workers = []
    with pytest.raises(
        WorkerError, match=r"cannot be started: \[Errno 11\] Resource temporarily unavailable: try --executor"
    ):
        dispatcher._fill()


def test_a_gpu_goes_to_each_worker(dispatcher, monkeypatch):
    started = []
    monkeypatch.setattr(processes, "start_worker", lambda environment: started.append(environment) or Process())
    dispatcher._devices, dispatcher._count, dispatcher._workers = ["3", "5"], 3, []
    spare = Process()
    _spare.append(spare)
    with dispatcher.workers():
        assert (spare.closed, [worker.slot for worker in dispatcher._workers]) == (True, [0, 1, 2])
    dispatcher._workers = []
    started.clear()
    dispatcher._fill()
    assert [one["CUDA_VISIBLE_DEVICES"] for one in started] == ["3", "5", "3"]
    dispatcher._workers.pop(1)
    dispatcher._fill()
    assert started[-1] == {"CUDA_VISIBLE_DEVICES": "5"}


# --- a run ----------------------------------------------------------------------------------------------------------------


def test_a_worker_that_is_lost_in_a_run_costs_nothing(root, monkeypatch):
    class Killer(Silent):
        done = False

        def progress(self, pixels):
            if not self.done:
                self.done = True
                os.kill(active_children()[0].pid, signal.SIGKILL)

    with spare_worker("processes"):
        prepared = prepare(settings(root, workers=1, parts=3))
        summary = carry_out(prepared, Killer())
    assert (sorted(summary.done), summary.problems) == (["a", "b"], [])
    assert active_children() == []
    serial = prepare(settings(root, executor="serial", output=root / "whole"))
    carry_out(replace(serial), Silent())
    for name in "ab":
        assert (root / "out" / f"{name}.tif").read_bytes() == (root / "whole" / f"{name}.tif").read_bytes()

"""A run is asked to end at moments from its first line on: it says so, leaves no half-written file, and goes on later."""

import json
import os
import signal
import subprocess
import sys

import model_lists
import numpy as np
import pytest
import rasterio
from scenes import (
    PATIENCE,
    SEGPIPE,
    STRUCK,
    TWO_ENDED,
    Fork,
    assert_same,
    begin,
    begin_and_stop,
    content_of,
    make_model,
    nothing,
    wait,
    wait_until,
)
from test_endless import endless
from test_privacy import CONTRACT

SERIAL, PROCESSES = "--executor serial", "--executor processes --workers 1"
TERM, INT, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
CASES = {"a": (60, 60), "large": (100, 160)}
CASES_OF_MANY_PARTS = {"a": (60, 60), "large": (200, 320)}

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def _hangups_are_heard():
    """Under ``nohup`` a process ignores SIGHUP, as do all that it starts, and segpipe leaves that so."""
    before = signal.signal(HUP, signal.SIG_DFL)
    yield
    signal.signal(HUP, before)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two cases in a folder, two in another, and a model."""
    root = tmp_path_factory.mktemp("signals")
    make_cases(root / "in", CASES)
    make_cases(root / "cut", CASES_OF_MANY_PARTS)
    make_model(root / "m.onnx", width=8)
    return root


def make_cases(folder, cases):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, (height, width) in cases.items():
        place = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)}
        kind = {"driver": "GTiff", "dtype": "uint8", **place}
        with rasterio.open(folder / f"{name}.tif", "w", width=width, height=height, count=3, **kind) as dataset:
            dataset.write(rng.integers(1, 256, (3, height, width), dtype=np.uint8))


@pytest.fixture(scope="module")
def warm(root):
    """Carries out orders in forks of a process that has imported everything; exit code and log come back."""

    def carry_out(arguments, log, *strikes):
        return wait(Fork(root, arguments.split(), log, strikes)), log.read_text()

    return carry_out


@pytest.fixture(scope="module")
def whole(root, warm):
    code, log = warm(run_of(root / "whole", SERIAL), root / "log")
    assert code == 0, log
    return root / "whole"


def run_of(out, executor):
    return f"run -v -i in -m m.onnx -o {out} --device cpu --parts 3 --grace 2 {executor}"


def many_parts_of(out, executor):
    return f"run -v -i cut -m m.onnx -o {out} --device cpu --parts 8 --grace 60 {executor}"


def check(code, expected, log, out, whole):
    """The exit code, no traceback, and files that are whole or not there."""
    assert "Traceback" not in log, log
    assert code == expected, log
    assert code != 75 or log.endswith("interrupted: run the same command again to go on\n"), log
    for name in ("a", "large"):
        for path in (out / f"{name}.tif", out / f"{name}.tif.aux.xml", out / f"{name}.json"):
            assert not path.exists() or content_of(path) == content_of(whole / path.name)
    for path in out.glob("*.json"):
        json.loads(path.read_text())


# --- imports ------------------------------------------------------------------------------------------------------------

IMPORTS = [
    ("segpipe", TERM, -TERM),  # there is nobody yet to handle_signals
    ("click", TERM, 75),
    ("click", INT, 75),
    ("numpy", TERM, 75),
    ("pydantic", HUP, 75),
    ("onnxruntime", TERM, 75),
    ("rasterio", TERM, 75),
]


@pytest.mark.parametrize(("module", "number", "expected"), IMPORTS)
def test_while_modules_are_imported(module, number, expected, root, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    strikes = [(f"{module}:<module>", number)]
    order = {"arguments": run_of(out, SERIAL).split(), "folder": str(root), "log": str(log), "strikes": strikes}
    done = subprocess.run(STRUCK, input=json.dumps(order), text=True, timeout=PATIENCE, check=False)
    assert "Traceback" not in log.read_text()
    assert done.returncode == expected, log.read_text()
    assert log.read_text() == ("interrupted: run the same command again to go on\n" if expected == 75 else "")
    assert not out.exists()


# --- a run --------------------------------------------------------------------------------------------------------------

BEFORE = [
    "settings.loading:load_settings",
    "network.read:read_spec",
    "pipeline.model_check:try_out",
    "pipeline.infer:raw",
    "formats.cases:find_input",
    "jobs.planning:make_plan",
    "jobs.trial:choose_split",
]
"""Nothing is begun."""

WITHIN = [
    "jobs.launch:_initial_summary",
    "storage.lock:_take",
    "results.parts:write_cut",
    "jobs.executors:serial",
    "jobs.work:run_part",
    "jobs.work:_write:2",
    "results.parts:write_tally",
    "jobs.join:join",
    "formats.raster.readback:lost",
    "results.output:_record",
    "storage.files:commit:7",
    "results.parts:forget_parts:2",
]

CONCLUDING = [
    "jobs.conclude:conclude",
    "results.tables:write_areas",
    "jobs.trace:write_profile",
    "terminal.progress:print_conclusion",
    "process.signals:end",
]
"""Everything is done, and says so."""

MOMENTS = [
    *((moment, TERM, 75) for moment in (*BEFORE, *WITHIN)),
    *((moment, TERM, 0) for moment in CONCLUDING),
    *((moment, number, 75) for moment in ("settings.loading:load_settings", "jobs.join:join") for number in (INT, HUP)),
]


def named(moment):
    return f"segpipe.{moment}"


@pytest.mark.parametrize(("moment", "number", "expected"), MOMENTS)
def test_a_run(moment, number, expected, root, warm, whole, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    code, said = warm(run_of(out, SERIAL), log, (named(moment), number))
    check(code, expected, said, out, whole)
    assert out.exists() == (moment not in BEFORE)
    if moment not in BEFORE:
        again(out, SERIAL, warm, whole, log)


def again(out, executor, warm, whole, log):
    """The same command once more makes what is missing, and nothing else is left."""
    code, said = warm(run_of(out, executor), log)
    check(code, 0, said, out, whole)
    assert_same(out, whole)


@pytest.mark.parametrize(
    "second",
    ["jobs.work:_write:1", "results.output:_record", "jobs.conclude:conclude", "terminal.progress:print_conclusion"],
)
def test_a_second_signal_stops_what_runs(second, warm, whole, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    code, said = warm(run_of(out, SERIAL), log, (named("jobs.executors:serial"), TERM), (named(second), INT))
    check(code, 75, said, out, whole)
    assert said.count("once more to stop it now") == 1
    assert not list(out.glob(".*"))
    again(out, SERIAL, warm, whole, log)


def test_a_second_signal_leaves_tables_that_take_long_to_the_next_run(warm, whole, tmp_path):
    """Both cases lie on the same ground."""
    out, log = tmp_path / "out", tmp_path / "log"
    twice = (named("jobs.conclude:conclude"), TERM), (named("results.overlap.totals:_meeting"), INT)
    code, said = warm(run_of(out, SERIAL), log, *twice)
    check(code, 75, said, out, whole)
    assert said.count("tables have 2 s to finish; interrupt once more to leave them out") == 1
    assert (out / "areas.csv").read_bytes() == (whole / "areas.csv").read_bytes()
    assert "totals" not in json.loads((out / "run.json").read_text())
    again(out, SERIAL, warm, whole, log)
    assert json.loads((out / "run.json").read_text())["totals"] == json.loads((whole / "run.json").read_text())["totals"]


OF_A_LIST = [
    ("jobs.conclude:conclude", 75),  # the tables of the first model
    ("jobs.trial:choose_split:2", 75),  # between two models
    ("jobs.conclude:conclude:2", 75),
    ("jobs.conclude:conclude:3", 0),  # of what is joined: all is done
]


@pytest.mark.parametrize(("moment", "expected"), OF_A_LIST)
def test_models_of_a_list(moment, expected, root, warm, joined, tmp_path):
    """None begins after a signal, whatever the moment."""
    out, log = tmp_path / "out", tmp_path / "log"
    code, said = warm(list_of(out), log, (named(moment), TERM))
    check(code, expected, said, out, joined)
    begun = {0: 2, 75: int(moment[-1]) if moment[-1].isdigit() else 1}[expected]
    assert len(list(out.glob(".models/*/run.json"))) == begun
    code, said = warm(list_of(out), log)
    check(code, 0, said, out, joined)
    assert (out / "areas.csv").read_bytes() == (joined / "areas.csv").read_bytes()


@pytest.fixture(scope="module")
def joined(root, warm):
    """The labels of two models joined."""
    for seed in (1, 2):
        model_lists.flat(root / f"{seed}.onnx", ["background", f"one {seed}", f"two {seed}"], seed=seed)
    (root / "both.toml").write_text('[[models]]\nfile = "1.onnx"\n[[models]]\nfile = "2.onnx"\n')
    code, log = warm(list_of(root / "joined"), root / "log")
    assert code == 0, log
    return root / "joined"


def list_of(out):
    return f"run -v -i in -m both.toml -o {out} --device cpu --grace 60 {SERIAL}"


LOST = """
import signal, time
from segpipe.process import signals
from segpipe.jobs.tasks import Halt

class Deaf:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)  # Python prints what is raised here, and goes on

deaf = Deaf()
signals.halt_first(Halt(), 0)
try:
    del deaf
    time.sleep(60)
except KeyboardInterrupt:
    print("again")
"""


def test_an_interruption_that_gets_lost_in_a_callback_comes_again():
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.stdout, done.stderr) == ("again\n", "")


DURING = [
    (PROCESSES, "jobs.worker_process:start_worker"),
    (PROCESSES, "jobs.worker_process:take_spare"),
    (PROCESSES, "jobs.processes:carry_out"),
    (PROCESSES, "jobs.task_queue:ended:2"),
    ("--executor dask --workers 1", "jobs.local_cluster:_local_cluster"),
]


@pytest.mark.parametrize(("executor", "moment"), DURING)
def test_a_run_with_workers(executor, moment, warm, whole, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    code, said = warm(run_of(out, executor), log, (named(moment), TERM))
    check(code, 75, said, out, whole)
    again(out, SERIAL, warm, whole, log)


@pytest.mark.parametrize("number", [TERM, HUP], ids=["SIGTERM", "SIGHUP"])
def test_workers_that_are_told_too_end_what_they_have(number, root, warm, tmp_path):
    """A service that is stopped, or a terminal that goes, tells every process."""
    out, log, whole = tmp_path / "out", tmp_path / "log", tmp_path / "whole"
    assert warm(many_parts_of(whole, SERIAL), log)[0] == 0
    process = begin_and_stop(root, [*SEGPIPE, *many_parts_of(out, PROCESSES).split()], log, TWO_ENDED)
    assert list(out.glob(".parts/*/*.npz"))
    for each in (number, signal.SIGCONT):
        os.killpg(process.pid, each)
    check(wait(process, nothing), 75, log.read_text(), out, whole)
    code, said = warm(many_parts_of(out, SERIAL), log)
    check(code, 0, said, out, whole)
    assert_same(out, whole)


# --- calls that do not return ---------------------------------------------------------------------------------------------

STUCK = """
import ctypes
from segpipe.process import signals
from segpipe.jobs.tasks import Halt
signals.handle_signals()
signals.PATIENCE = 0.2
{phase}
print("ready", flush=True)
lock, library = ctypes.create_string_buffer(64), ctypes.CDLL(None)
library.pthread_mutex_lock(lock)
library.pthread_mutex_lock(lock)
"""


@pytest.mark.parametrize("phase", ["", "signals.halt_first(Halt(), 0.1)"], ids=["before", "during"])
def test_a_call_into_c_that_does_not_return(phase):
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK.format(phase=phase)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(PATIENCE) == 75
        assert process.stderr.read().endswith("interrupted: run the same command again to go on\n")


@pytest.mark.parametrize("command", ["inspect e.onnx", "tune e.onnx", "export attach e.onnx --contract c.toml -o {out}"])
def test_an_endless_model(command, root, warm, tmp_path):
    endless(root / "e.onnx")
    (root / "c.toml").write_text(CONTRACT)
    code, said = warm(command.format(out=tmp_path / "x.onnx"), tmp_path / "log", (named("pipeline.infer:raw"), TERM))
    assert (code, said.count("interrupted: run the same command again")) == (75, 1), said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == [tmp_path / "log"]


def test_nohup_is_heeded(root, whole, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    command = ["nohup", sys.executable, "-m", "segpipe", *run_of(out, SERIAL).split()]
    process = begin(root, command, log)
    wait_until((out / "run.json").exists, process)
    process.send_signal(HUP)
    check(wait(process, nothing), 0, log.read_text(), out, whole)


@pytest.mark.parametrize("gone", ["a reader", "room"])
def test_a_signal_is_answered_where_stderr_cannot_be_written(gone):
    read, write = os.pipe()
    if gone == "a reader":
        os.close(read)
    else:
        os.set_blocking(write, False)
        while os.get_blocking(write) is False:
            try:
                os.write(write, bytes(4096))
            except BlockingIOError:
                os.set_blocking(write, True)
    code = "import time; from segpipe.process import signals; signals.handle_signals(); print('ready', flush=True); "
    code += "time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=write, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(PATIENCE) == 75
    for end in (write, *((read,) if gone == "room" else ())):
        os.close(end)

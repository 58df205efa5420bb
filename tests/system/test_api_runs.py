"""``segpipe.run`` and ``segpipe.open_run``: the command's bytes, and a process that is as before."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from multiprocessing import current_process
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from networks import contract, pixelwise, toml
from scenes import PATIENCE, arguments, assert_same, begin_and_stop, go_on_until, make_model, make_scenes

import segpipe
from segpipe.api.command_line import command_of
from segpipe.api.results import ClassTotal
from segpipe.errors import ModelError
from segpipe.jobs.dask_options import quieten, unchanged_dask
from segpipe.jobs.status import read_status
from segpipe.process import spawning
from segpipe.process.interruption import interruptible
from segpipe.process.isolation import isolated
from segpipe.process.spawning import register
from segpipe.settings import Settings
from segpipe.storage.lock import NAME as LOCK

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with scenes, one that cannot be read, and a model."""
    folder = tmp_path_factory.mktemp("api")
    make_scenes(folder)
    # cut within its header: for missing pixels, GDAL's words depend on its threads
    (folder / "in/sub/broken.tif").write_bytes((folder / "in/a.tif").read_bytes()[:100])
    make_model(folder / "plain.onnx")
    return folder


@pytest.fixture
def here(root, monkeypatch):
    monkeypatch.chdir(root)
    return root


@pytest.fixture(scope="module")
def done(root):
    """What ``segpipe.run`` returns for the scenes, and its output."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        return segpipe.run("in", "plain.onnx", "done", executor="serial", device="cpu")


def test_the_command_and_the_function_give_the_same_bytes_and_records(here, done, segpipe):
    command = segpipe(*arguments("plain", here / "command", "--executor serial")[3:], cwd=here)
    assert command.returncode == 1, command.stderr  # one case is broken
    assert_same(here / "done", here / "command")


def test_a_bad_case_is_a_failure_with_its_reason(done):
    assert list(done.failed) == ["sub/broken"]
    assert "broken.tif" in done.failed["sub/broken"]
    assert done.done == ["a", "b", "large", "large/inner", "sub/c", "sub/d"]
    assert (done.skipped, done.problems, done.interrupted) == ([], [], False)


def test_the_result_is_the_same_from_disk(here, done):
    past = segpipe.open_run("done")
    assert past == done
    assert past.totals == done.totals
    assert repr(past) == repr(done)
    assert past.records["large"] == done.records["large"]


def test_records_and_totals_are_those_on_disk(here, done):
    assert list(done.records) == done.done
    assert len(done.records) == len(done.done)
    assert done.records["sub/c"].input.shape == (40, 90)
    with pytest.raises(KeyError, match="nothing"):
        _ = done.records["nothing"]
    masks = {name: rasterio.open(here / f"done/{name}.tif").read(1) for name in done.done}
    for value, name in [*enumerate(["class0", "class1", "class2", "class3"]), (255, "nodata")]:
        assert done.totals[name].pixels == sum(int((mask == value).sum()) for mask in masks.values())
    assert done.totals["nodata"] == ClassTotal(done.totals["nodata"].pixels, None, "px", None)


def test_a_mask_opens_as_labels(here, done):
    labels = done.open("large")
    with rasterio.open(here / "done/large.tif") as mask:
        assert np.array_equal(labels.array, mask.read(1))
        assert labels.nodata == mask.nodata
    assert labels.classes == {i: f"class{i}" for i in range(4)}
    assert np.array_equal(labels.valid, labels.array != 255)
    assert np.asarray(labels) is not None
    assert labels.confidence is None


@pytest.mark.parametrize(
    ("case", "options", "why"),
    [
        ("nothing", {}, "a case must have a mask in .*done, got 'nothing': cases are a, b, large"),
        ("sub/broken", {}, "it failed: .*broken.tif"),
        ("a", {"confidence": True}, "a must have a confidence, and has none: run again with confidence=True"),
    ],
)
def test_what_cannot_be_opened_says_why(case, options, why, done):
    with pytest.raises(segpipe.SegpipeError, match=why):
        done.open(case, **options)


def test_a_result_shows_itself_in_a_few_lines(done):
    lines = repr(done).split("\n")
    assert lines[0].endswith(f"done: 6 done, 0 skipped, 1 failed in {done.seconds:.1f} s")
    assert lines[1].startswith("  failed sub/broken  ")
    assert lines[-1].startswith("  nodata  ")
    assert "<td>class2</td>" in done._repr_html_()


def test_a_second_call_does_what_is_missing(here, done, tmp_path):
    once = segpipe.run([Path("in/a.tif"), "in/b.tif"], Path("plain.onnx"), tmp_path / "out", executor="serial", tile=64)
    again = segpipe.run(["in/a.tif", "in/b.tif"], "plain.onnx", tmp_path / "out", executor="serial", tile=[64, 64])
    assert (once.done, once.skipped) == (["a", "b"], [])
    assert (again.done, again.skipped) == ([], ["a", "b"])
    assert once.totals == again.totals


@pytest.mark.parametrize("how", ["replaced", "another folder", "another contract"])
def test_a_loaded_model_whose_file_is_another_by_now_is_not_run(how, root, tmp_path, monkeypatch):
    """The path may lead to another file: one was put in its place, or the working folder has changed."""
    monkeypatch.chdir(tmp_path)
    pixelwise(tmp_path / "m.onnx", seed=0)
    model = segpipe.load("m.onnx", device="cpu")
    assert segpipe.run(root / "in/a.tif", model, tmp_path / "first", executor="serial").done == ["a"]
    if how == "another folder":
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
    if how == "another contract":
        (tmp_path / "m.toml").write_text(toml(contract(3, 3, scale=0.5)))
    else:
        pixelwise(Path("m.onnx"), seed=1)
    with pytest.raises(ModelError, match=r"must be the one that was loaded, and .*m\.onnx is another file, or has another"):
        segpipe.run(root / "in/a.tif", model, tmp_path / "second", executor="serial")
    assert not (tmp_path / "second").exists()
    assert segpipe.run(root / "in/a.tif", segpipe.load("m.onnx"), tmp_path / "third", executor="serial").done == ["a"]


def test_a_loaded_model_gives_its_file_and_settings(here, tmp_path):
    model = segpipe.load("plain.onnx", tile=128, overlap=64, device="cpu")
    result = segpipe.run("in/a.tif", model, tmp_path / "out", executor="serial")
    assert result.records["a"].settings["tile"] == [128, 128]
    assert result.records["a"].model.sha256 == model.spec.sha256


def test_the_command_that_goes_on_is_the_one_of_the_same_settings(here, tmp_path, segpipe):
    result = segpipe_run_of_one(tmp_path)
    words = json.loads((tmp_path / "out/run.json").read_text())["command"]
    assert words[:2] == ["segpipe", "run"]
    again = segpipe(*words[1:], cwd=here)
    assert again.returncode == 0, again.stderr
    assert segpipe_open(tmp_path).skipped == result.done == ["a"]
    assert read_status(str(tmp_path / "out")).missing == []


def segpipe_run_of_one(tmp_path):
    """With settings of each kind; apart, since the fixture of the command has the package's name."""
    return segpipe.run(
        "in/a.tif", "plain.onnx", tmp_path / "out", executor="serial", tile=(64, 32), nodata=0, confidence=True, memory=1.5
    )


def segpipe_open(tmp_path):
    return segpipe.open_run(tmp_path / "out")


def test_settings_as_words():
    given = {"input": ("a b.tif", "c"), "model": "m.onnx", "resample": True, "retries": 0, "bands": (3, 2), "profile": "p"}
    words = ["--input", "a b.tif", "--input", "c", "--model", "m.onnx", "--bands", "3,2", "--resample"]
    assert command_of(Settings(**given)) == ["segpipe", "run", *words, "--retries", "0", "--profile", "p"]
    of_channels = Settings(input=("a",), model="m.onnx", channels="t1=*_t1.nii,flair=*_flair.nii", lesions="2,tumour")
    assert command_of(of_channels)[6:] == ["--channels", "t1=*_t1.nii,flair=*_flair.nii", "--lesions", "2,tumour"]
    assert command_of(Settings(input=("a",), model="m.onnx", lesions=True))[6:] == ["--lesions"]


@pytest.mark.parametrize(
    ("settings", "error", "why"),
    [
        ({"tiel": 3}, segpipe.SettingsError, "segpipe.run: unknown key tiel: did you mean tile?"),
        ({"tile": "x"}, segpipe.SettingsError, "tile: must be whole numbers, such as 512 or 512,256, got 'x'"),
        ({"workers": 0}, segpipe.SettingsError, "workers: must be at least 1, got 0"),
        ({"input": "x"}, segpipe.SettingsError, "input is the first argument"),
        ({"contract": "no.toml"}, segpipe.ContractError, "no.toml"),
    ],
)
def test_a_setting_that_does_not_fit_is_an_error(settings, error, why, here, tmp_path):
    with pytest.raises(error, match=why):
        segpipe.run("in", "plain.onnx", tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("inputs", "model", "error", "why"),
    [
        ("nowhere", "plain.onnx", segpipe.InputError, "the input must exist, got nowhere"),
        ([], "plain.onnx", segpipe.SettingsError, "input"),
        ("in", "no.onnx", segpipe.ModelError, "the model must exist, got no.onnx"),
    ],
)
def test_a_run_that_cannot_start_is_an_error(inputs, model, error, why, here, tmp_path):
    with pytest.raises(error, match=why):
        segpipe.run(inputs, model, tmp_path / "out", executor="serial")


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(segpipe.OutputError, match=r"must be the output of a run, and has no run\.json"):
        segpipe.open_run(tmp_path)


def test_a_run_that_died_has_the_cases_that_it_had_done(here, tmp_path):
    command, log = arguments("plain", tmp_path / "out", "--executor serial"), tmp_path / "log"
    process = begin_and_stop(here, command, log, "jobs.task_queue:ended", times=9)
    go_on_until((tmp_path / "out/a.json").exists, process)
    process.end_all()
    past = segpipe.open_run(tmp_path / "out")
    assert past.interrupted
    assert "a" in past.done
    assert past.records["a"].case == "a"
    (tmp_path / "out" / LOCK).unlink()
    assert segpipe.open_run(tmp_path / "out").interrupted


def test_areas_of_a_run_on_the_ground(raster, tmp_path):
    scene = raster("in/a.tif", np.full((3, 30, 40), 7, np.uint8))
    result = segpipe.run(scene, pixelwise(tmp_path / "m.onnx"), tmp_path / "out", executor="serial")
    assert result.totals["nodata"] == ClassTotal(0, 0.0, "ha", None)
    (found,) = [one for one in result.totals.values() if one.pixels]
    assert found.pixels == 1200
    assert found.area == pytest.approx(12, rel=0.01)
    assert found.share == pytest.approx(1)


# --- a process that is as before --------------------------------------------------------------------------------------

STATE = """
import json, logging, os, signal, sys, threading, warnings
print("begun", os.getpid(), flush=True)

import dask.config
import rasterio
from rasterio._env import get_gdal_config, get_proj_data_search_paths

def state():
    with rasterio.Env() as env:
        drivers = sorted(env.drivers())
        gdal = [get_gdal_config(name) for name in ("GDAL_CACHEMAX", "GDAL_NUM_THREADS", "GDAL_HTTP_MAX_RETRY")]
    names = ("", "segpipe", "distributed", "distributed.client", "asyncio", "rasterio._err", "rasterio._env")
    loggers = [(name, one.level, len(one.filters)) for name in names for one in [logging.getLogger(name)]]
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    handlers = [str(signal.getsignal(number)) for number in numbers]
    keys = ("distributed.worker.multiprocessing-method", "distributed.scheduler.worker-ttl", "logging.distributed")
    methods = [dask.config.get(key, None) for key in keys]
    return [drivers, gdal, get_proj_data_search_paths(), loggers, handlers, methods, dict(os.environ), os.getcwd(),
            str(sys.unraisablehook), warnings.filters[:], __file__, __spec__]

os.environ["GDAL_PAM_ENABLED"] = "NO"
import distributed
import segpipe
before = state()
first = segpipe.run("in", "plain.onnx", "out", workers=2, device="cpu")
assert state() == before, [pair for pair in zip(state(), before) if pair[0] != pair[1]]
results = []
def later():
    results.append(segpipe.run("in", "plain.onnx", "out", workers=2, device="cpu", overwrite=True))
thread = threading.Thread(target=later)
thread.start()
thread.join()
assert state() == before
(second,) = results
import multiprocessing
print(json.dumps([first.done, second.done, list(first.failed), len(multiprocessing.active_children())]))
"""


def test_a_script_without_a_guard_runs_once_in_any_thread_and_finds_its_process_as_before(here, done, tmp_path):
    """Workers are spawned, and would run the script again; the environment holds an option that a run takes away."""
    script = tmp_path / "script.py"
    script.write_text(STATE.replace('"out"', repr(str(tmp_path / "out"))))
    # a test before this may have set GDAL_DATA, or Dask's log
    own = {name: value for name, value in os.environ.items() if not name.startswith(("GDAL_DATA", "DASK_"))}
    ran = subprocess.run([sys.executable, script], env=own, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ran.returncode == 0, ran.stderr
    begun, results = ran.stdout.splitlines()
    assert begun.startswith("begun")
    assert json.loads(results) == [done.done, done.done, ["sub/broken"], 0]
    assert_same(tmp_path / "out", here / "done")


def test_the_start_method_is_registered_once():
    assert register() == register() == "segpipe"


def test_a_process_is_restored_by_the_last_of_several_runs(monkeypatch):
    monkeypatch.setenv("GDAL_PAM_ENABLED", "NO")
    with isolated():
        with isolated():
            os.environ.pop("GDAL_PAM_ENABLED")
        assert "GDAL_PAM_ENABLED" not in os.environ
    assert os.environ["GDAL_PAM_ENABLED"] == "NO"


@pytest.mark.parametrize("executor", ["processes", "dask"])
def test_a_worker_of_a_pool_starts_workers_of_its_own(executor, here, done, tmp_path, monkeypatch):
    """``multiprocessing`` forbids it, as for tasks of Dask or Celery: children might outlive their parent."""
    monkeypatch.setitem(current_process()._config, "daemon", True)
    result = segpipe.run("in", "plain.onnx", tmp_path / "out", executor=executor, workers=1)
    assert (result.done, [*result.failed], result.problems) == (done.done, ["sub/broken"], [])
    assert_same(tmp_path / "out", here / "done")
    assert current_process().daemon


def test_variables_of_processes_that_threads_start_at_once_do_not_stay(monkeypatch):
    """The second thread begins while the first starts its process, and ends after it."""
    entered, over = threading.Event(), threading.Event()
    start = partial(spawning.start, "segpipe", "run", None, environment={"SEGPIPE_OF_A_WORKER": "1"})
    second = threading.Thread(target=start)

    def begin():
        if threading.current_thread() is second:
            entered.set()
            over.wait(PATIENCE)
        else:
            second.start()
            entered.wait(0.2)  # in vain, as it has to wait for the first

    monkeypatch.setattr(spawning._Context, "Process", lambda *_, **__: SimpleNamespace(start=begin))
    start()
    over.set()
    second.join()
    assert entered.is_set()
    assert "SEGPIPE_OF_A_WORKER" not in os.environ


def test_a_fork_does_not_wait_for_threads_that_it_does_not_have():
    """Another thread is starting a worker while this process is forked."""
    held, over = threading.Event(), threading.Event()

    def hold():
        with spawning._changing:
            held.set()
            over.wait(PATIENCE)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(PATIENCE)
    if not (child := os.fork()):
        os._exit(not spawning._changing.acquire(timeout=0.5))
    _, status = os.waitpid(child, 0)
    over.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0


def test_dask_is_quiet_and_restored_by_the_last_of_several_runs(monkeypatch):
    import dask.config
    import distributed  # noqa: F401

    levels = {"distributed": logging.INFO, "distributed.scheduler": logging.WARNING, "asyncio": logging.NOTSET}
    for each, level in levels.items():
        monkeypatch.setattr(logging.getLogger(each), "level", level)
    monkeypatch.delenv("DASK_LOGGING__DISTRIBUTED", raising=False)
    name, key = "OMP_NUM_THREADS", "distributed.worker.multiprocessing-method"
    monkeypatch.delenv(name, raising=False)
    before = dask.config.get(key, None)
    with isolated(unchanged_dask):
        with isolated(unchanged_dask):  # as two runs, of which one begins before the other ends
            os.environ[name] = "1"
            dask.config.set({key: "fork"})
            quieten()
        assert os.environ[name] == "1"
        # it tells with a traceback of a client that ended while a worker reported
        assert not logging.getLogger("distributed.scheduler").isEnabledFor(logging.CRITICAL)
    assert not {name, "DASK_LOGGING__DISTRIBUTED"} & {*os.environ}
    assert dask.config.get(key, None) == before
    assert {each: logging.getLogger(each).level for each in levels} == levels


@pytest.fixture(autouse=True)
def _own_ctrl_c():
    """Ctrl-C as Python starts with it: a command that an earlier test called in this process may have left its own."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# --- Ctrl-C ------------------------------------------------------------------------------------------------------------


class Halt:
    """That of a run."""

    concluding = False
    was_set = False
    seconds: float | None = None

    def set(self):
        self.was_set = True

    def is_set(self):
        return self.was_set

    def conclude_within(self, seconds):
        self.seconds = seconds


def test_ctrl_c_raises_at_once_and_is_then_as_before():
    halt = Halt()
    with interruptible(halt, 0), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert halt.is_set()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_right_after_the_first_does_not_hurt():
    with interruptible(Halt(), 0):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_with_grace_the_first_ctrl_c_asks_and_the_second_raises(capfd):
    halt = Halt()
    with interruptible(halt, 60):
        signal.raise_signal(signal.SIGINT)
        assert halt.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert "running jobs have 60 s to finish" in capfd.readouterr().err


def test_the_end_of_the_grace_raises():
    with interruptible(Halt(), 0.05):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            time.sleep(PATIENCE)


def test_nothing_raises_while_the_tables_are_written():
    halt = Halt()
    halt.concluding = True
    with interruptible(halt, 7):
        signal.raise_signal(signal.SIGINT)
    assert halt.seconds == 7


class Deaf:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)  # Python hands on what is raised here, and goes on


def test_an_interruption_that_gets_lost_in_a_callback_is_raised_again():
    deaf = Deaf()
    with interruptible(Halt(), 0):
        del deaf
        with pytest.raises(KeyboardInterrupt):
            time.sleep(PATIENCE)


def test_a_handler_of_the_host_stays_in_force():
    heard = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        with interruptible(Halt(), 0):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT]


def test_other_threads_leave_signals_alone():
    found = []

    def run():
        with interruptible(Halt(), 0):
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


def test_an_interrupted_run_raises_keeps_what_is_done_and_goes_on(here, tmp_path, monkeypatch):
    from segpipe.results.output import CaseOutput

    finish = CaseOutput.finish

    def finish_and_interrupt(output):
        finish(output)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    some = ["in/a.tif", "in/b.tif", "in/sub"]
    with monkeypatch.context() as patch:
        patch.setattr(CaseOutput, "finish", finish_and_interrupt)
        with pytest.raises(KeyboardInterrupt, match="cases are not done: the same call continues"):
            segpipe.run(some, "plain.onnx", tmp_path / "out", executor="serial")
    past = segpipe.open_run(tmp_path / "out")
    assert past.interrupted
    assert "a" in past.done
    rest = segpipe.run(some, "plain.onnx", tmp_path / "out", executor="serial")
    assert "a" in rest.skipped
    assert not rest.interrupted
    assert sorted(rest.done + rest.skipped) == ["a", "b", "c", "d"]


# --- the module --------------------------------------------------------------------------------------------------------


def test_the_interface_is_what_is_listed():
    assert set(segpipe.__all__) <= set(dir(segpipe))
    for name in segpipe.__all__:
        assert getattr(segpipe, name).__doc__
    with pytest.raises(AttributeError, match="module 'segpipe' has no attribute 'nothing'"):
        _ = segpipe.nothing
    assert (ROOT / "segpipe/py.typed").is_file()


def test_all_errors_of_a_user_are_listed():
    """Not those that are caught within, or belong to commands without a function."""
    from segpipe import errors

    found = {name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, errors.SegpipeError)}
    within = {"DamagedPartError", "OutsideError", "UnforeseenError", "DeviceMemoryError", "ExportError", "DisagreementError"}
    assert found - within == {name for name in segpipe.__all__ if name.endswith("Error")}


def test_importing_segpipe_is_light():
    heavy = "{'numpy', 'onnx', 'onnxruntime', 'rasterio', 'dask', 'distributed', 'pydantic', 'xarray'} & {*sys.modules}"
    code = f"import sys, segpipe; segpipe.SegpipeError; dir(segpipe); sys.exit(' '.join({heavy}))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr.strip()) == (1, "") or ran.returncode == 0, ran.stderr

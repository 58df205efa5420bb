"""Clusters that are there already: a scheduler and workers started by hand, in processes of their own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace

import geopandas
import numpy as np
import pytest
import shapely
from distributed import Client, KilledWorker
from networks import local
from scenes import PATIENCE, SEGPIPE, TWO_ENDED, Silent, begin_and_stop, wait
from test_same_bytes import contents

from segpipe.errors import ModelError, WorkerError
from segpipe.formats.case import Case
from segpipe.jobs import dask_executor, dask_worker
from segpipe.jobs.cluster import cluster_workers
from segpipe.jobs.launch import carry_out
from segpipe.jobs.lost_workers import lost_reason
from segpipe.jobs.plan import Job
from segpipe.jobs.prepare import prepare
from segpipe.jobs.worker_pool import WorkerPool
from segpipe.network.read import read_spec
from segpipe.process.spawning import WORKER_ENVIRONMENT
from segpipe.results.run import Run
from segpipe.settings import load_settings

pytestmark = pytest.mark.slow

PACKAGE = Path(__file__).parents[2] / "segpipe"


class Cluster:
    """A scheduler on loopback and its workers."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._processes = folder, []
        file, limit = folder / "scheduler.json", time.monotonic() + PATIENCE
        self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", file)
        while not (found := file.exists() and re.search(r"tcp://127\.0\.0\.1:\d+", file.read_text())):
            assert time.monotonic() < limit, (folder / "scheduler0.log").read_text()
            time.sleep(0.1)
        self.address = found[0]

    def _start(self, kind: str, *arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "dask", kind, *map(str, arguments)]
        env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), **environment}
        with (self._folder / f"{kind}{len(self._processes)}.log").open("w") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=cwd or self._folder, env=env, start_new_session=True
            )
        self._processes.append(process)
        return process

    def worker(self, *more: str, cwd: Path | None = None, **environment: str) -> subprocess.Popen:
        own = ("--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1", *more)
        return self._start("worker", self.address, *own, cwd=cwd, **environment)

    @property
    def scheduler(self) -> subprocess.Popen:
        return self._processes[0]

    def stop(self) -> None:
        for process in reversed(self._processes):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()


@pytest.fixture
def cluster(tmp_path):
    started = Cluster(tmp_path)
    yield started
    started.stop()


@pytest.fixture
def scenes(raster, tmp_path):
    rng = np.random.default_rng(8)
    for name, shape in {"large": (400, 500), "small": (70, 90), "sub/other": (64, 64)}.items():
        raster(f"in/{name}.tif", rng.integers(1, 255, (3, *shape), dtype=np.uint8))
    local(tmp_path / "m.onnx")
    return ["run", "-i", "in", "-m", "m.onnx", "--device", "cpu"]


def wait_for_workers(cluster, count):
    with Client(cluster.address, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=PATIENCE)


def test_workers_started_by_hand_give_the_same_bytes_and_live_on(cluster, scenes, segpipe, tmp_path):
    for _ in range(2):
        cluster.worker()
    wait_for_workers(cluster, 2)
    assert segpipe(*scenes, "-o", "reference", "--executor", "serial").returncode == 0
    for turn in range(2):
        done = segpipe(*scenes, "-o", f"out{turn}", "--scheduler", cluster.address, "--parts", 6 + turn)
        assert done.returncode == 0, done.stderr
        assert contents(tmp_path / f"out{turn}") == contents(tmp_path / "reference")


def test_runs_that_share_a_scheduler_keep_their_own_models_and_areas(cluster, scenes, segpipe, tmp_path):
    """The first stands still in the middle while another comes and goes on the same worker; each alone is the oracle."""
    local(tmp_path / "other.onnx", seed=1)
    boxes = {"left": shapely.box(500_000, 0, 502_000, 5_400_000), "right": shapely.box(501_000, 0, 510_000, 5_400_000)}
    for name, box in boxes.items():
        geopandas.GeoDataFrame(geometry=[box], crs="EPSG:32633").to_file(tmp_path / f"{name}.gpkg")
    first = ["run", "-i", "in", "-m", "m.onnx", "--device", "cpu", "--aoi", "left.gpkg"]
    second = ["run", "-i", "in", "-m", "other.onnx", "--device", "cpu", "--aoi", "right.gpkg"]
    cluster.worker()
    wait_for_workers(cluster, 1)
    command = [*SEGPIPE, *first, "-o", "first", "--scheduler", cluster.address, "--parts", "40"]
    run = begin_and_stop(tmp_path, command, tmp_path / "log", TWO_ENDED)
    between = segpipe(*second, "-o", "second", "--scheduler", cluster.address)
    with Client(cluster.address, set_as_default=False) as client:
        assert [*client.run(lambda: len(dask_worker.MODELS)).values()] == [1]  # of the first
    run.send_signal(signal.SIGCONT)
    assert (between.returncode, wait(run)) == (0, 0), between.stderr + run.log.read_text()
    for name, words in {"first": first, "second": second}.items():
        assert segpipe(*words, "-o", f"{name}-alone", "--executor", "serial").returncode == 0
        assert contents(tmp_path / name) == contents(tmp_path / f"{name}-alone")


def test_a_worker_that_sees_other_files_of_the_same_names_ends_the_run(cluster, scenes, segpipe, tmp_path):
    """It runs in another folder, which has inputs of the same names: it would segment these, and write masks there."""
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "in", other / "in")
    shutil.copy(tmp_path / "m.onnx", other)
    cluster.worker(cwd=other)
    wait_for_workers(cluster, 1)
    for output, what in (("out", "output out"), (tmp_path / "absolute", "input in")):
        done = segpipe(*scenes, "-o", output, "--scheduler", cluster.address)
        assert done.returncode == 1
        assert f"workers must see the files of the run, and the {what} of {tmp_path} is not that of tcp://" in done.stderr
        assert f"which runs in {other}: give absolute paths, to folders that all machines share" in done.stderr
        assert not [*other.rglob("out"), *tmp_path.rglob("small.json")]
    paths = ["run", "-i", tmp_path / "in", "-m", tmp_path / "m.onnx", "--device", "cpu", "-o", tmp_path / "out"]
    assert segpipe(*paths, "--scheduler", cluster.address).returncode == 0
    assert segpipe(*scenes, "-o", "reference", "--executor", "serial").returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")


def test_a_scheduler_that_cannot_be_reached_or_has_no_workers_is_an_error(cluster, scenes, segpipe):
    nowhere = segpipe(*scenes, "--scheduler", "tcp://127.0.0.1:9")
    assert nowhere.returncode == 2
    assert "tcp://127.0.0.1:9 cannot be reached" in nowhere.stderr
    alone = segpipe(*scenes, "--scheduler", cluster.address)
    assert alone.returncode == 2
    assert "must have workers, and has none" in alone.stderr


def test_workers_of_another_version_are_refused(cluster, scenes, segpipe, tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "old" / "segpipe")
    (tmp_path / "old" / "segpipe" / "__init__.py").write_text('__version__ = "0.0.1"\n')
    cluster.worker(PYTHONPATH=str(tmp_path / "old"))
    wait_for_workers(cluster, 1)
    refused = segpipe(*scenes, "--scheduler", cluster.address)
    assert refused.returncode in (1, 2)
    assert re.search("workers must not differ in segpipe, and tcp://.* has 0.0.1", refused.stderr)
    assert not list((tmp_path / "segpipe-out").glob("*.tif"))


def test_a_worker_that_names_files_otherwise_is_refused(cluster, scenes, segpipe, tmp_path):
    cluster.worker(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    wait_for_workers(cluster, 1)
    refused = segpipe(*scenes, "--scheduler", cluster.address)
    assert refused.returncode in (1, 2)
    names = r"the encoding of file names \(see LC_ALL and PYTHONUTF8\)"
    assert re.search(f"workers must not differ in {names}, and tcp://.* has ascii, where utf-8 is needed", refused.stderr)
    assert not list((tmp_path / "segpipe-out").glob("*.tif"))


def test_a_worker_of_several_threads_is_refused_where_they_would_share_what_is_for_one(cluster, scenes, segpipe, tmp_path):
    cluster.worker("--nthreads", "2")
    wait_for_workers(cluster, 1)
    (tmp_path / "c.toml").write_text('device = "cpu-tensors"\n')
    for command in ((*scenes, "--profile"), ("run", "-i", "in", "-m", "m.onnx", "-c", "c.toml")):
        refused = segpipe(*command, "--scheduler", cluster.address)
        assert refused.returncode in (1, 2)
        assert re.search("workers must have one thread each on a GPU and for --profile, and tcp://.* has 2", refused.stderr)
    assert segpipe(*scenes, "--scheduler", cluster.address).returncode == 0
    settings = load_settings(
        tmp_path / "c.toml", {"input": ("in",), "model": tmp_path / "m.onnx", "output": tmp_path / "out"}
    )
    with Client(cluster.address, set_as_default=False) as client:  # one that comes late is seen by its first task alone
        begun = client.submit(
            dask_worker.run_on_worker,
            "late",
            None,
            Run(read_spec(settings), settings),
            1,
            dask_worker.ClientInfo("own", "", None),
            pure=False,
        )
        with pytest.raises(WorkerError, match="one thread each on a GPU"):
            begun.result(timeout=PATIENCE)


def test_a_scheduler_that_vanishes_ends_the_run_and_a_second_one_completes_it(cluster, scenes, segpipe, tmp_path):
    cluster.worker()
    wait_for_workers(cluster, 1)
    command = [*SEGPIPE, *scenes, "-o", "out", "--scheduler", cluster.address, "--parts", "40"]
    run = begin_and_stop(tmp_path, command, tmp_path / "log", TWO_ENDED)
    os.killpg(cluster.scheduler.pid, 9)
    run.send_signal(signal.SIGCONT)
    assert wait(run) == 1, run.said("not 1")
    assert list(tmp_path.glob("out/.parts/large.*/*.npz"))
    output = run.log.read_text()
    assert "the scheduler is gone" in json.loads((tmp_path / "out" / "run.json").read_text())["problems"][0]
    assert "the scheduler is gone" in output
    assert "Traceback" not in output
    assert segpipe(*scenes, "-o", "out", "--executor", "serial").returncode == 0
    assert segpipe(*scenes, "-o", "reference", "--executor", "serial").returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")


def ended(task, result=None, error=None):
    """A task whose future has ended, with an error, or with a result whose making may have to be repeated."""

    def made(timeout):
        raise result

    future = SimpleNamespace(key="k", cancelled=lambda: False, exception=lambda timeout: error, result=made)
    return dask_executor._Running(task, future, attempt=1)


@pytest.mark.parametrize("error", [WorkerError("a worker has 2 threads"), ModelError("it is another model")])
def test_a_worker_that_is_not_fit_ends_the_run_and_no_case(error):
    dispatcher = object.__new__(dask_executor._Dispatcher)
    with pytest.raises(type(error), match=str(error)):
        list(dispatcher._finish(ended(Job((Case("a", "a.tif"), Case("b", "b.tif"))), error=error)))


def test_a_result_that_is_lost_and_cannot_be_made_again_fails_its_case(tmp_path):
    local(tmp_path / "m.onnx")
    settings = load_settings(None, {"input": ("in",), "model": tmp_path / "m.onnx", "output": tmp_path / "out"})
    running = ended(Job((Case("a", "a.tif"),)), result=KilledWorker("a", SimpleNamespace(address="tcp://there"), 3))
    (outcome,) = dask_executor._results(running.future, running.task, Run(read_spec(settings), settings))
    assert outcome.case.name == "a"
    assert "was lost again and again" in outcome.error
    assert lost_reason(UnicodeEncodeError.__new__(UnicodeEncodeError)).endswith("or failed: UnicodeEncodeError")


def test_a_result_that_goes_with_its_worker_while_it_is_fetched_is_waited_for():
    """Without a worker it never comes: what waits for it must find that out meanwhile."""
    running = ended(Job((Case("a", "a.tif"),)), result=TimeoutError())
    dispatcher = object.__new__(dask_executor._Dispatcher)
    dispatcher._running, dispatcher._ended, dispatcher._run = {"k": running}, SimpleQueue(), None
    dispatcher._ended.put("k")
    assert list(dispatcher._wait()) == []
    assert dispatcher._running == {"k": running}
    assert dispatcher._ended.get_nowait() == "k"


def test_a_task_that_ended_while_another_worker_was_restarted_has_not_hung():
    """Its time is over, but it has ended; nobody has read this yet."""
    running = ended(Job((Case("a", "a.tif"),)))
    running.future.done = lambda: True
    running.worker, running.began = "tcp://there", time.monotonic() - 100
    dispatcher = object.__new__(dask_executor._Dispatcher)
    dispatcher._running, dispatcher._run = {"k": running}, SimpleNamespace(settings=SimpleNamespace(job_timeout=3.0))
    assert list(dispatcher._end_hanging()) == []
    assert dispatcher._running == {"k": running}


def test_a_run_whose_workers_are_all_gone_ends(cluster, raster, tmp_path, monkeypatch):
    """One that no nanny brings back."""
    monkeypatch.setattr(dask_executor, "LONGEST_WITHOUT_WORKERS", 3.0)
    monkeypatch.setattr(dask_executor, "ROLL_CALL", 0.5)
    rng = np.random.default_rng(9)
    scene = raster("in/long.tif", rng.integers(1, 255, (3, 1500, 1500), dtype=np.uint8))
    worker = cluster.worker("--no-nanny")
    wait_for_workers(cluster, 1)

    class Killer(Silent):
        def progress(self, pixels):
            os.killpg(worker.pid, 9)

    flags = {"input": (str(scene),), "model": local(tmp_path / "m.onnx"), "output": tmp_path / "out", "parts": 20}
    summary = carry_out(prepare(load_settings(None, flags | {"scheduler": cluster.address, "device": "cpu"})), Killer())
    assert re.search("no worker has been connected for 3 s", summary.problems[0])
    assert not list((tmp_path / "out").glob("*.tif"))


def test_a_job_has_the_memory_that_its_file_says(tmp_path):
    (tmp_path / "c.toml").write_text('kind = "slurm"\njobs = 2\nmemory = "512MiB"\n')
    flags = {"input": ("in",), "model": local(tmp_path / "m.onnx"), "cluster": tmp_path / "c.toml"}
    assert cluster_workers(load_settings(None, flags)) == WorkerPool(2, 1, 2**29)


SUBMIT = {
    "lsf": (
        "bsub",
        "bkill",
        "cat > $dir/script.$$",
        "echo 'Job <'$!'> is submitted to default queue <normal>.'",
        "#BSUB -n 3",
    ),
    "pbs": ("qsub", "qdel", 'cp "$1" $dir/script.$$', "echo $!.server", "#PBS -l select=1:ncpus=3:mem=512mb"),
}
"""The commands of two batch systems that no package brings: here they only start what they are given."""


@pytest.mark.parametrize("kind", list(SUBMIT))
def test_workers_are_jobs_of_other_batch_systems(kind, scenes, segpipe, tmp_path):
    """The scripts that dask-jobqueue writes are run; what a real LSF or PBS makes of their headers is not tried."""
    submit, cancel, take, answer, header = SUBMIT[kind]
    (tmp_path / "bin").mkdir()
    lines = ["#!/bin/bash", f"dir={tmp_path}", take, "bash $dir/script.$$ >$dir/job.$$ 2>&1 </dev/null &", answer]
    (tmp_path / "bin" / submit).write_text("\n".join(lines))
    (tmp_path / "bin" / cancel).write_text('#!/bin/bash\npkill -P "${1%%.*}"\n')
    for name in (submit, cancel):
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "c.toml").write_text(f'kind = "{kind}"\njobs = 2\ncores = 3\nmemory = "512MiB"\n[job]\ninterface = "lo"\n')
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(PACKAGE.parent)}
    done = segpipe(*scenes, "-o", "out", "--cluster", "c.toml", "--parts", 5, env=env)
    assert done.returncode == 0, done.stderr
    script = next(tmp_path.glob("script.*")).read_text()
    assert header in script
    assert "export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False" in script
    assert re.search(r"tls://\S+ .*--tls-key", script), script
    assert not list(tmp_path.glob(".dask-jobqueue*"))  # the keys of this run
    assert len(list(tmp_path.glob("script.*"))) == 2
    assert segpipe(*scenes, "-o", "reference", "--executor", "serial").returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scheduler", "tcp://x:1", "--workers", "2"], "one of scheduler, cluster and workers"),
        (["--scheduler", "tcp://x:1", "--executor", "serial"], "needs the executor dask"),
        (["--cluster", "none.toml"], "--cluster none.toml must exist, and does not: correct the path"),
    ],
)
def test_settings_that_contradict_are_refused(arguments, message, scenes, segpipe):
    refused = segpipe(*scenes, *arguments)
    assert refused.returncode == 2
    assert message in refused.stderr


def test_a_run_with_workers_leaves_this_process_its_environment(raster, tmp_path, monkeypatch):
    """Dask writes the environment of its workers into that of the process that starts them."""
    names = [*WORKER_ENVIRONMENT, "PYTHONHASHSEED"]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    before = {name: os.environ.get(name) for name in names}
    scene = raster("in/a.tif", np.ones((3, 60, 60), np.uint8))
    flags = {"input": (str(scene),), "model": local(tmp_path / "m.onnx"), "output": tmp_path / "out", "workers": 1}
    summary = carry_out(prepare(load_settings(None, flags | {"executor": "dask", "device": "cpu"})), Silent())
    assert summary.done == ["a"]
    assert {name: os.environ.get(name) for name in names} == before


LIBRARY = """
import atexit, multiprocessing, sys, time
from pathlib import Path

def work(path):
    while not Path("go").exists():
        time.sleep(0.02)
    Path(path).write_text("done")

if __name__ == "__main__":
    from distributed.deploy import spec
    from segpipe.jobs import local_cluster
    spawn = multiprocessing.get_context("spawn")
    others = [spawn.Process(target=work, args=(name,)) for name in ("before", "after")]
    others[0].start()
    started = local_cluster._start(2, ":0", [])
    others[1].start()
    mine = {other.pid for other in others}
    print(*(child.pid for child in multiprocessing.active_children() if child.pid not in mine), flush=True)
    atexit.unregister(spec.close_clusters)  # as where Ctrl-C comes while workers start
    atexit.register(Path("go").touch)  # comes before what is registered earlier
    atexit.register(local_cluster._end_workers)  # and this before it
"""


def test_only_own_workers_are_ended_with_a_process(tmp_path):
    """A script that uses segpipe as a library has processes of its own, which end when they are done."""
    (tmp_path / "script.py").write_text(LIBRARY)
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    ran = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    workers = list(map(int, ran.stdout.split()))
    assert (ran.returncode, len(workers)) == (0, 2), ran.stderr
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert [(tmp_path / name).read_text() for name in ("before", "after")] == ["done", "done"]

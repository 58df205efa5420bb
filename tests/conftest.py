"""Fixtures: real files in a temporary folder, and the command line as a user has it."""

import gc
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import settings
from rasterio.transform import from_origin
from threadpoolctl import threadpool_limits
from xdist.scheduler import LoadFileScheduling

# the same examples in every run: a red CI must be red at home, too
settings.register_profile("segpipe", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("segpipe")

SHARED = Path(__file__).parents[2] / "shared" / "data"


LONGEST = [
    "kills",
    "signals",
    "cluster",
    "night",
    "retries",
    "mutants",
    "kubernetes",
    "export",
    "s3",
    "cli",
    "shared_rasters",
    "same_bytes",
    "profile",
    "tensors",
    "environment",
    "ground",
    "benchmarks",
    "unusual",
    "many",
    "streams",
    "attach",
    "monai_bundle",
    "bioimageio",
    "damage",
    "validity",
    "masks",
    "real_models",
    "privacy",
    "tune",
]
"""Files that take more than half a minute of a processor: with the longest first, no worker is left alone at the end."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One a processor, and half as many again for tests marked slow, which wait for processes that start or end.

    On two processors the fast tests take 8.6 minutes so and 9.9 with three workers, the slow ones 9.6 and 11.3 with four.
    """
    from segpipe.process.machine import processors

    return processors() * 3 // 2 if config.option.markexpr == "slow" else processors()


ONE_BY_ONE = {"test_families"}
"""Files whose tests share nothing and take long: they fill what the others leave."""
BETWEEN = (1.5, 2.5, 3.5, len(LONGEST) + 1)
"""Their places: at the end, and between the first files, which wait for processes and leave a processor to them."""


class _Scheduling(LoadFileScheduling):  # type: ignore[misc]
    """Gives each worker whole files, which share what their fixtures make, or single tests."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return nodeid if Path(file).stem in ONE_BY_ONE else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """For ``--dist loadfile``."""
    return _Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_configure(config: pytest.Config) -> None:
    """What segpipe remembers of trials is the user's: tests have a cache of their own, in which those of libraries are
    links. Workers of xdist have that of the process that started them."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    own = Path(tempfile.mkdtemp(prefix="segpipe-tests-cache-"))
    config.add_cleanup(lambda: shutil.rmtree(own, ignore_errors=True))
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for entry in users.iterdir() if users.is_dir() else ():
        if entry.name != "segpipe":
            (own / entry.name).symlink_to(entry.absolute())
    os.environ["XDG_CACHE_HOME"] = str(own)


def pytest_sessionstart() -> None:
    """No test cuts the power, and to wait for the disk would take each worker a sixth of its time.

    GDAL opens its log at the first error of a process, as it does in each of segpipe's; tests may make one before."""
    from segpipe.formats.raster.gdal_messages import listen

    listen()
    os.fsync = os.fstat  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def _gdal_stays_as_it_is() -> Iterator[None]:
    """A test that changes how GDAL works in this process changes what later ones see of it."""
    from rasterio._env import get_gdal_config

    threads, cache = map(get_gdal_config, ("GDAL_NUM_THREADS", "GDAL_CACHEMAX"))
    yield
    assert get_gdal_config("GDAL_NUM_THREADS") == threads
    assert get_gdal_config("GDAL_CACHEMAX") >= min(cache, 2**27)  # segpipe sets it when it first reads


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """The collector of garbage waits, and leaves alone what is made here: nearly all stays, and walking through it again
    and again costs 5 s of 25 in each worker, and more with each test that asks for it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[pytest.CollectReport]:
    """Every second worker reads the files from the last to the first: on a new machine, where none has byte code, each
    compiles one half of the tests and of what they import, and finds the other half compiled."""
    report = yield
    if isinstance(collector, pytest.Directory) and int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 2:
        report.result.reverse()
    return report


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files without a test that is asked for stay unread: what they import takes each worker seconds."""
    if collection_path.suffix != ".py":
        return None
    asked, here = config.option.markexpr, collection_path.parent.name == "slow"
    left_out = {"not slow": here, "slow": not here and "mark.slow" not in collection_path.read_text()}
    return left_out.get(asked) or None


def pytest_collection_finish() -> None:
    """Several tests run at once, so each has one thread: threads that wait for each other on busy processors spin, and a
    network then costs three times as much."""
    threadpool_limits(1)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
        _export_with_one_registry()
        _let_loggers_propagate()


def _export_with_one_registry() -> None:
    """torch builds its table of 500 ONNX functions for each export, which takes half a second; no export changes it.

    It also looks up all 800 composite operators some 60 times, a quarter of the time of a small export: none is added later.
    And the lines of code behind each node, which segpipe drops: 5 % of the time, as pytest's frames are among them.
    """
    from torch._export import utils
    from torch.fx import config
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    once: Any = cache(ONNXRegistry.from_torchlib)
    ONNXRegistry.from_torchlib = staticmethod(once)  # type: ignore[method-assign]
    config.do_not_emit_stack_traces = True
    utils._materialize_cpp_cia_ops = cache(utils._materialize_cpp_cia_ops)


def _let_loggers_propagate() -> None:
    """torch has 45 loggers that do not; pytest adds its handlers to each of them six times a test."""
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch")]:
        logging.getLogger(name).propagate = True


def pytest_sessionfinish() -> None:
    """Some libraries count what they find alive at the end."""
    gc.unfreeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on real data run where the data is, beside the checkout; others where a batch system or a GPU is."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.path)  # each worker may have read them in another order
    needed = {"shared_data": SHARED.is_dir, "slurm": _has_slurm, "gpu": _has_gpu}
    absent = {name for name, there in needed.items() if any(name in item.keywords for item in items) and not there()}
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    kept = [item for item in items if not absent & set(item.keywords)]
    turns = cycle(BETWEEN)
    items[:] = sorted(
        kept, key=lambda item: next(turns) if item.path.stem in ONE_BY_ONE else places.get(item.path.stem, len(places))
    )


def _has_gpu() -> bool:
    """Whether there is a GPU, or somebody asks for its tests on another device."""
    from segpipe.network.device import gpus

    return bool(gpus()) or "SEGPIPE_TEST_DEVICE" in os.environ


def _has_slurm() -> bool:
    """Whether a batch system answers, as ``.ci/run`` starts one where it can."""
    if shutil.which("sinfo") is None:
        return False
    return subprocess.run(["sinfo"], capture_output=True, timeout=120, check=False).returncode == 0


@pytest.fixture
def shared() -> Path:
    """Folder of real rasters and models."""
    return SHARED


@pytest.fixture
def raster(tmp_path: Path) -> Callable[..., Path]:
    """Write an array ``(bands, rows, cols)`` as a raster below the temporary folder."""

    def write(name: str, pixels: np.ndarray, descriptions: Any = None, mask: Any = None, **profile: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        count, height, width = pixels.shape
        defaults = {"driver": "GTiff", "crs": "EPSG:32633", "transform": from_origin(500_000, 5_400_000, 10, 10)}
        if path.suffix in {".png", ".jpg"}:
            defaults = {"driver": {".png": "PNG", ".jpg": "JPEG"}[path.suffix]}
        with rasterio.open(
            path, "w", **{**defaults, **profile}, count=count, height=height, width=width, dtype=pixels.dtype
        ) as dataset:
            dataset.write(pixels)
            if descriptions:
                dataset.descriptions = descriptions
            if mask is not None:
                dataset.write_mask(mask)
        return path

    return write


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small scenes and the output ``out`` of a run over them, which no test changes."""
    from maps import make_map

    root = tmp_path_factory.mktemp("map")
    make_map(root)
    return root


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """That output, in a folder that a test may change."""
    shutil.copytree(made / "out", tmp_path / "out")
    return tmp_path / "out"


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def segpipe(tmp_path: Path, segpipe_process: Command) -> Command:
    """Run ``segpipe``, below the temporary folder if none is named; output and exit code come back.

    It runs in this process, or, with options of ``subprocess.run`` such as ``env``, in one of its own.
    """
    from command import invoke

    def run(*arguments: Any, cwd: Path = tmp_path, **options: Any) -> subprocess.CompletedProcess[str]:
        return segpipe_process(*arguments, cwd=cwd, **options) if options else invoke(arguments, cwd)

    return run


@pytest.fixture
def segpipe_process(tmp_path: Path) -> Command:
    """Run ``segpipe`` in a process of its own, as a user does: for tests of what a process inherits, hears or ends with."""

    def run(*arguments: Any, timeout: float = 250, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "segpipe.cli", *map(str, arguments)]
        options = {"cwd": tmp_path, "capture_output": True, "text": True, **options}
        return subprocess.run(command, timeout=timeout, check=False, **options)

    return run


@pytest.fixture
def mounts() -> Iterator[int]:
    """A process with mounts of its own, which end with it: ``scenes.Fork`` runs ``segpipe`` within them."""
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", "echo ready; read end"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        yield holder.pid


@pytest.fixture
def run_serial(tmp_path: Path) -> Callable[..., Path]:
    """Run the pipeline in this process with the serial executor; the output folder comes back, and no case may fail."""
    from scenes import Silent

    from segpipe.jobs.launch import carry_out
    from segpipe.jobs.prepare import prepare
    from segpipe.settings import load_settings

    def run(source: Path, model: Path, **settings: Any) -> Path:
        output = settings.pop("output", tmp_path / "out")
        flags = {"input": (str(source),), "model": model, "output": output, "executor": "serial", "device": "cpu"}
        summary = carry_out(prepare(load_settings(None, flags | settings)), Silent())
        assert summary.failed == []
        return Path(output)

    return run


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An S3 endpoint with the scenes below ``in`` of its bucket and of a folder; the environment leads to it."""
    from buckets import environment, open_endpoint, serving
    from scenes import make_model, make_scenes, make_whole

    root = tmp_path_factory.mktemp("s3")
    (root / "tmp").mkdir()
    (root / "server").mkdir()
    make_scenes(root)
    make_model(root / "plain.onnx", width=8)
    make_whole(root, "plain")
    with serving(root / "server") as port, pytest.MonkeyPatch.context() as patch:
        for key, value in environment(port, root / "tmp").items():
            patch.setenv(key, value)
        patch.setattr("tempfile.tempdir", None)  # which keeps what it has found
        yield open_endpoint(root)


@pytest.fixture
def endpoint(served: Any) -> Iterator[Any]:
    """The endpoint, as if nothing had been asked of it, and with nothing to fail."""
    served.fail({})
    served.forget()
    yield served
    served.fail({})


@pytest.fixture
def measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """``tune`` labels one box and times two rounds, on however busy a machine; its budget must have room for more."""
    monkeypatch.setattr("segpipe.tune.measure.PLACES", 1)
    monkeypatch.setattr("segpipe.tune.measure.ROUNDS", 2)

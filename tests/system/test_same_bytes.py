"""Promise 1: the same bytes whoever runs the jobs, in whatever batches."""

import random

import numpy as np
import pytest
import rasterio
from command import invoke
from networks import Network, contract
from rasterio.transform import from_origin

from segpipe.formats.case import Case
from segpipe.jobs.attempts import attempt
from segpipe.jobs.executors import EXECUTORS
from segpipe.jobs.plan import Job, PlannedCase, group_into_jobs
from segpipe.jobs.task_queue import TaskQueue
from segpipe.jobs.tasks import PartJob
from segpipe.jobs.work import Context
from segpipe.pipeline.infer import load_model


def deep(path, **terms):
    net = Network(3).conv(3, 8, 3).add("Relu").add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    net.conv(8, 8, 3).add("Relu").upsample(2).conv(8, 4, 3)
    return net.save(path, contract(3, 4, align=2, **terms), classes=4)


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    place = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_400_000, 10, 10), "nodata": 0}
    kind = {"driver": "GTiff", "dtype": "uint8", "count": count, "height": height, "width": width}
    with rasterio.open(path, "w", **kind, **place) as dataset:
        dataset.write(pixels)
    return path


def labelled(root, scenes, model, name):
    """What one job a case in one process makes, one tile at a time."""
    words = ["run", "--input", scenes, "--model", model, "--output", name, "--executor", "serial", "--batch", 1]
    done = invoke([*words, "--device", "cpu", "--confidence"], root)
    assert done.returncode == 0, done.stderr
    return root / name


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("same")


@pytest.fixture(scope="module")
def scenes(root):
    """Cases of unlike size, with nodata, so that batches fill across them and jobs hold several."""
    rng = np.random.default_rng(3)
    for number, shape in enumerate([(200, 270), (64, 64), (65, 150), (10, 17), (157, 131), (90, 90), (33, 200)]):
        pixels = rng.integers(1, 256, (3, *shape), dtype=np.uint8)
        pixels[:, rng.random(shape) < 0.2] = 0
        pixels[:, :, : shape[1] // 3] = 0
        write(root / "in" / f"{number}.tif", pixels)
    return root / "in"


@pytest.fixture(scope="module")
def model(root):
    return deep(root / "m.onnx")


@pytest.fixture(scope="module")
def reference(root, scenes, model):
    return labelled(root, scenes, model, "reference")


def contents(folder):
    files = [path for path in folder.rglob("*") if path.suffix in {".tif", ".csv", ".xml"}]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def without_confidence(folder):
    return {name: content for name, content in contents(folder).items() if ".confidence." not in name}


OWN = ["--executor dask --workers 2", "--executor processes --workers 3"]
"""These run in a process of their own, with workers that are new interpreters."""


@pytest.mark.parametrize(
    "arguments",
    [
        "--executor serial --batch 3",
        "--executor serial --batch 8",
        pytest.param("--executor dask --workers 1 --batch 8", marks=pytest.mark.slow),
        "--executor processes --workers 1 --batch 8",
        *OWN,
        pytest.param("--executor dask --workers 4 --batch 3", marks=pytest.mark.slow),
    ],
)
def test_masks_and_tables_are_the_same_bytes(arguments, scenes, model, reference, segpipe, segpipe_process, tmp_path):
    command = ["run", "--input", scenes, "--model", model, "--device", "cpu", "--confidence"]
    run = segpipe_process if arguments in OWN else segpipe
    other = run(*command, "--output", tmp_path / "other", *arguments.split())
    assert other.returncode == 0, other.stderr
    expected = contents(reference)
    assert len(expected) == 7 * 3 + 1
    assert contents(tmp_path / "other") == expected


def planned(windows):
    return [PlannedCase(Case(str(i), f"{i}.tif"), (1, 1), n) for i, n in enumerate(windows)]


@pytest.mark.parametrize(
    ("windows", "workers", "most", "jobs"),
    [
        ([1000], 4, 64, [1]),
        ([1] * 8, 2, 64, [1] * 8),
        ([1] * 16, 2, 64, [2] * 8),
        ([1] * 10_000, 2, 64, [64] * 156 + [16]),
        ([1] * 10_000, 2, 512, [512] * 19 + [272]),
        ([100, 1, 1, 100], 1, 64, [1, 2, 1]),
        ([], 2, 64, []),
    ],
)
def test_small_cases_share_a_job_and_large_ones_have_their_own(windows, workers, most, jobs):
    cases = planned(windows)
    got = list(group_into_jobs(cases, workers, most))
    assert [len(job.cases) for job in got] == jobs
    assert [case for job in got for case in job.cases] == [c.case for c in cases]
    assert all(isinstance(job, Job) for job in got)


@pytest.fixture(scope="module")
def uncut(root):
    """A scene, and by normalisation a model and what it makes of the scene in one piece."""
    rng = np.random.default_rng(5)
    pixels = rng.integers(1, 256, (3, 300, 400), dtype=np.uint8)
    pixels[:, :110, :90] = 0
    pixels[:, 180:, 350:] = 0
    scene = write(root / "scene.tif", pixels)
    models = {how: deep(root / f"{how}.onnx", normalize=how) for how in ("none", "zscore")}
    return scene, models, {how: labelled(root, scene, model, f"uncut-{how}") for how, model in models.items()}


@pytest.mark.parametrize("arguments", [f"--executor serial --parts {n}" for n in (1, 2, 7, 30)])
@pytest.mark.parametrize("normalize", ["none", "zscore"])
def test_a_case_in_parts_gives_the_same_bytes(arguments, normalize, uncut, segpipe, tmp_path):
    scene, models, whole = uncut
    command = ["run", "--input", scene, "--model", models[normalize], "--device", "cpu", "--confidence"]
    other = segpipe(*command, "--output", tmp_path / "other", *arguments.split())
    assert other.returncode == 0, other.stderr + other.stdout
    assert len(contents(whole[normalize])) == 3 + 1
    assert contents(tmp_path / "other") == contents(whole[normalize])
    assert not (tmp_path / "other" / ".parts").exists()


@pytest.mark.parametrize("normalize", [pytest.param("none", marks=pytest.mark.slow), "zscore"])
def test_workers_of_dask_give_the_same_bytes_of_parts(normalize, uncut, segpipe, tmp_path):
    test_a_case_in_parts_gives_the_same_bytes("--executor dask --workers 2 --parts 5", normalize, uncut, segpipe, tmp_path)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_order_in_which_tasks_end_changes_no_byte(seed, scenes, model, reference, run_serial, monkeypatch, tmp_path):
    rng, ends = random.Random(seed), []

    def shuffled(plan, run, watcher, halt):
        queue, held = TaskQueue(plan, run), []
        loaded = load_model(run.model)
        while queue or held:
            while queue:
                held.append(queue.take())
            task = held.pop(rng.randrange(len(held)))
            ends.append(task)
            yield from queue.ended(task, list(attempt(task, Context(run, loaded, 1, watcher.progress))))

    monkeypatch.setitem(EXECUTORS, "serial", shuffled)
    assert contents(run_serial(scenes, model, parts=7, output=tmp_path / "shuffled")) == without_confidence(reference)
    numbers = [task.number for task in ends if isinstance(task, PartJob)]
    assert numbers != sorted(numbers)


def test_parts_of_another_form_are_made_again(scenes, model, reference, run_serial, monkeypatch, tmp_path):
    """An earlier segpipe may have left less in them, under the same version."""

    def first_part_only(plan, run, watcher, halt):
        queue, loaded = TaskQueue(plan, run), load_model(run.model)
        while queue and not list(out.glob(".parts/*/*.npz")):
            task = queue.take()
            yield from queue.ended(task, list(attempt(task, Context(run, loaded, 1, watcher.progress))))

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("segpipe.results.parts.FILE_VERSION", 1)
        patch.setitem(EXECUTORS, "serial", first_part_only)
        run_serial(scenes, model, parts=7, output=out)
    (left,) = out.glob(".parts/*/*.npz")
    with np.load(left) as stored:
        np.savez(left, **{key: stored[key] for key in stored if key != "batch"})
    assert contents(run_serial(scenes, model, parts=7, output=out)) == without_confidence(reference)

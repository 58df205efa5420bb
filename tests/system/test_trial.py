"""Calls in flight and threads within them: which splits there are, that none changes a bit, and what is remembered."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from distributed import Client, Worker
from networks import local, pooling

from segpipe.errors import SettingsError
from segpipe.jobs.cluster import connected
from segpipe.jobs.prepare import Prepared, prepare
from segpipe.jobs.trial import (
    PAYS_IN_TURN,
    Split,
    Trial,
    _key,
    _same,
    choose_split,
    fastest,
    memory_file,
    recall,
    splits,
    store_trial,
    time_in_turn,
    time_splits,
)
from segpipe.network.read import read_spec
from segpipe.process.spawning import ONE_THREAD
from segpipe.results.run import Run
from segpipe.settings import load_settings

OWN = Path(os.environ["XDG_CACHE_HOME"])
"""Of the other tests."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """No test reads or writes what the user's own runs remember."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "segpipe" / "trial.json"


def settings(model: Path, source: object = "none.tif", **flags: object):
    values = {"input": (str(source),), "model": model, "output": model.parent / "out", "device": "cpu"}
    return load_settings(None, values | flags)


def test_crews_of_a_worker():
    assert splits(1) == [Split(1, 1)]
    assert splits(2) == [Split(2, 1), Split(1, 2)]
    assert splits(3) == [Split(3, 1), Split(1, 3)]
    assert splits(8) == [Split(8, 1), Split(4, 2), Split(1, 8)]


def test_the_first_crew_is_taken_unless_another_is_clearly_faster():
    one, two, all_ = Split(4, 1), Split(2, 2), Split(1, 4)
    assert fastest({one: [1.0]}) == one
    assert fastest({one: [1.0, 1.0, 1.0], two: [0.98, 0.98, 0.98]}) == one  # within 3 %
    assert fastest({one: [1.0, 1.0, 1.0], two: [0.9, 0.9, 0.9], all_: [0.8, 0.9, 0.8]}) == all_
    assert fastest({one: [1.0, 1.0, 1.0], two: [0.5, 0.5, 1.1]}) == one  # not in every round
    assert fastest({one: [1.0, 2.0, 4.0], two: [0.9, 1.8, 3.6]}) == two  # while the machine grew busy


@pytest.mark.parametrize("build", [local, pooling])
def test_threads_change_no_bit_and_all_crews_are_timed(build, tmp_path):
    trial = time_splits(read_spec(settings(build(tmp_path / "m.onnx"))), splits(4))
    assert list(trial.seconds) == splits(4)
    assert all(seconds > 0 for seconds in trial.seconds.values())


def test_the_same_means_every_bit():
    a = np.array([0.0, 1.0, np.nan], np.float32)
    assert _same(a, a.copy())
    assert not _same(a, -a)
    assert not _same(a, np.array([0.0, np.nextafter(np.float32(1), 2), np.nan], np.float32))


@pytest.fixture
def unlike(monkeypatch):
    """No network at hand has scores that depend on threads, so that the comparison itself says so."""
    monkeypatch.setattr("segpipe.jobs.trial._same", lambda a, b: a is b)


def test_a_crew_with_other_scores_is_not_taken(unlike, tmp_path):
    trial = time_splits(read_spec(settings(local(tmp_path / "m.onnx"))), splits(2))
    assert trial.split == Split(2, 1)
    assert trial.seconds[Split(1, 2)] is None
    assert "1 x 2 gives other scores; 2 x 1 is taken" in str(trial)


def prepared(model: Path, source: Path, calls: int, **flags: object) -> Prepared:
    """A run on as many processors as calls, whatever this machine has."""
    found = prepare(settings(model, source, **flags))
    return replace(found, plan=replace(found.plan, calls=calls))


@pytest.fixture
def scene(raster) -> Path:
    return raster("in/a.tif", np.random.default_rng(0).integers(1, 255, (3, 300, 300), dtype=np.uint8))


def test_a_short_run_is_not_worth_a_trial(scene, tmp_path, cache):
    found = prepared(local(tmp_path / "m.onnx"), scene, 2)
    assert choose_split(found.run, found.plan, pytest.fail) == (found.run, found.plan)
    assert not cache.exists()


def test_a_long_run_is_tried_once_and_remembered(scene, tmp_path, cache):
    found = prepared(local(tmp_path / "m.onnx"), scene, 2, tile=16, overlap=4)
    lines: list[str] = []
    run, plan = choose_split(found.run, found.plan, lines.append)
    assert plan.calls * run.model.threads == 2
    assert choose_split(found.run, found.plan, lines.append) == (run, plan)
    assert lines[1] == f"{lines[0]}, as {cache} says"


@pytest.mark.slow
def test_what_is_remembered_is_taken_and_the_bytes_are_the_same(scene, segpipe, tmp_path, cache):
    model = pooling(tmp_path / "m.onnx")
    found = prepared(model, scene, 2)
    key = _key(found.run.model, 2)
    store_trial(cache, key, Trial(Split(1, 2), {Split(2, 1): 2.0, Split(1, 2): 1.0}))
    run, plan = choose_split(found.run, found.plan, lambda line: None)
    assert (plan.calls, run.model.threads) == (1, 2)
    for name, flags in {"one": ["--threads", 1], "two": ["--threads", 2], "dask": ["--threads", 2, "--workers", 1]}.items():
        executor = [] if name == "dask" else ["--executor", "serial"]
        done = segpipe("run", "-i", scene, "-m", model, "-o", name, "--device", "cpu", *flags, *executor)
        assert done.returncode == 0, done.stderr
    masks = {(tmp_path / name / "a.tif").read_bytes() for name in ("one", "two", "dask")}
    assert len(masks) == 1


@pytest.mark.parametrize("content", ["", "[]", "{", '{"key": 3}', '{"key": {"split": [1]}}', '{"key": {"split": [2, 1]}}'])
def test_a_damaged_memory_is_none(content, cache):
    cache.parent.mkdir(parents=True)
    cache.write_text(content)
    assert recall(cache, "key") is None
    trial = Trial(Split(2, 1), {Split(2, 1): 0.5, Split(1, 2): None})
    store_trial(cache, "key", trial)
    assert recall(cache, "key") == trial


def test_a_memory_that_cannot_be_written_costs_nothing(cache):
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file where the folder belongs")
    store_trial(cache, "key", Trial(Split(2, 1), {}))
    assert recall(cache, "key") is None


def test_the_memory_keeps_the_newest(cache, monkeypatch):
    monkeypatch.setattr("segpipe.jobs.trial.REMEMBERED", 2)
    for key in "abc":
        store_trial(memory_file(), key, Trial(Split(2, 1), {}))
    assert list(json.loads(cache.read_text())) == ["b", "c"]


def test_threads_that_change_scores_are_refused(unlike, scene, tmp_path):
    found = prepare(settings(local(tmp_path / "m.onnx"), scene, threads=2))
    with pytest.raises(SettingsError, match="threads must not change scores"):
        choose_split(found.run, found.plan, pytest.fail)


def test_workers_of_this_machine_start_no_threads_of_libraries_and_are_not_looked_at(tmp_path, monkeypatch):
    for key in ONE_THREAD:  # the user's own values would count
        monkeypatch.delenv(key, raising=False)
    run = Run(read_spec(settings(local(tmp_path / "m.onnx"))), settings(local(tmp_path / "m.onnx")))

    def observed(dask_worker: Worker) -> tuple[dict[str, str], dict[str, float]]:
        looks = {name: callback.callback_time for name, callback in dask_worker.periodic_callbacks.items()}
        return dict(os.environ), looks

    with connected(run, 1) as client:
        assert isinstance(client, Client)
        ((found, looks),) = client.run(observed).values()
    assert {key: found.get(key) for key in ONE_THREAD} == dict.fromkeys(ONE_THREAD, "1")
    assert "heartbeat" in looks
    assert "profile" not in looks
    assert min(looks.values()) >= 100  # ms


def test_threads_of_a_network_with_large_scores_are_tried_one_after_the_other(scene, tmp_path, cache):
    found = prepared(local(tmp_path / "m.onnx"), scene, 1, tile=64, overlap=16)
    plan = replace(found.plan, threads=2)
    assert sum(case.windows for case in plan.opened) >= PAYS_IN_TURN
    lines: list[str] = []
    run, settled = choose_split(found.run, plan, lines.append)
    assert settled.calls == 1
    assert run.model.threads in (1, 2)
    assert choose_split(found.run, plan, lines.append) == (run, settled)
    assert lines[1] == f"{lines[0]}, as {cache} says"
    trial = time_in_turn(found.run.model, [Split(1, 1), Split(1, 2)])
    assert all(trial.seconds.values())


def test_the_tests_have_a_cache_of_their_own_in_which_those_of_libraries_are_the_users():
    assert OWN.name.startswith("segpipe-tests-cache-")
    assert all(entry.is_symlink() or entry.name == "segpipe" for entry in OWN.iterdir())

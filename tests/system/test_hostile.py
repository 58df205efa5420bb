"""A folder of all that is made to harm a run, and one good case among it: the good is done, the rest is named."""

import itertools
import json
import os
import re
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
import rasterio
from command import invoke
from hostile import BAD, DONE, GOOD, make, tiff, vrt
from networks import pixelwise
from scenes import Silent

from segpipe.jobs import work
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import prepare
from segpipe.messages.printable import printable
from segpipe.settings import load_settings

NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
SECONDS = 60
"""That a run may take on a machine that has nothing else to do; the tests' own machine may be busy."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """``in`` with everything, as another user finds it: root may read what nobody else may."""
    root = tmp_path_factory.mktemp("hostile")
    listener = make(root / "in")
    pixelwise(root / "m.onnx")
    (root / "in" / "closed").mkdir()
    for name in ("shut.tif", "closed"):
        (root / "in" / name).chmod(0)
    for above in (root, *list(root.parents)[:-2]):
        above.chmod(above.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
    root.chmod(0o777)
    yield root
    listener.close()
    (root / "in" / "closed").chmod(0o700)


def as_nobody(words, root):
    """In a process of its own, of another user if this one is root."""
    command = [*(NOBODY if os.getuid() == 0 else []), sys.executable, "-m", "segpipe.cli", *words]
    environment = {**os.environ, "HOME": str(root), "XDG_CACHE_HOME": str(root / "cache")}
    options = {"capture_output": True, "text": True, "timeout": 4 * SECONDS}
    return subprocess.run(command, cwd=root, env=environment, check=False, **options)


def segpipe(root, *more):
    """A run over all of it; it may wait for nothing and nobody."""
    words = ["run", "-i", "in", "-m", "m.onnx", "--device", "cpu", *more, "--retries", "0"]
    begun = time.monotonic()
    done = invoke(words, root) if "dask" in more else as_nobody(words, root)
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    assert done.returncode == 1, done.stderr
    busy = max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))
    assert time.monotonic() - begun < SECONDS * busy
    return done


@pytest.mark.parametrize("executor", ["serial", pytest.param("dask", marks=pytest.mark.slow)])
def test_each_is_named_in_one_line_and_the_good_is_done(executor, root):
    out = root / f"out-{executor}"
    done = segpipe(root, "-o", out.name, "--executor", executor, *(["--workers", "2"] * (executor == "dask")))
    recorded = json.loads((out / "run.json").read_text())
    readable = {"shut"} if os.getuid() == 0 and executor == "dask" else set()
    good, bad = {*DONE} | readable, {name: BAD[name] for name in BAD.keys() - readable}
    assert (recorded["state"], sorted(recorded["done"])) == ("ended", sorted(good))
    failed = {one["case"]: one["error"] for one in recorded["failed"]}
    assert sorted(failed) == sorted(bad)
    lines = done.stdout.splitlines()
    for name, words in bad.items():
        assert re.search(words, failed[name]), (name, failed[name])
        assert "does not know" not in failed[name]
        assert sum(f"] failed  {printable(name)}: " in line for line in lines) == 1
    for name in good:
        assert sum(f"] done  {printable(name)}  " in line for line in lines) == 1
    assert len(lines) == len(BAD) + len(DONE) + 4  # the good ones lie on the same ground, which a line says
    assert len(recorded["problems"]) == (0 if readable else 1)
    for problem in recorded["problems"]:
        assert re.search("in/closed: Permission denied", problem)
        assert f"error: {problem}" in done.stderr
    with rasterio.open(out / "good.tif") as mask:
        expected = mask.read()
    for name in GOOD[2:]:
        with rasterio.open(out / f"{name}.tif") as mask:
            np.testing.assert_array_equal(mask.read(), expected)


def test_a_dry_run_names_as_many_as_can_be_known_from_headers(root):
    done = segpipe(root, "-o", "never", "--dry-run")
    named = {line.split(": ")[0].removeprefix("problem  ") for line in done.stdout.splitlines() if "problem  " in line}
    read = {"missing", "self", "raw", "network"}  # of these only pixels tell
    assert {printable(name) for name in BAD.keys() - read - {"m" * 251}} <= named
    assert not (root / "never").exists()


def gone(path):
    path.unlink()


def a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def a_folder(path):
    path.unlink()
    path.mkdir()


def cut(path):
    path.write_bytes(path.read_bytes()[:3000])


def another(path):
    path.write_bytes(tiff(np.full((3, 90, 20), 7, np.uint8)))


@pytest.mark.parametrize("change", [gone, a_pipe, a_folder, cut])
@pytest.mark.parametrize("parts", [None, 4], ids=["whole", "in parts"])
def test_a_file_that_changes_between_plan_and_reading_costs_itself(change, parts, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / "in" / f"{name}.tif").write_bytes(tiff())
    pixelwise(tmp_path / "m.onnx")
    flags = {"input": (str(tmp_path / "in"),), "model": tmp_path / "m.onnx", "output": tmp_path / "out", "parts": parts}
    settings = load_settings(None, {**flags, "executor": "serial", "device": "cpu", "tile": (32,), "retries": 0})
    prepared = prepare(settings)
    change(tmp_path / "in" / "a.tif")
    summary = carry_out(prepared, Silent())
    assert (summary.done, [failure.case.name for failure in summary.failed]) == (["b"], ["a"])
    assert f"{tmp_path}/in/a.tif" in summary.failed[0].error
    assert "does not know" not in summary.failed[0].error


def test_a_file_that_another_takes_the_place_of_is_the_other_or_fails(tmp_path):
    """Before it is opened the other is what is there; a case that was cut by the first is not done by halves."""
    (tmp_path / "in").mkdir()
    for parts, expected in ((None, ["a"]), (4, [])):
        (tmp_path / "in" / "a.tif").write_bytes(tiff())
        pixelwise(tmp_path / "m.onnx")
        place = {"input": (str(tmp_path / "in"),), "model": tmp_path / "m.onnx", "output": tmp_path / f"out{parts}"}
        flags = {**place, "executor": "serial", "device": "cpu", "tile": (32,), "parts": parts, "retries": 0}
        prepared = prepare(load_settings(None, flags))
        another(tmp_path / "in" / "a.tif")
        summary = carry_out(prepared, Silent())
        assert summary.done == expected
        for failure in summary.failed:
            assert "has changed while" in failure.error
    with rasterio.open(tmp_path / "outNone" / "a.tif") as mask:
        assert mask.shape == (90, 20)


@pytest.mark.parametrize("parts", [None, 4], ids=["whole", "in parts"])
def test_a_file_that_changes_while_it_is_read_is_not_called_damaged(parts, tmp_path, monkeypatch):
    """A reader finds half of one file and half of another; what it says of that is not the reason."""
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.tif"
    path.write_bytes(tiff())
    pixelwise(tmp_path / "m.onnx")
    place = {"input": (str(tmp_path / "in"),), "model": tmp_path / "m.onnx", "output": tmp_path / "out"}
    flags = {**place, "executor": "serial", "device": "cpu", "tile": (32,), "parts": parts, "retries": 0}
    prepared = prepare(load_settings(None, flags))
    whole = work._write

    def broken(case, boxes, make_output, context):
        def begin(info):
            path.write_bytes(path.read_bytes()[:500])
            raise ValueError("cannot reshape array of size 10368")

        return whole(case, boxes, begin, context)

    monkeypatch.setattr(work, "_write", broken)
    summary = carry_out(prepared, Silent())
    assert [failure.error for failure in summary.failed] == [
        f"{path} has changed while it was processed: run the same command again"
    ]
    monkeypatch.setattr(work, "_write", whole)
    path.write_bytes(tiff())
    assert carry_out(prepare(load_settings(None, flags)), Silent()).done == ["a"]


@pytest.mark.parametrize("parts", [None, 4], ids=["whole", "in parts"])
@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_a_clock_that_is_set_meanwhile_does_not_reach_the_record(jump, parts, tmp_path, monkeypatch):
    """As at the first contact with a time server, or when summer time ends on a machine that keeps local time."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tif").write_bytes(tiff())
    pixelwise(tmp_path / "m.onnx")
    place = {"input": (str(tmp_path / "in"),), "model": tmp_path / "m.onnx", "output": tmp_path / "out"}
    flags = {**place, "executor": "serial", "device": "cpu", "tile": (32,), "parts": parts}
    plain, calls = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: plain() + jump * next(calls))
    summary = carry_out(prepare(load_settings(None, flags)), Silent())
    assert summary.done == ["a"]
    assert 0 <= summary.seconds < 60
    assert 0 <= json.loads((tmp_path / "out" / "a.json").read_text())["seconds"] < 60
    assert prepare(load_settings(None, flags)).plan.done


def test_a_vrt_of_several_types_is_read_as_a_file_of_floats(tmp_path):
    """uint16 and float32 have no type of their own in one file: as floats every value stays what it is."""
    (tmp_path / "in").mkdir()
    pixels = np.random.default_rng(1).integers(1, 255, (3, 40, 50))
    (tmp_path / "in" / ".short").write_bytes(tiff(pixels[:1].astype("uint16")))
    (tmp_path / "in" / ".float").write_bytes(tiff(pixels[1:2].astype("float32")))
    (tmp_path / "in" / ".int").write_bytes(tiff(pixels[2:].astype("int32")))
    (tmp_path / "in" / "mixed.vrt").write_bytes(vrt(".short", ".float", ".int", kinds=("UInt16", "Float32", "Int32")))
    (tmp_path / "in" / "whole.tif").write_bytes(tiff(pixels.astype("float64")))
    pixelwise(tmp_path / "m.onnx")
    place = {"input": (str(tmp_path / "in"),), "model": tmp_path / "m.onnx", "output": tmp_path / "out"}
    for parts in (None, 4):
        flags = {**place, "executor": "serial", "device": "cpu", "tile": (32,), "parts": parts, "overwrite": True}
        prepared = prepare(load_settings(None, flags), open_all=True)
        assert prepared.plan.failed == ()
        assert carry_out(prepared, Silent()).failed == []
        with rasterio.open(tmp_path / "out" / "mixed.tif") as mask, rasterio.open(tmp_path / "out" / "whole.tif") as whole:
            np.testing.assert_array_equal(mask.read(), whole.read())

"""Files of segpipe's own that are damaged between two runs: made again, with a warning, and never taken for whole."""

import io
import json
import logging
import os
import shutil
import zipfile
import zlib
from itertools import product

import numpy as np
import pytest
import rasterio
from networks import local
from scenes import Silent

from segpipe.errors import SourceError
from segpipe.jobs import work
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import prepare
from segpipe.jobs.task_queue import REPEATS
from segpipe.settings import load_settings

PARTS = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A case of which all parts are there and nothing joins them, in ``half``; and what an undisturbed run makes of it."""
    root = tmp_path_factory.mktemp("damaged")
    (root / "in").mkdir()
    pixels = np.random.default_rng(0).integers(1, 256, (3, 150, 210), dtype=np.uint8)
    with rasterio.open(root / "in" / "a.tif", "w", driver="GTiff", width=210, height=150, count=3, dtype="uint8") as dataset:
        dataset.write(pixels)
    local(root / "m.onnx")
    once(root, root / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "join", stopped)
        once(root, root / "half")
    return root


@pytest.fixture
def half(root, tmp_path):
    """A copy of ``half``, as a test may damage it."""
    shutil.copytree(root / "half", tmp_path / "out")
    assert len(parts(tmp_path)) == PARTS
    return tmp_path


@pytest.fixture
def again(root, half):
    """Runs into the copy."""
    return lambda **flags: once(root, half / "out", **flags)


@pytest.fixture
def same(root, half):
    """Asserts that the copy has what an undisturbed run makes."""

    def assert_same():
        for name in ("a.tif", "a.confidence.tif", "areas.csv"):
            assert (half / "out" / name).read_bytes() == (root / "whole" / name).read_bytes()
        assert not (half / "out" / ".parts").exists()

    return assert_same


def stopped(*_):
    raise SourceError("stopped before the join")


def once(root, out, **flags):
    fixed = {"input": (str(root / "in"),), "model": root / "m.onnx", "output": out, "device": "cpu", "parts": PARTS}
    return carry_out(prepare(load_settings(None, fixed | {"executor": "serial", "confidence": True} | flags)), Silent())


def parts(root, pattern="*.npz"):
    return sorted(root.glob(f"out/.parts/a.*/{pattern}"))


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def garbage(path):
    """In the middle, of the same length."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 20] = np.random.default_rng(1).integers(0, 256, 20, dtype=np.uint8).tobytes()
    path.write_bytes(data)


def flip(path):
    """A bit of the last third."""
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 4
    path.write_bytes(data)


def reshape(path):
    """Another file of its kind, sound in itself."""
    if path.suffix == ".npz":
        stream = io.BytesIO()
        np.savez_compressed(stream, counts=np.zeros((1, 1, 1, 9), np.int64), inferred=1, seconds=1.0, batch=1, digests=["0"])
        path.write_bytes(stream.getvalue())
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0_0.npy.zlib", zlib.compress(b"another"))


def gone(path):
    path.unlink()


DAMAGES = [truncate, empty, zeros, garbage, flip, reshape, gone]


@pytest.mark.parametrize(
    ("name", "damage"),
    [*product(["000002.npz", "000002.mask.boxes"], DAMAGES), *product(["000002.confidence.boxes"], [flip, gone])],
)
def test_a_damaged_part_is_named_and_made_again_alone(name, damage, half, again, same, caplog, monkeypatch):
    (path,) = parts(half, name)
    damage(path)
    inferred = []
    monkeypatch.setattr(work, "run_part", lambda job, context: (inferred.append(job.number), RUN_PART(job, context))[1])
    with caplog.at_level(logging.WARNING, "segpipe"):
        summary = again()
    assert (summary.failed, summary.problems, summary.done) == ([], [], ["a"])
    assert inferred[-1] == 2
    assert set(inferred) == {2}
    same()
    if damage is not gone:  # which is seen before anything is joined
        assert name in caplog.text
        assert "is damaged" in caplog.text
        assert "processed again" in caplog.text


RUN_PART = work.run_part


@pytest.mark.parametrize("damage", [truncate, empty, zeros, flip], ids=lambda damage: damage.__name__)
def test_a_damaged_plan_of_the_cut_is_no_plan(damage, half, again, same):
    (plan,) = parts(half, "plan.json")
    damage(plan)
    assert again().done == ["a"]
    same()


def test_a_plan_of_the_cut_with_another_box_is_no_plan(half, again, same):
    """JSON that says something else: every part would be where it is not."""
    (plan,) = parts(half, "plan.json")
    values = json.loads(plan.read_text())
    assert values["place"].startswith("sha256:")  # folders may be named after patients
    values["parts"][0][1][1] -= 1
    plan.write_text(json.dumps(values))
    assert again().done == ["a"]
    same()


def test_a_disk_that_damages_a_part_each_time_fails_the_case_and_ends(half, again, same, monkeypatch):
    def damaging(job, context):
        outcome = RUN_PART(job, context)
        for path in parts(half, "000001.mask.boxes"):
            flip(path)
        return outcome

    monkeypatch.setattr(work, "run_part", damaging)
    summary = again(overwrite=True)
    assert summary.done == []
    assert f"processed again {REPEATS} times, and is damaged each time" in summary.failed[0].error


def test_the_counts_of_a_part_can_be_opened_as_any_npz(half, again, same):
    (path,) = parts(half, "000001.npz")
    assert zipfile.ZipFile(path).testzip() is None
    with np.load(path) as stored:
        assert stored["areas/counts"].sum() > 0


@pytest.mark.parametrize("damage", [truncate, empty, zeros], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", ["a.tif", "a.confidence.tif"])
def test_a_damaged_mask_that_a_record_vouches_for_is_made_again(name, damage, half, again, same, caplog):
    again()
    damage(half / "out" / name)
    with caplog.at_level(logging.WARNING, "segpipe"):
        summary = again()
    assert summary.done == ["a"]
    assert f"{name} is damaged" in caplog.text
    same()


def test_a_mask_that_somebody_has_added_to_stays(half, again, same):
    """Statistics and overviews are written into a file by other programs."""
    again()
    with (half / "out" / "a.tif").open("ab") as stream:
        stream.write(b"more")
    assert again().skipped == ["a"]


@pytest.mark.parametrize("damage", [truncate, empty, zeros], ids=lambda damage: damage.__name__)
def test_a_damaged_record_means_that_the_case_is_done_again(damage, half, again, same):
    again()
    damage(half / "out" / "a.json")
    assert again().done == ["a"]
    same()

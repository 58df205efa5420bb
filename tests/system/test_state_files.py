"""Files that a run goes on from, damaged in every way: their case is done again or one line says why not; status copes."""

import errno
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from networks import pixelwise

from segpipe.cli import main
from segpipe.errors import OutputError, SegpipeError
from segpipe.formats.unusual.values import Finding
from segpipe.geometry.windows import Part
from segpipe.jobs.prepare import prepare
from segpipe.jobs.status import read_status
from segpipe.jobs.trial import Split, Trial, recall, store_trial
from segpipe.network.scaling import Scaling
from segpipe.results.done import done_cases, done_pixels
from segpipe.results.parts import plan_name, read_cut, read_findings, read_scaling, write_cut, write_findings, write_scaling
from segpipe.results.records import read_record
from segpipe.results.tables import write_areas
from segpipe.settings import load_settings
from segpipe.storage.folder import Folder
from segpipe.storage.lock import NAME, STALE, locked, sign_of
from segpipe.terminal.state import print_status

OTHERS = (
    *(b"", bytes(60), b"{", b"[]", b"3", b"null", b'"x"', b"true", b"{}", b"\xff\xfe\0", b"[" * 10**5, b'{"a":' * 10**5),
    *(b"9" * 5000, b"NaN", b"[1e999]", b'{"segpipe": 1}', b'{"case": "'),
)
"""What a file may hold in place of its JSON."""

VALUES = (
    *(None, [], {}, [[]], "x", "", "\0", "../../x", "/dev/null", "\ud800"),
    *(-1, 0, 10**30, 1.5, 1e308, True, [None], {"a": None}),
)
"""What may stand in place of any value of it; no folder of the machine, which a search for cases would go through."""

FLIPS = 150


def paths(value, at=()):
    """Places of all values in JSON, down to every key and the first of every list."""
    yield at
    inner = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    for key, below in inner:
        yield from paths(below, (*at, key))


def replaced(value, at, other):
    """The same JSON with another value in one place; without that key where it is ``KeyError``."""
    if not at:
        return other
    copy = dict(value) if isinstance(value, dict) else list(value)
    if other is KeyError and len(at) == 1:
        del copy[at[0]]
    else:
        copy[at[0]] = replaced(copy[at[0]], at[1:], other)
    return copy


def mutants(data):
    """A file damaged as a whole, in each of its values, and at random."""
    yield from OTHERS
    whole, rng = json.loads(data), np.random.default_rng(0)
    for at in paths(whole):
        for other in (*VALUES, *([KeyError] if at else [])):
            yield json.dumps(replaced(whole, at, other)).encode()
    yield json.dumps(whole | {"a later version's": [1]}).encode()
    for _ in range(FLIPS):
        damaged = bytearray(data)
        place = int(rng.integers(len(data)))
        kind = int(rng.integers(3))
        if kind == 0:
            damaged[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del damaged[place:]
        else:
            damaged[place : place + 4] = rng.integers(256, size=4, dtype=np.uint8).tobytes()
        yield bytes(damaged)


@pytest.fixture
def done(raster, tmp_path, monkeypatch):
    """A run that is over, and how it was prepared."""
    raster("in/a.tif", np.random.default_rng(0).integers(1, 255, (3, 40, 50), dtype=np.uint8))
    pixelwise(tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    assert run().exit_code == 0
    flags = {"input": ("in",), "model": Path("m.onnx"), "output": "out", "executor": "serial", "device": "cpu"}
    return prepare(load_settings(None, flags))


def run(*arguments):
    command = ["run", "-i", "in", "-m", "m.onnx", "-o", "out", "--executor", "serial", "--device", "cpu"]
    return CliRunner().invoke(main, [*command, *arguments])


def status(*arguments):
    ended = CliRunner().invoke(main, ["status", "out", *arguments])
    assert isinstance(ended.exception, SystemExit | None), repr(ended.exception)
    return ended


@pytest.mark.slow
def test_a_damaged_record_is_none(done, caplog):
    """Its case is not done, or it says enough for the tables."""
    file, (case,) = Path("out/a.json"), done.cases
    data, output = file.read_bytes(), done.run.output
    whole = set()
    for mutant in mutants(data):
        file.write_bytes(mutant)
        caplog.clear()
        kept = bool(done_cases([case], done.run))
        assert kept == (done_pixels(case, done.run) is not None)
        record = read_record(output, case)
        assert record is not None or not kept
        if record is not None:
            write_areas(output, [case])
            whole.add(mutant)
        elif mutant.startswith(b'{"case": "'):
            assert "a.json is damaged: its case is done again" in caplog.text
    assert len(whole) > 20  # values that count for nothing here, as seconds


@pytest.mark.parametrize(
    "damage", [b"", bytes(100), b'{\n  "case": "a",\n  "segpipe": "1', "outputs", "statistics", "input"]
)
def test_a_case_with_a_damaged_record_is_done_again(damage, done, caplog):
    file = Path("out/a.json")
    before = json.loads(file.read_text())
    file.write_bytes(damage if isinstance(damage, bytes) else json.dumps(before | {damage: [None]}).encode())
    ended = run()
    assert (ended.exit_code, "1 done, 0 done before" in ended.stdout) == (0, True), ended.output
    assert caplog.text.count("warning: out/a.json is damaged: its case is done again") == 1
    after = json.loads(file.read_text())
    assert {**before, "seconds": 0} == {**after, "seconds": 0}


def test_another_file_under_the_name_of_a_record_stays(done):
    Path("out/a.json").write_text('{"mine": 1}')
    assert run().exit_code == 1
    assert Path("out/a.json").read_text() == '{"mine": 1}'


@pytest.mark.slow
def test_status_of_any_run_json_is_told_or_one_line(done, capsys):
    file = Path("out/run.json")
    shown = 0
    for mutant in mutants(file.read_bytes()):
        file.write_bytes(mutant)
        try:
            found = read_status("out")
        except SegpipeError as error:
            text = str(error)
        else:
            shown += 1
            print_status(found, as_json=False)
            json.dumps(asdict(found), allow_nan=False)
            continue
        assert "\n" not in text
        assert len(text) < 1500, text
    assert shown > 20
    capsys.readouterr()


@pytest.mark.parametrize("cut", [0, 60, 200])
def test_a_run_goes_on_over_its_damaged_run_json(cut, done):
    file = Path("out/run.json")
    file.write_bytes(file.read_bytes()[:cut])
    assert "run.json is not JSON" in status().stderr
    assert run().exit_code == 0
    assert (status().exit_code, json.loads(file.read_text())["state"]) == (0, "ended")


def test_a_damaged_lock_is_cleared_or_one_line(done):
    file, output = Path("out") / NAME, Folder(Path("out"))
    with locked(output):
        data = file.read_bytes()
    for mutant in mutants(data):
        file.write_bytes(mutant)
        sign_of(output)
        try:
            with locked(output):
                pass
        except OutputError as error:
            text = str(error)
        else:
            assert not file.exists()
            continue
        assert "one run at a time may write to out" in text
        assert f"remove out/{NAME}" in text


def test_a_lock_of_a_later_version_holds(done):
    with locked(Folder(Path("out"))):
        values = json.loads((Path("out") / NAME).read_text())
    (Path("out") / NAME).write_text(json.dumps(values | {"users": [1, 2]}))  # of this process, which is alive
    refused = run()
    assert refused.exit_code == 2
    assert f"process {os.getpid()} on {socket.gethostname()}" in refused.stderr


def test_a_folder_in_place_of_a_lock_is_one_line(done):
    (Path("out") / NAME).mkdir()
    refused = run()
    assert refused.exit_code == 2
    assert f"out/{NAME} must be the lock of a run, and cannot be read: Is a directory" in refused.stderr
    assert status().exit_code == 0


PARTS = (Part((0, 0), (1, 1)), Part((1, 0), (2, 1)))


@pytest.mark.parametrize("kind", ["plan", "scaling", "unusual"])
def test_damaged_state_of_parts_counts_for_nothing(kind, done):
    (case,), settings, files = done.cases, done.run, [{"path": "a", "size": 1, "mtime_ns": 2}]
    scaling = Scaling(*(np.array([0.5]) for _ in range(2)), None, None, np.array([0.0]))
    write_cut(case, settings, files, (40, 50), PARTS)
    write_scaling(settings.output, case, scaling)
    write_findings(settings.output, case, [Finding("dark", far=True)])
    read = {
        "plan": lambda: read_cut(case, settings, files, (40, 50)),
        "scaling": lambda: read_scaling(settings.output, case),
        "unusual": lambda: read_findings(settings.output, case),
    }[kind]
    whole = str(read())
    assert whole != "None"
    file = Path("out") / plan_name(case).replace("plan", kind)
    for mutant in mutants(file.read_bytes()):
        file.write_bytes(mutant)
        assert str(read()) in ("None", whole)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_a_plan_of_parts_that_cannot_be_read_is_not_missing(number, done, monkeypatch):
    """Finished parts would be done again, or their case be told that its input has changed."""
    (case,), settings, files = done.cases, done.run, [{"path": "a", "size": 1, "mtime_ns": 2}]
    write_cut(case, settings, files, (40, 50), PARTS)

    def fail(self, name):
        raise OSError(number, os.strerror(number), name)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "read", fail)
        with pytest.raises(OutputError, match=f"plan.json cannot be read: {os.strerror(number)}"):
            read_cut(case, settings, files, (40, 50))
    assert read_cut(case, settings, files, (40, 50)) == PARTS
    (Path("out") / plan_name(case)).unlink()
    assert read_cut(case, settings, files, (40, 50)) is None


def test_damaged_memory_of_trials_is_none(tmp_path):
    file = tmp_path / "trial.json"
    trial = Trial(Split(2, 1), {Split(2, 1): 0.5, Split(1, 2): None})
    store_trial(file, "key", trial)
    for mutant in mutants(file.read_bytes()):
        file.write_bytes(mutant)
        found = recall(file, "key")
        assert found is None or str(found)
        store_trial(file, "key", trial)
        assert recall(file, "key") == trial


# --- a run that died ------------------------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from segpipe.storage.lock import locked
from segpipe.storage.folder import Folder
with locked(Folder(Path("out"))):
    file = Path("out/run.json")
    file.write_text(file.read_text().replace('"state": "ended"', '"state": "running"'))
    print("held", flush=True)
    sys.stdin.read()
"""


def test_status_tells_that_a_killed_run_died_and_when(done):
    lock = Path("out") / NAME
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdin=-1, stdout=-1, text=True)
    assert process.stdout.readline() == "held\n"
    lives = status("--json")
    process.kill()
    process.communicate()
    died, words = status("--json"), status()
    living, dead = json.loads(lives.stdout), json.loads(died.stdout)
    who = f"process {process.pid} on {socket.gethostname()}"
    assert (lives.exit_code, living["state"], living["running"], living["died"]) == (0, "running", who, None)
    assert (died.exit_code, dead["state"], dead["running"], dead["died"]) == (1, "died", None, who)
    assert abs(time.time() - (Path("out") / NAME).stat().st_mtime) < 3600  # of this clock, and no other
    heard = lock.stat().st_mtime
    assert abs(datetime.fromisoformat(dead["last_sign"]).timestamp() - heard) <= 2
    assert f"its last run died: {who} gave its last sign of life {dead['last_sign']}" in words.stdout
    assert "to go on: cd " in words.stdout
    assert run().exit_code == 0
    assert json.loads(status("--json").stdout)["state"] == "ended"


@pytest.mark.parametrize(("silent", "state"), [(STALE / 2, "running"), (STALE * 2, "died")])
def test_of_a_run_of_another_machine_the_last_sign_is_what_is_known(silent, state, done):
    lock = Path("out") / NAME
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 7, "began": "1", "space": "another boot"}))
    os.utime(lock, (time.time() - silent,) * 2)
    found = json.loads(status("--json").stdout)
    assert (found["state"], found["running"] or found["died"]) == (state, "process 7 on elsewhere")
    assert found["last_sign"]


def test_a_run_whose_lock_was_removed_died_as_well(done):
    file = Path("out/run.json")
    file.write_text(file.read_text().replace('"state": "ended"', '"state": "running"'))
    found = status()
    assert found.exit_code == 1
    assert "its last run died: it gave its last sign of life 2" in found.stdout
    assert asdict(read_status("out"))["died"] is None


@pytest.mark.parametrize("left", ["nothing", "a record", "a damaged record"])
def test_a_record_is_read_once(left, done, monkeypatch):
    """In a bucket each time is a request, and there may be 100,000 of them before anything begins."""
    file, read, asked = Path("out/a.json"), Folder.read, []
    (Path("out") / "b.json").write_text("{}")  # a folder without any record is not looked at
    if left == "nothing":
        file.unlink()
    elif left == "a damaged record":
        file.write_bytes(file.read_bytes()[:-20])
    monkeypatch.setattr(Folder, "read", lambda self, name: (asked.append(name), read(self, name))[1])
    assert len(done_cases(done.cases, done.run)) == (left == "a record")
    assert asked == ["a.json"]

"""Files for which the operating system has no answer: a command ends with the path, the error and the mend."""

import errno
import os
import re
from itertools import repeat

import numpy as np
import pytest
from click.testing import CliRunner
from networks import contract, pixelwise, toml
from unreadable import fail

from segpipe.accuracy.annotations import read_annotations
from segpipe.accuracy.evaluate import references
from segpipe.cli import main
from segpipe.errors import SourceError
from segpipe.formats.case import CaseSelection
from segpipe.formats.cases import find_input
from segpipe.formats.identity import FolderListings, identities
from segpipe.jobs import attempts
from segpipe.network import model_file
from segpipe.results import done
from segpipe.storage.folder import Folder
from segpipe.validity import parse_validity


def told(*words):
    """What a command says on stderr as it ends with 2."""
    ended = CliRunner().invoke(main, [str(word) for word in words])
    assert ended.exit_code == 2, ended.output
    return ended.stderr.strip()


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr("segpipe.storage.retry.FIRST_WAIT", 0)


@pytest.fixture
def model(tmp_path):
    (tmp_path / "m.toml").write_text(toml(contract(1, 2)))
    return pixelwise(tmp_path / "m.onnx", 1, 2)


@pytest.mark.parametrize("name", ["m.onnx", "m.toml"])
def test_a_model_or_its_contract_is_named_with_the_mend(name, model, raster, monkeypatch):
    scene = raster("in/a.tif", np.ones((1, 8, 9), np.uint8))
    fail(monkeypatch, model.with_name(name), "stat")
    flags = ["-m", model, "-o", scene.with_name("out"), "--device", "cpu", "--executor", "serial"]
    assert told("run", "-i", scene, *flags) == (
        f"error: {model.with_name(name)} cannot be read or written: Input/output error: check the disk"
    )


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
@pytest.mark.parametrize("name", ["ref/b", "ref/b/two.tif"])
def test_a_reference_is_not_left_out_because_its_folder_cannot_be_read(name, number, raster, tmp_path, monkeypatch):
    """``Path.rglob`` passes over folders that it may not read, and since Python 3.13 over all that it cannot."""
    for case in ("one", "b/two"):
        raster(f"ref/{case}.tif", np.ones((1, 8, 9), np.uint8))
    assert list(references(tmp_path / "ref", ["one", "b/two"])) == ["b/two", "one"]
    fail(monkeypatch, tmp_path / name, number=number)
    with pytest.raises(OSError, match=os.strerror(number)) as lost:
        references(tmp_path / "ref", ["one", "b/two"])
    assert lost.value.filename == str(tmp_path / name)


def test_annotations_are_not_left_out_because_their_folder_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "ref" / "b").mkdir(parents=True)
    fail(monkeypatch, tmp_path / "ref" / "b", "scandir", number=errno.EACCES)
    with pytest.raises(PermissionError, match="ref/b"):
        read_annotations(tmp_path / "ref")


@pytest.mark.parametrize("pattern", ["udm2", "{case}_udm2.tif"])
def test_a_mask_of_which_nobody_says_whether_it_exists_does_not_become_a_case(pattern, raster, tmp_path, monkeypatch):
    for name in ("a", "a_udm2"):
        raster(f"in/{name}.tif", np.ones((1, 8, 9), np.uint8))
    choice = CaseSelection(validity=parse_validity(pattern))
    assert [case.name for case in find_input([f"{tmp_path}/in"], choice).cases] == ["a"]
    fail(monkeypatch, tmp_path / "in", "listdir")
    fail(monkeypatch, tmp_path / "in" / "a_udm2.tif", "stat")
    with pytest.raises((OSError, SourceError), match="Input/output error"):
        find_input([f"{tmp_path}/in"], choice)


def test_a_file_that_cannot_be_asked_for_has_no_identity_without_a_state(raster, monkeypatch):
    path = raster("a.tif", np.ones((1, 8, 9), np.uint8))
    fail(monkeypatch, path, "stat")
    with pytest.raises(SourceError, match=r"a.tif cannot be examined: Input/output error: check the disk"):
        identities(str(path), [str(path)])


def test_a_link_that_cannot_be_examined_is_no_other_input(raster, tmp_path, monkeypatch):
    """Its case would be done again, since its path would not be that of the record."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.tif").symlink_to(raster("a.tif", np.ones((1, 8, 9), np.uint8)))
    fail(monkeypatch, tmp_path / "in/a.tif", "lstat", "stat")
    with pytest.raises(SourceError, match=r"a.tif cannot be examined: Input/output error: check the disk"):
        FolderListings().place(f"{tmp_path}/in/a.tif")


@pytest.mark.parametrize("name", ["in/a.tif", "out/a.tif"])
@pytest.mark.parametrize("times", [1, 1000])
def test_a_finished_case_is_not_done_again_because_of_one_fault(name, times, model, raster, tmp_path, monkeypatch, caplog):
    raster("in/a.tif", np.ones((1, 8, 9), np.uint8))
    flags = ["-m", model, "-o", tmp_path / "out", "--device", "cpu", "--executor", "serial"]
    words = [str(word) for word in ("run", "-i", tmp_path / "in", *flags)]
    assert CliRunner().invoke(main, words).exit_code == 0
    fail_in(monkeypatch, done, "_is_done", tmp_path / name, times)
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 0, again.output
    assert ("done before" in again.stdout.splitlines()[0]) is (times == 1), again.output
    lost = f"warning: {tmp_path / name} cannot be .*: Input/output error: check the disk: its case is done again"
    assert bool(re.search(lost, caplog.text)) is (times > 1)


def fail_in(patch, module, name, path, times):
    """Let the operating system have no answer for a path the first times that a function of a module is called."""
    asked, calls = getattr(module, name), []

    def answer(*words):
        calls.append(1)
        with pytest.MonkeyPatch.context() as own:
            if len(calls) <= times:
                fail(own, path, "stat")
            return asked(*words)

    patch.setattr(module, name, answer)


@pytest.mark.parametrize(("name", "flags"), [("areas.csv", ()), ("trace.json", ("--profile", "out/trace.json"))])
def test_a_file_that_may_be_foreign_is_not_replaced_unread(name, flags, model, raster, tmp_path, monkeypatch):
    raster("in/a.tif", np.ones((1, 8, 9), np.uint8))
    (tmp_path / "out").mkdir()
    mine = tmp_path / "out" / name
    mine.write_text("mine")
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        read = Folder.read
        faults = repeat(OSError(errno.EIO, os.strerror(errno.EIO), str(mine)))
        patch.setattr(Folder, "read", lambda self, asked: raise_next(faults) if asked == name else read(self, asked))
        said = told("run", "-i", "in", "-m", model, "-o", "out", "--device", "cpu", "--executor", "serial", *flags)
    assert re.match(f"error: .*{name} .*cannot be read.*: Input/output error: check the disk", said)
    assert mine.read_text() == "mine"


def raise_next(errors):
    raise next(errors)


def test_a_finished_model_is_no_error_because_of_what_may_lie_beside_it(model, tmp_path, monkeypatch):
    fail(monkeypatch, tmp_path / "new.toml", "stat")
    words = ["export", "attach", model, "--contract", tmp_path / "m.toml", "-o", tmp_path / "new.onnx"]
    ended = CliRunner().invoke(main, [str(word) for word in words])
    assert ended.exit_code == 0, ended.output
    assert "new.toml cannot be read (Input/output error: check the disk): if it exists" in " ".join(ended.output.split())


def stale(path):
    return OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))


def fail_first(patch, place, name, *, chosen=lambda *_: True):
    """Let a function fail once, the first time that it is called with chosen arguments, as a file server does."""
    asked, calls = getattr(place, name), []

    def answer(*words, **options):
        if not calls and chosen(*words):
            calls.append(words)
            raise stale(words[0])
        return asked(*words, **options)

    patch.setattr(place, name, answer)
    return calls


FIRST_FAULTS = {
    "the input": (os, "stat", lambda path, *_: str(path).endswith("in/a.tif")),
    "its folder": (os, "scandir", lambda path=".", *_: str(path).endswith("/in")),
    "the model": (os, "stat", lambda path, *_: str(path).endswith("m.onnx")),
    "the contract": (os, "stat", lambda path, *_: str(path).endswith("m.toml")),
    "the graph": (model_file.onnx, "load", lambda path, *_, **__: str(path).endswith("m.onnx")),
    "the folder of the output": (Folder, "make", lambda *_: True),
    "the lock": (Folder, "create", lambda _, name, __: name == ".segpipe.lock"),
    "the first record of the run": (Folder, "publish", lambda _, __, name, **___: name == "run.json"),
    "the plan of parts": (Folder, "publish", lambda _, __, name, **___: name.endswith("plan.json")),
    "parts": (Folder, "folders", lambda _, name: name == ".parts"),
    "the model of a worker": (attempts, "load_model", lambda *_: True),
}


@pytest.mark.parametrize("at", FIRST_FAULTS)
def test_a_run_starts_in_spite_of_a_fault_that_passes(at, model, raster, tmp_path, monkeypatch):
    """A file server may be away for a second when a run begins, too: a night must not be lost for it."""
    raster("in/a.tif", np.ones((1, 200, 90), np.uint8))
    words = [
        "run",
        "-i",
        str(tmp_path / "in"),
        "-m",
        str(model),
        "--device",
        "cpu",
        "--executor",
        "serial",
        "--parts",
        "2",
        "-o",
    ]
    assert CliRunner().invoke(main, [*words, str(tmp_path / "undisturbed")]).exit_code == 0
    place, name, chosen = FIRST_FAULTS[at]
    with monkeypatch.context() as patch:
        calls = fail_first(patch, place, name, chosen=chosen)
        ended = CliRunner().invoke(main, [*words, str(tmp_path / "out")])
    assert calls
    assert ended.exit_code == 0, ended.output
    for table in ("a.tif", "areas.csv"):
        assert (tmp_path / "out" / table).read_bytes() == (tmp_path / "undisturbed" / table).read_bytes()

"""Records that are missing, damaged or cannot be read now: no result leaves their cases out without a word."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from command import invoke
from overlapping import make_scenes, run

from segpipe.storage.folder import Folder

COMMANDS = {
    "mosaic": ["mosaic", "out", "-o", "map.tif"],
    "polygons": ["polygons", "out", "-o", "map.geojson"],
    "evaluate": ["evaluate", "--labels", "out", "--reference", "twin"],
    "compare": ["compare", "out", "twin"],
    "compare with": ["compare", "twin", "out"],
    "sample": ["sample", "out", "--size", "200", "-o", "points.gpkg", "--overwrite"],
}
RECORD = "b_20230815.json"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_scenes(tmp_path_factory.mktemp("records"))
    for out in ("out", "twin"):
        assert run(root, out=out).returncode == 0
    for words in COMMANDS.values():
        done = invoke(words, root)
        assert done.returncode == 0, done.stderr
    return root


def damage(record: Path) -> str:
    record.write_bytes(record.read_bytes()[:200])
    return "is damaged: run again with the same output"


def lose(record: Path) -> str:
    record.unlink()
    return "is missing: run again with the same output"


def _refuse(monkeypatch: pytest.MonkeyPatch, name: str, times: int = 1000, error: int = errno.EIO) -> None:
    """Let reading a file of a store fail as on a bad disk, or with another error, some times."""
    read, left = Folder.read, [times]

    def refused(self: Folder, wanted: str) -> bytes:
        if wanted == name and left[0]:
            left[0] -= 1
            raise OSError(error, os.strerror(error), self.path(wanted))
        return read(self, wanted)

    monkeypatch.setattr(Folder, "read", refused)


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("harm", [damage, lose])
def test_a_case_without_its_record_is_told_and_a_run_mends_it(
    words: list[str], harm: Callable[[Path], str], finished: Path, tmp_path: Path
) -> None:
    root = copytree(finished, tmp_path / "root")
    mend = harm(root / "out" / RECORD)
    done = invoke(words, root)
    assert done.returncode == 2
    assert f"{RECORD} must be the record of a case that is done, and {mend}" in done.stderr
    assert run(root).returncode == 0
    assert invoke(words, root).returncode == 0


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("name", [RECORD, "run.json"])
def test_what_cannot_be_read_now_is_not_taken_for_missing(
    words: list[str], name: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _refuse(monkeypatch, name)
    done = invoke(words, finished)
    assert done.returncode == 2
    assert f"{name} cannot be read: Input/output error: check the disk" in done.stderr


def _refuse_when_written(monkeypatch: pytest.MonkeyPatch, **how: int) -> None:
    """As ``_refuse``, of a record once its case is done."""
    write = Folder.write_json

    def written(self: Folder, name: str, value: Any, **more: Any) -> None:
        write(self, name, value, **more)
        if name == RECORD:
            _refuse(monkeypatch, RECORD, **how)

    monkeypatch.setattr(Folder, "write_json", written)


def test_a_record_that_a_file_server_shows_late_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_scenes(tmp_path)
    assert run(root, out="whole").returncode == 0
    monkeypatch.setattr("segpipe.storage.retry.FIRST_WAIT", 0)
    _refuse_when_written(monkeypatch, times=2, error=errno.ENOENT)
    done = run(root)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"{RECORD} must be the record of a case that is done, and is missing") == 2
    assert (root / "out" / "areas.csv").read_bytes() == (root / "whole" / "areas.csv").read_bytes()


def test_a_run_whose_tables_miss_a_record_says_so_and_the_next_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_scenes(tmp_path)
    with monkeypatch.context() as patch:
        _refuse_when_written(patch)
        done = run(root, "--retries", "0")
    assert done.returncode == 1, done.stderr
    assert f"{RECORD} cannot be read: Input/output error: check the disk" in done.stderr
    assert not (root / "out" / "areas.csv").exists()
    assert "areas: not added up" in done.stdout
    assert run(root).returncode == 0
    whole = run(root, out="whole")
    assert whole.returncode == 0
    assert (root / "out" / "areas.csv").read_bytes() == (root / "whole" / "areas.csv").read_bytes()


def test_a_record_that_cannot_be_read_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_scenes(tmp_path)
    assert run(root).returncode == 0
    areas = (root / "out" / "areas.csv").read_bytes()
    _refuse(monkeypatch, RECORD, times=1)
    done = run(root)
    assert done.returncode == 0, done.stderr
    assert f"{RECORD} cannot be read: Input/output error: check the disk: its case is done again" in done.stderr
    assert "1 done, 2 done before" in done.stdout
    assert (root / "out" / "areas.csv").read_bytes() == areas

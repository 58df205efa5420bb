"""Whether a path exists, also where the operating system leaves that open."""

import ast
import errno
import os
from pathlib import Path

import pytest
from unreadable import fail

from segpipe.storage.existence import exists, is_file, is_folder, is_link, is_taken, is_there, real_path

QUESTIONS = (exists, is_file, is_folder, is_there)


def test_what_is_there_is_told_as_os_path_tells_it(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, target in (("link", "file"), ("dangling", "nowhere"), ("loop", "loop")):
        (tmp_path / name).symlink_to(target)
    names = ["file", "folder", "pipe", "link", "dangling", "loop", "nowhere", "file/below", "n" * 300, "a\0b", "n/" * 5000]
    asked = (os.path.exists, os.path.isfile, os.path.isdir, os.path.lexists)
    for name in names:
        told, expected = ([question(tmp_path / name) for question in each] for each in (QUESTIONS, asked))
        assert told == expected, name


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.ETIMEDOUT])
def test_a_path_that_nobody_answers_for_is_an_error_and_not_absent(question, number, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    fail(monkeypatch, tmp_path / "file", "stat", number=number)
    with pytest.raises(OSError, match=os.strerror(number)) as told:
        question(tmp_path / "file")
    assert (told.value.errno, told.value.filename) == (number, str(tmp_path / "file"))


def test_the_place_of_an_output_is_taken_or_free_and_a_name_that_is_too_long_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    assert [is_taken(tmp_path / name) for name in ("file", ".")] == [True, True]
    assert not any(is_taken(tmp_path / name) for name in ("free", "dangling", "file/below"))
    with pytest.raises(OSError, match="File name too long"):
        is_taken(tmp_path / ("n" * 300))


def test_links_are_followed_as_realpath_follows_them(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    links = {"link": "folder/file", "dangling": "nowhere", "loop": "loop", "up": "..", "also": "folder"}
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    names = ["", ".", "file/below", "link", "dangling", "loop", "up", "also/../link", "also/file", "no/such", "n" * 300]
    assert [real_path(name) for name in names] == [os.path.realpath(name) for name in names]
    assert [name for name in names if is_link(name)] == ["link", "dangling", "loop", "up", "also/../link"]


@pytest.mark.parametrize("asked", [real_path, is_link])
def test_a_link_that_cannot_be_examined_is_not_taken_for_a_file(asked, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to("file")
    fail(monkeypatch, tmp_path / "link", "lstat", "stat")
    with pytest.raises(OSError, match="Input/output error"):
        asked(str(tmp_path / "link"))


PACKAGE = Path(__file__).parents[2] / "segpipe"

SWALLOWING = {"exists", "is_file", "is_dir", "isfile", "isdir", "lexists", "glob", "iglob", "rglob"}
"""Names of ``pathlib``, ``os.path`` and ``glob`` that answer no, or nothing, where there is an error (which ones depends on
the version of Python)."""

ALLOWED = {
    "formats/cases.py": 2,  # a hint of an error message
    "formats/redaction.py": 1,  # one folder more is hidden
    "formats/scenes/search.py": 1,  # a hint of an error message
    "export/nnunet/folder.py": 2,  # hints of an error message
    "formats/listing.py": 1,  # of os.scandir, whose entries raise
    "storage/folder.py": 4,  # two of entries of os.scandir; the check of the output; what locks left
    "jobs/lookup.py": 1,  # the search reports it
    "network/device.py": 1,  # libraries of packages
    "process/environment.py": 1,  # a file of a package
}
"""How many such calls a module has, and why."""


def swallowing(path: Path) -> int:
    names = [node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    return sum(name in SWALLOWING for name in names)


def test_the_package_takes_no_error_of_reading_for_absence():
    found = {path.relative_to(PACKAGE).as_posix(): swallowing(path) for path in PACKAGE.rglob("*.py")}
    assert {name: count for name, count in found.items() if count} == ALLOWED

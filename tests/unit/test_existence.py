"""Whether a path exists, also where the operating system leaves that open."""

import errno
import os

import pytest
from unreadable import fail

from segpipe.storage.existence import exists, is_file, is_folder, is_there

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

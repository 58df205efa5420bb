"""Files of documents from untrusted sources: one error type, whatever is wrong with the file."""

import os

import pytest

from segpipe.storage.documents import DocumentError, read_json, read_text, read_toml
from segpipe.storage.yaml_text import read_yaml

READERS = {"d.toml": (read_toml, "a = [1, 2]"), "d.json": (read_json, '{"a": [1, 2]}'), "d.yaml": (read_yaml, "a: [1, 2]")}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_a_file_of_each_language(tmp_path, name, mark):
    read, text = READERS[name]
    (tmp_path / name).write_bytes(mark + text.encode())
    assert read(tmp_path / name) == {"a": [1, 2]}


def pipe(path):
    os.mkfifo(path)  # reading it would wait for a writer for ever


REFUSED = {
    "missing": (lambda path: None, "^must exist, and does not: correct the path$"),
    "folder": (lambda path: path.mkdir(), "^must be a file, and is a folder: name the file$"),
    "pipe": (pipe, "^must be a file, and is something else: name the file$"),
    "below a file": (lambda path: path.parent.rmdir() or path.parent.write_text(""), "^cannot be read: Not a directory$"),
    "circle": (lambda path: path.symlink_to(path), "^cannot be read: Too many levels of symbolic links$"),
    "bytes": (lambda path: path.write_bytes(b'a = "\xe9"'), "^must be UTF-8: .*0xe9.*: save it as UTF-8$"),
    "large": (lambda path: path.write_bytes(b"#" * 5_000_000), "^must not be larger than [14] MB, and is$"),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_read(tmp_path, name, fault):
    make, match = REFUSED[fault]
    (tmp_path / "in").mkdir()
    make(tmp_path / "in" / name)
    with pytest.raises(DocumentError, match=match):
        READERS[name][0](tmp_path / "in" / name)


def test_a_path_with_nul(tmp_path):
    with pytest.raises(DocumentError, match="must be a path without NUL characters"):
        read_text(tmp_path / "a\0.toml")

"""Buffers are read and written whole at their offsets, also where the system takes only a part of them at once."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segpipe.storage.offsets import read_at, write_at


def by_threes(call: Callable[..., int]) -> Callable[..., int]:
    """A system call that takes at most three bytes."""
    return lambda file, data, offset: call(file, [data[0][:3]] if isinstance(data, list) else data[:3], offset)


@pytest.fixture(params=[False, True], ids=["whole", "by threes"])
def file(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param:
        monkeypatch.setattr(os, "pwrite", by_threes(os.pwrite))
        monkeypatch.setattr(os, "preadv", by_threes(os.preadv))
    with (tmp_path / "a").open("w+b") as stream:
        yield stream.fileno()


def test_what_is_written_is_read(file: int) -> None:
    write_at(file, memoryview(b"0123456789"), 4)
    found = bytearray(8)
    read_at(file, memoryview(found), 5)
    assert found == b"12345678"
    assert os.pread(file, 20, 0) == b"\0\0\0\0" + b"0123456789"
    assert os.lseek(file, 0, os.SEEK_CUR) == 0


def test_a_file_that_ends_before_is_an_error(file: int) -> None:
    write_at(file, memoryview(b"01234"), 0)
    with pytest.raises(OSError, match="it has become shorter while it was read"):
        read_at(file, memoryview(bytearray(6)), 0)

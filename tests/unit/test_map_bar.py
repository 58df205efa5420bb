"""The bar of a mosaic: in a terminal alone."""

import io
import sys

import pytest
from rich.console import Console

from segpipe.terminal import map_bar
from segpipe.terminal.map_bar import MapBar


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream = io.StringIO()
    monkeypatch.setattr(map_bar, "console", lambda: Console(file=stream, force_terminal=True, width=80))
    return stream


def test_a_terminal_shows_the_joined_share_and_then_that_the_file_is_written(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with MapBar() as bar:
        bar.begin(200)
        bar.advance(50)
        bar.advance(150)
    assert "writing the file" in stream.getvalue()
    assert "100%" in stream.getvalue()


def test_other_outputs_show_nothing(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    with MapBar() as bar:
        bar.begin(200)
        bar.advance(200)
    assert stream.getvalue() == ""

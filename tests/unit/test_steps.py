"""The bar of commands that go through many cases: on a terminal alone, and gone at the end."""

import io
import sys

import pytest

from segpipe.messages import steps
from segpipe.messages.steps import stepping, steps_shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_the_steps_and_stdout_stays_clean(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    with steps_shown():
        assert list(stepping("abc", "comparing cases")) == ["a", "b", "c"]
        sys.stdout.write("result\n")
    assert "comparing cases" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[2K")  # erased
    assert capsys.readouterr().out == "result\n"


def test_an_error_removes_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())

    def interrupted() -> None:
        with steps_shown():
            for _ in stepping([1, 2], "comparing cases"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert steps._bars == []


def test_nothing_is_shown_in_files_and_outside_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with steps_shown():
        assert list(stepping([1, 2], "comparing cases")) == [1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert list(stepping([1, 2], "comparing cases")) == [1, 2]
    assert terminal.getvalue() == ""

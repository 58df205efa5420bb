"""The benchmarks' memory: what can be compared is, and nothing else."""

import json
from dataclasses import asdict
from pathlib import Path

import history
import pytest
from history import Entry


def entry(commit: str, machine: str = "A, 2 processors", **figures: float) -> Entry:
    return Entry("2026-11-25", commit, machine, 0.1, {"python": "3.11.7"}, "limit", "2 M", figures)


def test_an_entry_stands_beside_the_last_one_of_the_same_machine():
    before = [entry("old", s=9), entry("last", s=4), entry("other", "B, 64 processors", s=1)]
    lines = history.table(before, [entry("now", s=5, more=1)]).splitlines()
    assert lines[2:] == ["| limit | 2 M | s | 4 (last) | 5 | +25.0% |", "| limit | 2 M | more |  | 1 |  |"]


def test_the_latest_of_each_result_is_told_apart_from_those_before():
    entries = [entry("a", s=1), entry("b", "B", s=2), entry("c", s=3)]
    assert history.latest(entries, "A, 2 processors") == ([entries[0]], [entries[2]])


def test_what_is_appended_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "history.jsonl"
    path.write_text(json.dumps(asdict(entry("old", history.kind(), s=2))) + "\n")
    (added,) = history.append("limit", {"2 M": {"s": 3}}, path)
    assert history.read(path) == [entry("old", history.kind(), s=2), added]
    assert "| limit | 2 M | s | 2 (old) | 3 | +50.0% |" in capsys.readouterr().out
    assert added.versions.keys() >= {"python", "segpipe", "numpy"}
    assert added.commit


def test_without_a_history_there_is_nothing_to_compare_with(tmp_path: Path):
    assert history.read(tmp_path / "none.jsonl") == []

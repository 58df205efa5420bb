"""The end of a run: tables that do not hinder each other, and files of earlier runs that no longer hold."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
from scenes import Silent

from segpipe.errors import OutputError
from segpipe.jobs import conclude as concluding
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import Prepared, prepare
from segpipe.jobs.run_record import run_record
from segpipe.jobs.trace import check_trace
from segpipe.settings import load_settings
from segpipe.storage.ownership import DOUBTFUL, LESIONS


@pytest.fixture
def prepared(raster: Callable[..., Path], tmp_path: Path) -> Callable[..., Prepared]:
    raster("in/a.tif", np.zeros((1, 16, 16), "u1"))
    networks.pixelwise(tmp_path / "m.onnx", 1)
    fixed = {"input": (str(tmp_path / "in"),), "model": tmp_path / "m.onnx", "output": tmp_path / "out"}

    def make(**flags: Any) -> Prepared:
        return prepare(load_settings(None, fixed | {"device": "cpu", "executor": "serial"} | flags))

    return make


TABLES = ["write_areas", "forget_table", "write_audit", "run_totals"]


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_fails_is_a_problem_and_the_others_are_written(
    name: str, prepared: Callable[..., Prepared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def noted(other: str) -> Callable[..., Any]:
        true = getattr(concluding, other)

        def call(*arguments: Any) -> Any:
            asked.append(other)
            if other == name:
                raise OutputError(f"{other} failed: mend it")
            return true(*arguments)

        return call

    for other in TABLES:
        monkeypatch.setattr(concluding, other, noted(other))
    summary = carry_out(prepared(), Silent())
    failures = 3 if name == "forget_table" else 1  # of lesions, audit and zones
    assert summary.problems == [f"{name} failed: mend it"] * failures
    assert set(asked) == set(TABLES)
    assert (tmp_path / "out" / "areas.csv").exists() == (name != "write_areas")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["state"], record["problems"], record["done"]) == ("ended", summary.problems, ["a"])
    assert ("totals" in record) == (name != "run_totals")


def test_tables_of_an_earlier_run_that_no_longer_hold_go(prepared: Callable[..., Prepared], tmp_path: Path) -> None:
    carry_out(prepared(lesions=True, audit=5), Silent())
    tables = [tmp_path / "out" / name for name in (LESIONS, DOUBTFUL)]
    assert all(path.exists() for path in tables)
    carry_out(prepared(), Silent())
    assert not any(path.exists() for path in tables)


def test_a_run_that_has_not_begun_has_no_seconds_and_no_cases(prepared: Callable[..., Prepared]) -> None:
    made = prepared()
    summary = carry_out(made, Silent())
    record = run_record(made, summary, "ended")
    assert record["settings"] == made.run.settings.model_dump(mode="json")
    assert json.loads(json.dumps(record))["done"] == ["a"]
    assert not {"outside", "profile"} & record.keys()


def test_a_trace_replaces_no_record_and_no_folder(prepared: Callable[..., Prepared], tmp_path: Path) -> None:
    made = prepared(profile=tmp_path / "trace.json")
    check_trace(made.run, made.cases)
    (tmp_path / "trace.json").mkdir()
    with pytest.raises(OutputError, match="is a folder or a device: name a file"):
        check_trace(made.run, made.cases)
    with pytest.raises(OutputError, match=r"the trace must not replace a record, got .*a\.json"):
        prepared(profile=tmp_path / "out" / "a.json")

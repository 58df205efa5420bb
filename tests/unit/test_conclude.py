"""The end of a run: tables that do not hinder each other, and files of earlier runs that no longer hold."""

import json
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
from scenes import Silent

from segpipe.errors import OutputError
from segpipe.jobs import conclude as concluding
from segpipe.jobs.launch import carry_out, run_record
from segpipe.jobs.prepare import Prepared, prepare
from segpipe.jobs.summary import Summary
from segpipe.jobs.tasks import Halt
from segpipe.jobs.trace import check_trace
from segpipe.settings import load_settings
from segpipe.storage.ownership import AUDIT_WINDOWS, LESIONS, ZONES


@pytest.fixture
def prepared(raster: Callable[..., Path], tmp_path: Path) -> Callable[..., Prepared]:
    raster("in/a.tif", np.zeros((1, 16, 16), "u1"))
    networks.pixelwise(tmp_path / "m.onnx", 1)
    fixed = {"input": (str(tmp_path / "in"),), "model": tmp_path / "m.onnx", "output": tmp_path / "out"}

    def make(**flags: Any) -> Prepared:
        return prepare(load_settings(None, fixed | {"device": "cpu", "executor": "serial"} | flags))

    return make


TABLES = ["write_areas", "forget_table", "write_audit_trail", "run_totals"]


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_fails_is_a_problem_and_the_others_are_written(
    name: str, prepared: Callable[..., Prepared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def noted(other: str) -> Callable[..., Any]:
        true = getattr(concluding, other)

        def call(*arguments: Any, **more: Any) -> Any:
            asked.append(other)
            if other == name:
                raise OutputError(f"{other} failed: mend it")
            return true(*arguments, **more)

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
    tables = [tmp_path / "out" / name for name in (LESIONS, AUDIT_WINDOWS)]
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


@pytest.fixture
def dates(raster: Callable[..., Path], tmp_path: Path) -> Path:
    """Three dates of one place, and a polygon on it."""
    for k, name in enumerate("abc"):
        raster(f"in/{name}.tif", np.full((1, 16, 16), 40 * k, "u1"))
    networks.pixelwise(tmp_path / "m.onnx", 1)
    corners = [[500_010, 5_399_990], [500_100, 5_399_990], [500_100, 5_399_900], [500_010, 5_399_990]]
    polygon = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [corners]}}
    crs = {"type": "name", "properties": {"name": "EPSG:32633"}}
    (tmp_path / "fields.geojson").write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [polygon]}))
    return tmp_path


@pytest.mark.parametrize("last", ["segpipe.results.overlap.totals.doubled_of", "segpipe.results.zones.stage.zones_of_case"])
def test_what_reads_masks_again_ends_when_the_run_is_halted_and_the_next_run_writes_it(
    last: str, dates: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fixed = {"input": (str(dates / "in"),), "model": dates / "m.onnx", "device": "cpu", "executor": "serial"}
    flags = fixed | {"zones": dates / "fields.geojson", "unusual_values": "allow"}

    def run(output: str, halt: Halt | None = None) -> Summary:
        return carry_out(prepare(load_settings(None, flags | {"output": dates / output})), Silent(), halt)

    whole = run("whole")
    halt, asked = Halt(), []
    true = pkgutil.resolve_name(last)
    with monkeypatch.context() as patch:
        patch.setattr(last, lambda *each: (asked.append(1), halt.conclude_within(0), true(*each))[2])
        stopped = run("out", halt)
    assert (asked, stopped.interrupted, stopped.problems) == ([1], True, [])
    assert (dates / "out" / "areas.csv").read_bytes() == (dates / "whole" / "areas.csv").read_bytes()
    assert not (dates / "out" / ZONES).exists()
    assert "is written at the end of a run, and this one was interrupted" in caplog.text
    assert json.loads((dates / "out" / "run.json").read_text())["state"] == "interrupted"
    after = run("out")
    assert (after.done, after.skipped, after.interrupted, after.totals) == ([], ["a", "b", "c"], False, whole.totals)
    assert (dates / "out" / ZONES).read_bytes() == (dates / "whole" / ZONES).read_bytes()


def test_a_run_that_is_halted_leaves_no_table_of_zones_of_an_earlier_one(dates: Path):
    fixed = {"input": (str(dates / "in"),), "model": dates / "m.onnx", "device": "cpu", "executor": "serial"}
    flags = fixed | {"zones": dates / "fields.geojson", "unusual_values": "allow", "output": dates / "out"}
    carry_out(prepare(load_settings(None, flags)), Silent())
    whole = (dates / "out" / ZONES).read_bytes()
    networks.pixelwise(dates / "m.onnx", 1, seed=1)
    halt = Halt()
    halt.set()
    assert carry_out(prepare(load_settings(None, flags)), Silent(), halt).interrupted
    assert not (dates / "out" / ZONES).exists()
    networks.pixelwise(dates / "m.onnx", 1)
    carry_out(prepare(load_settings(None, flags)), Silent())
    assert (dates / "out" / ZONES).read_bytes() == whole


class Killed(BaseException):
    """Stands for ``kill -9``: nothing of the run comes after it."""


WITH_ZONES = {"areas.csv", ZONES, "fields.gpkg"}


@pytest.mark.parametrize(("seed", "left"), [(1, set()), (0, WITH_ZONES)], ids=["another model", "a new case"])
def test_a_killed_run_leaves_no_table_that_contradicts_its_masks(seed, left, dates, raster, monkeypatch):
    fixed = {"input": (str(dates / "in"),), "model": dates / "m.onnx", "device": "cpu", "executor": "serial"}
    zones = {"zones": dates / "fields.geojson", "zones_out": dates / "out" / "fields.gpkg"}
    (dates / "out").mkdir()
    flags = fixed | zones | {"unusual_values": "allow", "output": dates / "out"}
    carry_out(prepare(load_settings(None, flags)), Silent())
    networks.pixelwise(dates / "m.onnx", 1, seed=seed)
    raster("in/d.tif", np.full((1, 16, 16), 200, "u1"))

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("segpipe.jobs.launch._write_end", killed)
        with pytest.raises(Killed):
            carry_out(prepare(load_settings(None, flags)), Silent())
    assert (dates / "out" / "d.json").exists()
    assert {name for name in WITH_ZONES if (dates / "out" / name).exists()} == left
    carry_out(prepare(load_settings(None, flags)), Silent())
    assert {name for name in WITH_ZONES if (dates / "out" / name).exists()} == WITH_ZONES
    assert "\nd," in (dates / "out" / "areas.csv").read_text()


def test_zones_that_cannot_be_measured_leave_no_table_of_an_earlier_run(dates):
    fixed = {"input": (str(dates / "in"),), "model": dates / "m.onnx", "device": "cpu", "executor": "serial"}
    zones = {"zones": dates / "fields.geojson", "zones_out": dates / "fields.gpkg"}
    flags = fixed | zones | {"unusual_values": "allow", "output": dates / "out"}
    carry_out(prepare(load_settings(None, flags)), Silent())
    assert (dates / "fields.gpkg").exists()
    for name in "abc":
        (dates / "in" / f"{name}.tif").write_bytes(b"II*\0")
    done = carry_out(prepare(load_settings(None, flags)), Silent())
    assert not list(done.good)
    assert not (dates / "out" / ZONES).exists()
    assert not (dates / "fields.gpkg").exists()

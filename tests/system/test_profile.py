"""Where the wall time of real runs went: shares that add up, a trace that nests, and nothing where nobody asks."""

import json
import re
import signal
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import Network, contract, local
from scenes import SEGPIPE, TWO_ENDED, begin_and_stop, wait

from segpipe.timing.report import account, write_trace
from segpipe.timing.spans import ProcessRecord, Recorder, Total, begin, end, recording, span, waiting

SERIAL = ("--executor", "serial")


@pytest.fixture
def scenes(raster, tmp_path) -> Path:
    """A scene of 63 windows, and two small ones; the model takes some milliseconds a window."""
    rng = np.random.default_rng(8)
    for name, shape in {"large": (350, 440), "small": (70, 90), "sub/other": (64, 64)}.items():
        raster(f"in/{name}.tif", rng.integers(1, 255, (3, *shape), dtype=np.uint8))
    net = Network(3).conv(3, 48, 3).add("Relu").conv(48, 48, 3).add("Relu").conv(48, 3, 3)
    net.save(tmp_path / "m.onnx", contract(), classes=3)
    return tmp_path / "in"


def command(*more: Any) -> list[str]:
    return ["run", "-i", "in", "-m", "m.onnx", "-o", "out", "--device", "cpu", *map(str, more)]


def profile_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "run.json").read_text())["profile"])


def events(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text())["traceEvents"])


def assert_nests(spans: list[dict[str, Any]]) -> None:
    """In each thread a span lies inside another or beside it."""
    rows = defaultdict(list)
    for event in spans:
        if event["ph"] == "X":
            rows[event["pid"], event["tid"]].append((event["ts"], -event["dur"]))
    for row in rows.values():
        open_until: list[int] = []
        for start, length in sorted(row):
            while open_until and open_until[-1] <= start:
                open_until.pop()
            assert not open_until or start - length <= open_until[-1]
            open_until.append(start - length)


@pytest.mark.parametrize("more", [SERIAL, ("--workers", 2, "--parts", 5)], ids=["serial", "workers, in parts"])
def test_shares_add_up_to_the_wall_time(more, scenes, segpipe_process, tmp_path):
    """Of a process of its own: its age counts."""
    started = time.perf_counter()
    done = segpipe_process(*command("--profile", *more))
    wall = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    found = profile_of(tmp_path / "out")
    stages = found["stages"]
    assert sum(stage["seconds"] for stage in stages.values()) == pytest.approx(found["seconds"], rel=0.02)
    assert sum(stage["share"] for stage in stages.values()) == pytest.approx(1, abs=0.02)
    # what nobody has named is little, what a clock outside says is the same but for the end of the process; on a crowded
    # machine a process can be put aside anywhere, so that these two have room
    assert stages["other"]["share"] < 0.15
    assert min(stage["seconds"] for stage in stages.values()) >= 0
    assert found["seconds"] <= wall
    assert wall - found["seconds"] < 0.2 * wall + 0.5
    assert 0 < found["limit_seconds"] < found["seconds"]
    assert {"start", "model", "plan", "read", "scale", "infer", "blend", "decide", "write", "finish"} <= stages.keys()
    assert ("idle" in stages) == ("--workers" in more)


def test_the_trace_nests_and_names_case_and_window(scenes, segpipe, tmp_path):
    done = segpipe(*command("--profile", "--workers", 2))
    spans = events(tmp_path / "out" / "profile.json")
    assert_nests(spans)
    inferred = [e["args"] for e in spans if e["name"] == "infer"]
    for case in ("large", "small", "sub/other"):
        windows = {tuple(args["window"]) for args in inferred if args["case"] == case}
        assert len(windows) == json.loads((tmp_path / "out" / f"{case}.json").read_text())["windows"]
    processes = {e["pid"] for e in spans if e["name"] == "process_name"}
    assert len(processes) == 3
    threads = {e["args"]["name"] for e in spans if e["name"] == "thread_name"}
    assert {"main", "segpipe-ahead", "segpipe-model_0"} <= threads
    assert f"open {Path('out') / 'profile.json'} in ui.perfetto.dev" in done.stderr
    assert all(re.match(r"\d{4}-\d\d-\d\d ", line) for line in done.stdout.splitlines())


def test_off_by_default_and_no_file(scenes, segpipe, tmp_path):
    done = segpipe(*command(*SERIAL))
    assert done.returncode == 0
    assert "profile" not in json.loads((tmp_path / "out" / "run.json").read_text())
    assert not (tmp_path / "out" / "profile.json").exists()
    assert "limit:" not in done.stderr


def test_the_trace_goes_where_it_is_asked_to(scenes, segpipe, tmp_path):
    assert segpipe(*command(*SERIAL, "--profile", "traces/night.json")).returncode == 0
    assert_nests(events(tmp_path / "traces" / "night.json"))
    assert not (tmp_path / "out" / "profile.json").exists()


def test_the_setting_in_a_file(scenes, segpipe, tmp_path):
    (tmp_path / "c.toml").write_text("profile = true\n")
    assert segpipe(*command(*SERIAL, "--config", "c.toml")).returncode == 0
    assert (tmp_path / "out" / "profile.json").exists()


def test_a_trace_never_replaces_a_record(scenes, segpipe, tmp_path):
    (scenes / "small.tif").rename(scenes / "profile.tif")
    done = segpipe(*command("--profile", *SERIAL))
    assert done.returncode == 2
    assert "the trace must not replace a record, got out/profile.json: name another file with --profile FILE" in done.stderr
    assert segpipe(*command("--profile", "p.json", *SERIAL)).returncode == 0


@pytest.mark.parametrize("executor", [SERIAL, ("--workers", "2")], ids=["serial", "workers"])
def test_an_interrupted_run_tells_where_its_time_went(executor, scenes, tmp_path, raster):
    for number in range(40):
        raster(f"in/more{number}.tif", np.full((3, 200, 200), number + 1, np.uint8))
    order = [*SEGPIPE, *command("--profile", *executor)]
    process = begin_and_stop(tmp_path, order, tmp_path / "log", TWO_ENDED)
    for number in (signal.SIGTERM, signal.SIGCONT):
        process.send_signal(number)
    assert wait(process) == 75, process.said("not 75")
    stages = profile_of(tmp_path / "out")["stages"]
    assert sum(stage["share"] for stage in stages.values()) == pytest.approx(1, abs=0.02)
    assert stages["infer"]["core_seconds"] > 0
    assert_nests(events(tmp_path / "out" / "profile.json"))
    assert "limit:" in process.log.read_text()


def test_a_case_that_fails_ends_its_spans(scenes, segpipe, tmp_path):
    damaged = (scenes / "large.tif").read_bytes()
    (scenes / "large.tif").write_bytes(damaged[: len(damaged) // 2])
    assert segpipe(*command("--profile", *SERIAL)).returncode == 1
    stages = profile_of(tmp_path / "out")["stages"]
    assert sum(stage["share"] for stage in stages.values()) == pytest.approx(1, abs=0.02)
    assert_nests(events(tmp_path / "out" / "profile.json"))


def taken(seconds: float, process: int = 1, **walls: float) -> ProcessRecord:
    return ProcessRecord("here", process, seconds, {k: Total(v, v, v) for k, v in walls.items()}, [], 0, 0)


def recorder(seconds: float, *others: ProcessRecord, **walls: float) -> Recorder:
    """One that has recorded what is given."""
    made = Recorder()
    made.taken = lambda: taken(seconds, 0, **walls)  # type: ignore[method-assign]
    made.others.extend(others)
    return made


def test_workers_stand_for_the_time_that_the_first_process_waits():
    # by hand: 10 s, of which 2 before and after; two workers have 8 s each, one busy for 6, the other for 4
    other = [taken(4, 1, infer=3), taken(2, 1, infer=1, write=1), taken(4, 2, infer=4)]
    found = account(recorder(10, *other, plan=1, workers=1), workers=2, calls=2, on_cpu=True)
    walls = {name: total.wall for name, total in found.stages.items()}
    assert walls == {"plan": 1, "workers": 1, "infer": 4, "write": 0.5, "idle": 3, "other": 0.5}
    assert found.limit == 4
    assert found.working == 5


def test_a_worker_that_was_replaced_makes_no_time():
    found = account(recorder(10, *(taken(9, n, infer=9) for n in range(3))), workers=2, calls=2, on_cpu=False)
    assert sum(total.wall for total in found.stages.values()) == pytest.approx(10)


def test_time_inside_is_not_counted_twice():
    begin(True)
    with span("outer", "a", (1, 2)):
        time.sleep(0.02)
        with span("inner"):
            time.sleep(0.05)
        with waiting("outer"):
            time.sleep(0.03)
    recorded = end()
    assert recorded is not None
    totals = recorded.taken().totals
    spans = {name: duration / 1e6 for name, _, _, duration, _, _ in recorded.taken().events()}
    whole, inner, waited = (spans[name] for name in ("outer", "inner", "wait for outer"))
    assert inner >= 0.05
    assert totals["inner"].wall == pytest.approx(inner, abs=1e-3)
    assert totals["outer"].wall == pytest.approx(whole - inner, abs=1e-3)  # its own time, and that of waiting
    assert totals["outer"].busy == pytest.approx(whole - inner - waited, abs=1e-3)
    assert [(name, case, window) for name, _, _, _, case, window in recorded.taken().events()] == [
        ("inner", "a", (1, 2)),
        ("wait for outer", "a", (1, 2)),
        ("outer", "a", (1, 2)),
    ]


def test_a_full_trace_says_so_and_totals_count_on(monkeypatch):
    monkeypatch.setattr("segpipe.timing.spans.EVENTS", 10)
    with recording(True) as recorded:
        for _ in range(14):
            with span("read"):
                time.sleep(0.001)
    assert recorded.taken is not None
    assert (recorded.taken.kept, recorded.taken.dropped) == (10, 4)
    assert len(list(recorded.taken.events())) == 10
    assert recorded.taken.totals["read"].wall > 0.014
    assert end() is None  # what records a task leaves nothing on


def test_recorders_share_the_room_of_a_trace(monkeypatch, tmp_path):
    monkeypatch.setattr("segpipe.timing.spans.EVENTS", 10)
    own = Recorder()
    own.absorb(ProcessRecord("here", 7, 1.0, {}, [], 8, 0))
    own.absorb(ProcessRecord("here", 8, 1.0, {}, [], 8, 0))
    found = account(own, workers=2, calls=2, on_cpu=True)
    assert found.dropped == 8
    with (tmp_path / "t.json").open("w") as stream:
        write_trace(stream, found.processes)
    assert [e["args"]["name"].split(",")[0] for e in events(tmp_path / "t.json")] == ["segpipe run"] + 2 * ["segpipe worker"]


def test_it_costs_next_to_nothing_where_nobody_profiles():
    begin(False)

    def round_of(count: int) -> float:
        started = time.process_time()
        for _ in range(count):
            with span("read", "a", (0, 0)):
                pass
        return (time.process_time() - started) / count

    assert min(round_of(10_000) for _ in range(10)) < 5e-6  # 0.2e-6 where it was written


def test_masks_are_the_same(scenes, segpipe, tmp_path):
    local(tmp_path / "m.onnx")
    segpipe(*command(*SERIAL))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*.tif")}
    segpipe(*command(*SERIAL, "--overwrite", "--profile"))
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*.tif")}

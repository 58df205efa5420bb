"""Kills and second runs with models of other forms: margins, several inputs, merged classes, external data."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from command import invoke
from networks import contract, unpadded
from scenes import ONE_PROCESS, SEGPIPE, SERIAL, arguments, assert_same, make_model, make_scenes, wait
from several import Graph
from test_kills import PARTS, Moment, check_code, disturbed, done_cases, go_on, watcher

pytestmark = pytest.mark.slow


def with_margin(path: Path) -> None:
    unpadded(path, 84)


def several_inputs(path: Path) -> None:
    """Two inputs that share a channel, and a constant."""
    graph = Graph()
    first, second = graph.conv("first", 2, 8), graph.conv("second", 2, 8)
    both = graph.add("Mul", graph.add("Relu", graph.add("Sub", first, second)), "factor")
    scores = graph.conv(graph.add("Relu", graph.conv(both, 8, 8)), 8, 3)
    inputs = {"first": {"channels": "0:2"}, "second": {"channels": [2, 1]}, "factor": {"value": 0.5}}
    shapes = {"first": ("n", 2, "h", "w"), "second": ("n", 2, "h", "w"), "factor": ()}
    graph.save(path, shapes, scores, contract(3, 3, inputs=inputs))


def merged(path: Path) -> None:
    """Two of four classes in one, by ``export attach``."""
    make_model(path.with_name("whole-head.onnx"), width=8)
    classes = [{"id": 0, "name": "some", "index": [0, 2]}, {"id": 1, "name": "others", "index": [1, 3]}]
    values = contract(3, 2, classes=classes)
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if key != "classes"]
    for one in classes:
        lines += ["[[classes]]", *(f"{key} = {json.dumps(value)}" for key, value in one.items())]
    path.with_name("classes.toml").write_text("\n".join(lines))
    attached = ["export", "attach", "whole-head.onnx", "--contract", "classes.toml", "--output", path.name]
    done = invoke(attached, path.parent)
    assert done.returncode == 0, done.stderr


def external(path: Path) -> None:
    make_model(path, width=16)
    where = {"location": f"{path.stem}.data", "size_threshold": 0, "all_tensors_to_one_file": True}
    onnx.save(onnx.load(path), path, save_as_external_data=True, **where)
    assert path.with_name(f"{path.stem}.data").stat().st_size > 10_000


FORMS: dict[str, Callable[[Path], None]] = {
    "margin": with_margin,
    "inputs": several_inputs,
    "merged": merged,
    "external": external,
}


def moments() -> list[Moment]:
    rng, found = random.Random(6), []
    for name in FORMS:
        for executor, victim, phase in (
            ("serial", "client", "parts"),
            ("processes", "group", "parts"),
            ("serial", "term", "join"),
        ):
            again = rng.choice([f"{SERIAL} --parts {PARTS}", f"{ONE_PROCESS} --parts {PARTS}", SERIAL])
            found.append(Moment(len(found), name, executor, victim, phase, rng.uniform(0, 0.2), again))
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("forms")
    make_scenes(root)
    for name, make in FORMS.items():
        make(root / f"{name}.onnx")
        done = invoke(arguments(name, root / f"whole-{name}", SERIAL)[len(SEGPIPE) :], root)
        assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("moment", moments(), ids=str)
def test_a_second_run_completes_what_a_kill_left(moment: Moment, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    check_code(moment, disturbed(moment, root, out), out)
    cases, log = done_cases(out), tmp_path / "again.log"
    assert wait(go_on(moment, root, out, log), watcher(out)) == 0, log.read_text()
    assert not any(f"INFO:segpipe:{name}: " in log.read_text() for name in cases)
    assert_same(out, root / f"whole-{moment.kind}")

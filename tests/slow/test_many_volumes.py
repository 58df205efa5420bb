"""200 small volumes, all processes killed half-way, and the same command again: the same bytes, and nothing done twice."""

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import volumes
from command import invoke
from scenes import PROCESSES, SEGPIPE, SERIAL, assert_same, begin_and_stop, files, wait

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

COUNT = 200
AFFINES = [volumes.OBLIQUE, np.diag([-0.5, 0.75, 3.0, 1.0]), np.diag([1.0, 1.0, 1.0, 1.0])]
MODELS = {"one": "-m 0.onnx", "averaged": "-m 0.onnx -m 1.onnx --tta flips"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes of unlike size, place and packing, in folders; two folds."""
    root, rng = tmp_path_factory.mktemp("many"), random.Random(7)
    for number in range(COUNT):
        folder = root / "in" / f"site{number % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        shape = tuple(rng.randint(5, 20) for _ in range(3))
        name = f"{number:03}.nii{'.gz' * (number % 3 > 0)}"
        volumes.write(folder / name, volumes.voxels(shape, "u1", number), AFFINES[number % len(AFFINES)])
    values = networks.contract(1, 3, layout="NCDHW", tile=[16], overlap=[4], scale=1 / 255)
    for fold in range(2):
        net = networks.Network(1, fold, ndim=3).conv(1, 4, 3).add("Relu").conv(4, 3, 3)
        net.save(root / f"{fold}.onnx", values, classes=3, shape=("n", 16, 16, 16))
    for name in MODELS:
        done = invoke(command(name, f"whole-{name}", SERIAL), root)
        assert done.returncode == 0, done.stderr
    return root


def command(models: str, out: str, where: str) -> list[str]:
    return ["run", "-i", "in", "-o", out, "--device", "cpu", *MODELS[models].split(), *where.split()]


def records(out: Path) -> list[Path]:
    return list(out.glob("site*/*.json"))


def made(out: Path) -> dict[Path, tuple[int, int]]:
    """What tells one making of a file from another, of cases that have their record."""
    masks = [mask for record in records(out) for mask in record.parent.glob(f"{record.stem}.nii*")]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (*records(out), *masks)}


@pytest.mark.parametrize(("models", "where"), [("one", SERIAL), ("averaged", PROCESSES)])
def test_200_volumes_killed_half_way_go_on_to_the_same_bytes(models: str, where: str, root: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", root / f"whole-{models}"
    assert len(records(whole)) == COUNT
    order = [*SEGPIPE, *command(models, str(out), where)]
    process = begin_and_stop(root, order, tmp_path / "log", f"jobs.summary:add:{COUNT // 2}")
    os.killpg(process.pid, signal.SIGKILL)
    assert wait(process) == -signal.SIGKILL, process.said("not killed")
    before = made(out)
    done = len(records(out))
    assert COUNT // 2 <= done < COUNT
    said = status(root, out)
    assert (said["state"], said["done"], len(said["missing"])) == ("died", done, COUNT - done)
    again = invoke(command(models, str(out), SERIAL), root)
    assert again.returncode == 0, again.stderr
    last = json.loads((out / "run.json").read_text())
    assert (len(last["done"]), len(last["skipped"])) == (COUNT - done, done)
    assert {path: now for path, now in made(out).items() if path in before} == before
    assert_same(out, whole)
    assert not [name for name in files(out) if name.startswith(".")]


def status(root: Path, out: Path) -> Any:
    return json.loads(invoke(["status", str(out), "--json"], root).stdout)

"""Runs that average over flips and folds: the same bytes everywhere, what the record says, resuming, what people read."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import rasterio
import volumes
from command import invoke
from networks import contract, local, positional, toml

import segpipe
from segpipe.jobs.plan import job_windows
from segpipe.jobs.prepare import prepare
from segpipe.network.read import read_spec
from segpipe.settings import load_settings

AVERAGED = ["-m", "0.onnx", "-m", "1.onnx", "-m", "2.onnx", "--tta", "flips"]


def make(root: Path) -> None:
    """Scenes with gaps, three folds, and volumes with two."""
    rng = np.random.default_rng(3)
    (root / "in").mkdir()
    for name, shape in {"a": (200, 270), "b": (64, 64), "c": (33, 90)}.items():
        pixels = rng.integers(1, 256, (3, *shape), dtype=np.uint8)
        pixels[:, :50, : shape[1] // 3] = 0
        kind = {"driver": "GTiff", "dtype": "uint8", "nodata": 0, "crs": "EPSG:32633"}
        with rasterio.open(root / "in" / f"{name}.tif", "w", width=shape[1], height=shape[0], count=3, **kind) as dataset:
            dataset.write(pixels)
    for seed in range(3):
        positional(root / f"{seed}.onnx", 64, seed=seed)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("averaged")
    make(root)
    assert run(root, "whole", *AVERAGED).returncode == 0
    return root


def run(root: Path, out: str, *more: Any) -> Any:
    where = [] if "--executor" in more else ["--executor", "serial"]
    done = invoke(["run", "-i", "in", "-o", out, "--device", "cpu", "--confidence", *where, *map(str, more)], root)
    assert done.returncode == 0, done.stderr + done.stdout
    return done


def masks(folder: Path) -> dict[str, bytes]:
    names = {".tif", ".csv", ".nii", ".gz"}
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.suffix in names}


@pytest.mark.parametrize(
    "more", ["--parts 1", "--parts 2", "--parts 7", "--batch 3", "--batch 5 --parts 2", "--threads 2", "--tile 64 --batch 8"]
)
def test_any_parts_batch_and_threads_give_the_same_bytes(more: str, root: Path, tmp_path: Path) -> None:
    run(root, str(tmp_path / "out"), *AVERAGED, *more.split())
    assert len(masks(root / "whole")) == 7
    assert masks(tmp_path / "out") == masks(root / "whole")


@pytest.mark.parametrize(
    ("executor", "workers"), [pytest.param("dask", 2, marks=pytest.mark.slow), ("processes", 2)], ids=["dask", "processes"]
)
def test_workers_give_the_same_bytes(executor: str, workers: int, root: Path, segpipe: Any, tmp_path: Path) -> None:
    command = ["run", "-i", root / "in", "-o", tmp_path / "out", "--device", "cpu", "--confidence", "--parts", 3]
    folds = [word for k in range(3) for word in ("-m", root / f"{k}.onnx")]
    done = segpipe(*command, *folds, "--tta", "flips", "--executor", executor, "--workers", workers)
    assert done.returncode == 0, done.stderr
    assert masks(tmp_path / "out") == masks(root / "whole")


@pytest.mark.parametrize("more", [["--parts", 7], ["--batch", 4]])
def test_volumes_have_the_same_bytes_too(more: list[Any], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    volumes.write(tmp_path / "in" / "a.nii.gz", volumes.voxels((41, 33, 29), "u1"), volumes.OBLIQUE)
    for seed in range(2):
        networks.volumetric(tmp_path / f"{seed}.onnx", (8, 12, 10), seed=seed, scale=1 / 255)
    folds = ["-m", "0.onnx", "-m", "1.onnx", "--tta", "flips"]
    run(tmp_path, "whole", *folds)
    run(tmp_path, "other", *folds, *more)
    assert masks(tmp_path / "other") == masks(tmp_path / "whole")


def test_tensors_give_the_same_labels(root: Path, tmp_path: Path) -> None:
    folds = [root / f"{k}.onnx" for k in range(3)]
    segpipe.run(root / "in", folds, tmp_path / "out", tta="flips", device="cpu-tensors", batch=3, executor="serial")
    for name in "abc":
        with rasterio.open(tmp_path / "out" / f"{name}.tif") as there, rasterio.open(root / "whole" / f"{name}.tif") as here:
            assert (there.read() == here.read()).mean() > 0.9999


def record(folder: Path, case: str = "a") -> Any:
    return json.loads((folder / f"{case}.json").read_text())


def test_the_record_and_run_json_say_what_was_averaged(root: Path) -> None:
    said = record(root / "whole")
    each = [
        read_spec(load_settings(None, {"input": ("in",), "model": root / f"{k}.onnx", "device": "cpu"})) for k in range(3)
    ]
    assert [one["sha256"] for one in said["model"]["models"]] == [spec.sha256 for spec in each]
    assert [one["path"] for one in said["model"]["models"]] == ["0.onnx", "1.onnx", "2.onnx"]
    assert said["model"]["sha256"] == hashlib.sha256("".join(spec.sha256 for spec in each).encode()).hexdigest()
    assert (said["settings"]["tta"], said["settings"]["flips"]) == ("flips", [0, 1])
    whole = json.loads((root / "whole" / "run.json").read_text())
    assert whole["model"] == said["model"]
    assert whole["settings"]["model"] == ["0.onnx", "1.onnx", "2.onnx"]
    assert (whole["settings"]["tta"], whole["resolved"]["tta"]) == ("flips", "flips")
    with rasterio.open(root / "whole" / "a.tif") as mask:
        assert mask.tags()["MODEL_SHA256"] == said["model"]["sha256"]


def test_a_run_of_one_model_is_recorded_as_before(root: Path, tmp_path: Path) -> None:
    run(root, str(tmp_path / "out"), "-m", "0.onnx")
    said = record(tmp_path / "out")
    assert [*said["model"]] == ["sha256", "path", "contract"]
    assert not {"tta", "flips"} & said["settings"].keys()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["settings"]["model"] == "0.onnx"


def test_another_fold_order_or_flips_do_the_cases_again(tmp_path: Path) -> None:
    make(tmp_path)
    folds = ["-m", "0.onnx", "-m", "1.onnx"]
    counts = []
    for more in (folds, folds, folds[2:] + folds[:2], folds, [*folds, "--tta", "flips"], ["-m", "0.onnx"]):
        run(tmp_path, "out", *more)
        last = json.loads((tmp_path / "out" / "run.json").read_text())
        counts.append((len(last["done"]), len(last["skipped"])))
    assert counts == [(3, 0), (0, 3), (3, 0), (3, 0), (3, 0), (3, 0)]


def test_parts_of_a_run_before_a_fold_was_replaced_are_made_again(root: Path, tmp_path: Path) -> None:
    """Stopped half-way, with some parts done; then a fold is another file of the same name."""
    for name in ("in", "0.onnx", "1.onnx"):
        (shutil.copytree if name == "in" else shutil.copy)(root / name, tmp_path / name)
    settings = {"input": (str(tmp_path / "in" / "a.tif"),), "model": [tmp_path / "0.onnx", tmp_path / "1.onnx"]}
    settings |= {"output": tmp_path / "out", "executor": "serial", "device": "cpu", "parts": 5, "tta": "flips"}
    _some_parts(settings)
    left = sorted(path.name for path in tmp_path.glob("out/.parts/*/*.npz"))
    assert len(left) == 2
    shutil.copy(root / "2.onnx", tmp_path / "1.onnx")
    segpipe.run(**_named(settings))
    whole = segpipe.run(**_named(settings | {"output": tmp_path / "whole", "parts": 1}))
    assert masks(tmp_path / "out") == masks(tmp_path / "whole")
    assert whole.done == ["a"]


def _named(settings: dict[str, Any]) -> dict[str, Any]:
    return {("inputs" if key == "input" else key): value for key, value in settings.items()}


def _some_parts(settings: dict[str, Any]) -> None:
    """The first two parts of the only case."""
    from segpipe.jobs.attempts import attempt
    from segpipe.jobs.cuts import keep_cut
    from segpipe.jobs.task_queue import TaskQueue
    from segpipe.jobs.work import Context
    from segpipe.pipeline.infer import load_model

    prepared = prepare(load_settings(None, settings))
    prepared.run.output.make()
    for cut in prepared.plan.cuts:
        keep_cut(cut, prepared.run)
    queue, model = TaskQueue(prepared.plan, prepared.run), load_model(prepared.run.model)
    for _ in range(2):
        list(attempt(queue.take(), Context(prepared.run, model, 1, lambda _: None)))


def test_status_goes_on_with_all_models(root: Path) -> None:
    done = invoke(["status", "whole"], root)
    assert done.returncode == 0, done.stderr
    assert "3 done, 0 failed, 0 missing" in done.stdout
    ended = invoke(["status", "whole", "--json"], root)
    assert " -m 0.onnx -m 1.onnx -m 2.onnx --tta flips" in json.loads(ended.stdout)["command"]


def test_what_a_dry_run_and_the_line_of_settings_say(root: Path) -> None:
    done = run(root, "none", *AVERAGED, "--dry-run")
    assert "each tile is scored 12 times: 3 models, 4 flips" in done.stdout
    assert "models 0.onnx, 1.onnx, 2.onnx, device cpu" in done.stderr
    assert "tta = flips" in done.stderr
    assert "scored" not in run(root, "none", "-m", "0.onnx", "--dry-run").stdout
    once = run(root, "none", "-m", "0.onnx", "--tta", "flips", "--dry-run").stdout
    assert "each tile is scored 4 times: 1 model, 4 flips" in once


def test_models_in_a_file_and_from_python(root: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        f"model = {[str(root / f'{k}.onnx') for k in range(3)]}\ntta = 'flips'\nconfidence = true\nexecutor = 'serial'\n"
    )
    done = invoke(["run", "-c", "run.toml", "-i", root / "in", "-o", "out", "--device", "cpu"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert masks(tmp_path / "out") == masks(root / "whole")
    model = segpipe.load([root / f"{k}.onnx" for k in range(3)], tta="flips", device="cpu")
    assert "0.onnx, " in repr(model)
    result = segpipe.run(root / "in", model, tmp_path / "python", executor="serial", confidence=True)
    assert masks(tmp_path / "python") == masks(root / "whole")
    last = json.loads((tmp_path / "python" / "run.json").read_text())["command"]
    assert [last[i + 1] for i, word in enumerate(last) if word == "--model"] == [str(root / f"{k}.onnx") for k in range(3)]
    with rasterio.open(root / "in" / "c.tif") as scene:
        pixels = scene.read()
    found = model.predict(pixels, valid=(pixels != 0).all(axis=0))
    np.testing.assert_array_equal(found.array, result.open("c").array)


def test_inspect_shows_how_several_models_lie_on_a_raster(root: Path) -> None:
    done = invoke(["inspect", "in/a.tif", "-m", "0.onnx", "-m", "1.onnx", "--json"], root)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fit"]["model"] == "0.onnx, 1.onnx"


def test_models_that_differ_end_the_run_before_it_begins(root: Path, tmp_path: Path) -> None:
    other = local(tmp_path / "other.onnx", overlap=[8, 8])
    done = invoke(["run", "-i", "in", "-m", "0.onnx", "-m", other, "-o", tmp_path / "out", "--device", "cpu"], root)
    assert done.returncode == 2
    assert "must agree in overlap, got [16, 16] in 0.onnx and [8, 8] in" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [["tune"], ["export", "-o", "x.onnx"], ["export", "attach", "--contract", "c.toml"]])
def test_tune_and_export_take_one_model(command: list[str], root: Path) -> None:
    done = invoke([*command, "0.onnx", "1.onnx"], root)
    assert done.returncode == 2
    assert "Got unexpected extra argument (1.onnx)" in done.stderr


def test_a_job_holds_fewer_cases_whose_tiles_are_scored_more_often(root: Path) -> None:
    flags = {"input": (str(root / "in"),), "device": "cpu", "executor": "serial", "output": root / "none"}
    plain = prepare(load_settings(None, flags | {"model": root / "0.onnx"})).run
    folds = [root / f"{k}.onnx" for k in range(3)]
    averaged = prepare(load_settings(None, flags | {"model": folds, "tta": "flips"})).run
    assert (job_windows(plain), job_windows(averaged)) == (64, 5)


def test_a_contract_for_all_models_by_flag(root: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(toml(contract(3, 3, flips=["y"])))
    run(root, str(tmp_path / "out"), *AVERAGED, "--contract", tmp_path / "c.toml")
    assert record(tmp_path / "out")["settings"]["flips"] == [0]

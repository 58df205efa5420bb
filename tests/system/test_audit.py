"""Runs with --audit: counts against each tile by itself, the same table for parts and arrays, ranks; votes.py, too."""

import csv
import json
from pathlib import Path
from typing import Any

import networks
import numpy as np
import onnxruntime
import pytest
import rasterio
import volumes
from command import invoke
from numpy.typing import NDArray
from pyproj import Transformer

from segpipe.contract import Contract
from segpipe.geometry.windows import Cover, Tiling
from segpipe.pipeline.decision import Decision
from segpipe.pipeline.votes import Votes
from segpipe.results.audit import COUNTED, audit_columns

TILE, OVERLAP, SHAPE = 32, 12, (110, 90)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 256, (3, *SHAPE), dtype=np.uint8)
    pixels[:, 20:70, 10:60] = 0
    place = rasterio.transform.from_origin(500_000, 5_500_000, 10, 10)
    kind = {"driver": "GTiff", "dtype": "uint8", "nodata": 0, "crs": "EPSG:32633", "transform": place}
    with rasterio.open(tmp_path / "in" / "a.tif", "w", width=SHAPE[1], height=SHAPE[0], count=3, **kind) as dataset:
        dataset.write(pixels)
    model(tmp_path)
    return tmp_path


def model(root: Path, task: str = "multiclass", **changes: Any) -> None:
    """Scores depend on the place in the tile, so that tiles differ."""
    classes = 1 if task == "binary" else 3
    net = networks.Network(3).conv(3, classes, 5)
    net.add("Add", net.rng.normal(size=(1, classes, TILE, TILE)).astype(np.float32))
    named = [{"id": 1, "name": "one"}] if task == "binary" else [{"id": i, "name": f"class{i}"} for i in range(3)]
    activation = "softmax" if task == "multiclass" else "sigmoid"
    values = networks.contract(3, tile=[TILE, TILE], overlap=[OVERLAP] * 2, task=task, activation=activation, offset=-0.5)
    net.save(root / "model.onnx", values | {"classes": named} | changes, classes=classes, shape=("n", TILE, TILE))


def run(root: Path, *more: str, code: int = 0) -> str:
    done = invoke(["run", "-i", "in", "-m", "model.onnx", "--device", "cpu", "--executor", "serial", *more], root)
    assert done.returncode == code, done.stdout + done.stderr
    return str(done.stdout + done.stderr)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "audit.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def bands(path: Path) -> NDArray[Any]:
    with rasterio.open(path) as dataset:
        return dataset.read()


def labels_of_tile(session: onnxruntime.InferenceSession, pixels: NDArray[Any], task: str) -> NDArray[Any]:
    scores = session.run(None, {session.get_inputs()[0].name: pixels[None]})[0][0]
    return scores.argmax(axis=0)[None] if task == "multiclass" else (scores > 0).astype(int)


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "binary"])
def test_counts_are_those_of_each_tile_by_itself(folder: Path, task: str) -> None:
    model(folder, task)
    run(folder, "--audit", "1000", "--confidence")
    pixels, mask = bands(folder / "in" / "a.tif"), bands(folder / "segpipe-out" / "a.tif")
    sure, valid = bands(folder / "segpipe-out" / "a.confidence.tif"), (pixels != 0).any(axis=0)
    cover = Cover(SHAPE, Tiling((TILE, TILE), (OVERLAP, OVERLAP), (1, 1), "gaussian"))
    session, differ = onnxruntime.InferenceSession(str(folder / "model.onnx")), np.zeros(SHAPE, bool)
    scaled = np.where(valid, pixels.astype(np.float32) * np.float32(1 / 255) - np.float32(0.5), 0).astype(np.float32)
    windows = [(i, k) for i in range(cover.counts[0]) for k in range(cover.counts[1])]
    for index in windows:
        window = cover.window(index)
        where = tuple(slice(a, min(b, n)) for a, b, n in zip(window.start, window.stop, SHAPE, strict=True))
        inside = scaled[(slice(None), *where)]
        if not valid[where].any():
            continue
        padding = [(0, 0), *((0, TILE - n) for n in inside.shape[1:])]
        own = labels_of_tile(session, np.pad(inside, padding, mode="reflect"), task)
        cut = own[:, : inside.shape[1], : inside.shape[2]]
        differ[where] |= (cut != mask[(slice(None), *where)]).any(axis=0)
    expected = []
    for index in windows:
        box = cover.finished(index)
        where = tuple(map(slice, box.start, box.stop))
        if count := int(valid[where].sum()):
            mean = int(sure[(slice(None), *where)][:, valid[where]].astype(int).sum()) / (254 * count * len(mask))
            share = int((differ[where] & valid[where]).sum()) / count
            counted = (round(1 - mean * (1 - share), 6), round(mean, 6), round(share, 6), count)
            expected.append((*counted, *box.start, *box.stop))
    expected.sort(key=lambda row: -row[0])
    names = ("doubt", "confidence_mean", "disagreement", "pixels", "row_start", "column_start", "row_stop", "column_stop")
    found = [tuple(float(row[name]) for name in names) for row in rows(folder / "segpipe-out")]
    assert found == [tuple(map(float, row)) for row in expected]
    assert len({row[2] for row in found}) > 3
    assert [int(row["rank"]) for row in rows(folder / "segpipe-out")] == list(range(1, len(found) + 1))


def test_by_hand():
    """Two tiles of three pixels: they agree, differ, and only one has a weight."""
    classes = [{"id": i, "name": f"c{i}"} for i in range(3)]
    contract = Contract.model_validate(networks.contract(3) | {"classes": classes})
    votes = Votes(Decision(contract, "logits"))
    one = np.array([[5, 1, 0], [0, 3, 7], [0, 0, 0]], np.float32)
    two = np.array([[9, 1, 0], [0, 0, 0], [0, 2, 0]], np.float32)
    weights = [np.array([1, 1, 1], np.float32), np.array([1, 0.5, 0], np.float32)]
    sums = votes.of(one, weights[0]) + votes.of(two, weights[1])
    assert sums.tolist() == [[2, 2, 1], [0, 3, 1], [0, 5, 1]]
    assert votes.differ(sums).tolist() == [False, True, False]


def test_many_classes_have_two_digits():
    classes = [{"id": i, "name": f"c{i}"} for i in range(600)]
    votes = Votes(Decision(Contract.model_validate(networks.contract(3) | {"classes": classes}), "logits"))
    weights, sums = np.ones(2, np.float32), []
    for pair in ((511, 255), (511, 511), (255, 511)):
        scores = np.zeros((600, 2), np.float32)
        scores[list(pair), [0, 1]] = 1
        sums.append(votes.of(scores, weights))
    assert len(sums[0]) == 5
    assert votes.differ(sums[0] + sums[1]).tolist() == [False, True]
    assert votes.differ(sums[0] + sums[2]).tolist() == [True, True]


@pytest.mark.parametrize("more", [["--parts", "2"], ["--parts", "7"], ["-c", "tensors.toml", "--parts", "3"]])
def test_parts_and_arrays_leave_the_same_table_and_masks(folder: Path, more: list[str]) -> None:
    (folder / "tensors.toml").write_text('device = "cpu-tensors"\n')
    run(folder, "-o", "plain")
    run(folder, "-o", "whole", "--audit", "9")
    flags = ["run", "-i", "in", "-m", "model.onnx", "-o", "cut", "--executor", "serial", "--audit", "9", *more]
    done = invoke(flags if "-c" in more else [*flags, "--device", "cpu"], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("a.tif", "areas.csv"):
        assert (folder / "plain" / name).read_bytes() == (folder / "whole" / name).read_bytes()
        assert (folder / "cut" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    assert (folder / "cut" / "audit.csv").read_bytes() == (folder / "whole" / "audit.csv").read_bytes()
    assert len(rows(folder / "cut")) == 9


@pytest.mark.slow
def test_workers_leave_the_same_table(folder: Path) -> None:
    run(folder, "-o", "whole", "--audit")
    flags = ["-o", "cut", "--audit", "--parts", "4", "--workers", "2", "--device", "cpu"]
    assert invoke(["run", "-i", "in", "-m", "model.onnx", *flags], folder).returncode == 0
    assert (folder / "cut" / "audit.csv").read_bytes() == (folder / "whole" / "audit.csv").read_bytes()


def test_cleaning_changes_no_audit(folder: Path) -> None:
    run(folder, "-o", "plain", "--audit")
    run(folder, "-o", "clean", "--audit", "--sieve", "9", "--parts", "3")
    assert (folder / "plain" / "a.tif").read_bytes() != (folder / "clean" / "a.tif").read_bytes()
    assert (folder / "plain" / "audit.csv").read_bytes() == (folder / "clean" / "audit.csv").read_bytes()


def test_without_overlap_nothing_differs(folder: Path) -> None:
    run(folder, "--audit", "--blend", "crop")
    assert {row["disagreement"] for row in rows(folder / "segpipe-out")} == {"0.0"}


def test_resampled_cases_have_the_same_table_for_any_parts(folder: Path) -> None:
    model(folder, spacing=[15.0, 15.0], spacing_unit="m")
    run(folder, "-o", "whole", "--audit", "--resample")
    run(folder, "-o", "cut", "--audit", "--resample", "--parts", "3")
    assert (folder / "cut" / "audit.csv").read_bytes() == (folder / "whole" / "audit.csv").read_bytes()
    found, mask = rows(folder / "whole"), bands(folder / "whole" / "a.tif")[0]
    assert sum(int(row["pixels"]) for row in found) == (mask != 255).sum()
    assert max(float(row["disagreement"]) for row in found) > 0.1


def test_places_are_centres_in_the_crs_and_on_the_earth(folder: Path) -> None:
    run(folder, "--audit", "3")
    lonlat = Transformer.from_crs(32633, 4326, always_xy=True)
    for row in rows(folder / "segpipe-out"):
        x = 500_000 + 5 * (int(row["column_start"]) + int(row["column_stop"]))
        y = 5_500_000 - 5 * (int(row["row_start"]) + int(row["row_stop"]))
        assert (float(row["x"]), float(row["y"])) == (x, y)
        assert (float(row["lon"]), float(row["lat"])) == pytest.approx(lonlat.transform(x, y), abs=2e-7)
    assert list(rows(folder / "segpipe-out")[0]) == ["case", *audit_columns(volumes=False)]


def test_volumes_have_planes(tmp_path: Path) -> None:
    networks.volumetric(tmp_path / "model.onnx", (8, 12, 10), scale=1 / 255, orientation="RAS")
    (tmp_path / "in").mkdir()
    volumes.write(tmp_path / "in" / "v.nii.gz", volumes.voxels((21, 23, 19), "u1"), volumes.OBLIQUE)
    run(tmp_path, "-o", "whole", "--audit", "5")
    run(tmp_path, "-o", "cut", "--audit", "5", "--parts", "3")
    assert (tmp_path / "cut" / "audit.csv").read_bytes() == (tmp_path / "whole" / "audit.csv").read_bytes()
    row = rows(tmp_path / "whole")[0]
    assert int(row["plane_stop"]) > int(row["plane_start"])
    assert row["z"]
    assert row["lon"] == ""


def test_the_worst_of_all_cases_come_first(folder: Path) -> None:
    (folder / "in" / "b.tif").write_bytes((folder / "in" / "a.tif").read_bytes())
    run(folder, "--audit", "4")
    found = rows(folder / "segpipe-out")
    assert [row["case"] for row in found] == ["a", "b", "a", "b"]  # of equal ones the first case
    doubts = [float(row["doubt"]) for row in found]
    assert doubts == sorted(doubts, reverse=True)
    record = json.loads((folder / "segpipe-out" / "b.json").read_text())
    assert next(tuple(row)[: len(COUNTED)] for row in record["statistics"]["audit"]) == COUNTED


def test_a_later_run_audits_what_lacks_it_and_no_old_table_stays(folder: Path) -> None:
    assert "1 done, 0 done before" in run(folder)
    assert "1 done, 0 done before" in run(folder, "--audit", "3")
    assert "0 done, 1 done before" in run(folder, "--audit", "2")
    assert len(rows(folder / "segpipe-out")) == 2
    assert "1 done, 0 done before" in run(folder, "--audit", "999")
    assert "0 done, 1 done before" in run(folder, "--audit", "1000")  # it has no more windows
    assert "0 done, 1 done before" in run(folder)
    assert not (folder / "segpipe-out" / "audit.csv").exists()
    (folder / "segpipe-out" / "audit.csv").write_text("who,when\n")
    assert "audit.csv was not written by segpipe, and would be replaced" in run(folder, "--audit", code=2)
    assert "audit: must be" in run(folder, "--audit", "0", code=2)

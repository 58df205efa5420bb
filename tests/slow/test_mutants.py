"""A mask of a damaged file only where a reader that shares no code with GDAL gets the same pixels and validity.

500 files of every codec and layout are damaged, each in its own way by its seed. What is allowed besides is the file as it
was before, where the damage met nothing that counts. What nobody can know is a flip that gives other valid pixels: both
readers then get those.
"""

import csv
import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import rasterio
from mutants import Base, Read, UnreadableError, bases, damaged
from networks import pixelwise
from onnx import numpy_helper

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MUTANTS = 500
HERE = Path(__file__).parents[1]

NO_CHECKSUM = ("lzw", "packbits", "zstd", "lzma")
"""Codecs of TIFF without a checksum: libtiff takes a block that goes on behind its last pixel, the other reader minds."""


@dataclass(frozen=True)
class Mutant:
    base: Base
    damage: str
    path: Path
    bands: int

    def __str__(self) -> str:
        return f"{self.base.name}, {self.damage}, {self.path}"


@dataclass(frozen=True)
class Night:
    """What a run said and left of all files with so many bands."""

    code: int
    said: str
    output: Path
    model: Path

    @cached_property
    def done(self) -> set[str]:
        return set(json.loads((self.output / "run.json").read_text())["done"])


@dataclass(frozen=True)
class Trial:
    mutants: list[Mutant]
    whole: dict[str, Read]
    """What the other reader gets of each base before it is damaged."""
    results: dict[str, dict[str, Any]]
    nights: dict[int, Night]


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    root = tmp_path_factory.mktemp("mutants")
    kinds = bases(root / "bases")
    whole = {base.name: base.reader(root / "bases" / base.name / next(iter(base.files))) for base in kinds}
    mutants = []
    for number in range(-len(kinds), MUTANTS):  # first those that are whole
        base = kinds[number % len(kinds)]
        damage, files = ("nothing", base.files) if number < 0 else damaged(base, np.random.default_rng(number))
        bands = len(whole[base.name].pixels)
        folder = root / f"in{bands}" / f"{number + len(kinds):04}"
        folder.mkdir(parents=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        mutants.append(Mutant(base, damage, folder / next(iter(files)), bands))
    nights = {bands: carry_out(root, bands) for bands in {mutant.bands for mutant in mutants}}
    return Trial(mutants, whole, read_all(mutants, root / "results"), nights)


def carry_out(root: Path, bands: int) -> Night:
    """One run over a folder; a crash has another exit code, a hang ends the test."""
    model = pixelwise(root / f"{bands}.onnx", bands, normalize="none", scale=1 / 64, offset=-2.0)
    output = root / f"out{bands}"
    command = ["run", "-i", root / f"in{bands}", "-m", model, "-o", output, "--executor", "serial", "--verify-input"]
    ended = subprocess.run(
        [sys.executable, "-m", "segpipe.cli", *command], capture_output=True, text=True, timeout=600, check=False
    )
    return Night(ended.returncode, ended.stdout + ended.stderr, output, model)


def read_all(mutants: list[Mutant], file: Path) -> dict[str, dict[str, Any]]:
    """What segpipe reads of each; a process that is lost is begun again behind the file that took it down."""
    results: dict[str, dict[str, Any]] = {}
    left = mutants
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    while left:
        lines = "".join(f"{mutant.path}\t{mutant.bands}\n" for mutant in left)
        command = [sys.executable, str(HERE / "read_mutants.py"), str(file)]
        ended = subprocess.run(
            command, input=lines, text=True, capture_output=True, check=False, env=environment, timeout=600
        )
        with file.open("rb") as stream:
            results.update(_pickled(stream))
        left = [mutant for mutant in left if str(mutant.path) not in results]
        if left:
            results[str(left[0].path)] = {"lost": f"{ended.returncode}: {ended.stderr[-2000:]}"}
            left = left[1:]
    return results


def _pickled(stream: Any) -> dict[str, dict[str, Any]]:
    found = {}
    while True:
        try:
            path, result = pickle.load(stream)
        except EOFError:
            return found
        found[path] = result


def test_no_file_takes_a_process_down_or_ends_in_a_traceback(trial):
    assert not {path: result["lost"] for path, result in trial.results.items() if "lost" in result}
    for night in trial.nights.values():
        assert night.code == 1, night.said
        assert "Traceback" not in night.said, night.said
        assert "a way that segpipe does not know" not in (night.output / "run.json").read_text()


def test_whole_files_are_done(trial):
    whole = [mutant for mutant in trial.mutants if mutant.damage == "nothing"]
    assert [str(m) for m in whole if not fits(trial.results[str(m.path)], trial.whole[m.base.name], m.base.tolerance)] == []


def test_damage_is_refused_or_read_as_by_another_reader(trial):
    wrong = [f"{mutant}: {fault}" for mutant in trial.mutants if (fault := fault_of(mutant, trial)) is not None]
    assert not wrong, "\n".join(wrong)


def fault_of(mutant: Mutant, trial: Trial) -> str | None:
    """Why what segpipe reads is not right; None if it is, or the file is refused."""
    result = trial.results[str(mutant.path)]
    if "pixels" not in result or fits(result, trial.whole[mutant.base.name], mutant.base.tolerance):
        return None
    try:
        other = mutant.base.reader(mutant.path)
    except UnreadableError as error:
        return None if mutant.base.name.removeprefix("tifffile-").split("-")[0] in NO_CHECKSUM else f"unreadable: {error}"
    return None if fits(result, other, mutant.base.tolerance) else "the other reader gets something else"


def fits(result: dict[str, Any], read: Read, tolerance: int) -> bool:
    if "pixels" not in result:
        return False
    found, pixels = result["pixels"], read.pixels
    if found.shape != pixels.shape or found.dtype.newbyteorder("=") != pixels.dtype.newbyteorder("="):
        return False
    same = np.array_equal(found, pixels) if tolerance == 0 else np.abs(found.astype(int) - pixels).max() <= tolerance
    return bool(same) and np.array_equal(result["invalid"], read.invalid) and in_place(result, read.place)


def in_place(result: dict[str, Any], place: dict[str, Any]) -> bool:
    """As far as the other reader tells. A pixel of no size has no place but a point."""
    transform = place.get("transform")
    if transform is not None and transform[0] * transform[4]:
        return result["transform"] is not None and np.allclose(result["transform"], transform, equal_nan=True)
    return "transform" not in place or result["transform"] is None


def test_a_run_ends_as_its_reader_does(trial):
    for mutant in trial.mutants:
        done = case_of(mutant) in trial.nights[mutant.bands].done
        assert done == ("pixels" in trial.results[str(mutant.path)]), mutant


def case_of(mutant: Mutant) -> str:
    return f"{mutant.path.parent.name}/{mutant.path.stem}"


def test_masks_are_those_of_the_pixels(trial):
    rows = {bands: areas(night.output) for bands, night in trial.nights.items()}
    compared = 0
    for mutant in trial.mutants:
        night, result = trial.nights[mutant.bands], trial.results[str(mutant.path)]
        if case_of(mutant) not in night.done:
            assert case_of(mutant) not in rows[mutant.bands]
            continue
        (path,) = (p for s in (".tif", ".png") if (p := night.output / (case_of(mutant) + s)).exists())
        with rasterio.open(path) as mask:
            labels = mask.read(1)
        np.testing.assert_array_equal(labels == 255, result["invalid"], str(mutant))
        clear, classes = expected(night.model, result)
        np.testing.assert_array_equal(labels[clear], classes[clear], str(mutant))
        compared += clear.sum() > 0
    assert compared > MUTANTS / 5


def expected(model: Path, result: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Where a network of one 1 x 1 convolution has a clear winner, and which."""
    weights, bias = (numpy_helper.to_array(t).astype(float) for t in onnx.load(model).graph.initializer)
    with np.errstate(invalid="ignore"):  # a NaN of damaged pixels may be one that signals
        x = np.where(result["invalid"], 0, result["pixels"].astype(float) / 64 - 2)
        scores = np.einsum("kc,chw->khw", weights[:, :, 0, 0], x) + bias[:, None, None]
    second, best = np.sort(scores, axis=0)[-2:]
    return ~result["invalid"] & (best - second > 1e-3 * (1 + np.abs(best))), scores.argmax(axis=0)


def areas(output: Path) -> set[str]:
    with (output / "areas.csv").open() as stream:
        return {row["case"] for row in csv.DictReader(stream)}


def test_every_kind_of_end_is_there(trial):
    """That the damage is neither always found nor ever: a test of the test."""
    ends = Counter("pixels" in trial.results[str(m.path)] for m in trial.mutants if m.damage != "nothing")
    assert ends[True] > MUTANTS / 10
    assert ends[False] > MUTANTS / 3

"""A large case in parts: how it was cut, what each part leaves, and which are done."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe import __version__
from segpipe.pipeline.cases import Case, Identity
from segpipe.pipeline.errors import OutputError
from segpipe.pipeline.files import commit, output_errors, partial, remove, write_json
from segpipe.pipeline.records import Run, device_kind
from segpipe.pipeline.scaling import Scaling
from segpipe.pipeline.windows import Part

FOLDER = ".parts"
"""Of the output, hidden: a folder per case while its parts are made."""


@dataclass(frozen=True)
class PartFiles:
    """What one part leaves until the case is joined; ``counts`` comes last, and is there only if the part is done."""

    mask: Path
    confidence: Path
    counts: Path


def parts_folder(output: Path, case: Case) -> Path:
    """Flat and with a digest: the folder of a case ``a`` must not hold that of a case ``a/b``."""
    digest = hashlib.sha256(os.fsencode(case.name)).hexdigest()[:12]
    return output / FOLDER / f"{PurePosixPath(case.name).name[:40]}.{digest}"


def part_files(output: Path, case: Case, number: int) -> PartFiles:
    stem = parts_folder(output, case) / f"{number:06d}"
    return PartFiles(stem.with_suffix(".tif"), stem.with_suffix(".confidence.tif"), stem.with_suffix(".npz"))


def cut_key(case: Case, run: Run, files: Sequence[Identity], shape: Sequence[int]) -> str:
    """Changes with all that a part's labels depend on: input, model, settings, kind of device.

    The processor is not in it: a run that goes on at another node of a cluster keeps its parts.
    """
    kind = {key: value for key, value in device_kind(run.model).items() if key != "processor"}
    told = {
        "segpipe": __version__,
        "device": kind,
        "shape": list(shape),
        "case": [case.name, case.path],
        "files": list(files),
        "model": run.model.sha256,
        "settings": run.label_settings,
        "confidence": run.settings.confidence,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _plan_path(output: Path, case: Case) -> Path:
    return parts_folder(output, case) / "plan.json"


def read_cut(case: Case, run: Run, files: Sequence[Identity], shape: Sequence[int]) -> tuple[Part, ...] | None:
    """The parts that an earlier run of the same input, model and settings has cut a case into."""
    try:
        plan = json.loads(_plan_path(run.output, case).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(plan, dict) or plan.get("key") != cut_key(case, run, files, shape):
        return None
    return tuple(Part(tuple(first), tuple(stop)) for first, stop in plan["parts"])


def write_cut(case: Case, run: Run, files: Sequence[Identity], shape: Sequence[int], parts: Sequence[Part]) -> None:
    """Keep a cut for the runs to come; parts of another one go, and with ``--overwrite`` those of the same."""
    if not run.settings.overwrite and read_cut(case, run, files, shape) == tuple(parts):
        return
    forget_parts(run.output, case)
    if has_parts(run.output, case):
        raise OutputError(f"{parts_folder(run.output, case)} must go, and cannot be removed: remove it")
    plan = {"key": cut_key(case, run, files, shape), "parts": [[list(part.first), list(part.stop)] for part in parts]}
    write_json(_plan_path(run.output, case), plan)


def is_part_done(output: Path, case: Case, number: int, *, confidence: bool) -> bool:
    files = part_files(output, case, number)
    return files.counts.is_file() and files.mask.is_file() and (files.confidence.is_file() or not confidence)


def has_parts(output: Path, case: Case) -> bool:
    """Whether anything that took time is there to go on from."""
    folder = parts_folder(output, case)
    return any(folder.glob("*.npz")) or _scaling_path(output, case).is_file()


def done_parts(output: Path, case: Case) -> int:
    """How many parts of a case are there."""
    return len(list(parts_folder(output, case).glob("*.npz")))


def sweep_parts(output: Path, case: Case) -> None:
    """Remove what a stopped worker left half-written; all of it, where no part is done."""
    if not has_parts(output, case):
        forget_parts(output, case)
        return
    for path in parts_folder(output, case).glob(".*.partial"):
        remove(path)


def forget_parts(output: Path, case: Case) -> None:
    """Remove all that the parts of a case have left; the plan first, for without it no part counts."""
    folder = parts_folder(output, case)
    remove(_plan_path(output, case))
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # another case has its parts there
        folder.parent.rmdir()


@dataclass(frozen=True)
class Tally:
    """What a part has counted."""

    counts: NDArray[np.int64]
    inferred: int
    seconds: float


def write_tally(path: Path, tally: Tally) -> None:
    """The last word of a part: with it, the part is done."""
    temporary = partial(path)
    with output_errors(path):
        with temporary.open("wb") as stream:
            np.savez_compressed(stream, counts=tally.counts, inferred=tally.inferred, seconds=tally.seconds)
        commit(temporary, path)


def read_tally(path: Path) -> Tally:
    with np.load(path) as stored:
        return Tally(stored["counts"], int(stored["inferred"]), float(stored["seconds"]))


def _scaling_path(output: Path, case: Case) -> Path:
    return parts_folder(output, case) / "scaling.json"


def write_scaling(output: Path, case: Case, scaling: Scaling) -> None:
    """What was measured on all of a case, for its parts; floats as hexadecimal text, so that no bit is lost."""
    values = {key: None if v is None else [float(x).hex() for x in v] for key, v in _arrays(scaling)}
    write_json(_scaling_path(output, case), values)


def _arrays(scaling: Scaling) -> Iterator[tuple[str, NDArray[np.float64] | None]]:
    for key in ("gain", "bias", "low", "high", "fill"):
        yield key, getattr(scaling, key)


def read_scaling(output: Path, case: Case) -> Scaling | None:
    """None where it has not been measured."""
    try:
        stored: dict[str, Any] = json.loads(_scaling_path(output, case).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    arrays: dict[str, Any] = {k: None if v is None else np.array([float.fromhex(x) for x in v]) for k, v in stored.items()}
    return Scaling(**arrays)

"""A large case in parts: how it was cut, what each part leaves, and which are done."""

import hashlib
import io
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe import __version__
from segpipe.errors import DamagedPartError, OutputError
from segpipe.formats.cases import Case
from segpipe.formats.identity import Beside, Identity, no_state
from segpipe.formats.unusual import Finding
from segpipe.geometry.windows import Part
from segpipe.messages.redact import cleaned, without_secrets
from segpipe.network.scaling import Scaling
from segpipe.results.records import Run, device_kind
from segpipe.results.statistics import State
from segpipe.results.tables import STATISTICS
from segpipe.storage import Store
from segpipe.storage.files import output_errors
from segpipe.storage.retry import is_passing

FOLDER = ".parts"
"""Of the output, hidden: a folder per case while its parts are made."""


FORM = 5
"""Of what a part leaves; those of another are made again."""


DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class PartFiles:
    """What one part leaves until the case is joined; ``counts`` comes last, and is there only if the part is done."""

    mask: str
    confidence: str
    instances: str
    """Names of components, with ``--instances``."""
    counts: str


def parts_folder(case: Case) -> str:
    """Flat and with a digest: the folder of a case ``a`` must not hold that of a case ``a/b``."""
    digest = hashlib.sha256(os.fsencode(case.name)).hexdigest()[:12]
    stem = PurePosixPath(case.name).name[:40].encode(errors="replace").decode()  # rasterio writes no other names
    return f"{FOLDER}/{stem}.{digest}"


def part_files(case: Case, number: int) -> PartFiles:
    stem = f"{parts_folder(case)}/{number:06d}"
    return PartFiles(f"{stem}.mask.boxes", f"{stem}.confidence.boxes", f"{stem}.instances.boxes", f"{stem}.npz")


def cut_key(case: Case, run: Run, files: Sequence[Identity], shape: Sequence[int]) -> str:
    """Changes with all that a part's labels depend on: input, model, settings, kind of device.

    The processor is not in it: a run that goes on at another node of a cluster keeps its parts.
    """
    kind = {key: value for key, value in device_kind(run.model).items() if key != "processor"}
    basis = {
        "segpipe": __version__,
        "form": FORM,
        "device": kind,
        "shape": list(shape),
        "case": [case.name, without_secrets(case.path)],
        "files": list(files),
        "model": run.model.sha256,
        "settings": run.label_settings,
        "confidence": run.settings.confidence,
        "statistics": sorted(STATISTICS),
        **({} if (rule := run.lesions) is None else {"lesions": rule.as_json()}),
    }
    return hashlib.sha256(json.dumps(basis, sort_keys=True, allow_nan=False).encode()).hexdigest()


def plan_name(case: Case) -> str:
    return f"{parts_folder(case)}/plan.json"


def read_cut(case: Case, run: Run, files: Sequence[Identity], shape: Sequence[int]) -> tuple[Part, ...] | None:
    """The parts that an earlier run of the same input, model and settings has cut a case into."""
    plan = _read_sealed(run.output, plan_name(case))
    if plan is None or plan.get("key") != cut_key(case, run, files, shape):
        return None
    return tuple(Part(tuple(first), tuple(stop)) for first, stop in plan["parts"])


def kept_cut(case: Case, run: Run, files: Sequence[Identity], shape: Sequence[int]) -> tuple[Part, ...] | None:
    """The same, if what parts were made of is known to be what they would be made of now.

    Links may have led elsewhere then. That is seen here and not in ``read_cut``, because on a worker they may lead
    otherwise; and of files that tell nothing but their path, nobody knows.
    """
    plan = _read_sealed(run.output, plan_name(case))
    same = plan is not None and plan.get("place") == Beside().place(case.path) and not no_state(files)
    return read_cut(case, run, files, shape) if same else None


SEAL = "sha256"
"""Key of the digest of all other keys: one flipped digit of a box or a factor would be a wrong mask."""


def _sealed(values: dict[str, Any]) -> dict[str, Any]:
    written = cleaned(values)  # as it comes back
    return written | {SEAL: _digest(written)}


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _read_sealed(output: Store, name: str) -> dict[str, Any] | None:
    """None where there is no such file, or a damaged one; what cannot be read just now is not taken for that."""
    try:
        values = json.loads(output.read(name))
        return values if isinstance(values, dict) and values.pop(SEAL, None) == _digest(values) else None
    except (OSError, ValueError, RecursionError) as error:
        if is_passing(error):
            raise OutputError(f"{output.path(name)} cannot be read: {error}") from error
        return None


def write_cut(case: Case, run: Run, files: Sequence[Identity], shape: Sequence[int], parts: Sequence[Part]) -> None:
    """Keep a cut for the runs to come; parts of another one go, and with ``--overwrite`` those of the same."""
    if not run.settings.overwrite and kept_cut(case, run, files, shape) == tuple(parts):
        return
    forget_parts(run.output, case)
    if has_parts(run.output, case):
        raise OutputError(f"{run.output.path(parts_folder(case))} must go, and cannot be removed: remove it")
    boxes = [[list(part.first), list(part.stop)] for part in parts]
    plan = {"key": cut_key(case, run, files, shape), "place": Beside().place(case.path), "parts": boxes}
    run.output.write_json(plan_name(case), _sealed(plan))


def is_part_done(output: Store, case: Case, number: int, *, confidence: bool) -> bool:
    files = part_files(case, number)
    return output.has(files.counts) and output.has(files.mask) and (not confidence or output.has(files.confidence))


def has_parts(output: Store, case: Case) -> bool:
    """Whether anything that took time is there to go on from."""
    return any(name.endswith((".npz", "/scaling.json")) for name in output.below(parts_folder(case)))


def done_parts(output: Store, case: Case) -> int:
    """How many parts of a case are there."""
    return sum(name.endswith(".npz") for name in output.below(parts_folder(case)))


def forget_parts(output: Store, case: Case) -> None:
    """Remove all that the parts of a case have left; the plan first, for without it no part counts."""
    output.discard(plan_name(case))
    output.remove_folder(parts_folder(case))


def forget_part(output: Store, case: Case, number: int) -> None:
    """Remove what one part has left; its counts first, for without them it is not done."""
    files = part_files(case, number)
    for name in (files.counts, files.mask, files.confidence, files.instances):
        with output_errors(output.path(name)):
            output.remove(name)


@dataclass(frozen=True)
class Tally:
    """What a part has counted, and by what its rasters are known."""

    states: Mapping[str, State]
    """The state of each statistic, by name."""
    inferred: int
    seconds: float
    batch: int
    """That it was inferred with."""
    digests: tuple[str, ...]
    """SHA-256 of the files of its mask and, if there are such files, its confidence and its instances."""


def write_tally(output: Store, name: str, tally: Tally) -> None:
    """The last word of a part: with it, the part is done. Its own digest is at its end, where ``zipfile`` passes it over."""
    stream = io.BytesIO()
    states = {f"{name}/{key}": values for name, state in tally.states.items() for key, values in state.items()}
    facts = {"inferred": tally.inferred, "seconds": tally.seconds, "batch": tally.batch, "digests": tally.digests}
    arrays: dict[str, Any] = {**states, **facts}
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    data = stream.getvalue()
    output.write(name, data + hashlib.sha256(data).digest())


def read_tally(output: Store, name: str) -> Tally:
    """What a part has counted.

    Raises:
        DamagedPartError: the file is missing or has changed since it was written.
        OutputError: it cannot be read just now.
    """
    try:
        written = output.read(name)
    except FileNotFoundError as error:
        raise DamagedPartError(f"{output.path(name)} is missing") from error
    except OSError as error:
        raise OutputError(f"{output.path(name)} cannot be read: {error.strerror or error}") from error
    data, digest = written[:-DIGEST_BYTES], written[-DIGEST_BYTES:]
    if hashlib.sha256(data).digest() != digest:
        raise DamagedPartError(f"{output.path(name)} is damaged: its content has changed since it was written")
    with np.load(io.BytesIO(data)) as stored:
        numbers = (int(stored["inferred"]), float(stored["seconds"]), int(stored["batch"]))
        return Tally(_states(stored), *numbers, tuple(map(str, stored["digests"])))


def _states(stored: Mapping[str, NDArray[Any]]) -> dict[str, State]:
    states = defaultdict[str, State](dict)
    for name in stored:
        statistic, _, key = name.partition("/")
        if key:
            states[statistic][key] = stored[name]
    return states


def _scaling_name(case: Case) -> str:
    return f"{parts_folder(case)}/scaling.json"


def write_scaling(output: Store, case: Case, scaling: Scaling) -> None:
    """What was measured on all of a case, for its parts; floats as hexadecimal text, so that no bit is lost."""
    values = {key: None if v is None else [float(x).hex() for x in v] for key, v in _arrays(scaling)}
    output.write_json(_scaling_name(case), _sealed(values))


def _arrays(scaling: Scaling) -> Iterator[tuple[str, NDArray[np.float64] | None]]:
    for key in ("gain", "bias", "low", "high", "fill", "blank"):
        yield key, getattr(scaling, key)


def _findings_name(case: Case) -> str:
    return f"{parts_folder(case)}/unusual.json"


def write_findings(output: Store, case: Case, findings: Sequence[Finding]) -> None:
    """What one part has seen of its case, so that the others need not look; of several at once, one leaves it."""
    name, data = _findings_name(case), json.dumps(_sealed({"findings": [asdict(f) for f in findings]}), allow_nan=False)
    with output_errors(output.path(name)):
        output.create(name, data.encode())


def read_findings(output: Store, case: Case) -> list[Finding] | None:
    """None where nobody has looked."""
    stored = _read_sealed(output, _findings_name(case))
    return None if stored is None else [Finding(**values) for values in stored["findings"]]


def read_scaling(output: Store, case: Case) -> Scaling | None:
    """None where it has not been measured."""
    stored = _read_sealed(output, _scaling_name(case))
    if stored is None:
        return None
    arrays: dict[str, Any] = {k: None if v is None else np.array([float.fromhex(x) for x in v]) for k, v in stored.items()}
    return Scaling(**arrays)

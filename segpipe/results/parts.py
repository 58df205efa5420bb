"""Parts of a large case: how it was cut, the files of each part, and which parts are finished."""

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
from segpipe.errors import DamagedPartError, OutputError, of_system
from segpipe.formats.case import Case
from segpipe.formats.identity import FolderListings, Identity, hidden_path, no_state
from segpipe.formats.unusual.values import Finding
from segpipe.geometry.windows import Part
from segpipe.messages.url_secrets import cleaned, without_secrets
from segpipe.network.scaling import Scaling
from segpipe.results.case_statistics import STATISTICS
from segpipe.results.device_kind import device_kind
from segpipe.results.run import Run
from segpipe.results.statistics import State
from segpipe.storage import Store
from segpipe.storage.files import output_errors, reading_errors

FOLDER = ".parts"
"""Hidden folder of the output, with a folder per case while its parts are processed."""


FILE_VERSION = 5
"""Version of the files of parts; parts of another version are processed again."""


DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class PartFiles:
    """Files of one part until the case is joined; ``counts`` is written last, so that it marks a finished part."""

    mask: str
    confidence: str
    instances: str
    """Names of components, with ``--instances``."""
    counts: str


def parts_folder(case: Case) -> str:
    """Folder of a case's parts; flat, with a digest: the folder of a case ``a`` must not contain that of ``a/b``."""
    digest = hashlib.sha256(os.fsencode(case.name)).hexdigest()[:12]
    stem = PurePosixPath(case.name).name[:40].encode(errors="replace").decode()  # rasterio only writes such names
    return f"{FOLDER}/{stem}.{digest}"


def part_files(case: Case, number: int) -> PartFiles:
    """Names of the files of a part."""
    stem = f"{parts_folder(case)}/{number:06d}"
    return PartFiles(f"{stem}.mask.boxes", f"{stem}.confidence.boxes", f"{stem}.instances.boxes", f"{stem}.npz")


def cut_key(case: Case, run: Run, files: Sequence[Identity], shape: Sequence[int]) -> str:
    """Hash of everything that a part's labels depend on: input, model, settings, kind of device.

    The processor is not included: a run that continues on another node of a cluster keeps its parts.
    """
    kind = {key: value for key, value in device_kind(run.model).items() if key != "processor"}
    basis = {
        "segpipe": __version__,
        "form": FILE_VERSION,
        "device": kind,
        "shape": list(shape),
        "case": [case.name, without_secrets(case.path)],
        "files": list(files),
        "model": run.model.sha256,
        "settings": run.label_settings,
        "confidence": run.settings.confidence,
        "statistics": sorted(STATISTICS),
        **({} if run.settings.audit is None else {"audit": True}),
        **({} if (rule := run.lesions) is None else {"lesions": rule.as_json()}),
    }
    return hashlib.sha256(json.dumps(basis, sort_keys=True, allow_nan=False).encode()).hexdigest()


def plan_name(case: Case) -> str:
    """Name of the file that says how a case was cut."""
    return f"{parts_folder(case)}/plan.json"


def read_cut(case: Case, run: Run, files: Sequence[Identity], shape: Sequence[int]) -> tuple[Part, ...] | None:
    """The parts into which an earlier run with the same input, model and settings has cut a case."""
    plan = _read_sealed(run.output, plan_name(case))
    if plan is None or plan.get("key") != cut_key(case, run, files, shape):
        return None
    return tuple(Part(tuple(first), tuple(stop)) for first, stop in plan["parts"])


def kept_cut(case: Case, run: Run, files: Sequence[Identity], shape: Sequence[int]) -> tuple[Part, ...] | None:
    """As ``read_cut``, but only if the sources of the parts are known to be unchanged.

    Links may have pointed elsewhere then. This is checked here and not in ``read_cut``, because links may differ on a
    worker; and for files without any state nobody knows.
    """
    plan = _read_sealed(run.output, plan_name(case))
    same = plan is not None and plan.get("place") == hidden_path(FolderListings().place(case.path)) and not no_state(files)
    return read_cut(case, run, files, shape) if same else None


SEAL = "sha256"
"""Key of the digest of all other keys: a single flipped digit of a box or a factor would give a wrong mask."""


def _sealed(values: dict[str, Any]) -> dict[str, Any]:
    written = cleaned(values)  # as it will be read back
    return written | {SEAL: _digest(written)}


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _read_sealed(output: Store, name: str) -> dict[str, Any] | None:
    """Read a sealed file; None if it is missing or damaged.

    Raises:
        OutputError: the file cannot be read at present.
    """
    with reading_errors(output.path(name)):
        data = output.read_if_there(name)
    try:
        values = None if data is None else json.loads(data)
        return values if isinstance(values, dict) and values.pop(SEAL, None) == _digest(values) else None
    except (ValueError, RecursionError):
        return None


def write_cut(case: Case, run: Run, files: Sequence[Identity], shape: Sequence[int], parts: Sequence[Part]) -> None:
    """Store a cut for later runs; remove the parts of another cut, and with ``--overwrite`` those of the same."""
    if not run.settings.overwrite and kept_cut(case, run, files, shape) == tuple(parts):
        return
    forget_parts(run.output, case)
    if has_parts(run.output, case):
        raise OutputError(f"{run.output.path(parts_folder(case))} must go, and cannot be removed: remove it")
    boxes = [[list(part.first), list(part.stop)] for part in parts]
    plan = {"key": cut_key(case, run, files, shape), "place": hidden_path(FolderListings().place(case.path)), "parts": boxes}
    run.output.write_json(plan_name(case), _sealed(plan))


def is_part_done(output: Store, case: Case, number: int, *, confidence: bool) -> bool:
    """Whether all files of a part are there."""
    files = part_files(case, number)
    return output.has(files.counts) and output.has(files.mask) and (not confidence or output.has(files.confidence))


def has_parts(output: Store, case: Case) -> bool:
    """Whether there are results of finished work to continue from."""
    return any(name.endswith((".npz", "/scaling.json")) for name in output.below(parts_folder(case)))


def done_parts(output: Store, case: Case) -> int:
    """Number of finished parts of a case."""
    return sum(name.endswith(".npz") for name in output.below(parts_folder(case)))


def forget_parts(output: Store, case: Case) -> None:
    """Remove all files of a case's parts; the plan first, since without it no part counts."""
    output.discard(plan_name(case))
    output.remove_folder(parts_folder(case))


def forget_part(output: Store, case: Case, number: int) -> None:
    """Remove the files of one part; its counts first, since without them it is not finished."""
    files = part_files(case, number)
    for name in (files.counts, files.mask, files.confidence, files.instances):
        with output_errors(output.path(name)):
            output.remove(name)


@dataclass(frozen=True)
class Tally:
    """The counts of a part, and the digests of its files."""

    states: Mapping[str, State]
    """The state of each statistic, by name."""
    inferred: int
    seconds: float
    batch: int
    """Batch size of its inference."""
    digests: tuple[str, ...]
    """SHA-256 of the files of its mask and, if there are such files, its confidence and its instances."""


def write_tally(output: Store, name: str, tally: Tally) -> None:
    """Write a part's last file, which marks it as finished. Its digest is appended, which ``zipfile`` ignores."""
    stream = io.BytesIO()
    states = {f"{name}/{key}": values for name, state in tally.states.items() for key, values in state.items()}
    facts = {"inferred": tally.inferred, "seconds": tally.seconds, "batch": tally.batch, "digests": tally.digests}
    arrays: dict[str, Any] = {**states, **facts}
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    data = stream.getvalue()
    output.write(name, data + hashlib.sha256(data).digest())


def read_tally(output: Store, name: str) -> Tally:
    """Read the counts of a part.

    Raises:
        DamagedPartError: the file is missing or has changed since it was written.
        OutputError: it cannot be read at present.
    """
    try:
        written = output.read(name)
    except FileNotFoundError as error:
        raise DamagedPartError(f"{output.path(name)} is missing") from error
    except OSError as error:
        raise OutputError(f"{output.path(name)} cannot be read: {of_system(error)}") from error
    data, digest = written[:-DIGEST_BYTES], written[-DIGEST_BYTES:]
    if hashlib.sha256(data).digest() != digest:
        raise DamagedPartError(f"{output.path(name)} is damaged: its content has changed since it was written")
    with np.load(io.BytesIO(data)) as stored:
        return Tally(
            states=_states(stored),
            inferred=int(stored["inferred"]),
            seconds=float(stored["seconds"]),
            batch=int(stored["batch"]),
            digests=tuple(map(str, stored["digests"])),
        )


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
    """Store the scaling measured on a whole case for its parts; floats as hexadecimal text, which is exact."""
    values = {key: None if v is None else [float(x).hex() for x in v] for key, v in _arrays(scaling)}
    output.write_json(_scaling_name(case), _sealed(values))


def _arrays(scaling: Scaling) -> Iterator[tuple[str, NDArray[np.float64] | None]]:
    for key in ("gain", "bias", "low", "high", "fill", "blank"):
        yield key, getattr(scaling, key)


def read_scaling(output: Store, case: Case) -> Scaling | None:
    """Scaling of a case; None if it was not measured."""
    stored = _read_sealed(output, _scaling_name(case))
    if stored is None:
        return None
    arrays: dict[str, Any] = {k: None if v is None else np.array([float.fromhex(x) for x in v]) for k, v in stored.items()}
    return Scaling(**arrays)


def _findings_name(case: Case) -> str:
    return f"{parts_folder(case)}/unusual.json"


def write_findings(output: Store, case: Case, findings: Sequence[Finding]) -> None:
    """Store the findings of one part, so that the others need not sample the case; of concurrent calls, one succeeds."""
    name, data = _findings_name(case), json.dumps(_sealed({"findings": [asdict(f) for f in findings]}), allow_nan=False)
    with output_errors(output.path(name)):
        output.create(name, data.encode())


def read_findings(output: Store, case: Case) -> list[Finding] | None:
    """Findings of a case; None if it was not sampled."""
    stored = _read_sealed(output, _findings_name(case))
    return None if stored is None else [Finding(**values) for values in stored["findings"]]

"""Which cases of the last run into an output folder are done, by its inputs, records and parts."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from segpipe.errors import OutputError, SegpipeError, of_system
from segpipe.formats.cases import find_input
from segpipe.formats.redaction import hidden_inputs, hide_case, names_of
from segpipe.formats.registry import element_of
from segpipe.jobs.last_run import LastRun, last_run
from segpipe.messages.redaction import HIDDEN, path_digest, redact_also, without_names
from segpipe.network.joined_spec import spec_of_run
from segpipe.network.spec import ModelSpec
from segpipe.results.done import done_cases
from segpipe.results.name_conflicts import storable
from segpipe.results.parts import FOLDER, done_parts, parts_folder
from segpipe.results.run import Run
from segpipe.settings import Settings
from segpipe.storage import Store
from segpipe.storage.invalid import readable
from segpipe.storage.lock import LockState, sign_of
from segpipe.storage.stores import store_at
from segpipe.vectors.area import Area


@dataclass(frozen=True)
class Status:
    """Finished, failed and missing cases of the last run."""

    output: str
    done: int
    failed: list[dict[str, str]]
    """``case`` and ``error`` of each failed case, as the last run wrote them."""
    problems: list[str]
    """Folders of the input that cannot be read."""
    missing: list[str]
    outside: list[str]
    """Cases outside the area of interest."""
    parts: dict[str, int]
    """Finished parts of unfinished cases."""
    megapixels_per_second: float | None
    """Speed of the last run that ended."""
    element: str
    """Unit of its pixels: ``px``, or ``voxel`` if all cases are volumes."""
    state: str
    """State of the last run: ``running``, ``ended``, ``interrupted``, or ``died`` (killed, or its machine stopped)."""
    running: str | None
    """Process and host of the run that is writing to the folder; None if there is none."""
    died: str | None
    """Process and host of a run that died and left its lock; None if there is none."""
    last_sign: str | None
    """Time of the last heartbeat of a running or dead run, in ISO 8601; a run gives one every 20 s."""
    command: str
    """The shell command that continues the run."""


def read_status(place: str, inputs: Sequence[str] = ()) -> Status:
    """Compare the record of every case with the inputs, the model and the settings of the last run.

    Args:
        place: the output folder.
        inputs: the inputs of the run, if it does not name them because its cases are not named after paths.

    Raises:
        OutputError: there is no run in that folder.
        SegpipeError: the inputs or the model of the run are missing.
    """
    output = store_at(place).settled()
    last = _with_inputs(output, last_run(output), inputs)
    before = Path.cwd()
    try:
        os.chdir(before if HIDDEN.match(last.folder) else last.folder)  # its paths are relative to where it was started
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise OutputError(
            f"the run in {output} was started in {last.folder!r}, which is gone ({why}): run the same command again "
            "where its files are now"
        ) from None
    try:
        settings = _settings(output, last)
        with hidden_inputs(settings):
            return _status(output, last, settings)
    except OSError as error:
        raise OutputError(f"{output} cannot be read: {of_system(error)}") from error
    finally:
        os.chdir(before)


def _settings(output: Store, last: LastRun) -> Settings:
    try:
        return Settings.model_validate(last.settings | {"overwrite": False})
    except ValidationError as error:
        raise OutputError(
            f"{output.path('run.json')} must hold settings of this version: {readable(error)}: run the same command again"
        ) from None


def _area(settings: Settings, last: LastRun) -> Area | None:
    """The area of interest of the last run, on which it depends which cases are done; its file may have been removed."""
    digest = last.resolved.get("aoi")
    return Area(str(settings.aoi), digest) if isinstance(digest, str) else None


def _with_inputs(output: Store, last: LastRun, inputs: Sequence[str]) -> LastRun:
    """The last run with the inputs that the user gives in place of those that it hides.

    Raises:
        OutputError: the inputs are hidden, and are not given or others.
    """
    kept = last.settings.get("input")
    hidden = [text for text in kept if HIDDEN.match(str(text))] if isinstance(kept, list) else []
    if not isinstance(kept, list) or not hidden:
        return last
    given = {f"[path {path_digest(text)}]": text if "://" in text else os.path.abspath(text) for text in inputs}  # noqa: PTH100
    name = last.settings.get("case_name")
    if not set(hidden) <= given.keys():
        raise OutputError(
            f"{output.path('run.json')} hides the inputs of its run, since --case-name is {name}: give the same ones, "
            f"each with --input{', got others' * bool(inputs)}"
        )
    return last.model_copy(update={"settings": {**last.settings, "input": [given.get(one, one) for one in kept]}})


def _status(output: Store, last: LastRun, settings: Settings) -> Status:
    run, sign = Run(_spec(settings), settings, _area(settings, last)), sign_of(output)
    found = find_input(settings.input, run.choice)
    if settings.case_name != "path":
        redact_also(names_of(found.all, settings.input))
    found = storable(found, output)
    done = {case.name for case in done_cases(found.cases, run)}
    now = {failure.case.name: hide_case(failure.error, failure.case) for failure in found.refused}
    failed = [failure.model_dump() for failure in last.failed if failure.case not in done | now.keys()]
    failed += [{"case": name, "error": error} for name, error in now.items()]
    names = {failure["case"] for failure in failed} | {*last.outside}
    there = set(output.folders(FOLDER))
    rest = [case for case in found.cases if case.name not in done]
    return Status(
        output=str(output),
        done=len(done),
        failed=failed,
        problems=[*map(without_names, found.problems)],
        missing=[case.name for case in rest if case.name not in names],
        outside=[case.name for case in rest if case.name in {*last.outside}],
        parts={case.name: done_parts(output, case) for case in rest if parts_folder(case) in there},
        megapixels_per_second=last.megapixels_per_second,
        element=element_of(found.cases),
        **_life(output, last, sign),
        command=_command(last),
    )


def _command(last: LastRun) -> str:
    words = " ".join(map(_quoted, _continuing(last)))
    return words if HIDDEN.match(last.folder) else f"cd {_quoted(last.folder)} && {words}"


def _quoted(text: str) -> str:
    """Quote a word for a shell; bytes that cannot be printed are escaped as in bash, zsh and ksh."""
    if text.isprintable():
        return shlex.quote(text)
    spelled = "".join(chr(b) if chr(b).isalnum() and b < 128 else f"\\x{b:02x}" for b in os.fsencode(text))
    return f"$'{spelled}'"


def _life(output: Store, last: LastRun, sign: LockState | None) -> dict[str, Any]:
    """Whether the last run is still running; if not, whether it ended by itself.

    A run that ends removes its lock and writes its state to ``run.json``; one that has done neither died.
    """
    if sign is not None:
        who, heard = str(sign.holder), _ago(sign.seconds)
        running, died = (who, None) if sign.alive else (None, who)
        return {"state": "running" if sign.alive else "died", "running": running, "died": died, "last_sign": heard}
    if last.state != "running":
        return {"state": last.state, "running": None, "died": None, "last_sign": None}
    try:
        heard = _ago(output.age("run.json"))  # written when the run began
    except OSError:
        heard = None
    return {"state": "died", "running": None, "died": None, "last_sign": heard}


def _ago(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return (datetime.now(UTC) - timedelta(seconds=seconds)).astimezone().isoformat(timespec="seconds")


def _continuing(last: LastRun) -> list[str]:
    """The command that continues a run without repeating finished cases."""
    return [*last.command, *(["--no-overwrite"] if last.settings.get("overwrite") else [])]


def _spec(settings: Settings) -> ModelSpec:
    try:
        return spec_of_run(settings)
    except SegpipeError as error:
        raise type(error)(f"the model of the last run cannot be read: {error}") from None

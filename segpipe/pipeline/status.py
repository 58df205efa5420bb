"""How far the runs into an output folder have come, from what they have left there."""

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segpipe.pipeline.cases import find_input
from segpipe.pipeline.config import Settings
from segpipe.pipeline.errors import OutputError, SegpipeError
from segpipe.pipeline.lock import holder_of
from segpipe.pipeline.parts import FOLDER, done_parts, parts_folder
from segpipe.pipeline.records import Run, done_cases, storable
from segpipe.pipeline.spec import ModelSpec, read_spec
from segpipe.pipeline.stores import Store
from segpipe.pipeline.stores.places import store_at


@dataclass(frozen=True)
class Status:
    """What is done, failed and missing of the last run's cases."""

    output: str
    done: int
    failed: list[dict[str, str]]
    """Each with ``case`` and ``error``, as the last run that ended left them."""
    problems: list[str]
    """Folders of the input that cannot be read now."""
    missing: list[str]
    parts: dict[str, int]
    """Finished parts of cases that are not done."""
    megapixels_per_second: float | None
    """Of the last run that ended."""
    running: str | None
    """Who writes there now."""
    command: str
    """What goes on with the rest."""


def read_status(place: str) -> Status:
    """Look at every case of the last run.

    Raises:
        OutputError: there is no run in that folder.
        SegpipeError: its inputs or its model are gone.
    """
    output = store_at(place).settled()
    run = _run_json(output)
    before = Path.cwd()
    try:
        os.chdir(run["folder"])  # its paths are relative to where it was started
    except OSError as error:
        raise OutputError(f"the run in {output} was started in {run['folder']}, which is gone: {error.strerror}") from None
    try:
        return _status(output, run)
    except OSError as error:
        raise OutputError(f"{output} cannot be read: {error.strerror}") from error
    finally:
        os.chdir(before)


def _run_json(output: Store) -> dict[str, Any]:
    try:
        run = json.loads(output.read("run.json"))
        if isinstance(run, dict) and {"settings", "command", "folder", "failed"} <= run.keys():
            return run
    except (OSError, ValueError):
        pass
    raise OutputError(f"{output} must be the output of a run, and has no run.json of one: give the folder of --output")


def _status(output: Store, told: dict[str, Any]) -> Status:
    settings = Settings.model_validate(told["settings"] | {"overwrite": False})
    found, run = find_input(settings.input), Run(_spec(settings), settings)
    cases, refused = storable(found, output)
    done = {case.name for case in done_cases(cases, run)}
    now = {failure.case.name: failure.error for failure in refused}
    failed = [failure for failure in told["failed"] if failure["case"] not in done | now.keys()]
    failed += [{"case": name, "error": error} for name, error in now.items()]
    names = {failure["case"] for failure in failed}
    there = set(output.folders(FOLDER))
    rest = [case for case in cases if case.name not in done]
    return Status(
        output=str(output),
        done=len(done),
        failed=failed,
        problems=found.problems,
        missing=[case.name for case in rest if case.name not in names],
        parts={case.name: done_parts(output, case) for case in rest if parts_folder(case) in there},
        megapixels_per_second=told.get("megapixels_per_second"),
        running=holder_of(output),
        command=f"cd {_quoted(told['folder'])} && {' '.join(map(_quoted, _going_on(told)))}",
    )


def _quoted(text: str) -> str:
    """For a shell; of characters that no line shows, as bash, zsh and ksh spell their bytes."""
    if text.isprintable():
        return shlex.quote(text)
    spelled = "".join(chr(b) if chr(b).isalnum() and b < 128 else f"\\x{b:02x}" for b in os.fsencode(text))
    return f"$'{spelled}'"


def _going_on(told: dict[str, Any]) -> list[str]:
    """The command of a run, but what it has done is not done again."""
    return [*told["command"], *(["--no-overwrite"] if told["settings"].get("overwrite") else [])]


def _spec(settings: Settings) -> ModelSpec:
    try:
        return read_spec(settings)
    except SegpipeError as error:
        raise type(error)(f"the model of the last run cannot be read: {error}") from None

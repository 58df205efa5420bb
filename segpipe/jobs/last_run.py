"""The last run of an output folder: its ``run.json``, and the cases that it finished or left unfinished."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segpipe.errors import OutputError, of_system
from segpipe.formats.case import Case
from segpipe.messages.printable import counted, first_few
from segpipe.messages.url_secrets import cleaned
from segpipe.results.records import read_record, records
from segpipe.results.schema import Record
from segpipe.results.targets import record_name
from segpipe.results.totals import StatedTotals
from segpipe.storage import Store
from segpipe.storage.documents import DocumentError, Text, parse_json
from segpipe.storage.files import reading_errors
from segpipe.storage.invalid import readable

LOG = logging.getLogger("segpipe")

ROUNDED = 2.0
"""Tolerance in seconds when two ages are compared: buckets state times in whole seconds."""

NOT_OF_LABELS = frozenset({"batch", "device", "threads", "seg", "report"})
"""Settings that do not affect labels."""


class _FailedCase(BaseModel):
    case: Text
    error: Text


class LastRun(BaseModel):
    """The part of ``run.json`` that other commands read; all versions write it."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    state: str = "ended"
    command: list[Text] = Field(min_length=1)
    folder: Text
    settings: dict[str, Any]
    failed: list[_FailedCase]
    megapixels_per_second: float | None = None
    done: list[Text] = Field(default_factory=list)
    skipped: list[Text] = Field(default_factory=list)
    missing: list[Text] | None = None
    """None in files of older versions."""
    outside: list[Text] = Field(default_factory=list)
    resolved: dict[str, Any] = Field(default_factory=dict)
    model: dict[str, Any] = Field(default_factory=dict)
    seconds: float = 0.0
    problems: list[Text] = Field(default_factory=list)
    totals: StatedTotals | None = None


def last_run(output: Store) -> LastRun:
    """Read ``run.json``.

    Raises:
        OutputError: it is missing or damaged.
    """
    with reading_errors(output.path("run.json")):
        data = output.read_if_there("run.json")
    if data is None:
        raise OutputError(f"{output} must be the output of a run, and has no run.json of one: give the folder of --output")
    try:
        return LastRun.model_validate(parse_json(data))
    except DocumentError as error:
        why = str(error)
    except ValidationError as error:
        why = f"is not one: {readable(error)}"
    raise OutputError(
        f"{output} must be the output of a run, and its run.json {why}: a run with the same command writes it again"
    )


def done_names(output: Store, last: LastRun) -> list[str]:
    """Sorted names of the cases that the last run has done, even while it still runs or after it died.

    A run lists them in ``run.json`` when it ends. Until then, a case counts as done if its record has the model and
    settings of this run and is later than ``run.json``. An earlier record proves nothing: the input may have changed since.
    """
    if last.state != "running":
        return last.done
    names, is_later = _names(output) if last.missing is None else last.missing, _later_than_run(output)
    cases = (Case(name, name) for name in {*names} - {*last.skipped})
    found = ((case, read_record(output, case)) for case in cases)
    return sorted(case.name for case, record in found if record and _is_of(record, last) and is_later(record_name(case)))


def _later_than_run(output: Store) -> Callable[[str], bool]:
    """Return a function that tells whether a file was written after ``run.json``, by the clock of the store."""
    with reading_errors(output.path("run.json")):
        age, now = output.age("run.json"), time.monotonic()

    def is_later(name: str) -> bool:
        try:
            return output.age(name) <= age + time.monotonic() - now + ROUNDED
        except FileNotFoundError:
            return False  # the run removes a record before it processes the case again
        except OSError as error:
            raise OutputError(f"{output.path(name)} cannot be read: {of_system(error)}") from error

    return is_later


def _names(output: Store, folder: str = "") -> Iterator[str]:
    """Names of all files that may be records, without their suffix."""
    for name in output.below(folder):
        if name.endswith(".json"):
            yield name.removesuffix(".json")
    for name in output.folders(folder):
        if not name.rpartition("/")[2].startswith("."):
            yield from _names(output, name)


def _is_of(record: Record, last: LastRun) -> bool:
    """Whether a record has the model and the label settings of a run."""
    same: bool = record.model.sha256 == last.model.get("sha256")
    return same and _of_labels(record.settings) == _of_labels(last.resolved)


def _of_labels(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    return cleaned({key: value for key, value in settings.items() if key not in NOT_OF_LABELS})


def masked_cases(output: Store) -> list[Case]:
    """The cases of the last run that have a mask, sorted by name, also of a run that has not ended.

    Raises:
        OutputError: it is not the output of a run, or there is no such case.
    """
    last = last_run(output)
    names = sorted({*done_names(output, last), *last.skipped})
    if not names:
        raise OutputError(f"{output} must hold masks, and no case of the last run has one: run it again")
    return [Case(name, name) for name in names]


def finished_records(output: Store) -> list[Record]:
    """Records of these cases.

    Raises:
        OutputError: as of ``masked_cases``; or a record is missing, damaged or unreadable.
    """
    return list(records(output, masked_cases(output)))


def missing_mask_warnings(output: Store) -> list[str]:
    """A warning if cases of the last run have no mask, because they failed or the run did not reach them."""
    last = last_run(output)
    there = {*done_names(output, last), *last.skipped}
    names = sorted(({*(last.missing or ())} | {failure.case for failure in last.failed}) - there)
    if not names:
        return []
    total = counted(len(there) + len(names), "case")
    return [
        f"left out, because they have no mask: {len(names):,} of {total} of the last run into {output}, "
        f"{first_few(names)}: segpipe status shows why, and the command that continues"
    ]


def warn_of_missing_masks(output: Store) -> None:
    """Log the warning, if there is one."""
    for text in missing_mask_warnings(output):
        LOG.warning("warning: %s", text)

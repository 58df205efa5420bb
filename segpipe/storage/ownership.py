"""Which files a run may replace: its own, recognised by content, whatever their names."""

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from segpipe.errors import OutputError, of_system
from segpipe.messages.printable import one_row
from segpipe.storage import Store
from segpipe.storage.documents import DocumentError, parse_json
from segpipe.storage.existence import is_file
from segpipe.storage.files import output_errors
from segpipe.storage.retry import is_passing, persistently

HEAD = 2**12
"""Bytes from a file's beginning that suffice to recognise it."""

TRACE = b'{"displayTimeUnit": "ms", "traceEvents": ['
RECORD = re.compile(rb'\{\s*"case": "')
"""Beginning of a record, even a truncated one."""

SUMMARY = re.compile(rb'\{\s*"state": "\w+",\s*"command": \[\s*"segpipe"')
"""Beginning of a ``run.json``, even a truncated one."""

TABLE = b"case,class_id,"

AUDIT_TRAIL, TRAIL_START = "audit.jsonl", b'{"audit": "'

UNREADABLE = b"?"
"""Stands for content that cannot be read: it does not count as segpipe's."""

SIDECAR_DOMAIN = "SEGPIPE"
"""Metadata domain that marks a sidecar as written by segpipe."""

STYLE_KEY = "segpipe"
"""Property that marks a QGIS style as written by segpipe."""

_LOG_KEYS = ("time", "event")


def is_record(value: Any) -> bool:
    """Whether a JSON value is the record of a case, of any version."""
    return isinstance(value, dict) and "segpipe" in value


def is_summary(value: Any) -> bool:
    """Whether a JSON value is a ``run.json``."""
    return isinstance(value, dict) and isinstance(value.get("versions"), dict) and "segpipe" in value["versions"]


def _json_by(rule: Callable[[Any], bool]) -> Callable[[bytes], bool]:
    def ours(data: bytes) -> bool:
        with suppress(DocumentError):
            return rule(parse_json(data))
        return False

    return ours


_is_whole_summary = _json_by(is_summary)


def _is_own_summary(data: bytes) -> bool:
    """Whether a file is a ``run.json``, or a damaged remainder of one."""
    return SUMMARY.match(data) is not None or _is_whole_summary(data)


TABLES: dict[str, Callable[[bytes], bool]] = {
    "run.json": _is_own_summary,
    "areas.csv": lambda data: data.startswith(TABLE),
    AUDIT_TRAIL: lambda data: data.startswith(TRAIL_START),
}
"""Files of a run that belong to no case, each with the test that recognises it."""

LESIONS = "lesions.csv"
"""Table written by a run with ``--lesions``."""

ZONES, ZONED = "zones.csv", b"zone,seen_ha,"
"""Table written by a run with ``--zones``, and how it begins."""

AUDIT_WINDOWS, WINDOWS_START = "audit.csv", b"case,rank,windows,"
"""Table written by a run with ``--audit``, and how it begins."""

TRACE_NAME = "profile.json"

OWN = frozenset({*TABLES, LESIONS, ZONES, AUDIT_WINDOWS, TRACE_NAME})
"""Names of all files of a run other than masks and records."""


def is_own_record(data: bytes) -> bool:
    """Whether a file with a record's name is a record, or the remainder of one after a power cut."""
    return _is_blank(data) or is_begun_record(data) or _json_by(is_record)(data)


def is_begun_record(data: bytes) -> bool:
    """Whether a file begins as a record; the rest of it may be lost."""
    return RECORD.match(data) is not None


def is_own_sidecar(data: bytes) -> bool:
    """Whether a sidecar of a mask was written by segpipe, or is the remainder of one after a power cut."""
    return _is_blank(data) or f'domain="{SIDECAR_DOMAIN}"'.encode() in data


def is_own_style(data: bytes) -> bool:
    """Whether a style was written by segpipe, or is the remainder of one after a power cut."""
    return _is_blank(data) or f'name="{STYLE_KEY}"'.encode() in data


def _is_blank(data: bytes) -> bool:
    """Whether a file is empty or all zeros: it was not flushed before a power cut."""
    return not data.strip(b"\0")


_MORE_TABLES = {
    LESIONS: TABLES["areas.csv"],
    ZONES: lambda data: data.startswith(ZONED),
    AUDIT_WINDOWS: lambda data: data.startswith(WINDOWS_START),
}


def refuse_foreign(output: Store, name: str) -> None:
    """Refuse to replace a file that segpipe did not write by a table of the run.

    Raises:
        OutputError: with the path; also if the file cannot be read now, because it may be foreign.
    """
    try:
        data = persistently(lambda: output.read(name), retries=1)
    except FileNotFoundError:
        return
    except OSError as error:
        if is_passing(error):
            raise OutputError(
                f"{output.path(name)} would be replaced, and cannot be read: {of_system(error)}; run the same command "
                "again, move it away, or name another --output"
            ) from error
        data = UNREADABLE
    if not (_is_blank(data) or (TABLES | _MORE_TABLES)[name](data)):
        raise OutputError(
            f"{output.path(name)} was not written by segpipe, and would be replaced: move it away, or name another --output"
        )


def write_table(output: Store, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV table of a run row by row; None is an empty field, and each row is one line (``one_row``)."""
    with output.writing(name) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([one_row(value) if isinstance(value, str) else value for value in row] for row in rows)


def forget_table(output: Store, name: str) -> None:
    """Remove a table of an earlier run that this run does not write; keep a file that segpipe did not write.

    Raises:
        OutputError: the file can be neither read nor removed.
    """
    with output_errors(output.path(name)), suppress(FileNotFoundError):
        if output.read(name).startswith((TABLE, TRAIL_START, ZONED, WINDOWS_START)):
            output.remove(name)


def refuse_foreign_trace(path: str, data: bytes) -> None:
    """Check that the file of ``--profile``, which will be replaced, is a trace.

    Raises:
        OutputError: it is not.
    """
    if data and not data.startswith(TRACE):
        raise OutputError(f"--profile replaces its file, and {path} is no trace of segpipe's: name another")


def refuse_foreign_log(path: Path) -> None:
    """Check that the file of ``--log-file``, to which lines are appended, is a log of events.

    Raises:
        OutputError: it is not.
    """
    if not is_file(path):
        return
    with path.open("rb") as stream:
        first = stream.readline(HEAD)
    if first and not _json_by(lambda value: isinstance(value, dict) and all(key in value for key in _LOG_KEYS))(first):
        raise OutputError(f"--log-file appends to its file, and {path} is no log of segpipe's: name another")

"""Which files a run may replace: its own, which are known by their content, whatever their names."""

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from segpipe.errors import OutputError
from segpipe.storage import Store
from segpipe.storage.documents import DocumentError, parse_json
from segpipe.storage.retry import is_passing

HEAD = 2**12
"""Bytes of a file that are enough to know it."""

TRACE = b'{"displayTimeUnit": "ms", "traceEvents": ['
RECORD = re.compile(rb'\{\s*"case": "')
"""How a record begins, also one that has been cut."""

SUMMARY = re.compile(rb'\{\s*"state": "\w+",\s*"command": \[\s*"segpipe"')
"""How a ``run.json`` begins, also one that has been cut."""

TABLE = b"case,class_id,"

AUDIT, AUDITED = "audit.jsonl", b'{"audit": "'

UNREADABLE = b"?"
"""In place of what cannot be read: it is not segpipe's."""

SIDECAR_DOMAIN = "SEGPIPE"
"""Metadata domain by which a sidecar says who wrote it."""

STYLE_KEY = "segpipe"
"""Property by which a style for QGIS says who wrote it."""

_LOG_KEYS = ("time", "event")


def is_record(value: Any) -> bool:
    """Whether JSON is the record of a case, by whatever version."""
    return isinstance(value, dict) and "segpipe" in value


def is_summary(value: Any) -> bool:
    """Whether JSON is a ``run.json``."""
    return isinstance(value, dict) and isinstance(value.get("versions"), dict) and "segpipe" in value["versions"]


def _json_by(rule: Callable[[Any], bool]) -> Callable[[bytes], bool]:
    def ours(data: bytes) -> bool:
        with suppress(DocumentError):
            return rule(parse_json(data))
        return False

    return ours


_is_whole_summary = _json_by(is_summary)


def _is_own_summary(data: bytes) -> bool:
    """Whether a file is a ``run.json``, or what a damaged disk has left of one."""
    return SUMMARY.match(data) is not None or _is_whole_summary(data)


TABLES: dict[str, Callable[[bytes], bool]] = {
    "run.json": _is_own_summary,
    "areas.csv": lambda data: data.startswith(TABLE),
    AUDIT: lambda data: data.startswith(AUDITED),
}
"""What every run leaves that is no case's, and how each is known."""

LESIONS = "lesions.csv"
"""What a run with ``--lesions`` leaves beside them."""

TRACE_NAME = "profile.json"

OWN = frozenset({*TABLES, LESIONS, TRACE_NAME})
"""Names of all that a run leaves beside its masks and records."""


def is_own_record(data: bytes) -> bool:
    """Whether a file with a record's name is a record, or what a power cut leaves of one."""
    return _is_blank(data) or RECORD.match(data) is not None or _json_by(is_record)(data)


def is_own_sidecar(data: bytes) -> bool:
    return _is_blank(data) or f'domain="{SIDECAR_DOMAIN}"'.encode() in data


def is_own_style(data: bytes) -> bool:
    return _is_blank(data) or f'name="{STYLE_KEY}"'.encode() in data


def _is_blank(data: bytes) -> bool:
    """Empty, or zeros alone: a file that was not flushed before a power cut."""
    return not data.strip(b"\0")


def refuse_foreign(output: Store, name: str) -> None:
    """A table of a run must not replace a file that segpipe did not write.

    Raises:
        OutputError: with the path.
    """
    try:
        data = output.read(name)
    except OSError as error:
        if isinstance(error, FileNotFoundError) or is_passing(error):
            return
        data = UNREADABLE
    if not (_is_blank(data) or (TABLES | {LESIONS: TABLES["areas.csv"]})[name](data)):
        raise OutputError(f"{output.path(name)} was not written by segpipe, and would be replaced: name another --output")


def forget_table(output: Store, name: str) -> None:
    """Remove a table of an earlier run that this run does not write; a file that segpipe did not write stays."""
    try:
        data = output.read(name)
    except FileNotFoundError:
        return
    if data.startswith((TABLE, AUDITED)):
        output.remove(name)


def refuse_foreign_trace(path: str, data: bytes) -> None:
    """The file of ``--profile`` is replaced, so it must be a trace.

    Raises:
        OutputError: it is something else.
    """
    if data and not data.startswith(TRACE):
        raise OutputError(f"--profile replaces its file, and {path} is no trace of segpipe's: name another")


def refuse_foreign_log(path: Path) -> None:
    """Lines are appended to the file of ``--log-file``, so it must be a log of events.

    Raises:
        OutputError: it is something else.
    """
    if not path.is_file():
        return
    with path.open("rb") as stream:
        first = stream.readline(HEAD)
    if first and not _json_by(lambda value: isinstance(value, dict) and all(key in value for key in _LOG_KEYS))(first):
        raise OutputError(f"--log-file appends to its file, and {path} is no log of segpipe's: name another")

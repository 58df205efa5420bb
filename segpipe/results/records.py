"""The records in the output of a run, which say what each mask is and what it was made of."""

import errno
import os
from collections.abc import Callable, Iterable, Iterator

from segpipe.errors import OutputError
from segpipe.formats.case import Case
from segpipe.messages.names import folded
from segpipe.results.class_files import is_class_file
from segpipe.results.schema import LaterSchemaError, Record, parse_record
from segpipe.results.targets import past_targets, record_name
from segpipe.storage import Store
from segpipe.storage.documents import DocumentError
from segpipe.storage.files import reading_errors
from segpipe.storage.ownership import is_own_record
from segpipe.storage.paths import is_remote


def read_record(output: Store, case: Case) -> Record | None:
    """The record of a case; None if it is missing or damaged.

    Raises:
        OutputError: it may exist, but cannot be read now.
    """
    data = _data(output, case)
    return None if data is None else _parsed(data, case)


def finished_record(output: Store, case: Case) -> Record:
    """The record of a case that is done.

    Raises:
        OutputError: it is missing or damaged, or cannot be read now.
    """
    data = _data(output, case)
    record = None if data is None else _parsed(data, case)
    if record is None:
        path, defect = output.path(record_name(case)), "is missing" if data is None else _defect(data)
        # a file server may show what another machine wrote only when its cache expires, so a retry may succeed
        cause = OSError(errno.ESTALE, os.strerror(errno.ESTALE)) if data is None else None
        raise OutputError(
            f"{path} must be the record of a case that is done, and {defect}: run again with the same output"
        ) from cause
    return record


def records(output: Store, cases: Iterable[Case]) -> Iterator[Record]:
    """Records of cases that are done, in order, one at a time.

    Raises:
        OutputError: one is missing or damaged, or cannot be read now.
    """
    return (finished_record(output, case) for case in cases)


def usable_record(output: Store, case: Case, warn: Callable[[str], None]) -> Record | None:
    """The record of a case; None, with a warning, if it cannot be used."""
    try:
        data = _data(output, case)
    except OutputError as error:
        warn(f"warning: {error}: its case is done again")
        return None
    record = None if data is None else _parsed(data, case)
    if data is not None and record is None and is_own_record(data):
        warn(f"warning: {output.path(record_name(case))} {_defect(data)}: its case is done again")
    return record


def alike_case(output: Store, case: Case) -> str | None:
    """Another case whose record has the same name on this file system, which may not distinguish ``A`` and ``a``; or None.

    Raises:
        OutputError: the record may exist, but cannot be read now.
    """
    data = None if is_remote(output.path(record_name(case))) else _data(output, case)
    try:
        name = case.name if data is None else parse_record(data).case
    except DocumentError:
        return None
    return name if name != case.name and folded(name) == folded(case.name) else None


def _data(output: Store, case: Case) -> bytes | None:
    """The bytes of the record; None if it is missing."""
    name = record_name(case)
    with reading_errors(output.path(name)):
        return output.read_if_there(name)


def _parsed(data: bytes, case: Case) -> Record | None:
    """The record in ``data``; None unless it is a complete record of this case that names only the case's outputs."""
    try:
        record = parse_record(data)
    except DocumentError:
        return None
    return record if record.case == case.name and _names_own_files(record, case) else None


def _names_own_files(record: Record, case: Case) -> bool:
    others = {name for name in record.outputs if not is_class_file(case, name)}
    return others <= {*past_targets(case)} and record.thumbnail in (None, *record.outputs)


def _defect(data: bytes) -> str:
    """Why a record cannot be used."""
    try:
        parse_record(data)
    except LaterSchemaError as error:
        return str(error)
    except DocumentError:
        pass
    return "is damaged"

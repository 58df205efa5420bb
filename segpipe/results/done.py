"""Which cases are done: their records match input, model and settings, and their files are whole."""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache

from segpipe.errors import SourceError, of_system
from segpipe.formats.case import Case
from segpipe.formats.identity import FolderListings, Identity, hidden_path
from segpipe.formats.registry import FORMATS
from segpipe.formats.scene_masks import without_mask
from segpipe.messages.url_secrets import cleaned
from segpipe.overrides import Overrides
from segpipe.results.class_files import has_class_files
from segpipe.results.records import usable_record
from segpipe.results.run import SEG, Run
from segpipe.results.schema import Record
from segpipe.results.targets import style_name
from segpipe.storage import Store
from segpipe.storage.retry import is_passing, persistently

LOG = logging.getLogger("segpipe")

RETRIES = 1
"""Retries per case; more would delay every case while a file server is down."""


def is_done(
    case: Case, run: Run, listings: FolderListings | None = None, warn: Callable[[str], None] = lambda _: None
) -> bool:
    """Whether the mask of a case exists and its record matches input, model and settings; False if that is unknown.

    Args:
        case: the case.
        run: the run with the model and the settings.
        listings: recent listings of folders, shared between cases.
        warn: called with a line for each mask or record that is damaged, or cannot be read at present.
    """
    return _done_record(case, run, listings or FolderListings(), warn) is not None


def done_pixels(case: Case, run: Run, listings: FolderListings | None = None) -> int | None:
    """Number of pixels of a case that is done; None if it is not done, or that is unknown."""
    record = _done_record(case, run, listings or FolderListings(), lambda _: None)
    return None if record is None else math.prod(record.input.shape)


def done_cases(cases: Iterable[Case], run: Run) -> list[Case]:
    """The cases that are done; a warning names each damaged mask or record.

    In a bucket, each check for a record is a request, so folders of the output without any record are skipped.
    """
    output, listings = run.output, FolderListings()

    @cache
    def has_records(folder: str) -> bool:
        try:
            return any(name.endswith(".json") for name in output.below(folder))
        except OSError:
            return True  # the next request may succeed

    there = (case for case in cases if has_records(case.name.rpartition("/")[0]))
    return [case for case in there if is_done(case, run, listings, LOG.warning)]


def _done_record(case: Case, run: Run, listings: FolderListings, warn: Callable[[str], None]) -> Record | None:
    """The record of a case that is done; None if it is not done, or, with a warning, if that cannot be determined."""
    try:
        return persistently(lambda: _done_record_now(case, run, listings, warn), RETRIES)
    except (OSError, SourceError) as error:
        if isinstance(error, OSError):
            warn(f"warning: {error.filename or case.path} cannot be read: {of_system(error)}: its case is done again")
        elif is_passing(error):
            warn(f"warning: {error}: its case is done again")
        return None


def _done_record_now(case: Case, run: Run, listings: FolderListings, warn: Callable[[str], None]) -> Record | None:
    record = usable_record(run.output, case, warn)
    return record if record is not None and _is_done(record, case, run, listings, warn) else None


def _is_done(record: Record, case: Case, run: Run, listings: FolderListings, warn: Callable[[str], None]) -> bool:
    return (
        record.model.sha256 == run.model.sha256
        and _has_settings(record, case, run)
        and (record.confidence or not run.settings.confidence)
        and _has_lesions(record, run)
        and _has_audit(record, run)
        and (record.verified is True or not run.settings.verify_input)
        and (style_name(case) in record.outputs or not run.styles(case))
        and (not run.settings.per_class or has_class_files(case.name, record.outputs))
        and _is_same_input(record, case, listings, run.settings.overrides)
        and _are_whole(run.output, record, warn)
    )


def _has_settings(record: Record, case: Case, run: Run) -> bool:
    """Whether labels and derived files are as the run requests; an additional report is accepted."""
    settings = dict(record.settings)
    seg, report = settings.pop("seg", SEG), settings.pop("report", False)
    made = seg == run.settings.seg and (report is True or run.settings.report is None)
    return settings == cleaned(run.label_settings) and (made or not FORMATS[case.format].derives)


def _has_lesions(record: Record, run: Run) -> bool:
    """Whether the requested components have been measured."""
    rule = run.lesions
    return rule is None or (record.lesions is not None and rule.as_json().items() <= record.lesions.items())


def _has_audit(record: Record, run: Run) -> bool:
    """Whether the audit lists as many windows as requested, or all windows of the case."""
    if run.settings.audit is None:
        return True
    rows = record.statistics.get("audit")
    return rows is not None and (not rows or len(rows) >= min(run.settings.audit, rows[0].get("windows", math.inf)))


def _is_same_input(record: Record, case: Case, listings: FolderListings, overrides: Overrides) -> bool:
    """Whether the files of a case are unchanged since its record was written."""
    there = listings.place(case.path)
    place = there if record.input.path == hidden_path(there) else record.input.path
    files: Sequence[Identity] | None = record.input.files
    if overrides.validity is not None:
        files = without_mask(record.input.files, case, overrides.validity, listings, remote=overrides.remote)
    return files is not None and FORMATS[case.format].is_same_input(place, files, case, listings, overrides.remote)


def _are_whole(output: Store, record: Record, warn: Callable[[str], None]) -> bool:
    """Whether all files of a case exist, none is empty, and its masks have the recorded length and do not begin with zeros.

    Other damage is not checked, since every run would then read all masks of a folder. A longer mask was edited, for example
    by adding overviews, and counts as whole.
    """
    lengths = record.sizes or {}
    for name in record.outputs:
        size, least = output.size(name), lengths.get(name)
        if size is None:
            return False
        if (damage := _damage(output, name, size, least)) is not None:
            warn(f"warning: {output.path(name)} is damaged: {damage}: its case is done again")
            return False
    return True


def _damage(output: Store, name: str, size: int, least: int | None) -> str | None:
    """What is wrong with a file of a case; only masks have a length that is known."""
    if least is None:
        return None if size else "it is empty"
    if size < least:
        return f"{size:,} of {least:,} bytes"
    return "it begins with zeros" if output.is_blank(name) else None

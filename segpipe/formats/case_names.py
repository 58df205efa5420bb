"""Names of cases, after which masks are named: numbers in place of paths, and names that no mask can have."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import attrgetter

from segpipe.errors import OutputError
from segpipe.formats.case import Case, Failure, without_path
from segpipe.formats.registry import CONFIDENCE, FORMATS
from segpipe.storage import check_name

NO_UID = "{} must have a UID, after which --case-name uid names its mask, and only DICOM has one: give --case-name number"


Named = tuple[list[Case], dict[Case, str]]
"""Cases by their new names, in the order of these, and the errors of some of them, which name no path either."""


def numbered(cases: Sequence[Case], errors: Mapping[Case, str]) -> Named:
    """Number the cases from 1 in their order, so that no folder name appears in the output."""
    digits = max(4, len(str(len(cases))))
    named = [replace(case, name=f"{number:0{digits}}") for number, case in enumerate(cases, 1)]
    found = {new: old for old, new in zip(cases, named, strict=True) if old in errors}
    return named, {new: _renamed(errors[old], old, new) for new, old in found.items()}


def named_by_uid(cases: Sequence[Case], errors: Mapping[Case, str]) -> Named:
    """Number the cases that are refused, or have no UID and therefore are, so that no folder name appears in the output."""
    errors = {**errors, **{case: NO_UID.format(case.path) for case in cases if FORMATS[case.format].finder is None}}
    refused = [case for case in cases if case in errors]
    names = {case: replace(case, name=f"without-uid-{number:04}") for number, case in enumerate(refused, 1)}
    own = {(new := names.get(case, case)): _renamed(error, case, new) for case, error in errors.items()}
    return sorted((names.get(case, case) for case in cases), key=attrgetter("name")), own


def _renamed(error: str, old: Case, new: Case) -> str:
    """An error with the new name of its case in place of the old one and of its path."""
    return re.sub(rf"(?<![\w./-]){re.escape(old.name)}", lambda _: new.name, without_path(error, new))


def refusals(cases: Sequence[Case], errors: Mapping[Case, str]) -> Iterator[Failure]:
    """Yield cases that cannot be done, one per name: where several share a name, the first stands for all."""
    for _, sharing in groupby(cases, attrgetter("name")):
        case, *others = sorted(sharing, key=attrgetter("path"))
        error = _shared(case, others) if others else errors.get(case) or _misnamed(case)
        if error is not None:
            yield Failure(case, error)


def _shared(case: Case, others: Sequence[Case]) -> str:
    more = f" and {len(others) - 1} more" * (len(others) > 1)
    return (
        f"{'two' if len(others) == 1 else len(others) + 1} inputs would get one name, {case.name}: "
        f"{case.path} and {others[0].path}{more}: rename one, or give them in runs of their own"
    )


def _misnamed(case: Case) -> str | None:
    """Why a mask cannot have this name; None if it can."""
    if case.name == "run" or case.name.endswith(CONFIDENCE):
        return f"the names run and *.confidence are reserved, got {case.path}: rename it"
    try:
        check_name(case.name)
    except OutputError as error:
        return f"{error}: rename {case.path}"
    return None

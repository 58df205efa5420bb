"""Find the cases of a run: files, folders, globs, lists and GDAL paths become named cases."""

import glob
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

from segpipe.errors import InputError, case_errors
from segpipe.formats import banded
from segpipe.formats.case import EVERY_CASE, BandsFrom, Case, CaseSelection, Channels, Failure, FamilyCases, Grouped
from segpipe.formats.case_names import named_by_uid, numbered, refusals
from segpipe.formats.channels import group
from segpipe.formats.left_out import count_left_out, listed, suffix_of, without_unusual
from segpipe.formats.registry import FORMATS, RASTER, find_in_family
from segpipe.formats.scene_masks import with_masks
from segpipe.formats.scenes.search import is_safe_folder
from segpipe.formats.search import Search, expand
from segpipe.storage.content import describe
from segpipe.storage.existence import is_folder
from segpipe.storage.paths import is_remote


@dataclass(frozen=True, slots=True)
class Found:
    """Result of the search of a run's inputs."""

    cases: list[Case]
    """Sorted by name, each name once."""
    left_out: dict[str, int]
    """Number of files in folders and globs that were not taken, by suffix, or by kind if a format knows it."""
    refused: list[Failure]
    """Inputs that cannot become a mask, whatever they contain, by the names of their masks; none is among the cases."""
    problems: list[str]
    """Folders that could not be read."""

    @property
    def all(self) -> list[Case]:
        """Cases and those refused, sorted by name."""
        if not self.refused:
            return self.cases
        return sorted([*self.cases, *(failure.case for failure in self.refused)], key=attrgetter("name"))

    def named(self, names: Collection[str]) -> "Found":
        """The same search, but only of cases with these names."""
        cases = [case for case in self.cases if case.name in names]
        return replace(self, cases=cases, refused=[failure for failure in self.refused if failure.case.name in names])

    def without(self, refused: Sequence[Failure]) -> "Found":
        """The same search, but with these cases refused."""
        if not refused:
            return self
        names = {failure.case.name for failure in refused}
        cases = [case for case in self.cases if case.name not in names]
        return replace(self, cases=cases, refused=[*self.refused, *refused])


def find_cases(inputs: Sequence[str], choice: CaseSelection = EVERY_CASE) -> list[Case]:
    """All cases that the inputs name, each once, sorted by name; for commands that need every input.

    Raises:
        InputError: an input cannot be read.
    """
    found = find_input(inputs, choice)
    for problem in (*found.problems, *(failure.error for failure in found.refused)):
        raise InputError(problem)
    return found.cases


def find_input(inputs: Sequence[str], choice: CaseSelection = EVERY_CASE) -> Found:
    """Search the inputs for cases, each once, sorted by name; report files that are left out or refused.

    Args:
        inputs: files, folders, globs, lists and URLs.
        choice: selection of series, names of cases, and grouping of channel files.

    Raises:
        InputError: an input does not exist, or contains no case.
    """
    search = Search(choice=choice)
    named = [_named_by(text, search) for text in inputs]
    grouped = list(_families(search))  # of all inputs together, as files of one series may lie in several
    _check_found(named, grouped, search)
    cases = [*(case for one in named for case in one.cases), *grouped]
    if len(named) > 1:  # a single input needs no table, which would be larger than the cases
        cases = list({case.path: case for case in reversed(cases)}.values())  # the first input names a path
    cases.sort(key=attrgetter("name"))
    cases = [case for case, before in zip(cases, [None, *cases], strict=False) if case != before]  # listed twice
    others = count_left_out(search.others, cases)
    cases = _named(_joined(cases, search), search)
    left_out = {**others, **dict(sorted(search.left_out.items()))}
    left_out = left_out if choice.names == "path" else without_unusual(left_out)
    refused = list(refusals(cases, search.errors))
    names = {failure.case.name for failure in refused}
    cases = [case for case in cases if case.name not in names] if names else cases
    return Found(cases, left_out, refused, search.listing.problems)


def _joined(cases: list[Case], search: Search) -> list[Case]:
    """Make one case of the files that belong together by the user's choice."""
    choice = search.choice
    cases = cases if choice.channels is None else _of_channels(cases, choice.channels, search)
    cases = cases if choice.bands is None else _of_bands(cases, choice.bands, search)
    if choice.validity is not None:
        cases, masks = with_masks(cases, choice.validity)
        search.left_out.update({"validity masks": masks} if masks else {})
    return cases


def _named(cases: list[Case], search: Search) -> list[Case]:
    """Name the cases as the user chose."""
    if search.choice.names == "number":
        cases, search.errors = numbered(cases, search.errors)
    elif search.choice.names == "uid":
        cases, search.errors = named_by_uid(cases, search.errors)
    return cases


@dataclass(frozen=True, slots=True)
class _Named:
    """What one input names."""

    text: str
    cases: list[Case]
    claimed: set[str]
    """Paths of the files that formats claim in order to find cases in them."""
    problem: str | None
    """A folder that could not be read."""


def _named_by(text: str, search: Search) -> _Named:
    before, problems = {name: len(files) for name, files in search.claimed.items()}, len(search.listing.problems)
    cases = list(expand(text, search))
    claimed = {path for name, files in search.claimed.items() for _, path in files[before.get(name, 0) :]}
    return _Named(text, cases, claimed, next(iter(search.listing.problems[problems:]), None))


def _check_found(named: Sequence[_Named], grouped: Sequence[Case], search: Search) -> None:
    """Check that every input has a case.

    Raises:
        InputError: one has none.
    """
    lacking = [one for one in named if not one.cases]
    if len(named) == 1:
        lacking = lacking if not grouped else []
    elif lacking:
        taken = {file for case in grouped for file in (case.path, *FORMATS[case.format].files(case))}
        lacking = [one for one in lacking if not one.claimed & taken]
    for one in lacking:
        raise InputError(one.problem or next(iter(search.listing.problems), None) or _nothing(one.text, search))


def _nothing(text: str, search: Search) -> str:
    """The message for an input without a case."""
    if is_safe_folder(text):
        return (
            f"a .SAFE folder must have the metadata of its product, MTD_MSIL1C.xml or MTD_MSIL2A.xml, and {text} holds "
            "nothing that can be read: download or unpack the product again"
        )
    if not is_remote(text) and (folder := next(filter(os.path.isdir, glob.iglob(text)), None)) not in (None, text):
        return f"a glob takes files, and {text} matches folders, such as {folder}: end it with /** for the files in them"
    if not is_remote(text) and is_folder(text) and (kind := describe(text)) is not None:
        return kind
    left = {**count_left_out(search.others, []), **search.left_out}
    held = f", and this one holds {listed(left)}" if left else ""
    suffixes = " ".join(sorted(search.known))
    return f"no raster or volume found in {text}: a folder is searched for {suffixes}{held}"


def _families(search: Search) -> Iterator[Case]:
    """Yield the cases that formats find among the files that they claimed."""
    for name, claimed in search.claimed.items():
        files = list({path: (below, path) for below, path in reversed(claimed)}.values())[::-1]  # each once
        found = FamilyCases()
        with case_errors(files[0][1]) as caught:  # an unforeseen error in one format does not end the whole search
            found = find_in_family(name, files, search.choice)
        if caught.error is not None:
            search.listing.add_problem(files[0][1], str(caught.error))
        yield from found.cases
        search.errors.update(found.errors)
        search.left_out.update(found.left_out)
        search.others += found.others


def _of_channels(cases: list[Case], channels: Channels, search: Search) -> list[Case]:
    """Group files with one channel each into cases.

    Raises:
        InputError: no file matches the patterns that the user gave.
    """
    one_each = [case for case in cases if FORMATS[case.format].per_channel and case not in search.errors]
    if not one_each:
        return cases
    grouped = group(one_each, channels)
    if not grouped.cases:
        raise InputError(
            f"--channels must match files of the input, got {', '.join(channels.patterns or ())} and files such as "
            f"{one_each[0].path}"
        )
    return _with_groups(cases, one_each, grouped, search)


def _of_bands(cases: list[Case], rule: BandsFrom, search: Search) -> list[Case]:
    """Group rasters with one band each into scenes.

    Raises:
        InputError: no file matches the pattern of the user.
    """
    rasters = [case for case in cases if case.format == RASTER and case not in search.errors]
    remote = next((case.path for case in rasters if is_remote(case.path)), None)
    if remote is not None:
        raise InputError(
            f"--bands-from groups files of this machine, got {remote}: bring the files here, or stack them as a COG"
        )
    grouped = banded.group(rasters, rule)
    if not grouped.cases:
        held = f" and files such as {rasters[0].path}" if rasters else ""
        wanted = ", ".join(rule.names) or "some dates"
        raise InputError(f"--bands-from must match files of the input, one for each of {wanted}, got {rule.pattern}{held}")
    return _with_groups(cases, rasters, grouped, search)


def _with_groups(cases: list[Case], files: Sequence[Case], grouped: Grouped, search: Search) -> list[Case]:
    """Put the cases that were made of some files in the place of these, sorted by name."""
    search.errors.update(grouped.errors)
    search.left_out.update(map(suffix_of, grouped.others))
    gone = set(files)
    return sorted([case for case in cases if case not in gone] + grouped.cases, key=attrgetter("name"))

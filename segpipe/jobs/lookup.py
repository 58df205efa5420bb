"""Which case of a run is which path, and which path a hash in a message or a record stands for."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from segpipe.errors import SettingsError
from segpipe.formats.banded import bands_from
from segpipe.formats.case import CaseSelection
from segpipe.formats.cases import Found, find_input
from segpipe.formats.channels import channels_of
from segpipe.formats.registry import FORMATS, by_suffix, split_suffix
from segpipe.formats.search import fixed_root
from segpipe.messages.redaction import DIGITS, digest, path_digest
from segpipe.network.joined_spec import spec_of_run
from segpipe.settings import Settings, load_settings

CODE = re.compile(rf"\[?(?:path |name |sha256:)?([0-9a-f]{{{DIGITS}}})[0-9a-f]*\]?")
"""A hash, alone or as messages and records have it."""

NO_MODEL = Path("no-model")


def named_cases(config: Path | None, flags: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """A line with name and path of each case, and the errors of inputs.

    Raises:
        SegpipeError: the inputs, or the model, cannot be read.
    """
    found = _found(_settings(config, flags))
    cases = [*found.cases, *(failure.case for failure in found.refused)]
    return [f"{case.name}  {case.path}" for case in sorted(cases, key=lambda case: case.name)], found.problems


def paths_of(config: Path | None, flags: Mapping[str, Any], codes: Sequence[str]) -> tuple[list[str], list[str]]:
    """A line for each path below the inputs that a hash stands for, and an error for each hash that stands for none.

    Raises:
        SegpipeError: a hash is none, or the inputs cannot be read.
    """
    wanted = {_digits(text): text for text in codes}
    settings = _settings(config, flags)
    found = {digits: list[str]() for digits in wanted}
    for path in dict.fromkeys(_places(settings)):
        for digits in _codes(path) & wanted.keys():
            found[digits].append(path)
    lines = [f"{digits}  {path}" for digits, paths in found.items() for path in sorted(paths)]
    what = (
        "a hash must stand for a path of the inputs, and {} stands for none: give the inputs of the run, in the same place"
    )
    return lines, [what.format(wanted[digits]) for digits, paths in found.items() if not paths]


def _digits(text: str) -> str:
    if (found := CODE.fullmatch(text.strip())) is None:
        raise SettingsError(f"a hash must have {DIGITS} digits as in a message, or those of a record, got {text}")
    return found[1]


def _settings(config: Path | None, flags: Mapping[str, Any]) -> Settings:
    given = {key: value for key, value in flags.items() if key != "model" or value}
    if config is not None or given.get("model"):
        return load_settings(config, given)
    for flag in ("channels", "bands_from"):
        if given.get(flag) is not None:
            raise SettingsError(f"--{flag.replace('_', '-')} names channels of the model: give it with --model")
    return load_settings(None, {**given, "model": (NO_MODEL,)})


def _found(settings: Settings) -> Found:
    channels, bands = None, None
    if settings.model != (NO_MODEL,):
        contract = spec_of_run(settings).contract
        channels, bands = channels_of(contract, settings.channels), bands_from(settings.bands_from, contract)
    return find_input(settings.input, CaseSelection(settings.series, settings.case_name, channels, bands))


def _places(settings: Settings) -> Iterator[str]:
    """All paths that messages of a run may have: inputs, what lies below them, and cases."""
    for text in settings.input:
        yield text
        root = str(fixed_root(text))
        for folder, folders, files in os.walk(root if not os.path.isdir(text) else text):  # noqa: PTH112
            yield folder
            yield from (os.path.join(folder, name) for name in (*folders, *files))  # noqa: PTH118
    for case in _found(settings).cases:
        yield case.path
        yield from FORMATS[case.format].files(case)


def _codes(path: str) -> set[str]:
    """The hashes that stand for a path, or for its name."""
    name = os.path.basename(path.rstrip("/"))  # noqa: PTH119
    stem = split_suffix(name, _KNOWN)[0]
    real = {digest(os.path.realpath(path))} if "://" not in path else set[str]()
    return {path_digest(path), digest(name), digest(stem), digest(os.path.splitext(name)[0]), *real}  # noqa: PTH122


_KNOWN = by_suffix()

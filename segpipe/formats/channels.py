"""Group files with one channel each into cases: by numbers at the end of names, or by patterns of the user."""

import os
import re
from collections.abc import Iterator, Sequence

from segpipe.contract import Contract
from segpipe.errors import SettingsError
from segpipe.formats.case import Case, ChannelFiles, Channels, Grouped
from segpipe.messages.printable import counted
from segpipe.overrides import Patterns

NUMBERED = re.compile(r"(.+)_(\d{4})")
"""Name of a file with one channel, as in nnU-Net: ``liver_003_0001`` is channel 1 of the case ``liver_003``."""


def channels_of(contract: Contract, given: Patterns | None) -> Channels | None:
    """The channels to group files by; None if each file is a case.

    Files for a model of nnU-Net have numbers even if it has one channel.

    Raises:
        SettingsError: ``--channels`` does not name the model's channels.
    """
    count, names = contract.channel_count, contract.channel_names
    if given is None:
        numbered = count > 1 or "nnunet" in contract.provenance
        return Channels(_labels(count, names)) if numbered else None
    patterns = dict(given)
    if len(patterns) < len(given) or len(given) != count or (names is not None and patterns.keys() != set(names)):
        wanted = str(count) if names is None else ", ".join(names)
        raise SettingsError(f"--channels must name each of the model's channels once, {wanted}, got {', '.join(patterns)}")
    return Channels(tuple(names or patterns), tuple(patterns[name] for name in names or patterns))


def _labels(count: int, names: Sequence[str] | None) -> tuple[str, ...]:
    """Labels such as ``channel 1 (FLAIR)``, numbered as in file names."""
    return tuple(f"channel {k}" + (f" ({names[k]})" if names else "") for k in range(count))


def group(cases: Sequence[Case], channels: Channels) -> Grouped:
    """Group the files of each case. Files must be of formats with one channel per file."""
    return _by_number(cases, channels) if channels.patterns is None else _by_pattern(cases, channels, channels.patterns)


def _by_number(cases: Sequence[Case], channels: Channels) -> Grouped:
    """Group files ``NAME_0000``, ``NAME_0001`` ...; every other file is a case."""
    found = [(case, NUMBERED.fullmatch(case.name)) for case in cases]
    stems = {match[1] for _, match in found if match is not None and int(match[2]) < len(channels.labels)}
    alone = [case for case, match in found if match is None or match[1] not in stems]
    together: dict[str, list[tuple[int, Case]]] = {}
    for case, match in found:
        if match is not None and match[1] in stems:
            together.setdefault(match[1], []).append((int(match[2]), case))
    return _collected(together, channels, alone, [])


def _by_pattern(cases: Sequence[Case], channels: Channels, patterns: Sequence[str]) -> Grouped:
    expressions = [re.compile(rf"((?:.*/)?){_expression(pattern)}") for pattern in patterns]
    together: dict[str, list[tuple[int, Case]]] = {}
    others = []
    for case in cases:
        file = os.path.join(os.path.dirname(case.name), os.path.basename(case.path))  # noqa: PTH118, PTH119, PTH120
        matches = [(k, match) for k, one in enumerate(expressions) if (match := one.fullmatch(file))]
        for k, match in matches:
            folder, *parts = match.groups()
            together.setdefault(folder + "/".join(parts), []).append((k, case))
        if not matches:
            others.append(case.path)
    return _collected(together, channels, [], others)


def _expression(pattern: str) -> str:
    return "([^/]+)".join(map(re.escape, pattern.split("*")))


def _collected(
    together: dict[str, list[tuple[int, Case]]], channels: Channels, alone: list[Case], others: list[str]
) -> Grouped:
    grouped = Grouped(alone, {}, others)
    for name, files in together.items():
        files.sort(key=lambda file: (file[0], file[1].path))
        first, paths = files[0][1], tuple(case.path for _, case in files)
        case = Case(name, first.path, first.format, ChannelFiles(paths) if len(channels.labels) > 1 else first.index)
        grouped.cases.append(case)
        if (error := _error(case, files, channels)) is not None:
            grouped.errors[case] = error
    return grouped


def _error(case: Case, files: Sequence[tuple[int, Case]], channels: Channels) -> str | None:
    """The reason why a case does not have one file per channel; None if it has."""
    numbers, count = [k for k, _ in files], len(channels.labels)
    if numbers == list(range(count)):
        return None
    held = ", ".join(os.path.basename(one.path) for _, one in files)  # noqa: PTH119
    for k, label in enumerate(channels.labels):
        if k not in numbers:
            wanted = f"{case.name}_{k:04}" if channels.patterns is None else f"like {channels.patterns[k]}"
            mend = ": if each file holds all channels, rename it, so that it does not end with a number of four digits"
            return (
                f"{case.name}: {label} has no file {wanted}, got {held}"
                f"{mend * (channels.patterns is None and len(files) == 1) or ': add it, or take the others away'}"
            )
    if numbers[-1] >= count:
        return f"{case.name}: the model takes {counted(count, 'channel')}, got {held}: take away what is not of the model"
    return f"{case.name}: each channel must have one file, got {held}: take away one, or change --channels"


def files_of(case: Case) -> tuple[str, ...]:
    """The paths of all files that are opened for a case."""
    return case.index.paths if isinstance(case.index, ChannelFiles) else (case.path,)


def per_channel(case: Case, contract: Contract) -> Iterator[tuple[Case, Contract]]:
    """Yield a case and a contract for each file of a case with one file per channel."""
    for channel, path in enumerate(files_of(case)):
        yield Case(case.name, path, case.format), contract.of_channels((channel,))

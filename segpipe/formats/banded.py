"""Group rasters of one band, date or input each into scenes, by a pattern of the user: ``--bands-from``."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from segpipe.contract import Contract
from segpipe.errors import SettingsError
from segpipe.formats.case import RASTER, SCENE, BandsFrom, Case, Grouped, SceneFiles
from segpipe.formats.file_channels import (
    DATE,
    WORD,
    FileChannels,
    channels_of_dates,
    channels_of_inputs,
    chronological,
    dates_of,
    listed_words,
)


def bands_from(pattern: str | None, contract: Contract) -> BandsFrom | None:
    """The rule of ``--bands-from`` for a model's channels; None if there is none.

    Raises:
        SettingsError: the channels have no names, or the contract says nothing of dates or inputs.
    """
    if pattern is None:
        return None
    if "{input" in pattern:
        return BandsFrom(pattern, channels_of_inputs(pattern, contract)[0], "input", contract=contract)
    if "{date" in pattern:
        return _by_date(pattern, contract)
    if (names := contract.channel_names) is None:
        raise SettingsError(
            "--bands-from finds files by the names of the model's channels, and its contract has none: give names, such as "
            'channels = ["B04", "B03", "B02"], with --contract'
        )
    return BandsFrom(pattern, names)


def _by_date(pattern: str, contract: Contract) -> BandsFrom:
    names, count = listed_words(pattern, "date"), dates_of(contract)
    if names and count is not None and len(names) != count:
        raise SettingsError(f"--bands-from must list the model's {count} dates, got {len(names)}: {', '.join(names)}")
    return BandsFrom(pattern, names, "date", count, contract)


def group(cases: Sequence[Case], rule: BandsFrom) -> Grouped:
    """Group rasters of one band each into scenes."""
    expression, spellings = _expression(rule)
    together: dict[str, list[tuple[str, str]]] = {}
    grouped = Grouped()
    for case in cases:
        file = case.name + os.path.splitext(case.path)[1]  # noqa: PTH122
        match = expression.fullmatch(file) if case.format == RASTER else None
        if match is None:
            grouped.others.append(case.path)
        else:
            band = spellings.get(match["band"].casefold(), match["band"])
            together.setdefault((match["folder"] or "") + match["case"], []).append((band, case.path))
    for name, files in together.items():
        root = os.path.dirname(files[0][1])  # noqa: PTH120
        names, wrong = _names(name, files, rule)
        scene = _scene(files, names, root, name)
        channels = None if wrong or rule.by == "band" else _channels(rule, len(names))
        scene = scene if channels is None else replace(scene, kind="parts", channels=channels)
        case = Case(name, os.path.join(root, os.path.basename(name)), SCENE, scene)  # noqa: PTH118, PTH119
        grouped.cases.append(case)
        errors = [wrong] if wrong else _errors(name, files, replace(rule, names=tuple(names)))
        if rule.by != "band" and not wrong and channels is None:
            errors = [_uneven(name, names, rule)]
        grouped.errors.update((case, error) for error in errors)
    return grouped


def _names(name: str, files: Sequence[tuple[str, str]], rule: BandsFrom) -> tuple[Sequence[str], str]:
    """What each file of a case is, in the model's order; and why that is not known, if it is not."""
    if rule.names:
        return rule.names, ""
    found = list(dict.fromkeys(date for date, _ in files))
    try:
        dates = chronological(found)
    except ValueError as error:
        return found, f"{name}: {error}"
    if rule.count is not None and len(dates) != rule.count:
        return dates, (
            f"{name}: the model takes {rule.count} dates, got {len(dates)}, {', '.join(dates)}: add what is missing, or "
            "take the others away"
        )
    return dates, ""


def _channels(rule: BandsFrom, count: int) -> FileChannels | None:
    """Channels of the model in each file of a case."""
    assert rule.contract is not None
    return (
        channels_of_inputs(rule.pattern, rule.contract)[1] if rule.by == "input" else channels_of_dates(rule.contract, count)
    )


def _uneven(name: str, names: Sequence[str], rule: BandsFrom) -> str:
    assert rule.contract is not None
    return (
        f"{name}: each date must have as many channels, got {len(names)} dates, {', '.join(names)}, for "
        f"{rule.contract.channel_count} channels: add what is missing, or take the others away"
    )


def _scene(files: Sequence[tuple[str, str]], names: Sequence[str], root: str, title: str) -> SceneFiles:
    """Files in the order of the model's channels."""
    ordered = sorted(files, key=lambda file: names.index(file[0]))
    return SceneFiles("bands", root, tuple(path for _, path in ordered), tuple(band for band, _ in ordered), title)


def _errors(name: str, files: Sequence[tuple[str, str]], rule: BandsFrom) -> Iterator[str]:
    held = ", ".join(sorted(os.path.basename(path) for _, path in files))  # noqa: PTH119
    found = [band for band, _ in files]
    for band in rule.names:
        text = rule.pattern.replace("{case}", os.path.basename(name))  # noqa: PTH119
        wanted = WORD.sub(band, text)
        if band not in found:
            yield f"{name}: {band} has no file {wanted}, got {held}: add it, or change --bands-from"
            return
        if found.count(band) > 1:
            yield f"{name}: {band} must have one file like {wanted}, got {held}: take away one, or change --bands-from"
            return


def _expression(rule: BandsFrom) -> tuple[re.Pattern[str], dict[str, str]]:
    """What a file's path must match, and the channel of each spelling of a band, in lower case."""
    spellings = {spelling.casefold(): name for name in rule.names for spelling in _spellings(name, rule)}
    spellings |= {name.casefold(): name for name in rule.names}
    bands = "|".join(map(re.escape, sorted(spellings, key=len, reverse=True))) or DATE
    words, seen = [r"(?P<folder>(?:.*/)?)"], False
    for word in re.split(r"(\{[^{}]*\}|\*)", rule.pattern.lstrip("/")):
        if word == "{case}":  # the shortest, so that a date is whole: a_2024-03-01 is not a_2024 on the first of March
            words.append("(?P=case)" if seen else f"(?P<case>[^/]+{'?' * (not rule.names)})")
            seen = True
        elif WORD.fullmatch(word):
            words.append(f"(?P<band>(?i:{bands}))")
        else:
            words.append("[^/]*" if word == "*" else re.escape(word))
    return re.compile("".join(words)), spellings


def _spellings(name: str, rule: BandsFrom) -> tuple[str, ...]:
    """
    >>> rule = BandsFrom("{case}_{band}.tif", ())
    >>> _spellings("B4", rule), _spellings("B08", rule), _spellings("B12", rule), _spellings("red", rule)
    (('B4', 'B04'), ('B8', 'B08'), ('B12', 'B12'), ('red',))
    """
    if rule.by != "band":
        return (name,)
    match = re.fullmatch(r"[Bb]0*(\d{1,2})", name)
    return (f"B{match[1]}", f"B{match[1]:0>2}") if match else (name,)

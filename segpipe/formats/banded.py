"""Group rasters of one band each into scenes, by a pattern of the user: ``--bands-from``."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from segpipe.errors import SettingsError
from segpipe.formats.case import RASTER, SCENE, BandsFrom, Case, SceneFiles


@dataclass(frozen=True, slots=True)
class Grouped:
    """Cases after rasters of one band were grouped."""

    cases: list[Case] = field(default_factory=list)
    errors: dict[Case, str] = field(default_factory=dict)
    """Errors of cases, also listed in ``cases``, that cannot be done."""
    others: list[str] = field(default_factory=list)
    """Files that match no band."""


def bands_from(pattern: str | None, names: Sequence[str] | None) -> BandsFrom | None:
    """The rule of ``--bands-from`` for a model's channels; None if there is none.

    Raises:
        SettingsError: the channels have no names.
    """
    if pattern is None:
        return None
    if names is None:
        raise SettingsError(
            "--bands-from finds files by the names of the model's channels, and its contract has none: give names, such as "
            'channels = ["B04", "B03", "B02"], with --contract'
        )
    return BandsFrom(pattern, tuple(names))


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
            band = spellings[match["band"].casefold()]
            together.setdefault((match["folder"] or "") + match["case"], []).append((band, case.path))
    for name, files in together.items():
        root = os.path.dirname(files[0][1])  # noqa: PTH120
        case = Case(name, os.path.join(root, os.path.basename(name)), SCENE, _scene(files, rule.names, root, name))  # noqa: PTH118, PTH119
        grouped.cases.append(case)
        grouped.errors.update((case, error) for error in _errors(name, files, rule))
    return grouped


def _scene(files: Sequence[tuple[str, str]], names: Sequence[str], root: str, title: str) -> SceneFiles:
    """Files in the order of the model's channels."""
    ordered = sorted(files, key=lambda file: names.index(file[0]))
    return SceneFiles("bands", root, tuple(path for _, path in ordered), tuple(band for band, _ in ordered), title)


def _errors(name: str, files: Sequence[tuple[str, str]], rule: BandsFrom) -> Iterator[str]:
    held = ", ".join(sorted(os.path.basename(path) for _, path in files))  # noqa: PTH119
    found = [band for band, _ in files]
    for band in rule.names:
        wanted = rule.pattern.replace("{case}", os.path.basename(name)).replace("{band}", band)  # noqa: PTH119
        if band not in found:
            yield f"{name}: {band} has no file {wanted}, got {held}: add it, or change --bands-from"
            return
        if found.count(band) > 1:
            yield f"{name}: {band} must have one file like {wanted}, got {held}: take away one, or change --bands-from"
            return


def _expression(rule: BandsFrom) -> tuple[re.Pattern[str], dict[str, str]]:
    """What a file's path must match, and the channel of each spelling of a band, in lower case."""
    spellings = {spelling.casefold(): name for name in rule.names for spelling in _spellings(name)}
    spellings |= {name.casefold(): name for name in rule.names}
    bands = "|".join(map(re.escape, sorted(spellings, key=len, reverse=True)))
    words, seen = [r"(?P<folder>(?:.*/)?)"], False
    for word in re.split(r"(\{case\}|\{band\}|\*)", rule.pattern.lstrip("/")):
        if word == "{case}":
            words.append("(?P=case)" if seen else "(?P<case>[^/]+)")
            seen = True
        else:
            words.append({"{band}": f"(?P<band>(?i:{bands}))", "*": "[^/]*"}.get(word, re.escape(word)))
    return re.compile("".join(words)), spellings


def _spellings(name: str) -> tuple[str, ...]:
    """
    >>> _spellings("B4"), _spellings("B08"), _spellings("B12"), _spellings("red")
    (('B4', 'B04'), ('B8', 'B08'), ('B12', 'B12'), ('red',))
    """
    match = re.fullmatch(r"[Bb]0*(\d{1,2})", name)
    return (f"B{match[1]}", f"B{match[1]:0>2}") if match else (name,)

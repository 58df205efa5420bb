"""Cases, and how families of formats find cases of several files."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from segpipe.contract import Contract
from segpipe.settings import CaseNames
from segpipe.validity import ValidityMask

RASTER = "raster"
"""The format of files whose suffix belongs to no other format; GDAL identifies them."""

SCENE = "scene"
"""The format of scenes of many files."""


@dataclass(frozen=True, slots=True)
class Case:
    """One unit of input, giving one mask."""

    name: str
    """Path of the mask in the output folder, without suffix, with ``/`` between folders."""
    path: str = field(repr=False)
    """The path that is opened. It is not part of ``repr``, which libraries may log: a URL may hold secrets.

    If the case has several files, the path of what holds them, or a name below that; it is unique in a run.
    """
    format: str = RASTER
    """Key of its format in ``registry.FORMATS``."""
    index: object = field(default=None, repr=False, compare=False)
    """Results of the format's search, so that workers need not search again; picklable, opaque to other code."""
    mask: str | None = field(default=None, repr=False, compare=False)
    """Path of the mask of ``--validity``, if the search found it."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A case that could not be done, with the reason."""

    case: Case
    error: str


def without_path(text: str, case: Case) -> str:
    """A message with the name of a case in place of its path; paths below it are left."""
    return re.sub(rf"(?<![\w./-]){re.escape(case.path)}(?![\w/-]|\.\w)", lambda _: case.name, text)


@dataclass(frozen=True, slots=True)
class ChannelFiles:
    """``Case.index`` of a case with one file per channel."""

    paths: tuple[str, ...]
    """In the order of the contract's channels."""


@dataclass(frozen=True, slots=True)
class SceneFiles:
    """``Case.index`` of a scene of many files."""

    kind: str
    """``sentinel-2``, ``landsat``, ``hls``; for files of ``--bands-from``: ``bands``, or ``parts`` for dates and inputs."""
    root: str
    """Folder or archive that holds all of it."""
    files: tuple[str, ...] = ()
    """Landsat and HLS: names below ``root``; ``bands``, ``parts``: paths. Empty if all that ``root`` holds belongs to it."""
    bands: tuple[str, ...] = ()
    """``bands``: names of the channels of ``files``; ``parts``: dates or inputs."""
    title: str = ""
    """Name of the product."""
    channels: tuple[tuple[int, ...], ...] = ()
    """``parts``: the model's channels in each of ``files``."""


@dataclass(frozen=True, slots=True)
class Grouped:
    """Cases after files were grouped."""

    cases: list[Case] = field(default_factory=list)
    errors: dict[Case, str] = field(default_factory=dict)
    """Errors of cases, also listed in ``cases``, that cannot be done."""
    others: list[str] = field(default_factory=list)
    """Files that match no pattern."""


@dataclass(frozen=True, slots=True)
class BandsFrom:
    """How rasters of one band, date or input each make up a scene."""

    pattern: str
    """With ``{case}``, and ``{band}``, ``{date}`` or ``{input}``."""
    names: tuple[str, ...]
    """What stands for the band, the date or the input, in the model's order; none for dates that are found by themselves."""
    by: Literal["band", "date", "input"] = "band"
    count: int | None = None
    """Number of dates that each case must have; None: by the channels in its files."""
    contract: Contract | None = field(default=None, repr=False)
    """Says which channels are those of a date or an input."""


@dataclass(frozen=True, slots=True)
class Channels:
    """The channels that the files of a case must have."""

    labels: tuple[str, ...]
    """Names of the channels in messages."""
    patterns: tuple[str, ...] | None = None
    """One per channel; None: files are recognised by their numbers."""


@dataclass(frozen=True, slots=True)
class CaseSelection:
    """The user's choices about the cases of an input."""

    series: str | None = None
    """Text in the description of a series, a glob for all of it, or its UID; None: all series."""
    names: CaseNames = "path"
    """Source of the names of masks."""
    channels: Channels | None = None
    """Rule that groups files with one channel each; None: each file is a case."""
    bands: BandsFrom | None = None
    """Rule that groups rasters of one band each; None: each raster is a case, and products are recognised by their names."""

    validity: ValidityMask | None = None
    """Masks that come with scenes; they are no cases."""


EVERY_CASE = CaseSelection()


@dataclass(frozen=True, slots=True)
class FamilyCases:
    """The cases that a family found among the files of a search."""

    cases: list[Case] = field(default_factory=list)
    errors: dict[Case, str] = field(default_factory=dict)
    """Errors of cases, also listed in ``cases``, that cannot be done whatever they contain."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Number of the family's files that belong to no case, by kind."""
    others: list[str] = field(default_factory=list)
    """Files that are not of this family."""


@dataclass(frozen=True, slots=True)
class Finder:
    """Functions that find the cases of a family whose files are not cases by their suffix alone."""

    may_be: Callable[[str], bool]
    """Whether a file may be of the family, by its base name."""
    is_one: Callable[[str], bool]
    """Whether a file is of the family, by its first bytes."""
    find: Callable[[Sequence[tuple[str, str]], CaseSelection], FamilyCases]
    """The cases of some files: names below the searched folder, with ``/`` between folders, and paths."""

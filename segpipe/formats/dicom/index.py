"""Find series in files: read headers once, group them, and leave out what is no slice of a volume."""

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from segpipe.errors import case_errors
from segpipe.formats.case import Case, CaseSelection, FamilyCases
from segpipe.formats.dicom.elements import NotDicomError
from segpipe.formats.dicom.header import Header, read_header
from segpipe.formats.dicom.names import NAME, Unread, plain_name, unread_file
from segpipe.formats.dicom.series import Frame, Series, pack
from segpipe.messages.printable import first_few
from segpipe.storage.retry import Patience

KEYS = (
    ("StackID", "stack"),
    ("EchoNumbers", "echo"),
    ("EchoTime", "echo"),
    ("TemporalPosition", "time"),
    ("DiffusionBValue", "b"),
    ("AcquisitionNumber", "acquisition"),
    ("ImageType", "type"),
)
"""Attributes that distinguish the volumes of one series, by keyword, and their labels in case names."""

MOST_ORIENTATIONS = 64
"""Orientations in one series; more are of no volumes, and comparing each slice with all would take hours."""

ANGLE_APART = np.radians(5)
"""Angle between two orientations from which on they are of two volumes."""

PLACED = ("CT", "MR", "PT", "NM")
"""Modalities whose images have a place; without one they are an error, where a screenshot is left out."""

CAPTURES = "1.2.840.10008.5.1.4.1.1.7"
"""Beginning of the SOP classes of secondary captures, such as a dose report of a CT."""


SHARED = {
    "PatientID": "patient_id",
    "PatientName": "patient_name",
    "StudyInstanceUID": "study",
    "FrameOfReferenceUID": "frame_of_reference",
    "Modality": "modality",
}
"""Attributes that slices of one volume share, by keyword, and their fields of a ``Series``. Without one frame of reference,
positions are not of one space (PS3.3, C.7.4.1); two patients may have slices of one UID after a careless anonymisation."""


@dataclass
class _Headers:
    """The headers read from the files of a search."""

    by_series: dict[str, list[Header]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    broken: list[tuple[str, str, str]] = field(default_factory=list)
    """Name, path and error of files that should be DICOM."""
    unread: list[Unread] = field(default_factory=list)


def find(files: Sequence[tuple[str, str]], choice: CaseSelection, unread: Sequence[Unread] = ()) -> FamilyCases:
    """The cases of some DICOM files: names below the searched folder, and paths.

    Args:
        files: files that should be DICOM.
        choice: the series that the user chose.
        unread: unreadable files that may be slices; a series in the same folder fails, because it may lack one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the audit reports defects of headers, without values of patients
        headers = _read(files)
    volumes = [volume for found in list(headers.by_series.values()) for volume in _volumes_of(found, headers)]
    kept = [volume for volume in volumes if _is_chosen(volume.series, choice.series)]
    unread = [*unread, *headers.unread]
    kept = [_without_doubt(volume, unread) for volume in kept]
    headers.left_out["DICOM series not chosen"] += len({v.series.uid for v in volumes} - {v.series.uid for v in kept})
    folders = {folder for volume in kept for folder in _folders(volume)}
    near = [one for one in headers.broken if not choice.series or os.path.dirname(one[1]) in folders]  # noqa: PTH120
    headers.left_out["damaged DICOM files"] += len(headers.broken) - len(near)
    broken = [(Case(plain_name(name), path, NAME), error) for name, path, error in near]
    if not choice.series:
        broken += [(case, error) for case, error in unread if os.path.dirname(case.path) not in folders]  # noqa: PTH120
    cases = [*_cases(kept, choice), *(case for case, _ in broken)]
    return FamilyCases(cases, dict(broken), {what: n for what, n in headers.left_out.items() if n})


def _folders(volume: "_Volume") -> set[str]:
    return {os.path.dirname(file) for file in volume.series.files}  # noqa: PTH120


def _without_doubt(volume: "_Volume", unread: Sequence[Unread]) -> "_Volume":
    """A volume; it is unusable if an unreadable file in its folder may be one of its slices."""
    near = next((why for case, why in unread if os.path.dirname(case.path) in _folders(volume)), "")  # noqa: PTH120
    return replace(volume, series=replace(volume.series, unusable=volume.series.unusable or near)) if near else volume


def _read(files: Sequence[tuple[str, str]]) -> _Headers:
    found, patience = _Headers(), Patience()
    for name, path in files:
        try:
            header = patience.read(partial(read_header, path, name))
        except NotDicomError as error:
            found.broken.append((name, path, str(error)))
            continue
        except OSError as error:
            found.unread.append(unread_file(name, path, error))
            continue
        if (why := left_out(header)) is not None:
            found.left_out[why] += 1
        else:
            found.by_series.setdefault(header.series.uid, []).append(header)
    return found


def left_out(header: Header) -> str | None:
    """The class of files that a file belongs to if it is no slice of a volume; None if it is one."""
    series = header.series
    if not header.is_image:
        return f"DICOM {series.modality or 'objects'} (no image)"
    if header.is_scout:
        return "DICOM scouts"
    captured = series.sop_class.startswith(CAPTURES)
    if (series.modality in PLACED and not captured) or any(frame.position is not None for frame in series.frames):
        return None
    return f"DICOM {series.modality or 'images'} without position"


@dataclass(frozen=True, slots=True)
class _Volume:
    """Frames of one volume, and where their files lie."""

    series: Series
    names: tuple[str, ...]
    """Names of its files below the searched folder."""

    @property
    def folder(self) -> str:
        """The folder that holds all its files; empty for the searched folder itself."""
        parts = [PurePosixPath(name).parent.parts for name in self.names]
        first, last = min(parts), max(parts)
        common = [a for a, b in zip(first, last, strict=False) if a == b]
        same = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(common))
        return "/".join(first[:same])


def _volumes_of(found: Sequence[Header], headers: _Headers) -> list[_Volume]:
    """The volumes of one series; whatever is wrong with it costs only itself."""
    path = found[0].series.frames[0].path
    volumes: list[_Volume] = []
    with case_errors(path) as caught:
        volumes = list(_volumes(found))
    if caught.error is not None:
        headers.broken.append((found[0].name, path, str(caught.error)))
    return volumes


def _volumes(headers: Sequence[Header]) -> Iterator[_Volume]:
    """The volumes of one series: each group of files, split where it mixes several volumes."""
    for group in _groups(sorted(headers, key=lambda header: header.order)):
        frames = [frame for header in group for frame in header.series.frames]
        where = {header.series.frames[0].path: header.name for header in group}
        for label, kept in _divided(frames):
            names = tuple(dict.fromkeys(where[frame.path] for frame in kept))
            yield _Volume(_joined(group, kept, label), names)


def _groups(headers: Sequence[Header]) -> Iterator[list[Header]]:
    """Group files that form one image: those of a concatenation, each other multi-frame file, and all with one frame."""
    parts: dict[str, list[Header]] = {}
    for header in headers:
        if header.concatenation is not None:
            parts.setdefault(header.concatenation.uid, []).append(header)
    yield from parts.values()
    whole = [header for header in headers if header.concatenation is None]
    yield from ([header] for header in whole if len(header.series.frames) > 1)
    if single := [header for header in whole if len(header.series.frames) == 1]:
        yield single


def _incomplete(headers: Sequence[Header]) -> str:
    """Why a concatenation is incomplete; empty if it is complete, or the files form none."""
    parts = [header.concatenation for header in headers if header.concatenation is not None]
    there = {part.number for part in parts}
    total = max((max(part.number, part.total) for part in parts), default=0)
    if not (missing := sorted(set(range(1, total + 1)) - there)):
        return ""
    return (
        f"{headers[0].series.frames[0].path} is one of {total} files of an image, and those with InConcatenationNumber "
        f"{first_few(missing)} are missing: copy the series again"
    )


def _joined(headers: Sequence[Header], frames: Sequence[Frame], label: str) -> Series:
    """One series of the facts of its files."""
    used = {frame.path for frame in frames}
    each = [header.series for header in headers if header.series.frames[0].path in used]
    return replace(
        each[0],
        photometric=tuple(dict.fromkeys(one for s in each for one in s.photometric)),
        samples=max(s.samples for s in each),
        syntaxes=tuple(dict.fromkeys(one for s in each for one in s.syntaxes)),
        frames=tuple(frames),
        label=label,
        unusable=next((s.unusable for s in each if s.unusable), "")
        or _incomplete(headers)
        or _mixed(each)
        or _partly_scaled(frames),
        lossy=any(s.lossy for s in each),
        patient_id="",
        patient_name="",
    )


def _mixed(each: Sequence[Series]) -> str:
    """Why the files of a series cannot be one volume, by what they must share; empty if they may be."""
    for keyword, field_name in SHARED.items():
        first = {getattr(one, field_name): one.frames[0].path for one in reversed(each) if getattr(one, field_name)}
        if len(first) > 1:
            one, other, *_ = sorted(first.values())
            return (
                f"slices of a series must have one {keyword}, and {one} and {other} have two: label the files of each in a "
                "run of their own"
            )
    return ""


def _partly_scaled(frames: Sequence[Frame]) -> str:
    """The reason why values of slices are not of one scale; empty if they are."""
    bare = [frame for frame in frames if not frame.is_scaled]
    if not bare or all((frame.slope, frame.intercept) == (1, 0) for frame in frames):
        return ""
    return (
        f"{bare[0].path}: RescaleSlope and RescaleIntercept must be in every slice if they are in one, and {len(bare)} of "
        f"{len(frames)} have none: copy the series again, or take out what does not belong to it"
    )


def _divided(frames: Sequence[Frame]) -> Iterator[tuple[str, list[Frame]]]:
    """Frames by orientation, then by echo, time and the like where several have one position; with labels."""
    for plane, group in _by_orientation(frames):
        for label, kept in _by_keys(group, KEYS):
            yield "-".join(part for part in (plane, label) if part), kept


def _by_orientation(frames: Sequence[Frame]) -> list[tuple[str, list[Frame]]]:
    """Groups of one orientation each; all together if a group would have one slice, which the audit then names."""
    groups: list[tuple[Any, list[Frame]]] = []
    for frame in frames:
        directions = None if frame.directions is None else np.array(frame.directions)
        home = next((kept for usual, kept in groups if _is_near(usual, directions)), None)
        if home is None and len(groups) == MOST_ORIENTATIONS:
            return [("", list(frames))]
        if home is None:
            groups.append((directions, [frame]))
        else:
            home.append(frame)
    if len(groups) == 1 or min(len(kept) for _, kept in groups) < 2 or any(usual is None for usual, _ in groups):
        return [("", list(frames))]
    planes = [_plane(usual) for usual, _ in groups]
    return [
        (plane if planes.count(plane) == 1 else f"{plane}{planes[: n + 1].count(plane)}", kept)
        for n, (plane, (_, kept)) in enumerate(zip(planes, groups, strict=True))
    ]


def _is_near(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    return bool(np.linalg.norm(one - other, axis=1).max() < ANGLE_APART)


def _plane(directions: Any) -> str:
    """The plane of the body that is nearest to a slice."""
    return ("sagittal", "coronal", "axial")[int(np.abs(np.cross(*directions)).argmax())]


def _by_keys(frames: list[Frame], keys: Sequence[tuple[str, str]]) -> Iterator[tuple[str, list[Frame]]]:
    """Split frames that share positions by the first key that leaves fewer duplicates."""
    before = _doubles(frames)
    for n, (key, word) in enumerate(keys if before else ()):
        groups: dict[str, list[Frame]] = {}
        for frame in frames:
            groups.setdefault(dict(frame.keys).get(key, ""), []).append(frame)
        if _are_volumes(list(groups.values()), before):
            for count, value in enumerate(sorted(groups, key=_numbers_first), 1):
                for label, kept in _by_keys(groups[value], keys[n + 1 :]):
                    yield f"{word}{count}" + (f"-{label}" if label else ""), kept
            return
    yield "", frames


def _are_volumes(groups: list[list[Frame]], before: int) -> bool:
    """Whether groups are likely to be volumes: of similar size, and with fewer frames of one position."""
    sizes = [len(kept) for kept in groups]
    alike = len(groups) > 1 and min(sizes) > 1 and 2 * min(sizes) >= max(sizes)
    return alike and sum(map(_doubles, groups)) < before


def _numbers_first(value: str) -> tuple[float, str]:
    """Numbers by size, then texts."""
    try:
        return float(value), ""
    except ValueError:
        return float("inf"), value


def _doubles(frames: Sequence[Frame]) -> int:
    """The number of frames at a position that another frame has; copies of one file do not count."""
    there = {(frame.instance, frame.number): frame.position for frame in frames}
    placed = [tuple(round(n, 2) for n in position) for position in there.values() if position is not None]
    return len(placed) - len(set(placed))


def _is_chosen(series: Series, text: str | None) -> bool:
    """Whether ``--series`` takes a series: by its UID, by a part of its description, or by a glob of all of it."""
    if text is None:
        return True
    wanted, description = text.strip().casefold(), series.description.casefold()
    if any(mark in wanted for mark in "*?["):
        return fnmatchcase(description, wanted)
    return wanted in (series.uid.casefold(), series.number) or wanted in description


def _cases(volumes: Sequence[_Volume], choice: CaseSelection) -> Iterator[Case]:
    """A case per volume, with a name and a path of its own."""
    name_of: Callable[[_Volume], str] = (lambda volume: volume.series.uid) if choice.names == "uid" else _path_name
    named = sorted(((name_of(volume), volume) for volume in volumes), key=lambda pair: (pair[0], _order(pair[1])))
    for name, group in groupby(named, key=lambda pair: pair[0]):
        sharing = [volume for _, volume in group]
        names = [name] if len(sharing) == 1 else _distinguished(name, sharing)
        for own, volume in zip(names, sharing, strict=True):
            yield Case(own, _path_of(volume, alone=len(sharing) == 1), NAME, pack(volume.series))


def _order(volume: _Volume) -> tuple[Any, ...]:
    return _numbers_first(volume.series.number), volume.series.uid, volume.series.label, volume.names


def _path_name(volume: _Volume) -> str:
    """The name of the file or, of several, of their folder."""
    if len(volume.names) == 1:
        return plain_name(volume.names[0])
    path = volume.series.frames[0].path
    return volume.folder or os.path.basename(os.path.dirname(os.path.realpath(path))) or NAME  # noqa: PTH119, PTH120


def _distinguished(name: str, volumes: Sequence[_Volume]) -> list[str]:
    """Names of volumes of one file or folder: by series number if it is unique, else by UID; and by label."""
    uids = [volume.series.uid for volume in volumes]
    numbers = {volume.series.uid: re.sub(r"\W", "", volume.series.number) for volume in volumes}
    if len(numbers) == 1:
        words = [""] * len(volumes)
    elif len(set(numbers.values())) == len(numbers) and all(numbers.values()):
        words = [f"/series-{numbers[uid]}" for uid in uids]
    else:
        words = [f"/{uid}" for uid in uids]
    full = [name + word + f"-{v.series.label}" * bool(v.series.label) for word, v in zip(words, volumes, strict=True)]
    return [one if full.count(one) == 1 else f"{one}-{full[: n + 1].count(one)}" for n, one in enumerate(full)]


def _path_of(volume: _Volume, *, alone: bool) -> str:
    """The file, or the folder of the files; with UID and label if the folder holds other cases, too."""
    series, files = volume.series, volume.series.files
    if len({os.path.isabs(file) for file in files}) > 1:  # noqa: PTH117
        files = tuple(map(os.path.abspath, files))
    path = files[0] if len(files) == 1 else os.path.commonpath([os.path.dirname(file) or "." for file in files])  # noqa: PTH120
    marks = [series.uid, *([series.label] if series.label else [])]
    return path if alone else f"{path}/{'-'.join(marks)}"

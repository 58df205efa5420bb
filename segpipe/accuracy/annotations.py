"""True labels from annotation tools: files of annotations, their pictures by case, and labels of their pixels."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from segpipe.accuracy.annotated import Annotated, Outline
from segpipe.accuracy.coco import is_coco, read_coco
from segpipe.accuracy.cvat import read_cvat
from segpipe.accuracy.labelme import is_labelme, read_labelme
from segpipe.accuracy.polygons import OUTSIDE
from segpipe.errors import InputError, SourceError, of_system
from segpipe.formats.registry import by_suffix, split_suffix
from segpipe.geometry.grid import Grid
from segpipe.geometry.windows import Window
from segpipe.messages.names import Names
from segpipe.messages.printable import dims, first_few, printable
from segpipe.storage.documents import DocumentError, parse_json
from segpipe.storage.existence import files_below, is_file, is_folder

MOST_BYTES = 2**28
SUFFIXES = (".json", ".xml")
SIDECAR = ".aux.xml"
"""Ending of the files that GDAL writes beside rasters."""
BACKGROUND = "background"


def read_annotations(place: Path) -> list[Annotated] | None:
    """All annotated pictures of a file, or of the files below a folder; None if there is no such file.

    Raises:
        InputError: a file cannot be read, is too large, or is not as its tool writes it.
    """
    if is_file(place):
        return _read(place, alone=True) if place.suffix.lower() in SUFFIXES else None
    paths = [path for path in files_below(place) if path.suffix.lower() in SUFFIXES and is_file(path)]
    found = [_read(path, alone=False) for path in paths if not path.name.lower().endswith(SIDECAR)]
    known = [one for own in found if own is not None for one in own]
    return known or None


def _read(path: Path, *, alone: bool) -> list[Annotated] | None:
    """The pictures of a file; None if it is of none of the tools, and not the only one."""
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise InputError(f"{path} must have at most {MOST_BYTES:,} bytes, and has {size:,}: export it in parts")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {of_system(error)}") from None
    if path.suffix.lower() == ".xml":
        return read_cvat(path, data) if alone or b"<annotations" in data[:4096] else None
    try:
        value = parse_json(data, most=MOST_BYTES)
    except DocumentError as error:
        if not alone:
            return None
        raise InputError(f"{path} {error}: export it again") from None
    if is_coco(value):
        return read_coco(path, value)
    if is_labelme(value):
        return [read_labelme(path, value)]
    if alone:
        raise InputError(f"{path} must be annotations of COCO or Labelme, and has other keys: export it again")
    return None


def by_case(pictures: Iterable[Annotated], place: Path, cases: Sequence[str]) -> dict[str, Annotated]:
    """The picture of each case that has one: its name is the case's, with its folders, or without them if that is clear.

    Raises:
        InputError: none has one, or a case has two.
    """
    last = Counter(case.rpartition("/")[2] for case in cases)
    short = {case.rpartition("/")[2]: case for case in cases if last[case.rpartition("/")[2]] == 1}
    found = dict[str, Annotated]()
    for picture in pictures:
        case = next((own for name in _names(picture, place) if (own := _case(name, cases, short)) is not None), None)
        if case is None:
            continue
        if case in found:
            raise InputError(
                f"each case must have one reference, and {printable(case)} has annotations in {found[case].path.name} and "
                f"{picture.path.name}: leave one out"
            )
        found[case] = picture
    if not found:
        raise InputError(
            f"annotated pictures must have the names of cases, {first_few(cases)}, and {place} has none of them"
        )
    return found


def _names(picture: Annotated, place: Path) -> Iterator[str]:
    """Names that a picture may have as a case, the surest first."""
    known = by_suffix()
    for name in (picture.other_name, picture.name):
        if name is not None:
            yield split_suffix(name.replace("\\", "/").removeprefix("./"), known)[0]
    if is_folder(place):
        yield picture.path.relative_to(place).with_suffix("").as_posix()


def _case(name: str, cases: Sequence[str], short: Mapping[str, str]) -> str | None:
    return name if name in cases else short.get(name.rpartition("/")[2])


@dataclass(frozen=True)
class Labelling:
    """Which labels are which classes."""

    values: Names
    """Id of the class of each label; ``OUTSIDE`` for labels that do not count."""
    background: int = OUTSIDE
    """Id of the class of pixels in no object; ``OUTSIDE``: they do not count."""

    @classmethod
    def of(cls, classes: Mapping[int, str], mapped: Mapping[str, int | None] | None = None) -> "Labelling":
        """Labels with the names or ids of classes, unless a file maps them to ids, or to None if they do not count.

        Pixels in no object are of the class ``background`` if there is one.
        """
        named = {name: number for number, name in classes.items()}
        background = Names.of(named).find(BACKGROUND)
        found = {name: OUTSIDE if number is None else number for name, number in (mapped or {}).items()}
        values = Names.of(named, {number: number for number in classes}) if mapped is None else Names.of(found)
        return cls(values, OUTSIDE if background is None else background)

    @property
    def rule(self) -> str:
        """What pixels in no object are, for a warning."""
        if self.background == OUTSIDE:
            return f"pixels in no object of the annotations do not count, as no class is called {BACKGROUND}"
        return f"pixels in no object of the annotations count as {BACKGROUND}"

    def value(self, label: str) -> int:
        """Id of the class of a label.

        Raises:
            SourceError: there is none.
        """
        found = self.values.find(label)
        if found is None:
            known = ", ".join(map(printable, list(self.values)[:8]))
            raise SourceError(
                f"labels of annotations must be classes, {known}, got {printable(label)!r}: map it to one, or "
                "ignore it, with --map-classes"
            )
        return found


@dataclass(frozen=True, eq=False)
class Annotations:
    """The annotations of one case."""

    picture: Annotated
    labelling: Labelling

    @contextmanager
    def on(self, grid: Grid) -> Iterator["DrawnLabels"]:
        """Labels on the grid of a mask.

        Raises:
            SourceError: it has another size, or a label is no class.
        """
        size = self.picture.size
        if len(grid.shape) != 2 or (size is not None and size != grid.shape):
            known = "a picture" if size is None else f"{size[1]} x {size[0]} pixels"
            has = dims(reversed(grid.shape))
            raise SourceError(
                f"annotations must be of the picture of the mask, and {self.picture.path} has {known} for "
                f"{printable(self.picture.name)}, the mask {has}: export them with the size of the case"
            )
        yield DrawnLabels(self.picture, self.labelling, [self.labelling.value(one.label) for one in self.picture.objects])


@dataclass(frozen=True, eq=False)
class DrawnLabels:
    """Labels of objects: each pixel whose centre lies in an object has its class; later objects lie over earlier ones."""

    picture: Annotated
    labelling: Labelling
    values: Sequence[int]
    moved: bool = field(default=False)

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[Any]]:
        """Ids of a window, and where they count."""
        found = np.full(window.shape, self.labelling.background, np.int32)
        for one, value in zip(self.picture.objects, self.values, strict=True):
            for area in one.areas:
                inside = _inside(area, window) if isinstance(area, Outline) else area.within(window)
                if inside is not None:
                    found[inside] = value
        return found, found != OUTSIDE


def _inside(area: Outline, window: Window) -> NDArray[np.bool_] | None:
    """The pixels of a window whose centre lies in an outline; None if it lies beside."""
    from rasterio.features import rasterize

    (top, left), (bottom, right) = window.start, window.stop
    low, high = area.points.min(axis=0), area.points.max(axis=0)
    if low[0] >= right or low[1] >= bottom or high[0] <= left or high[1] <= top:
        return None
    shape = {"type": "Polygon", "coordinates": [[*area.points.tolist(), area.points[0].tolist()]]}
    place = Affine(1, 0, left, 0, 1, top)
    return np.asarray(rasterize([(shape, 1)], window.shape, transform=place, dtype="uint8") == 1)

"""One mask per class beside the mask of a case, made of the finished one: 1 where the class is, 0 where it is not."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.errors import on_failure
from segpipe.formats.case import Case
from segpipe.formats.finished_mask import as_stored, open_labels
from segpipe.formats.registry import FORMATS
from segpipe.formats.sink import Sink
from segpipe.formats.style import PALE, Segment, Style
from segpipe.geometry.windows import row_boxes
from segpipe.storage import Store

FOLDER = ".classes"
"""Ending of the folder with the masks of a case's classes: ``scan.classes/liver.nii.gz``."""

NODATA = 255
"""Value of pixels without data."""

LONGEST = 100
"""Characters of a class's name in a file's name."""


@dataclass(frozen=True, slots=True)
class ClassFile:
    """The mask of one class."""

    stem: str
    """Name of the file without suffix."""
    segment: Segment
    """The class, and where the mask of the case has it."""


def class_files(case: Case, segments: list[Segment]) -> list[ClassFile]:
    """The files of the classes but the background; names are those of the classes, with ``_`` for what no file may have.

    >>> one = Segment("left lung/upper", 3)
    >>> class_files(Case("scan", "scan.nii"), [one])[0].stem
    'scan.classes/left lung_upper'
    """
    plain = [re.sub(r"[^\w .()+-]", "_", one.name).strip(" .")[:LONGEST] or "class" for one in segments]
    count = Counter(name.casefold() for name in plain)
    names = [
        f"{name}-{one.band}-{one.value}" if count[name.casefold()] > 1 else name
        for name, one in zip(plain, segments, strict=True)
    ]
    return [ClassFile(f"{case.name}{FOLDER}/{name}", one) for name, one in zip(names, segments, strict=True)]


def has_class_files(case: str, outputs: tuple[str, ...]) -> bool:
    """Whether files of classes are among the outputs of a case."""
    return any(name.startswith(f"{case}{FOLDER}/") for name in outputs)


def is_class_file(case: Case, name: str) -> bool:
    """Whether a name is one that the file of a class of this case may have."""
    inside = name.removeprefix(f"{case.name}{FOLDER}/")
    suffixes = tuple(suffix for family in FORMATS.values() for suffix in family.outputs)
    return inside != name and "/" not in inside and inside.endswith(suffixes)


@dataclass(frozen=True)
class FinishedMask:
    """The finished mask of a case."""

    case: Case
    output: Store
    name: str
    """Name of the mask in the output."""
    nodata: int
    bands: int
    contract: Contract
    """The contract that the case was opened with, for the order of its axes."""
    tags: Mapping[str, str]
    """Tags of the mask."""


Written = tuple[str, int | None]
"""Name of a file, and its bytes if it is a mask."""


def write_class_files(mask: FinishedMask, files: list[ClassFile], sink: Callable[[str, Style], Sink]) -> Iterator[Written]:
    """Write the files one after the other, and yield each, with what lies beside it.

    Args:
        mask: the mask.
        files: what to write.
        sink: makes the sink of a file, of the text after the case's name and its style.

    Raises:
        OutputError: a file cannot be written, or the mask cannot be read.
    """
    contract = as_stored(mask.bands, mask.contract)
    with open_labels(mask.case.format, mask.output, mask.name, contract) as labels:
        for file in files:
            own = sink(file.stem.removeprefix(mask.case.name), _style(file.segment, mask.tags))
            with on_failure(own.discard):
                for window in row_boxes(labels.shape):
                    own.write(window, _present(labels.read(window), file.segment, mask.nodata))
                yield from [(name, own.size if name == own.name else None) for name in own.finish()]


def _present(values: NDArray[Any], segment: Segment, nodata: int) -> NDArray[np.uint8]:
    """1 where the class is, 0 elsewhere and 255 where the case has no data, shape ``(1, *box)``."""
    own = values[segment.band]
    present: NDArray[np.uint8] = (own == segment.value).astype(np.uint8)
    present[own == nodata] = NODATA
    return present[None]


def _style(segment: Segment, tags: Mapping[str, str]) -> Style:
    names = {0: f"not {segment.name}", 1: segment.name}
    legend = {0: PALE, 1: segment.color}
    colors = {**legend, NODATA: (0, 0, 0, 0)}
    return Style("uint8", NODATA, ["class"], colors=colors, names=names, legend=legend, tags=dict(tags))

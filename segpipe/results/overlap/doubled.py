"""What of a case counts in others: exact counts times the cell areas of ``areas.csv``; kept, and measured once."""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import OutputError
from segpipe.formats.registry import OpenMask
from segpipe.geometry.cells import Cells
from segpipe.geometry.raster_grid import ground_of
from segpipe.geometry.windows import Window
from segpipe.results.overlap.finished import CaseNeighbours, Classes, FinishedCase, are_independent, opened, shared_with
from segpipe.results.overlap.shared import Shared
from segpipe.storage import Store

FOLDER = ".overlap"
"""Hidden folder of the output with a file per case that shares ground."""

FILE_VERSION = 1
"""Version of these files; files of another version are replaced."""

BLOCK = 1024
"""Side of the blocks in which a mask is read: two of its own."""

PixelsAndArea = tuple[int, float]
"""Pixels, and area in m²."""


@dataclass(frozen=True)
class Doubled:
    """What of a case counts in other cases."""

    classes: tuple[PixelsAndArea, ...]
    """Of each class, in the order of ``areas.csv``."""
    seen: PixelsAndArea
    """With data: seen by several cases."""
    unseen: PixelsAndArea
    """Without data, on ground that another case covers."""


def doubled_of(output: Store, case: FinishedCase, around: CaseNeighbours) -> Doubled:
    """What of a finished case counts in those around it: as an earlier run has found, or measured.

    Raises:
        OutputError: a mask cannot be read, or holds labels that are no class.
    """
    key = hashlib.sha256(f"{FILE_VERSION} {case.digest} {around.digest}".encode()).hexdigest()
    if (kept := _load(output, case, key)) is not None:
        return kept
    with ExitStack() as stack:
        mask = stack.enter_context(opened(output, case))
        shared = shared_with(output, case, around, stack)
        found = Counts.of(mask, case).added(shared, output.path(case.mask or case.case))
    with suppress(OutputError):  # one that is not kept is measured again
        output.write_json(case.hidden(FOLDER, ".json"), {"overlap": case.case, "key": key, **asdict(found)}, flush=False)
    return found


def _load(output: Store, case: FinishedCase, key: str) -> Doubled | None:
    """A stored result; None if it is missing, damaged or outdated."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(output.read(case.hidden(FOLDER, ".json")))
        if kept["key"] == key:
            return Doubled(tuple(map(_stored, kept["classes"])), _stored(kept["seen"]), _stored(kept["unseen"]))
    return None


def _stored(stored: Sequence[float]) -> PixelsAndArea:
    pixels, size = stored
    return int(pixels), float(size)


@dataclass(frozen=True, eq=False)
class Counts:
    """Pixels of a mask that count elsewhere, per cell of its grid."""

    mask: OpenMask
    classes: Classes
    labels: tuple[int, ...]
    """All labels that the mask may hold; nodata last, if there may be any."""
    nodata: int | None
    cells: Cells
    counts: NDArray[np.int64]
    """``(bands, *cells, labels)``."""

    @classmethod
    def of(cls, mask: OpenMask, case: FinishedCase) -> "Counts":
        """Counts of zero, in the cells of ``areas.csv``."""
        ids = (0, 1) if are_independent(mask, case.classes) else tuple(number for number, _ in case.classes)
        cells = Cells.of(ground_of(mask.grid), case.shape, mask.bands * (len(ids) + 1))
        labels = ids if case.nodata is None else (*ids, case.nodata)
        counts = np.zeros((mask.bands, *cells.count, len(labels)), np.int64)
        return cls(mask=mask, classes=case.classes, labels=labels, nodata=case.nodata, cells=cells, counts=counts)

    def added(self, shared: Shared | None, path: str) -> Doubled:
        """Count the pixels of shared ground that count elsewhere, and multiply by areas.

        Raises:
            OutputError: a mask cannot be read, or this one holds labels that are no class.
        """
        for window in blocks([] if shared is None else shared.windows, self.mask.grid.shape):
            bands = [self.mask.read(window, band) for band in range(self.mask.bands)]
            found = np.zeros(window.shape, np.bool_) if shared is None else shared.elsewhere(window, bands[0] == self.nodata)
            if found.any():
                self._count(window, bands, found, path)
        return self._doubled()

    def _count(self, window: Window, bands: Sequence[NDArray[np.generic]], found: NDArray[np.bool_], path: str) -> None:
        row, col = np.nonzero(found)
        cell = [(axis + start) // side for axis, start, side in zip((row, col), window.start, self.cells.side, strict=True)]
        place = np.ravel_multi_index((cell[0], cell[1]), self.cells.count)
        for counts, labels in zip(self.counts, bands, strict=True):
            position = self._positions(labels[found], path)
            index, number = np.unique(place * len(self.labels) + position, return_counts=True)
            counts.reshape(-1)[index] += number

    def _positions(self, labels: NDArray[np.generic], path: str) -> NDArray[np.intp]:
        known = np.asarray(self.labels)
        order = np.argsort(known)
        place = np.minimum(np.searchsorted(known[order], labels), len(known) - 1)
        if (foreign := known[order][place] != labels).any():
            first = labels[foreign][0]
            raise OutputError(f"{path} must hold the labels of its classes, got {first}: run again with --overwrite")
        return np.asarray(order[place])

    def _doubled(self) -> Doubled:
        last = len(self.labels) - (self.nodata is not None)
        independent = are_independent(self.mask, self.classes)
        each = [(band, 1) for band in range(self.mask.bands)] if independent else [(0, k) for k in range(last)]
        seen, unseen = ((0, slice(0, last)), (0, slice(last, None)))
        return Doubled(tuple(self._amount(*one) for one in each), self._amount(*seen), self._amount(*unseen))

    def _amount(self, band: int, positions: int | slice) -> PixelsAndArea:
        chosen = positions if isinstance(positions, slice) else slice(positions, positions + 1)
        counts = self.counts[band, ..., chosen].sum(axis=-1)
        return int(counts.sum()), math.fsum((counts * self.cells.sizes).ravel())


def blocks(windows: Sequence[Window], shape: tuple[int, ...]) -> Iterator[Window]:
    """Blocks of a grid, each cut to the rectangle around what it shares with some windows; none beside them.

    >>> list(blocks([Window((0, 1020), (5, 1030))], (2000, 2000)))
    [Window(start=(0, 1020), stop=(5, 1024)), Window(start=(0, 1024), stop=(5, 1030))]
    """
    for block in Window.whole(shape).blocks((BLOCK, BLOCK)):
        parts = [part for window in windows if (part := block.intersection(window)).size]
        if parts:
            starts, stops = zip(*((part.start, part.stop) for part in parts), strict=True)
            yield Window(tuple(map(min, zip(*starts, strict=True))), tuple(map(max, zip(*stops, strict=True))))

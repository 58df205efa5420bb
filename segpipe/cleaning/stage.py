"""Keep the labels of a case until it is complete, then yield them cleaned, in slabs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.cleaning.majority import majority
from segpipe.cleaning.plane_file import PlaneFile
from segpipe.cleaning.rule import Cleaning, Weights
from segpipe.cleaning.sieve import Sieve
from segpipe.geometry.grid import Grid
from segpipe.geometry.windows import Window
from segpipe.storage import Store

SLAB = 2**19
"""Elements of a slab, which take about ``SLAB_BYTES`` each while they are cleaned."""

LEAST_ROWS = 16
"""Least rows of a slab, however wide a case is: regions at its borders are kept in memory."""

SLAB_BYTES = 260
"""Bytes per element of a slab (measured with noise)."""

CONFIDENCE_TOP = 254
"""Confidence of probability 1."""


@dataclass(frozen=True, slots=True)
class Form:
    """Form of the masks to clean."""

    bands: int
    dtype: np.dtype[Any]
    nodata: int
    two: bool
    """Whether every band has two labels, so that the probability of one gives that of the other."""
    confidence: bool
    """Whether there is a confidence, too."""


@dataclass(frozen=True, slots=True)
class Place:
    """A case and its grid."""

    name: str
    path: str
    grid: Grid


@dataclass(frozen=True, eq=False, slots=True)
class Cleaned:
    """A slab of a case after cleaning."""

    window: Window
    labels: NDArray[Any]
    """Shape ``(bands, *window.shape)``."""
    confidence: NDArray[np.uint8] | None


def slab_rows(shape: Sequence[int]) -> tuple[int, ...]:
    """Start of each slab along the first axis, and the end of the last one."""
    step = max(LEAST_ROWS if len(shape) == 2 else 1, SLAB // int(np.prod(shape[1:])))
    return (*range(0, shape[0], step), shape[0])


def cleaning_bytes(shape: Sequence[int]) -> int:
    """Bytes that cleaning a case takes, without the regions at the borders of slabs, which are few."""
    rows = slab_rows(shape)
    return (rows[1] - rows[0]) * int(np.prod(shape[1:])) * SLAB_BYTES


class Uncleaned:
    """The labels of a case, and their confidence if there is one, on disk until they are cleaned."""

    def __init__(self, output: Store, place: Place, form: Form, rule: Cleaning) -> None:
        """Create the files.

        Raises:
            SourceError: the grid does not measure in the unit of the sieve.
        """
        self._output, self._name, self._grid, self._form, self._rule = output, place.name, place.grid, form, rule
        self._weights = rule.weights(place.grid, place.path)
        self._files: list[PlaneFile] = []
        try:
            self.labels = self._file("labels", form.dtype)
            self.confidence = self._file("confidence", np.dtype(np.uint8)) if form.confidence else None
        except BaseException:
            self.discard()
            raise

    @property
    def layers(self) -> list[PlaneFile]:
        """The files of labels and, if there is one, of confidence."""
        return self._files[:2] if self.confidence is not None else self._files[:1]

    def _file(self, kind: str, dtype: np.dtype[Any]) -> PlaneFile:
        shape = (self._form.bands, *self._grid.shape)
        self._files.append(PlaneFile(self._output, f"{self._name}.{kind}.draft", shape, dtype))
        return self._files[-1]

    def discard(self) -> None:
        """Remove the files; safe to call twice."""
        for file in self._files:
            file.discard()

    def cleaned(self) -> Iterator[Cleaned]:
        """Yield the case in slabs, in order, once all of it has been written."""
        rest, rows = self._grid.shape[1:], slab_rows(self._grid.shape)
        bands = zip(*(self._bands(rows)), strict=True)
        for (start, stop), labels in zip(pairwise(rows), bands, strict=True):
            window = Window((start, *(0,) * len(rest)), (stop, *rest))
            found = np.stack(labels)
            yield Cleaned(window, found, self._confidence(start, stop, found))

    def _bands(self, rows: tuple[int, ...]) -> list[Iterator[NDArray[Any]]]:
        """The cleaned slabs of each band."""
        bands = range(self._form.bands)
        if self._weights is None:
            return [self._filtered(band, rows) for band in bands]
        source = self.labels
        if self._rule.majority is not None:
            source = self._file("filtered", self._form.dtype)
            for band in bands:
                self._keep(source, band, rows)
        return [self._sieved(source, band, rows, self._weights) for band in bands]

    def _keep(self, into: PlaneFile, band: int, rows: tuple[int, ...]) -> None:
        for start, slab in zip(rows, self._filtered(band, rows), strict=False):
            into.put_rows(band, start, slab)

    def _filtered(self, band: int, rows: tuple[int, ...]) -> Iterator[NDArray[Any]]:
        """The slabs of a band after the majority filter; each is read with the rows that its windows reach."""
        assert self._rule.majority is not None
        reach, end = self._rule.majority // 2, rows[-1]
        for start, stop in pairwise(rows):
            first = max(0, start - reach)
            values = self.labels.read(band, first, min(end, stop + reach))
            yield majority(values, self._rule.majority, self._form.nodata)[start - first : stop - first]

    def _sieved(self, source: PlaneFile, band: int, rows: tuple[int, ...], weights: Weights) -> Iterator[NDArray[Any]]:
        def read(start: int, stop: int) -> NDArray[Any]:
            return source.read(band, start, stop)

        return Sieve(read, weights.of, weights.least, self._form.nodata, rows).slabs()

    def _confidence(self, start: int, stop: int, labels: NDArray[Any]) -> NDArray[np.uint8] | None:
        """The probability of the cleaned labels: of two labels, the rest; of several, 0, as theirs was not kept."""
        if self.confidence is None:
            return None
        bands = range(self._form.bands)
        found = np.stack([self.confidence.read(band, start, stop) for band in bands])
        changed = labels != np.stack([self.labels.read(band, start, stop) for band in bands])
        found[changed] = CONFIDENCE_TOP - found[changed] if self._form.two else 0
        return found

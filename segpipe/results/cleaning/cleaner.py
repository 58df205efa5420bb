"""Clean the labels of a complete case, wherever they lie, in slabs of rows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segpipe.geometry.windows import Window
from segpipe.pipeline.decision import CONFIDENCE_TOP, Decision
from segpipe.results.cleaning.majority import majority
from segpipe.results.cleaning.rule import Cleaning, ElementSizes
from segpipe.results.cleaning.sieve import Sieve


class Planes(Protocol):
    """An array ``(bands, *shape)``."""

    def read(self, band: int, start: int, stop: int) -> NDArray[Any]:
        """Rows, or planes, of a band at full width."""

    def put_rows(self, band: int, start: int, values: NDArray[Any]) -> None:
        """Write rows, or planes, of a band at full width."""


@dataclass(frozen=True, eq=False, slots=True)
class ArrayPlanes:
    """An array in memory."""

    array: NDArray[Any]

    def read(self, band: int, start: int, stop: int) -> NDArray[Any]:
        return self.array[band, start:stop]

    def put_rows(self, band: int, start: int, values: NDArray[Any]) -> None:
        self.array[band, start : start + len(values)] = values


@dataclass(frozen=True, slots=True)
class MaskForm:
    """Form of the masks to clean."""

    bands: int
    dtype: np.dtype[Any]
    nodata: int
    two_labels: bool
    """Whether every band has two labels, so that the probability of one gives that of the other."""
    confidence: bool
    """Whether there is a confidence, too."""

    @classmethod
    def of(cls, decision: Decision, *, confidence: bool) -> "MaskForm":
        """The form of the masks of a decision."""
        two_labels = decision.contract.task in ("binary", "multilabel")
        return cls(decision.bands, decision.dtype, decision.nodata, two_labels, confidence)


@dataclass(frozen=True, eq=False, slots=True)
class Cleaned:
    """A slab of a case after cleaning."""

    window: Window
    labels: NDArray[Any]
    """Shape ``(bands, *window.shape)``."""
    confidence: NDArray[np.uint8] | None


@dataclass(frozen=True, eq=False, slots=True)
class Cleaner:
    """The labels of a case, and how they are cleaned."""

    labels: Planes
    confidence: Planes | None
    scratch: Callable[[], Planes]
    """Makes another array of labels, for those between the majority filter and the sieve."""
    form: MaskForm
    rule: Cleaning
    weights: ElementSizes | None
    """Sizes of elements; None without a sieve."""

    def slabs(self, rows: tuple[int, ...], rest: tuple[int, ...]) -> Iterator[Cleaned]:
        """Yield the case in slabs, in order.

        Args:
            rows: start of each slab, and the end of the last one.
            rest: the other axes of the case.
        """
        bands = zip(*self._bands(rows), strict=True)
        for (start, stop), labels in zip(pairwise(rows), bands, strict=True):
            window = Window((start, *(0,) * len(rest)), (stop, *rest))
            found = np.stack(labels)
            yield Cleaned(window, found, self._confidence(start, stop, found))

    def _bands(self, rows: tuple[int, ...]) -> list[Iterator[NDArray[Any]]]:
        """The cleaned slabs of each band."""
        bands = range(self.form.bands)
        if self.weights is None:
            return [self._filtered(band, rows) for band in bands]
        source = self.labels
        if self.rule.majority is not None:
            source = self.scratch()
            for band in bands:
                self._keep(source, band, rows)
        return [self._sieved(source, band, rows, self.weights) for band in bands]

    def _keep(self, into: Planes, band: int, rows: tuple[int, ...]) -> None:
        for start, slab in zip(rows, self._filtered(band, rows), strict=False):
            into.put_rows(band, start, slab)

    def _filtered(self, band: int, rows: tuple[int, ...]) -> Iterator[NDArray[Any]]:
        """The slabs of a band after the majority filter; each is read with the rows that its windows reach."""
        assert self.rule.majority is not None
        reach, end = self.rule.majority // 2, rows[-1]
        for start, stop in pairwise(rows):
            first = max(0, start - reach)
            values = self.labels.read(band, first, min(end, stop + reach))
            yield majority(values, self.rule.majority, self.form.nodata)[start - first : stop - first]

    def _sieved(self, source: Planes, band: int, rows: tuple[int, ...], weights: ElementSizes) -> Iterator[NDArray[Any]]:
        def read(start: int, stop: int) -> NDArray[Any]:
            return source.read(band, start, stop)

        return Sieve(read, weights.of, weights.least, self.form.nodata, rows).slabs()

    def _confidence(self, start: int, stop: int, labels: NDArray[Any]) -> NDArray[np.uint8] | None:
        """The probability of the cleaned labels: of two labels, the rest; of several, 0, as theirs was not kept."""
        if self.confidence is None:
            return None
        bands = range(self.form.bands)
        found = np.stack([self.confidence.read(band, start, stop) for band in bands])
        changed = labels != np.stack([self.labels.read(band, start, stop) for band in bands])
        found[changed] = CONFIDENCE_TOP - found[changed] if self.form.two_labels else 0
        return found

"""Keep the labels of a case until it is complete, then yield them cleaned, in slabs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import on_failure
from segpipe.geometry.grid import Grid
from segpipe.results.cleaning.cleaner import ArrayPlanes, Cleaned, Cleaner, MaskForm
from segpipe.results.cleaning.plane_file import PlaneFile
from segpipe.results.cleaning.rule import Cleaning
from segpipe.storage import Store

SLAB = 2**19
"""Elements of a slab, which take about ``SLAB_BYTES`` each while they are cleaned."""

LEAST_ROWS = 16
"""Least rows of a slab, however wide a case is: regions at its borders are kept in memory."""

SLAB_BYTES = 260
"""Bytes per element of a slab (measured with noise)."""


@dataclass(frozen=True, slots=True)
class NamedGrid:
    """A case and its grid."""

    name: str
    path: str
    grid: Grid


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

    def __init__(self, output: Store, place: NamedGrid, form: MaskForm, rule: Cleaning) -> None:
        """Create the files in the output, as large as the case.

        Raises:
            SourceError: the grid does not measure in the unit of the sieve.
        """
        self._output, self._name, self._grid, self._form, self._rule = output, place.name, place.grid, form, rule
        self._weights = rule.weights(place.grid, place.path)
        self._files: list[PlaneFile] = []
        with on_failure(self.discard):
            self.labels = self._file("labels", form.dtype)
            self.confidence = self._file("confidence", np.dtype(np.uint8)) if form.confidence else None

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
        shape = self._grid.shape
        return self._cleaner.slabs(slab_rows(shape), shape[1:])

    @property
    def _cleaner(self) -> Cleaner:
        def scratch() -> PlaneFile:
            return self._file("filtered", self._form.dtype)

        return Cleaner(
            labels=self.labels,
            confidence=self.confidence,
            scratch=scratch,
            form=self._form,
            rule=self._rule,
            weights=self._weights,
        )


def cleaned_arrays(
    labels: NDArray[Any], confidence: NDArray[np.uint8] | None, grid: Grid, rule: Cleaning, form: MaskForm
) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
    """The labels of a case in memory after cleaning, and their confidence.

    Args:
        labels: shape ``(bands, *grid.shape)``.
        confidence: of this shape, or None.
        grid: of the case.
        rule: what is done.
        form: of the arrays.

    Raises:
        SourceError: the grid does not measure in the unit of the sieve.
    """
    given = None if confidence is None else ArrayPlanes(confidence)
    weights = rule.weights(grid, "the array")
    cleaner = Cleaner(
        labels=ArrayPlanes(labels),
        confidence=given,
        scratch=lambda: ArrayPlanes(np.empty_like(labels)),
        form=form,
        rule=rule,
        weights=weights,
    )
    slabs = list(cleaner.slabs(slab_rows(grid.shape), grid.shape[1:]))
    likely = [slab.confidence for slab in slabs if slab.confidence is not None]
    return np.concatenate([slab.labels for slab in slabs], axis=1), np.concatenate(likely, axis=1) if likely else None

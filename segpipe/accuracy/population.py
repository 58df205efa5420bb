"""The map of a run as a population of pixels: its cases, its classes as strata, and their sizes."""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Float, Integers
from segpipe.errors import InputError, OutputError
from segpipe.formats.case import Case
from segpipe.formats.registry import FORMATS, OpenMask
from segpipe.geometry.windows import Window
from segpipe.jobs.last_run import done_names, last_run
from segpipe.messages.printable import printable
from segpipe.results.masks import stored_mask
from segpipe.results.records import finished_record
from segpipe.results.schema import Record
from segpipe.storage import Store
from segpipe.storage.stores import store_at

BLOCK_ROWS = 512
"""Rows that are read at once: a row of blocks of a mask."""


@dataclass(frozen=True, eq=False)
class Population:
    """Cases sorted by name, so that a sample does not depend on the order in which they were found."""

    store: Store
    cases: tuple[Record, ...]
    ids: tuple[int, ...]
    """Id of each class in the masks."""
    classes: tuple[str, ...]
    pixels: Integers
    """Pixels of each class in each case, shape ``(cases, classes)``."""
    areas: Float
    """Area of each class in each case, in ``unit``."""
    unit: str

    @cached_property
    def identity(self) -> str:
        """Changes with the masks: models, settings and counts."""
        facts = [
            [c.case, c.model.sha256, c.settings, list(map(int, row))] for c, row in zip(self.cases, self.pixels, strict=True)
        ]
        return hashlib.sha256(json.dumps([facts, self.ids], sort_keys=True, default=str).encode()).hexdigest()

    @contextmanager
    def open(self, record: Record) -> Iterator[OpenMask]:
        """Open the finished mask of a case, which must have the shape that its record says.

        Raises:
            OutputError: it is not there, or has another shape than its record says.
        """
        opener = FORMATS[record.input.format].open_mask
        assert opener is not None
        name = stored_mask(self.store, record)
        with self.store.local(name) as local, opener(local) as mask:
            if tuple(mask.grid.shape) != tuple(record.input.shape):
                raise OutputError(f"{self.store.path(name)} must have the shape of its record, and has another: run again")
            yield mask


def population_of(place: str) -> Population:
    """The map of the last run into an output folder.

    Raises:
        OutputError: it is no such folder, or its masks cannot be read.
        InputError: its cases are not rasters with one class per pixel and an area.
    """
    store = store_at(place).settled()
    last = last_run(store)
    names = sorted({*done_names(store, last), *last.skipped})
    records = [finished_record(store, Case(name, name)) for name in names]
    if not records:
        raise OutputError(f"{store} must hold masks, and no case of the last run has one: run it again")
    for record in records:
        _check(record, records[0])
    rows = [[row for row in record.areas if row["class_id"] is not None] for record in records]
    pixels = np.array([[row["pixels"] for row in each] for each in rows], np.int64)
    areas = np.array([[row["area"] for row in each] for each in rows], np.float64)
    ids, names_ = (tuple(row[key] for row in rows[0]) for key in ("class_id", "class_name"))
    if not pixels.sum():
        raise InputError(f"the map must have pixels with a class, and {store} has none")
    return Population(
        store=store,
        cases=tuple(records),
        ids=ids,
        classes=names_,
        pixels=pixels,
        areas=areas,
        unit=str(records[0].valid.unit),
    )


def _check(record: Record, first: Record) -> None:
    name = printable(record.case)
    if FORMATS[record.input.format].open_mask is None or record.valid.unit != "ha":
        raise InputError(f"samples and estimates need rasters with a place on the Earth, and {name} has none")
    if _classes(record) != _classes(first):
        raise InputError(
            f"all cases must have the same classes, and those of {printable(first.case)} and {name} differ: keep the runs "
            "of each model in an output of their own"
        )
    if sum(int(row["pixels"]) for row in record.areas) != math.prod(record.input.shape):
        raise InputError(f"each pixel must have one class, and those of {name} may have several (multilabel)")


def _classes(record: Record) -> list[tuple[Any, Any]]:
    return [(row["class_id"], row["class_name"]) for row in record.areas]


def strips(mask: OpenMask, rows: int = BLOCK_ROWS) -> Iterator[tuple[int, Any]]:
    """The first row and the labels of each strip of a mask, over its full width, from top to bottom."""
    whole = Window.whole(mask.grid.shape)
    for window in whole.blocks((rows, whole.stop[1])):
        yield window.start[0], mask.read(window)


def positions(labels: NDArray[Any], ids: Sequence[int]) -> Integers:
    """Position of each label in the list of classes; -1 for nodata and what is no class."""
    lookup = np.full(max(int(np.iinfo(labels.dtype).max), *ids) + 1, -1, np.int64)
    lookup[list(ids)] = np.arange(len(ids))
    return np.asarray(lookup[labels])

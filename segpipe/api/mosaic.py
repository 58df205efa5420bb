"""The joined map of a run that has ended."""

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from segpipe.api.mosaic_size import size_warnings
from segpipe.choices import OverlapRule
from segpipe.errors import OutputError, SettingsError
from segpipe.formats.registry import FORMATS, RASTER, environment
from segpipe.jobs.last_run import masked_cases, warn_of_missing_masks
from segpipe.messages.printable import counted
from segpipe.process.environment import clean_environment
from segpipe.results.overlap.finished import FinishedCase
from segpipe.results.overlap.index import SUFFIX, IndexedMask, is_possible, write_index
from segpipe.results.overlap.mosaic import Forecast, MosaicPlan, Planned, plan_mosaic, write_mosaic
from segpipe.results.overlap.mosaic_grid import GridRequest
from segpipe.results.records import records
from segpipe.storage import Store
from segpipe.storage.existence import is_folder
from segpipe.storage.folder import UNLOCKED, Folder
from segpipe.storage.lock import locked
from segpipe.storage.paths import in_bucket
from segpipe.storage.stores import store_at

LOG = logging.getLogger("segpipe")

ENDINGS = (".tif", ".tiff")
SQLITE = b"SQLite format 3\0"
TYPES = {"uint8": "Byte", "uint16": "UInt16"}
"""GDAL's names of the types of labels."""


@dataclass(frozen=True)
class MosaicTask:
    """Which map to make, and where."""

    target: str
    """A file, or ``s3://bucket/key``."""
    rule: OverlapRule = "first"
    request: GridRequest = field(default_factory=GridRequest)


def make_mosaic(output: str | os.PathLike[str], task: MosaicTask, planned: Planned = lambda _: None) -> list[str]:
    """Write the joined map of a run and its index, and return lines that describe them.

    Args:
        output: the folder of the run, or ``s3://bucket/prefix``.
        task: the map.
        planned: called with the size of the map before its pixels are read.

    Raises:
        SegpipeError: the output is not of a run, or is in use; its masks do not make one map; or this cannot be written.
    """
    clean_environment()
    store = store_at(os.fspath(output)).settled()
    target, name = _target(task.target, store)
    _finished(store)  # refuse what is no run before a lock is written
    with environment(), locked(store) as killed:
        if killed:
            store.sweep()
            _sweep(target, name)
        cases = _finished(store)
        warn_of_missing_masks(store)
        _refuse_taken(target, name, {store.path(file) for case in cases for file in (case.mask, case.confidence) if file})
        plan = plan_mosaic(store, cases, task.rule, task.request)
        try:
            write_mosaic(store, plan, target, name, _warning(planned, target, cases[0].format))
            _write_index(store, plan, target, _index_name(name))
        finally:
            if isinstance(target, Folder):
                target.tidy()
    return list(_lines(plan, target, name))


def _sweep(target: Store, name: str) -> None:
    """Remove the drafts that a killed mosaic of this name has left; another run may be writing other maps to the folder."""
    if isinstance(target, Folder):
        stem = re.escape(PurePosixPath(name).stem)
        target.sweep(re.compile(rf"\.([0-9a-f]{{12}}\.)?{stem}(\.\d+)?\.(draft|tiff?|gti\.gpkg)\.partial", re.IGNORECASE))


def _warning(planned: Planned, target: Store, format_name: str) -> Planned:
    """Wrap a callback so that warnings about the size of the mosaic come first."""

    def warn(forecast: Forecast) -> None:
        for line in size_warnings(forecast, target, format_name):
            LOG.warning(line)
        planned(forecast)

    return warn


def _target(text: str, locked_store: Store) -> tuple[Store, str]:
    """Store and name of the map; the store of the run itself is locked, and another may be that of a run in progress."""
    if not text.lower().endswith(ENDINGS):
        raise SettingsError(f"the mosaic must be a .tif, got {text}: name it such as mosaic.tif")
    if in_bucket(text):
        folder, _, name = text.rpartition("/")
        return store_at(folder).settled(), name
    path = Path(text).absolute()
    if not is_folder(path.parent):
        raise SettingsError(f"the mosaic must lie in a folder that exists, got {text}: make {path.parent} first")
    is_locked = isinstance(locked_store, Folder) and path.parent.resolve() == locked_store.root.resolve()
    return (locked_store if is_locked else Folder(path.parent, UNLOCKED)), path.name


def _finished(store: Store) -> list[FinishedCase]:
    """The cases of the last run that have a mask, sorted by name."""
    return [FinishedCase.of(store, record) for record in records(store, masked_cases(store))]


def _index_name(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(SUFFIX))


def _refuse_taken(target: Store, name: str, masks: set[str]) -> None:
    """Refuse to replace a mask of the run, or a file that segpipe did not write.

    Raises:
        OutputError: with its path.
    """
    target.check()
    if target.path(name) in masks or (isinstance(target, Folder) and _is_same_file(target.path(name), masks)):
        raise OutputError(f"the mosaic must not replace a mask of its run, got {target.path(name)}: name another file")
    index = _index_name(name)
    foreign = (target.has(name) and not FORMATS[RASTER].owns(target, name)) or (
        target.has(index) and not _is_own_index(target.read(index))
    )
    if foreign:
        raise OutputError(f"{target.path(name)}, or its index, was not written by segpipe: name another file")


def _is_same_file(path: str, masks: set[str]) -> bool:
    return any(os.path.realpath(path) == os.path.realpath(mask) for mask in masks)


def _is_own_index(data: bytes) -> bool:
    return not data.strip(b"\0") or (data.startswith(SQLITE) and b"segpipe" in data)


def _write_index(store: Store, plan: MosaicPlan, target: Store, name: str) -> None:
    if not is_possible(plan.placement.grid):
        target.discard(name)
        return
    each = zip(plan.cases, plan.grids, strict=True)
    entries = [IndexedMask(case.case, _location(store, case.mask or "", target), grid, _time(case)) for case, grid in each]
    style = plan.style
    kind = {"BAND_COUNT": str(len(style.bands)), "DATA_TYPE": TYPES[style.dtype], "NODATA": str(style.nodata)}
    with target.draft_of(name) as draft:
        write_index(draft, entries, plan.placement.grid, kind)


def _time(case: FinishedCase) -> str | None:
    return None if case.acquired is None else case.acquired.time.isoformat()


def _location(store: Store, mask: str, target: Store) -> str:
    """Path of a mask for GDAL: relative to the index if both are on this machine."""
    path = store.path(mask)
    if in_bucket(path):
        return f"/vsis3/{path.removeprefix('s3://')}"
    return os.path.relpath(path, target.path("")) if isinstance(target, Folder) else str(Path(path).absolute())


def _lines(plan: MosaicPlan, target: Store, name: str) -> Iterator[str]:
    grid, reprojected = plan.placement.grid, plan.placement.reprojected
    rows, cols = grid.shape
    count = counted(len(plan.cases), "case")
    yield f"{target.path(name)}: {rows:,} x {cols:,} px in {grid}, of {count}, by --overlap-rule {plan.rule}"
    if reprojected:
        yield (
            f"{len(reprojected)} of {count} moved to this grid, each pixel from the nearest: count no areas in this map; "
            "they are in areas.csv, and totals in run.json"
        )
    if not is_possible(grid):
        yield "no index: GDAL knows indexes of grids with north up"
    elif plan.rule == "confidence":
        yield f"index in {target.path(_index_name(name))}, which draws masks by name: it does not know their confidence"
    else:
        yield f"index in {target.path(_index_name(name))}"

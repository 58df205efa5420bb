"""Disk space: what a run needs, what is free, and messages about shortages."""

import errno
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from heapq import nlargest
from pathlib import Path

import numpy as np

from segpipe.errors import case_errors
from segpipe.formats.registry import FORMATS, environment
from segpipe.formats.sink import OVERVIEWS, Space
from segpipe.jobs.plan import Plan
from segpipe.pipeline.decision import Decision
from segpipe.pipeline.memory import in_words, most_memory
from segpipe.pipeline.opening import CaseInfo, open_checked
from segpipe.results.lesions.components import MOST_LISTED
from segpipe.results.run import Run
from segpipe.storage.folder import Folder
from segpipe.storage.paths import is_remote

MASK_SHARE, CONFIDENCE_SHARE = 0.12, 0.6
"""Likely size of a compressed raster relative to its pixels."""

CLASS_SHARE = 0.01
"""Likely size of the compressed mask of one of many classes relative to its pixels."""

INSTANCE, NAME = 2, 4
"""Bytes per pixel of the number of a component, and of its name until it has a number."""

BESIDE = 16_000
"""Bytes of a record, a sidecar and a style."""

LESION = 1_200
"""Bytes of a component in the record and in ``lesions.csv``."""

SAMPLE = 16
"""Cases whose headers are sampled if no case has been opened."""

LITTLE = 16 * 10**6
"""Bytes that any run needs for tables, lock and Dask's own files."""

FEW_FILES = 64
"""Free inodes below which a full disk is taken to lack inodes, not bytes."""


@dataclass(frozen=True, slots=True)
class Needed:
    """Bytes and files that a run needs."""

    likely: float
    most: float
    passing: float
    """Part of ``likely``: drafts and parts that exist only during the run."""
    files: int


@dataclass(frozen=True, slots=True)
class Free:
    """Free space on a disk."""

    bytes: int | None
    """None where the file system does not report it."""
    files: int | None
    """None where the file system does not count files."""


def free_at(folder: Path) -> Free:
    """Free space for this user as the file system reports it; quotas are not included."""
    try:
        found = os.statvfs(folder)
    except OSError:  # a server that does not answer at present
        return Free(None, None)
    return Free(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None)


def needed(plan: Plan, run: Run) -> Needed:
    """Needs of all remaining cases on the disk of the drafts, which is that of the masks unless these go to a bucket."""
    layers, sizes = _layers(run), _sizes(plan, run)
    derived = [_derived(name, n, run) for name, n in sizes]
    stays = isinstance(run.output, Folder)
    pixels = [n for _, n in sizes] if stays else []
    masks = [sum(size * share for size, share in layers) * OVERVIEWS * n + BESIDE for n in pixels]
    beside = BESIDE + (run.lesions is not None) * MOST_LISTED * LESION
    most = [sum(size for size, _ in layers) * OVERVIEWS * n + beside for n in pixels]
    drafts = sum(nlargest(plan.workers, (_draft(name, n, layers) + _beside(n, run, layers) for name, n in sizes)))
    drafts += sum(nlargest(plan.workers, (space.likely for space in derived)))
    parts = nlargest(2, (cut.case.pixels for cut in plan.cuts)) if stays else []
    likely_parts = sum(_names(n, run).likely + sum(n * size * share for size, share in layers) for n in parts)
    most_parts = sum(_names(n, run).most + sum(n * size for size, _ in layers) for n in parts)
    files = len(pixels) * (2 + len(layers) + run.styled) + sum(space.files for space in derived if stays)
    files += _overlaps([name for name, _ in sizes]) if stays else 0
    passing = drafts + likely_parts
    likely, most_of_all = sum(masks) + passing, sum(most) + drafts + most_parts
    if not stays:
        return Needed(likely, most_of_all, passing, files)
    return Needed(likely + sum(s.likely for s in derived), most_of_all + sum(s.most for s in derived), passing, files)


def _overlaps(formats: Sequence[str]) -> int:
    """Most files about ground that cases share: one of each that may lie on the Earth, if there are several."""
    placed = sum(FORMATS[name].open_mask is not None for name in formats)
    return placed if placed > 1 else 0


def _layers(run: Run) -> list[tuple[int, float]]:
    """Bytes per pixel of each raster of a case, and the share that likely remains after compression."""
    decision = Decision(run.model.contract, run.model.blend_on)
    layers = [(decision.bands * np.dtype(decision.dtype).itemsize, MASK_SHARE)]
    if run.settings.confidence:
        layers.append((decision.bands, CONFIDENCE_SHARE))
    if run.settings.instances:
        layers.append((decision.bands * INSTANCE, MASK_SHARE))
    return layers


def _beside(pixels: float, run: Run, layers: Sequence[tuple[int, float]]) -> float:
    """Bytes of a case that exist beside its drafts: names of components, and labels that are to be cleaned."""
    rule = run.cleaning
    if rule is None:
        return _names(pixels, run).likely
    filtered = layers[0][0] if rule.majority is not None and rule.least is not None else 0
    kept = layers[: 1 + run.settings.confidence]
    return _names(pixels, run).likely + (filtered + sum(size for size, _ in kept)) * pixels


def _names(pixels: float, run: Run) -> Space:
    """Space of the components' names of a case, which are stored until its instances are written."""
    if not run.settings.instances:
        return Space()
    size = Decision(run.model.contract, run.model.blend_on).bands * NAME * pixels
    return Space(size * MASK_SHARE, size)


def _derived(name: str, pixels: float, run: Run) -> Space:
    """Space of the files that are made of a mask: those of format ``name``, and those of the classes."""
    classes = len(run.model.contract.mask_classes)
    own = FORMATS[name].derived_space(run.derived, classes, pixels)
    if not run.settings.per_class:
        return own
    likely = pixels * (1 + classes * CLASS_SHARE)  # the draft of one at a time, and all that are finished
    return Space(own.likely + likely, own.most + pixels * (1 + classes), own.files + classes)


def _draft(name: str, pixels: float, layers: Sequence[tuple[int, float]]) -> float:
    """Bytes of the drafts of a case of format ``name``, and of their final copies."""
    return sum(FORMATS[name].drafts(pixels, size * pixels, size * share * pixels) for size, share in layers)


def _sizes(plan: Plan, run: Run) -> list[tuple[str, float]]:
    """Format and number of pixels of each case to be done; cases that were not opened count with the mean of the others."""
    opened: list[tuple[str, float]] = [(case.case.format, case.pixels) for case in plan.opened]
    if not plan.unopened:
        return opened
    some = [math.prod(info.grid.shape) for info in sampled_infos(plan, run)]
    return opened + [(case.format, sum(some) / len(some)) for case in plan.unopened] if some else opened


def sampled_infos(plan: Plan, run: Run) -> Iterator[CaseInfo]:
    """Open some cases that were not opened yet; leave out those that cannot be opened."""
    with environment():
        for case in plan.unopened[:: max(1, len(plan.unopened) // SAMPLE)]:
            with case_errors(case.path):  # the job of the case reports any error
                if is_remote(case.path):
                    continue  # would take a request each
                source, info = open_checked(case, run.model, run.overrides, memory=most_memory(run.settings))
                with closing(source):
                    yield info


def forecast(plan: Plan, run: Run) -> str:
    """Describe in one line what a run needs and what is free."""
    folder = run.output.disk()
    want, free = needed(plan, run), free_at(folder)
    files = "" if free.files is None else f", {free.files:,} files"
    what = "masks, drafts and parts" if isinstance(run.output, Folder) else "drafts"
    return (
        f"{what} likely take {in_words(want.likely)} in {folder}, at most {in_words(want.most)} "
        f"({in_words(want.passing)} of it only while it runs); free there: {_amount(free)}{files}; quotas are not seen"
    )


def _amount(free: Free) -> str:
    return "unknown" if free.bytes is None else in_words(free.bytes)


def shortages(plan: Plan, run: Run) -> Iterator[str]:
    """Yield warnings about disks that are likely too small for a run."""
    folder = run.output.disk()
    want, free = needed(plan, run), free_at(folder)
    if free.bytes is not None and want.likely > free.bytes:
        yield (
            f"warning: the run likely takes {in_words(want.likely)} in {folder}, at most {in_words(want.most)}, and "
            f"{in_words(free.bytes)} are free: free {in_words(want.likely - free.bytes)}, or name another {_flag(run)}"
        )
    if free.files is not None and want.files > free.files:
        yield f"warning: the run leaves {want.files:,} files, and {folder} can hold only {free.files:,}: remove some"


def _flag(run: Run) -> str:
    return "--output" if isinstance(run.output, Folder) else "TMPDIR"


def stopped(plan: Plan, run: Run, share: float, said: str) -> str:
    """Explain why a run stopped early, and what to do.

    Args:
        plan: plan of the run.
        run: the run.
        share: share of its cases that are not done.
        said: message of the operating system when a write failed.
    """
    folder, started = run.output.disk(), "no further work was started"
    if said == os.strerror(errno.ENOSPC):
        free = free_at(folder)
        more = max(LITTLE, needed(plan, run).likely * share - (free.bytes or 0))
        whose = f"{run.output}" if isinstance(run.output, Folder) else f"{folder}, where drafts for {run.output} lie,"
        if free.files is not None and free.files < FEW_FILES:
            return f"the disk of {whose} holds no more files: {started}: remove some and run the same command again"
        return f"the disk of {whose} is full: {started}: free {in_words(more)} and run the same command again"
    mend = "raise the quota" if "quota" in said.lower() else "repair it"
    return f"{run.output} can no longer be written: {said}: {started}: {mend} and run the same command again"

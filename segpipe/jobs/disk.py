"""Room on a disk: what a run may take, what is free, and what to say once there is none."""

import errno
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from heapq import nlargest
from pathlib import Path

import numpy as np

from segpipe.formats.registry import FORMATS, environment
from segpipe.jobs.plan import Plan
from segpipe.pipeline.decide import Decision
from segpipe.pipeline.memory import in_words, most_memory
from segpipe.pipeline.opening import Sheet, open_sheet
from segpipe.results.records import Run
from segpipe.storage.bucket import is_remote
from segpipe.storage.folder import Folder

OVERVIEWS = 4 / 3
"""A pyramid of halves over the pixels below it."""

MASK_SHARE, CONFIDENCE_SHARE = 0.12, 0.6
"""Likely size of a compressed raster over that of its pixels."""

BESIDE = 16_000
"""Bytes of a record, a sidecar and a style."""

SAMPLE = 16
"""Cases whose headers stand for all, where nobody has looked at them."""

LITTLE = 16 * 10**6
"""Bytes that a run wants free wherever it writes at all: tables, lock, Dask's own files."""

FEW_FILES = 64
"""Files that a disk may yet hold below which it is files that it has no room for, and not bytes."""


@dataclass(frozen=True, slots=True)
class Needed:
    """Bytes and files that a run takes."""

    likely: float
    most: float
    passing: float
    """Of these, what drafts and parts likely take while it runs."""
    files: int


@dataclass(frozen=True, slots=True)
class Free:
    """What is left on a disk."""

    bytes: int | None
    """None where the file system does not tell."""
    files: int | None
    """None where the file system does not count them."""


def free_at(folder: Path) -> Free:
    """For this user, as far as the file system tells; quotas are not part of it."""
    try:
        found = os.statvfs(folder)
    except OSError:  # a server that does not answer just now
        return Free(None, None)
    return Free(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None)


def needed(plan: Plan, run: Run) -> Needed:
    """What all cases to be done take on the disk of the drafts, which is that of the masks unless these go to a bucket."""
    layers, sizes = _layers(run), _sizes(plan, run)
    pixels = [n for _, n in sizes]
    stays = isinstance(run.output, Folder)
    masks = [sum(size * share for size, share in layers) * OVERVIEWS * n + BESIDE for n in pixels] if stays else []
    most = [sum(size for size, _ in layers) * OVERVIEWS * n + BESIDE for n in pixels] if stays else []
    drafts = sum(nlargest(plan.workers, (_draft(name, n, layers) for name, n in sizes)))
    parts = nlargest(2, (cut.case.pixels for cut in plan.cuts)) if stays else []
    likely_parts = sum(n * size * share for n in parts for size, share in layers)
    most_parts = sum(n * size for n in parts for size, _ in layers)
    files = len(pixels) * (2 + len(layers) + run.styled) if stays else 0
    passing = drafts + likely_parts
    return Needed(sum(masks) + passing, sum(most) + drafts + most_parts, passing, files)


def _layers(run: Run) -> list[tuple[int, float]]:
    """Bytes per pixel of each raster of a case, and the share of them that is likely left when it is compressed."""
    decision = Decision(run.model.contract, run.model.blend_on)
    mask = (decision.bands * np.dtype(decision.dtype).itemsize, MASK_SHARE)
    return [mask, (decision.bands, CONFIDENCE_SHARE)] if run.settings.confidence else [mask]


def _draft(name: str, pixels: float, layers: Sequence[tuple[int, float]]) -> float:
    """Bytes of the drafts of a case of format ``name``, and of their final copies."""
    return sum(FORMATS[name].drafts(pixels, size * pixels, size * share * pixels) for size, share in layers)


def _sizes(plan: Plan, run: Run) -> list[tuple[str, float]]:
    """Format and number of pixels of each case to be done; cases that were not opened count with the mean of the others."""
    seen: list[tuple[str, float]] = [(case.case.format, case.pixels) for case in plan.seen]
    if not plan.unseen:
        return seen
    some = [math.prod(sheet.grid.shape) for sheet in sampled_sheets(plan, run)]
    return seen + [(case.format, sum(some) / len(some)) for case in plan.unseen] if some else seen


def sampled_sheets(plan: Plan, run: Run) -> Iterator[Sheet]:
    """Open some cases that were not opened yet; leave out those that cannot be opened."""
    with environment():
        for case in plan.unseen[:: max(1, len(plan.unseen) // SAMPLE)]:
            with suppress(Exception):  # whatever it is, the job of the case says it
                if is_remote(case.path):
                    continue  # a request each
                source, sheet = open_sheet(case, run.model, run.settings.overrides, memory=most_memory(run.settings))
                with closing(source):
                    yield sheet


def forecast(plan: Plan, run: Run) -> str:
    """What a run takes and what is free, in a line."""
    folder = run.output.disk()
    want, free = needed(plan, run), free_at(folder)
    files = "" if free.files is None else f", {free.files:,} files"
    what = "masks, drafts and parts" if isinstance(run.output, Folder) else "drafts"
    return (
        f"{what} likely take {in_words(want.likely)} in {folder}, at most {in_words(want.most)} "
        f"({in_words(want.passing)} of it only while it runs); free there: {_amount(free)}{files}; quotas are not seen"
    )


def _amount(free: Free) -> str:
    return "not told" if free.bytes is None else in_words(free.bytes)


def shortages(plan: Plan, run: Run) -> Iterator[str]:
    """Warnings of disks that are likely too full for a run."""
    folder = run.output.disk()
    want, free = needed(plan, run), free_at(folder)
    if free.bytes is not None and want.likely > free.bytes:
        yield (
            f"warning: the run likely takes {in_words(want.likely)} in {folder}, at most {in_words(want.most)}, and "
            f"{in_words(free.bytes)} are free: free {in_words(want.likely - free.bytes)}, or name another {_flag(run)}"
        )
    if free.files is not None and want.files > free.files:
        yield f"warning: the run leaves {want.files:,} files, and {folder} has room for {free.files:,}: remove some"


def _flag(run: Run) -> str:
    return "--output" if isinstance(run.output, Folder) else "TMPDIR"


def stopped(plan: Plan, run: Run, share: float, said: str) -> str:
    """Why a run has ended before its time, and what to do.

    Args:
        plan: of the run.
        run: that has ended.
        share: of its cases that are not done.
        said: by the operating system, when something could not be written.
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

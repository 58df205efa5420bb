"""Zone statistics for the masks of a run that has ended."""

import os
from collections.abc import Iterator

from segpipe.jobs.last_run import masked_cases, warn_of_missing_masks
from segpipe.messages.printable import counted
from segpipe.process.environment import clean_environment
from segpipe.results.zones.stage import ZonesTask, make_tables, read_and_check
from segpipe.storage import Store
from segpipe.storage.lock import locked
from segpipe.storage.ownership import ZONES
from segpipe.storage.stores import store_at


def measure_zones(output: str | os.PathLike[str], task: ZonesTask) -> list[str]:
    """Write ``zones.csv`` into the output of a run, and return lines that summarise it.

    Args:
        output: the folder, or ``s3://bucket/prefix``.
        task: the polygons, where they are written with the columns of the table, and the rule for shared ground.

    Raises:
        SegpipeError: the output is not of a run, or is in use, or the polygons cannot be used.
    """
    clean_environment()
    store = store_at(os.fspath(output)).settled()
    masked_cases(store)  # refuse what is no run before a lock is written
    read = read_and_check(task, store)
    with locked(store):
        cases = masked_cases(store)  # another run may have ended meanwhile
        warn_of_missing_masks(store)
        totals = make_tables(task, read, store, cases)
        store.sweep()
    return list(_lines(store, task, int((totals.cases > 0).sum()), len(read), len(cases)))


def _lines(store: Store, task: ZonesTask, there: int, count: int, cases: int) -> Iterator[str]:
    polygons, scenes = counted(count, "polygon"), counted(cases, "case")
    yield f"{there:,} of {polygons} on {scenes}: {store.path(ZONES)}"
    if task.output is not None:
        yield f"polygons with these columns: {task.output}"

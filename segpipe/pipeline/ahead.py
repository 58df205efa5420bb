"""Run the stages before this point in a thread of their own, a few items ahead."""

import threading
from collections.abc import Callable, Generator, Iterable
from queue import Full, Queue
from typing import TypeVar

from segpipe.timing.spans import waiting

T = TypeVar("T")

READ_AHEAD = 3
"""Fewest tiles that are read ahead of inference; two batches if that is more."""

_END = object()


def tiles_ahead(batch: int) -> int:
    """Number of tiles that are read ahead for batches of this size."""
    return max(READ_AHEAD, 2 * batch)


def ahead(
    items: Iterable[T], depth: int, *, stage: str = "read", late: Callable[[bool], None] = lambda _: None
) -> Generator[T, None, None]:
    """Yield the same items in the same order, computed while the consumer works; at most ``depth`` wait.

    The consumer's waiting time is charged to ``stage``. For each item ``late`` is called with whether the queue was empty
    before it, in the thread that computes the items.

    An exception of ``items`` is raised in its place. Closing the iterator stops the thread and closes
    ``items`` before it returns, so that no thread reads files that its consumer has left.
    """
    queue: Queue[object] = Queue(depth)
    stopped = threading.Event()
    thread = threading.Thread(target=_fill, args=(items, queue, stopped, late), name="segpipe-ahead", daemon=True)
    thread.start()
    try:
        while (item := _get(queue, stage)) is not _END:
            if isinstance(item, _Raised):
                raise item.error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()


def _get(queue: "Queue[object]", stage: str) -> object:
    with waiting(stage):
        return queue.get()


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def _fill(items: Iterable[object], queue: "Queue[object]", stopped: threading.Event, late: Callable[[bool], None]) -> None:
    iterator = iter(items)
    try:
        for item in iterator:
            late(queue.empty())
            if not _put(queue, item, stopped):
                break
    except BaseException as error:  # noqa: BLE001 - it belongs to the consumer's thread
        _put(queue, _Raised(error), stopped)
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()
        _put(queue, _END, stopped)


def _put(queue: "Queue[object]", item: object, stopped: threading.Event) -> bool:
    while not stopped.is_set():
        try:
            queue.put(item, timeout=0.1)
        except Full:
            continue
        return True
    return False

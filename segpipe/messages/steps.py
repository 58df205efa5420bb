"""A bar on stderr for commands that go through many cases, and print their result at the end."""

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from segpipe.messages.console import console

if TYPE_CHECKING:  # takes 0.1 s to import, which commands outside terminals do not need
    from rich.progress import Progress

Item = TypeVar("Item")

_bars: "list[Progress]" = []
"""The bar of the command that runs in this process; none in runs, in Python, and outside terminals."""


@contextmanager
def steps_shown() -> Iterator[None]:
    """Show ``stepping`` inside the block on stderr, if that is a terminal; nothing is left of the bar at the end."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True, redirect_stdout=False) as bar:
        _bars.append(bar)
        try:
            yield
        finally:
            _bars.remove(bar)


def stepping(items: Collection[Item], doing: str) -> Iterator[Item]:
    """Yield the items, and advance the bar after each; ``doing`` is the description beside the bar."""
    if not _bars:
        yield from items
        return
    bar = _bars[-1]
    task = bar.add_task(doing, total=len(items))
    for item in items:
        yield item
        bar.advance(task)

"""The progress of a mosaic in a terminal."""

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

from segpipe.messages.console import console

if TYPE_CHECKING:  # commands outside terminals show no bar
    from rich.progress import Progress, TaskID


class MapBar:
    """A bar of the pixels that are joined, with the time left; nothing outside a terminal."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, pixels: int) -> None:
        """Show the bar."""
        if sys.stdout.isatty():
            from rich.progress import Progress

            self._bar = Progress(console=console(), transient=False)
            self._task = self._bar.add_task("joining masks", total=pixels)
            self._bar.start()

    def advance(self, pixels: int) -> None:
        """Add joined pixels."""
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, pixels)
            if self._bar.finished:
                self._bar.update(self._task, description="writing the file")

"""The progress of a run in a notebook: one display that is updated in place."""

import html
import sys
import threading
import time
from types import TracebackType
from typing import Any, Self

from segpipe.formats.registry import element_of
from segpipe.jobs.prepare import Prepared
from segpipe.jobs.tasks import Outcome
from segpipe.messages.printable import printable
from segpipe.terminal.progress import described

SECONDS = 0.3
"""Seconds between two updates; each update is stored in the notebook's messages."""

FAILURES = 10
"""Maximum number of failed cases named below the bar."""


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and getattr(shell, "kernel", None) is not None


class NotebookBar:
    """Shows cases, pixels, speed and failures."""

    def __init__(self, prepared: Prepared) -> None:
        self._total, self._count = len(prepared.cases), len(prepared.plan.done)
        self._all, self._unit = prepared.plan.pixels, f"M{element_of(prepared.cases)}"
        self._pixels = 0
        self._failures: list[str] = []
        self._failed = 0
        self._began = self._shown = time.monotonic()
        self._display: Any = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        from IPython.display import display

        self._display = display(self, display_id=True)  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._show()

    def _show(self) -> None:
        with self._lock:
            self._shown = time.monotonic()
            self._display.update(self)

    def _show_sometimes(self) -> None:
        if time.monotonic() - self._shown > SECONDS:
            self._show()

    def progress(self, pixels: int) -> None:
        """Add finished pixels, and show them unless the bar was updated a moment ago."""
        self._pixels += pixels
        self._show_sometimes()

    def outcome(self, outcome: Outcome) -> None:
        """Count a case, and keep the message of a failed one; the first failures are shown below the bar."""
        self._count += 1
        if outcome.error is not None:
            self._failed += 1
            self._failures = [*self._failures, printable(described(outcome))][:FAILURES]
        self._show_sometimes()

    def note(self, line: str) -> None:
        """Do nothing: the bar does not show notes."""

    @property
    def share(self) -> float:
        """Finished share of the run, 0 to 1: by pixels where their number is known, else by cases."""
        if self._count >= self._total:
            return 1.0
        done, whole = (self._count, self._total) if self._all is None else (self._pixels, self._all)
        return min(1.0, done / whole) if whole else 0.0

    def __repr__(self) -> str:
        seconds = time.monotonic() - self._began
        failed = f", {self._failed} failed" * bool(self._failed)
        rate = self._pixels / 1e6 / (seconds or 1)
        done = f"{self._pixels / 1e6:,.1f} {self._unit}, {rate:,.2f} {self._unit}/s"
        return f"{self._count}/{self._total} cases{failed}, {done}, {seconds:,.0f} s"

    def _repr_html_(self) -> str:
        lines = "".join(f"<br>{html.escape(line)}" for line in self._failures)
        return f'<progress value="{self.share:.3f}" max="1"></progress> {html.escape(repr(self))}{lines}'

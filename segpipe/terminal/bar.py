"""The progress bar of a run in a terminal."""

from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from segpipe.formats.registry import element_of
from segpipe.jobs.prepare import Prepared
from segpipe.jobs.tasks import Outcome
from segpipe.messages.console import console, words
from segpipe.terminal.progress import Lines, described


class Bar(Lines):
    """One progress bar for the run: cases, megapixels per second, time left."""

    def __init__(self, prepared: Prepared) -> None:
        super().__init__(prepared)
        columns = (TextColumn("{task.description}"), BarColumn(), _Rate(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console(), transient=False)
        pixels = prepared.plan.pixels
        self._by_cases = pixels is None
        """Whether the bar counts cases because the number of pixels is not known in advance."""
        total, element = len(prepared.plan) if pixels is None else pixels, element_of(prepared.cases)
        self._task = self._bar.add_task(self._caption(), total=total, pixels=0, element=element)

    def _caption(self) -> str:
        return f"{self._count}/{self._total} cases"

    def __enter__(self) -> Self:
        self._count = len(self._skipped) + len(self._outside)
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def progress(self, pixels: int) -> None:
        """Add finished pixels."""
        self._bar.update(self._task, pixels=self._bar.tasks[self._task].fields["pixels"] + pixels)
        if not self._by_cases:
            self._bar.advance(self._task, pixels)

    def note(self, line: str) -> None:
        self._bar.console.print(words(line))

    def outcome(self, outcome: Outcome) -> None:
        """Count a case; print why it failed above the bar."""
        self._count += 1
        if self._by_cases:
            self._bar.advance(self._task)
        self._bar.update(self._task, description=self._caption())
        if outcome.error is not None:
            self._bar.console.print(words(described(outcome), style="red"))


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        rate = task.fields["pixels"] / 1e6 / (task.elapsed or 1)
        return Text(f"{rate:.1f} M{task.fields['element']}/s")

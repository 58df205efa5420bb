"""The log of a run: one line per event, each a JSON object."""

import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from segpipe.jobs.case_states import CaseState
from segpipe.jobs.prepare import Prepared
from segpipe.jobs.summary import Summary
from segpipe.jobs.tasks import Outcome, Watcher
from segpipe.messages.printable import printable_json
from segpipe.messages.url_secrets import cleaned
from segpipe.storage.ownership import refuse_foreign_log

FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
"""Non-blocking: a slow reader of a pipe must not hold up a run."""


def _write(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


class Journal(logging.Handler):
    """Appends events to a file and passes them to another watcher; a failed write ends neither case nor run."""

    def __init__(self, path: Path, inner: Watcher) -> None:
        super().__init__(logging.WARNING)
        self._path, self._inner, self._file = path, inner, None
        self.lost: list[str] = []
        """The first failure to write, if there was one."""
        try:
            refuse_foreign_log(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, FLAGS, 0o666)
        except OSError as error:
            self._lose(error)

    def __enter__(self) -> Self:
        logger = logging.getLogger("segpipe")
        logger.setLevel(min(logger.getEffectiveLevel(), logging.WARNING))
        logger.addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        logging.getLogger("segpipe").removeHandler(self)
        if self._file is not None:
            os.close(self._file)

    def log(self, event: str, **values: Any) -> None:
        """Write one line."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **values}
        if self._file is None:
            return
        try:
            text = printable_json(json.dumps(cleaned(line), ensure_ascii=False, allow_nan=False))
            _write(self._file, text.encode(errors="backslashreplace") + b"\n")
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        """Warn once that lines are lost; the run continues."""
        if not self.lost:
            self.lost.append(
                f"lines of the log are lost: {self._path} cannot be written: {error.strerror}: change --log-file"
            )
            self._inner.note(f"warning: {self.lost[0]}")

    def emit(self, record: logging.LogRecord) -> None:
        """Write a log message as a line of the kind ``log``."""
        self.log("log", level=record.levelname, message=record.getMessage())

    def begun(self, prepared: Prepared) -> None:
        """Write the line of the start of a run."""
        plan = prepared.plan
        counts = {"cases": len(plan), "done_before": len(plan.done), "failed": len(plan.failed)}
        self.log("begun", output=str(prepared.run.output), model=prepared.run.model.title, workers=plan.workers, **counts)

    def progress(self, pixels: int) -> None:
        """Pass on to the inner watcher: the journal has no line for it."""
        self._inner.progress(pixels)

    def note(self, line: str) -> None:
        self.log("note", message=line)
        self._inner.note(line)

    def outcome(self, outcome: Outcome) -> None:
        """Write a line ``done``, ``failed`` or ``outside``, and pass the outcome on."""
        values: dict[str, Any] = {"case": outcome.case.name, "seconds": round(outcome.seconds, 3), "pixels": outcome.pixels}
        if outcome.outside:
            self.log("outside", **values)
        elif outcome.error is None:
            self.log("done", **values)
        else:
            self.log("failed", **values, error=outcome.error)
        self._inner.outcome(outcome)

    def ended(self, summary: Summary) -> None:
        """Write the line of the end of a run."""
        states = summary.states
        counts = {
            "done": states.count(CaseState.DONE),
            "done_before": states.count(CaseState.SKIPPED),
            "failed": len(summary.failed),
        }
        rate = round(summary.megapixels_per_second, 3)
        event = "interrupted" if summary.interrupted else "ended"
        self.log(event, seconds=round(summary.seconds, 3), megapixels_per_second=rate, problems=summary.problems, **counts)

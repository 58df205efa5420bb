"""Log messages as lines on stderr, like the other lines of a command."""

import logging

from segpipe.messages.console import echo
from segpipe.messages.printable import printable


class LogLine(logging.Formatter):
    """Write segpipe's own messages as ``warning: …``, like the other lines of a run; others with level and logger."""

    def format(self, record: logging.LogRecord) -> str:
        """A line with level, and with the logger unless it is segpipe's own."""
        text, own = super().format(record), record.name == "segpipe" and record.levelno >= logging.WARNING
        if own and text.startswith(("warning: ", "note: ")):
            return text
        return f"{record.levelname.lower()}: {text}" if own else f"{record.levelname}:{record.name}:{text}"


class StderrHandler(logging.Handler):
    """Log to the current stderr, above the progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message as one line, and a traceback as several."""
        text = self.format(record)
        for line in text.split("\n") if record.exc_info or record.exc_text else [text]:  # a traceback has lines
            echo(printable(line), err=True)


def log_to_stderr(level: int = logging.WARNING) -> None:
    """Print messages of this level and above as lines on stderr."""
    handler = StderrHandler()
    handler.setFormatter(LogLine())
    logging.basicConfig(level=level, handlers=[handler])

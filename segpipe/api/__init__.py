"""The Python interface, which the command line calls, too: load a model, segment arrays, run over files, look at results."""

from segpipe.api.labels import Labels
from segpipe.api.model import Model, load
from segpipe.api.results import ClassTotal, RunResult, open_run
from segpipe.api.running import run

__all__ = ["ClassTotal", "Labels", "Model", "RunResult", "load", "open_run", "run"]

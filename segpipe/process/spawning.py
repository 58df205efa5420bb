"""Worker processes that do not import the main module of the process that starts them.

``multiprocessing`` runs the script of its parent again in each process that it spawns, under another name. Workers need
nothing of it: their tasks hold segpipe's own types. So a script that calls segpipe without ``if __name__ == "__main__":``
runs once, and a program that is read from stdin can start workers, too.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import context
from multiprocessing.process import BaseProcess
from typing import Any

METHOD = "segpipe"
"""The name of the start method, for Dask's configuration."""


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide from ``multiprocessing``, for the moment of a start, where the main module came from."""
    main: Any = sys.modules["__main__"]
    spec, place = getattr(main, "__spec__", None), main.__dict__.pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        main.__spec__ = spec
        if place is not None:
            main.__file__ = place


class _Process(context.SpawnProcess):
    @staticmethod
    def _Popen(process: BaseProcess) -> Any:  # noqa: N802 - the name that multiprocessing calls
        with _without_main():
            return context.SpawnProcess._Popen(process)


class _Context(context.SpawnContext):
    _name = METHOD
    Process = _Process


def register() -> str:
    """Let ``multiprocessing.get_context`` know the start method; its name."""
    known: Any = context._concrete_contexts  # type: ignore[attr-defined]
    known.setdefault(METHOD, _Context())
    return METHOD

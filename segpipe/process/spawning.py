"""Start worker processes that do not import the main module of their parent.

``multiprocessing`` runs the parent's script again in each spawned process, under another name. Workers do not need it:
their tasks contain only segpipe's own types. So a script without ``if __name__ == "__main__":`` runs once, and a program
read from stdin can start workers, too.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import context
from multiprocessing.process import BaseProcess
from typing import Any

METHOD = "segpipe"
"""Name of the start method in Dask's configuration."""


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the origin of the main module from ``multiprocessing`` while a process is started."""
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
    """Register the start method with ``multiprocessing.get_context``, and return its name."""
    known: Any = context._concrete_contexts  # type: ignore[attr-defined]
    known.setdefault(METHOD, _Context())
    return METHOD

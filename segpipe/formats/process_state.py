"""Free what modules of a format keep in this process for the next opening of a case."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager


def release_of(*modules: str) -> Callable[[], None]:
    """A function that frees the state of modules in this process, if they were imported."""

    def free() -> None:
        for module in modules:
            if (found := sys.modules.get(module)) is not None:
                found.release()

    return free


def released_after(*modules: str) -> Callable[[], AbstractContextManager[None]]:
    """A context at whose end the state of modules is free."""

    @contextmanager
    def context() -> Iterator[None]:
        try:
            yield
        finally:
            release_of(*modules)()

    return context

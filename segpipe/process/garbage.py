"""While modules load, Python neither searches for garbage nor compiles methods that may never be called."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Search for no garbage in the block, which loads modules; what exists at its end is not looked at in later searches.

    Modules stay until the process ends, and a search looks at all that have been loaded: a tenth of the time to load them
    (measured). Methods of data classes are compiled at their first call: a seventh of that time.
    """
    from segpipe.process.dataclass_methods import compiled_later  # takes 10 ms: signals are handled before

    searched = gc.isenabled()
    gc.disable()
    try:
        with compiled_later():
            yield
    finally:
        gc.freeze()
        if searched:
            gc.enable()

"""Methods of data classes, compiled at their first call: of a thousand, a process calls some ten."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_stdlib: Any = dataclasses
_create: Any = getattr(_stdlib, "_create_fn", None)
"""Compiles one method; Python 3.13 has no such function, and compiles all methods of a class at once."""

LATER = {"__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__"}
"""Not ``__init__``, whose signature is asked for."""


@contextmanager
def compiled_later() -> Iterator[None]:
    """Compile methods of data classes that are defined in the block when they are first called."""
    if _create is None:
        yield
        return
    _stdlib._create_fn = _create_later
    try:
        yield
    finally:
        _stdlib._create_fn = _create


def _create_later(name: str, args: Sequence[str], body: Sequence[str], **options: Any) -> Any:
    """As the function of ``dataclasses``, for whose classes it makes the method."""
    if name not in LATER:
        return _create(name, args, body, **options)
    compiled: Any = None

    def method(self: Any, *others: Any) -> Any:
        nonlocal compiled
        if compiled is None:
            compiled = _create(name, args, body, **options)
        return compiled(self, *others)

    method.__name__ = name
    return method

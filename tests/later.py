"""Libraries that take a second to load and are the oracle of a few tests: those load them, not each worker for all tests."""

from importlib import import_module
from typing import Any


class Later:
    """A module that is loaded when something of it is first used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("_", "pytest")):  # pytest asks each name in a file whether it is a fixture
            raise AttributeError(name)
        return getattr(import_module(self._name), name)

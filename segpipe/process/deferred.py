"""Deferred imports of modules that libraries import unconditionally and that take long to load."""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from threading import RLock
from types import ModuleType
from typing import Any


class _Deferred(ModuleType):
    """A module that loads itself at the first access to an attribute, once, whichever threads access it."""

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(spec.name)
        self.__spec__, self.__loader__, self.__file__ = spec, spec.loader, spec.origin
        if spec.submodule_search_locations is not None:
            self.__path__ = spec.submodule_search_locations
        self.__dict__.update(_lock=RLock(), _loaded=False)

    def __getattr__(self, name: str) -> Any:
        """Load the module and return an attribute; ``import`` also asks for names such as ``__all__``."""
        own = self.__dict__
        with own["_lock"]:
            if not own["_loaded"]:
                own["_loaded"] = True  # modules that it imports may ask for names that are not defined yet
                spec = own["__spec__"]
                try:
                    spec.loader.exec_module(self)
                except BaseException:
                    own["_loaded"] = False
                    raise
        try:
            return own[name]
        except KeyError:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}") from None


def defer(name: str) -> None:
    """Make ``import name`` take no time, if it is installed and not loaded; its first use loads it."""
    if name not in sys.modules and (spec := find_spec(name)) is not None and spec.loader is not None:
        sys.modules[name] = _Deferred(spec)

"""Masks that are opened when they are read: a scene of a time series shares its ground with a thousand others."""

import resource
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from segpipe.formats.registry import OpenMask
from segpipe.geometry.grid import Grid
from segpipe.geometry.windows import Window

MOST = 64
"""Masks that are open at once; a process may open 1,024 files, where nothing else is said."""
SHARE = 4
"""They are at most one in so many of the files that this process may open."""

Opening = Callable[[], AbstractContextManager[OpenMask]]


def most_open() -> int:
    """How many masks may be open at once: fewer where the limit of open files is low."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if files == resource.RLIM_INFINITY else max(1, min(MOST, files // SHARE))


class MaskCache:
    """Opens masks when they are read; beyond ``most_open()``, it closes the one that was read longest ago."""

    def __init__(self) -> None:
        self._open: OrderedDict[CachedMask, tuple[OpenMask, ExitStack]] = OrderedDict()

    def mask(self, cached: "CachedMask") -> OpenMask:
        """The mask, open; errors are those of its opening."""
        if (found := self._open.get(cached)) is not None:
            self._open.move_to_end(cached)
            return found[0]
        while len(self._open) >= most_open():
            self._open.popitem(last=False)[1][1].close()
        with ExitStack() as stack:
            mask = stack.enter_context(cached.opening())
            self._open[cached] = mask, stack.pop_all()
        return mask

    def __enter__(self) -> "MaskCache":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        while self._open:
            self._open.popitem()[1][1].close()


@dataclass(frozen=True, eq=False)
class CachedMask:
    """A mask, or a confidence, on a cache."""

    cache: MaskCache
    grid: Grid
    opening: Opening

    def read(self, window: Window, band: int = 0) -> NDArray[Any]:
        """As that of ``OpenMask``, and with the errors of opening it."""
        return self.cache.mask(self).read(window, band)

"""A family of formats of the tests' own: arrays of any number of axes in ``.npy`` files, and masks of two files each."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.errors import SourceError
from segpipe.formats.registry import Format
from segpipe.formats.sink import Target
from segpipe.formats.source import Scene
from segpipe.geometry.grid import BareGrid
from segpipe.geometry.windows import Window
from segpipe.overrides import Overrides
from segpipe.storage import Store
from segpipe.storage.files import output_errors, remove

MARK = "made by segpipe"


def slices(window: Window) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in zip(window.start, window.stop, strict=True))


class ArraySource:
    """One channel; zeros are invalid, and known to be where nothing else is in a window."""

    scene: Scene = MappingProxyType({})
    separable = True
    block = unpacked = 0
    notes = ("read by the tests",)

    def __init__(self, path: str, contract: Contract, overrides: Overrides, log: "list[Window]") -> None:
        if contract.channel_count != 1:
            raise SourceError(f"{path} has one channel")
        self._values: NDArray[Any] = np.load(path)
        self._log = log
        self.grid, self.dtype = BareGrid(self._values.shape), self._values.dtype
        self.files: tuple[str, ...] = (path,)
        self.template = {"from": path}

    def begin(self, window: Window, threads: int | None = None) -> Callable[[], Any]:
        self._log.append(window)
        values = self._values[slices(window)]
        return lambda: (values[None], values == 0)

    def read(self, window: Window) -> Any:
        return self.begin(window)()

    def empty(self, window: Window) -> bool:
        return not self._values[slices(window)].any()

    def memory(self, shape: tuple[int, ...]) -> int:
        return 0

    def near(self, place: tuple[float, ...], most: int) -> Window:
        axes = [(min(most, n), int(share * (n - min(most, n)))) for share, n in zip(place, self.grid.shape, strict=True)]
        return Window(tuple(a for _, a in axes), tuple(a + side for side, a in axes))

    def tags(self) -> tuple[NDArray[Any], NDArray[Any]]:
        return np.ones(1), np.zeros(1)

    def close(self) -> None: ...


class ArraySink:
    """``NAME.npy`` of shape ``(bands, *grid)``, and ``NAME.words.txt`` that says where it is from."""

    def __init__(self, target: Target) -> None:
        self._target, self._output = target, target.output
        self.name, self.size = f"{target.stem}.npy", 0
        self._path = self._output.path(self.name)
        with output_errors(self._path):
            self._draft = self._output.draft(self.name)
            shape = (len(target.style.bands), *target.grid.shape)
            self._values = np.lib.format.open_memmap(self._draft, "w+", target.style.dtype, shape)
        self._written = np.zeros(target.grid.shape, np.uint8)

    def files(self) -> list[str]:
        return [self.name, f"{self._target.stem}.words.txt"]

    def write(self, window: Window, values: NDArray[Any]) -> None:
        self._values[(slice(None), *slices(window))] = values
        self._written[slices(window)] += 1

    def finish(self) -> list[str]:
        assert (self._written == 1).all(), "every element is written once"
        self._values.flush()
        words = f"{MARK} from {self._target.template['from']}: {' '.join(self._target.style.bands)}"
        with output_errors(self._path):
            self.size = self._draft.stat().st_size
            self._output.publish(self._draft, self.name)
        self._output.write(self.files()[1], words.encode())
        return self.files()

    def discard(self) -> None:
        remove(self._draft)


def is_own(output: Store, name: str) -> bool:
    """By the words beside an array."""
    words = name.removesuffix(".npy").removesuffix(".words.txt") + ".words.txt"
    return output.has(words) and output.read(words).startswith(MARK.encode())


@dataclass
class Arrays:
    """The line of the table, and which windows have been read through it."""

    read: list[Window] = field(default_factory=list)

    @property
    def format(self) -> Format:
        return Format(
            "arrays",
            (".npy", ".cube.npy"),
            lambda case, contract, overrides: ArraySource(case.path, contract, overrides, self.read),
            ArraySink,
            (".npy", ".words.txt"),
            is_own,
        )

"""An array in memory as the source of a case."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import SourceError, one_line
from segpipe.formats.source import Begun, Invalid, Pixels
from segpipe.geometry.grid import BareGrid
from segpipe.geometry.windows import Window
from segpipe.messages.printable import dims
from segpipe.network.spec import ModelSpec

NAME = "the array"
"""Name of an array in messages."""


class ArraySource:
    """Pixels ``(channels, *grid)`` that are in memory, or in a memory map, read box by box."""

    separable = True
    block = unpacked = 0
    scene: Mapping[str, Mapping[str, str]] = {}
    files: tuple[str, ...] = ()
    notes: Sequence[str] = ()
    template = None

    def __init__(self, array: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> None:
        self._array, self._valid = array, valid
        self.grid = BareGrid(array.shape[1:])
        self.dtype: np.dtype[Any] = np.dtype(np.uint8) if array.dtype == np.bool_ else array.dtype.newbyteorder("=")

    def read(self, window: Window) -> tuple[Pixels, Invalid | None]:
        box = window.slices
        pixels = np.asarray(self._array[(slice(None), *box)], self.dtype)
        invalid = np.zeros(window.shape, np.bool_) if self._valid is None else ~self._valid[box]
        if self.dtype.kind == "f":
            invalid |= ~np.isfinite(pixels).all(axis=0)
        return pixels, invalid if invalid.any() else None

    def begin(self, window: Window, threads: int | None = None) -> Begun:
        del threads  # nothing is decoded
        return lambda: self.read(window)

    def empty(self, window: Window) -> bool:
        if self._valid is None:
            return False
        return not self._valid[window.slices].any()

    def memory(self, shape: tuple[int, ...]) -> int:
        """0: nothing is decoded."""
        del shape
        return 0

    def near(self, place: tuple[float, ...], most: int) -> Window:
        axes = [(int(share * n), n, min(most, n)) for share, n in zip(place, self.grid.shape, strict=True)]
        starts = tuple(max(0, min(at, n - side)) for at, n, side in axes)
        return Window(starts, tuple(start + side for start, (_, _, side) in zip(starts, axes, strict=True)))

    def tags(self) -> None:
        """None: values are taken as they are."""

    def close(self) -> None:
        """Do nothing: an array in memory has no files."""
        ...


def checked(array: Any, valid: Any, model: ModelSpec) -> ArraySource:
    """The source of an array that fits a model.

    Raises:
        SourceError: its type or shape does not, or that of ``valid``.
    """
    pixels = _as_array(array, NAME)
    _check_type(pixels)
    _check_shape(pixels, model)
    return ArraySource(pixels, None if valid is None else _mask(valid, pixels.shape[1:]))


def _as_array(value: Any, name: str) -> NDArray[Any]:
    try:
        return np.asanyarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # such as tensors with a gradient, on a GPU, or of bfloat16
        raise SourceError(f"{name} must be an array, or what NumPy makes one of: {one_line(error)}") from error


def _check_type(pixels: NDArray[Any]) -> None:
    if isinstance(pixels, np.ma.MaskedArray):
        raise SourceError(f"{NAME} must not be masked: give array.data, and valid=~array.mask.any(axis=0)")
    if pixels.dtype.kind not in "biuf" or pixels.dtype.itemsize > 8:
        raise SourceError(f"{NAME} must hold integers or floats of at most 64 bits, got {pixels.dtype}: convert it")


def _check_shape(pixels: NDArray[Any], model: ModelSpec) -> None:
    contract, shape = model.contract, pixels.shape
    axes = "planes, rows, cols" if contract.layout.is_volume else "rows, cols"
    channels = contract.channel_count
    wanted = f"{NAME} must have shape ({channels}, {axes}), got {shape}"
    if channels == 1 and len(shape) == contract.ndim:
        raise SourceError(f"{wanted}: give array[None]")
    if len(shape) not in (contract.ndim + 1, 4):
        raise SourceError(f"{wanted}: give one image" + (" or volume" * (contract.ndim == 3)))
    if shape[0] != channels:
        last = shape[-1] == channels
        mend = "give numpy.moveaxis(array, -1, 0)" if last else f"the model's channels are {_names(model)}"
        raise SourceError(f"{wanted}: {mend}")
    if 0 in shape:
        raise SourceError(f"{NAME} must have pixels, got {dims(shape)}")


def _names(model: ModelSpec) -> str:
    names = model.contract.channel_names
    return str(model.contract.channel_count) if names is None else ", ".join(names)


def _mask(valid: Any, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    if isinstance(valid, np.ma.MaskedArray):
        raise SourceError("valid must not be masked: give valid.filled(False)")
    mask = _as_array(valid, "valid")
    if mask.shape != shape or mask.dtype != np.bool_:
        raise SourceError(
            f"valid must be a boolean array of the pixels' shape {shape}, got {mask.dtype} of shape {mask.shape}: "
            "as array[0] != nodata makes one"
        )
    return mask

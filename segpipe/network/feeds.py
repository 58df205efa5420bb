"""The part of a batch of tiles that each input of a network gets: some channels, all dates, or a constant."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.contract.inputs import ModelInput, positions
from segpipe.errors import ContractError, ModelError
from segpipe.network.arrays import Array
from segpipe.network.signature import TensorSpec

Nested = float | tuple["Nested", ...]


@dataclass(frozen=True, slots=True)
class Feed:
    """One input of a network."""

    name: str
    dtype: str
    channels: tuple[int, ...] = ()
    """Positions in a tile ``(channels, *tile)``; empty for a constant."""
    dates: int | None = None
    """Number of dates, which have an axis of their own; None: no such axis."""
    order: tuple[int, ...] = ()
    """Permutation that brings ``(N, C, *tile)``, or ``(N, T, C, *tile)``, into the input's order of axes."""
    value: Nested | None = None
    """A constant, of one tile if ``per_tile``; None for pixels."""
    per_tile: bool = False
    """Whether the constant is repeated for each tile of a batch."""

    def picked(self, batch: Array) -> Array:
        """The input's channels of ``(N, channels, *tile)``: ``(N, C, *tile)``, or ``(N, T, C, *tile)``."""
        first, last = self.channels[0], self.channels[-1]
        whole = self.channels == tuple(range(first, last + 1))
        own = batch[:, first : last + 1] if whole else batch[:, list(self.channels)]
        if self.dates is None:
            return own
        return own.reshape((own.shape[0], self.dates, len(self.channels) // self.dates, *own.shape[2:]))

    def given(self, batch: NDArray[Any]) -> NDArray[Any]:
        """The input for tiles ``(N, channels, *tile)``, contiguous and in the network's type."""
        if self.value is not None:
            return self.constant(len(batch))
        return np.ascontiguousarray(self.picked(batch).transpose(self.order), dtype=self.dtype)

    def constant(self, count: int) -> NDArray[Any]:
        """The constant for a batch of ``count`` tiles."""
        value = np.array(self.value, self.dtype)
        return np.repeat(value[None], count, axis=0) if self.per_tile else value

    def shape(self, batch: Sequence[int]) -> tuple[int, ...]:
        """Shape of the input for a batch of shape ``(N, channels, *tile)``."""
        if self.value is not None:
            return self.constant(batch[0]).shape
        count = len(self.channels)
        inner = (count,) if self.dates is None else (self.dates, count // self.dates)
        first = (batch[0], *inner, *batch[2:])
        return tuple(first[axis] for axis in self.order)


def feeds_of(contract: Contract, image: TensorSpec, inputs: Sequence[TensorSpec], path: Path) -> tuple[Feed, ...]:
    """What each input of a graph gets.

    Args:
        contract: names the inputs if there are several.
        image: the only input, if the contract does not name them.
        inputs: all inputs of the graph.
        path: the file, for messages.

    Raises:
        ContractError, ModelError: inputs of graph and contract differ.
    """
    if contract.inputs is None:
        return (Feed(image.name, str(image.dtype), tuple(range(contract.input_channels)), order=contract.layout.from_first),)
    there = {tensor.name: tensor for tensor in inputs}
    _check_names(contract.inputs, there, path)
    feeds = tuple(_feed(tensor, contract.inputs[name], contract, path) for name, tensor in there.items())
    types = {feed.dtype: feed.name for feed in feeds if feed.value is None}
    if len(types) > 1:
        listed = " and ".join(f"{dtype} in {name}" for dtype, name in types.items())
        raise ModelError(f"{path}: inputs of pixels must hold one type, got {listed}: export it with one, such as float32")
    return feeds


def as_image(taken: Sequence[TensorSpec], contract: Contract, path: Path) -> TensorSpec:
    """Inputs of pixels as one, in the contract's layout: the first one's name and type, and all sizes that are fixed.

    Raises:
        ContractError: two fix different sizes, or the axes of one are not those that the contract names.
    """
    sizes: dict[str, int] = {}
    for tensor in taken:
        given = (contract.inputs or {})[tensor.name]
        axes = given.axes or str(contract.layout)
        _check_rank(tensor, axes, path)
        for axis, size in zip(axes, tensor.shape, strict=True):
            if axis not in "CT" and size is not None and sizes.setdefault(axis, size) != size:
                raise ContractError(
                    f"{path}: inputs of pixels must have one batch and one tile, got {sizes[axis]} and {size} along {axis} "
                    f"of {', '.join(map(str, taken))}: export it so that it resizes inside"
                )
    first = taken[0]
    shape = [contract.input_channels if axis == "C" else sizes.get(axis) for axis in contract.layout]
    return TensorSpec(first.name, first.dtype, tuple(shape))


def _check_rank(tensor: TensorSpec, axes: str, path: Path) -> None:
    if len(tensor.shape) == len(axes):
        return
    spatial = axes.translate(str.maketrans("", "", "NTC"))
    dated = (
        f'axes = "NTC{spatial}" or "NCT{spatial}"' if len(tensor.shape) == len(spatial) + 3 else "axes of as many letters"
    )
    raise ContractError(f'{path}: input "{tensor.name}" must have the axes "{axes}", got {tensor}: give it {dated}')


def _check_names(given: Mapping[str, ModelInput], there: Mapping[str, TensorSpec], path: Path) -> None:
    has = ", ".join(map(str, there.values()))
    if unknown := [name for name in given if name not in there]:
        raise ContractError(f"{path} has no input called {', '.join(unknown)}: it has {has}")
    if missing := [str(there[name]) for name in there if name not in given]:
        raise ContractError(
            f"each input of {path} must get something, and the contract's inputs say nothing of {', '.join(missing)}: "
            "give it channels, or a value where it is constant"
        )


def _feed(tensor: TensorSpec, given: ModelInput, contract: Contract, path: Path) -> Feed:
    if tensor.dtype is None:
        raise ModelError(f'{path}: input "{tensor.name}" must hold floats or integers')
    if given.value is not None:
        return _constant(tensor, given.value, path)
    own = positions(tensor.name, given, contract.channels)
    axes = given.axes or str(contract.layout)
    _check_rank(tensor, axes, path)
    dates = _dates(tensor, given, axes, len(own), path)
    source = ("NTC" if dates else "NC") + "DHW"[-contract.ndim :]
    feed = Feed(tensor.name, str(tensor.dtype), own, dates, tuple(source.index(axis) for axis in axes))
    channels = tensor.shape[axes.index("C")]
    if channels is not None and channels != len(own) // (dates or 1):
        each = f" on each of {dates} dates" if dates else ""
        raise ContractError(
            f"the contract's channels must be the model's, got {len(own) // (dates or 1)}{each} for the input {tensor.name} "
            f"and {channels} in {path}"
        )
    return feed


def _dates(tensor: TensorSpec, given: ModelInput, axes: str, count: int, path: Path) -> int | None:
    """Number of dates of an input: the contract's, the graph's, or by the number of channels."""
    if "T" not in axes:
        return None
    fixed, channels = tensor.shape[axes.index("T")], tensor.shape[axes.index("C")]
    if given.dates is not None and fixed is not None and given.dates != fixed:
        raise ContractError(f"dates of the input {tensor.name} must be the model's {fixed}, got {given.dates}: correct them")
    dates = given.dates or fixed or (count // channels if channels else None)
    if not dates:
        raise ContractError(
            f"{path} leaves the number of dates of {tensor} open, so the contract must say it: add dates to the input, such "
            "as dates = 3"
        )
    if count % dates:
        raise ContractError(
            f"channels of the input {tensor.name} must be as many for each of {dates} dates, got {count} in all: name the "
            "channels of all dates, first date first"
        )
    return dates


def _constant(tensor: TensorSpec, value: Any, path: Path) -> Feed:
    """A constant of the input's shape, or of that without the axis of the batch."""
    given, shape = np.array(value, np.float64), tensor.shape
    dtype = str(tensor.dtype)
    if tensor.is_integer and (given != np.rint(given)).any():
        raise ContractError(f"the value of the input {tensor.name} must be whole numbers, for {dtype}, got {value}")
    sizes = [n for n in (shape[1:] if shape and shape[0] is None else shape) if n is not None]
    if given.ndim == 0 and None not in shape[1:]:
        given = np.full(sizes, given)
    if _fits(given, shape) and not (shape and shape[0] is None and len(given) == 1):
        return Feed(tensor.name, dtype, value=_nested(given.tolist()))
    given = given[0] if _fits(given, shape) else given
    if shape and _fits(given, shape[1:]):
        return Feed(tensor.name, dtype, value=_nested(given.tolist()), per_tile=True)
    wanted = " or ".join(_by(one) for one in ([shape, shape[1:]] if len(shape) > 1 else [shape]))
    raise ContractError(
        f"{path}: the value of the input {tensor.name} must have the shape {wanted}, got {_by(given.shape)}: correct it"
    )


def _fits(value: NDArray[Any], shape: Sequence[int | None]) -> bool:
    return value.ndim == len(shape) and all(n is None or n == m for n, m in zip(shape, value.shape, strict=True))


def _by(shape: Sequence[int | None]) -> str:
    return "(" + ", ".join("?" if n is None else str(n) for n in shape) + ")"


def _nested(value: Any) -> Nested:
    return tuple(map(_nested, value)) if isinstance(value, list) else float(value)

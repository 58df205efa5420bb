"""Inputs of a network in a contract: channels of the stacked bands, dates, or a constant."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field, field_validator, model_validator

from segpipe.contract.keys import Keys

SLICE = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*")
"""A slice of the stacked bands: the first, counted from 0, and the one after the last."""

MOST_VALUES = 100_000
"""Most numbers of a constant input."""

Channel = Annotated[str, Field(max_length=1_000)] | Annotated[int, Field(ge=0)]


class ModelInput(Keys):
    """One input of a network: pixels of some channels, or a constant value."""

    _later = frozenset({"channels", "axes", "dates", "value"})

    channels: str | list[Channel] | None = None
    """Names of the contract's channels, their positions from 0, or a slice such as ``"0:3"``, ``":"`` for all of them."""
    axes: str | None = None
    """Order of the axes, such as ``"NTCHW"`` with T for dates; None: the contract's layout."""
    dates: Annotated[int, Field(ge=1)] | None = None
    """Number of dates; the channels are those of the first date, then those of the second. None: as the graph has it."""
    value: Any = None
    """A number, or nested lists of numbers: what the network gets for each tile."""

    @field_validator("channels", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        each = value if isinstance(value, list) else [value]
        known = all(isinstance(one, str | int) and not isinstance(one, bool) for one in each)
        if not known or isinstance(value, int):
            raise ValueError('must be a list of names or of positions from 0, or a slice such as "0:3"')
        return value

    @field_validator("value")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        if value is None:
            return None
        try:
            values = np.array(value, np.float64)
        except (TypeError, ValueError, OverflowError):
            raise ValueError("must be a number, or lists of numbers of one length") from None
        if isinstance(value, str | dict) or not np.isfinite(values).all() or not 0 < values.size <= MOST_VALUES:
            raise ValueError(f"must be a finite number, or lists of 1 to {MOST_VALUES:,} finite numbers")
        return value

    @model_validator(mode="after")
    def _one_of_two(self) -> "ModelInput":
        if (self.channels is None) == (self.value is None):
            given = "neither" if self.channels is None else "both"
            raise ValueError(f"an input has channels, or a value where it is constant, got {given}")
        if self.value is not None and (self.axes is not None or self.dates is not None):
            raise ValueError("axes and dates are for an input of channels, got them with a value: leave them out")
        return self


def positions(name: str, given: ModelInput, channels: int | Sequence[str]) -> tuple[int, ...]:
    """Positions of an input's channels among the stacked bands.

    Raises:
        ValueError: a channel does not exist, or its name is that of several.
    """
    count = channels if isinstance(channels, int) else len(channels)
    names = () if isinstance(channels, int) else tuple(channels)
    if isinstance(given.channels, str):
        return _sliced(name, given.channels, count)
    return tuple(_position(name, one, count, names) for one in given.channels or ())


def _sliced(name: str, text: str, count: int) -> tuple[int, ...]:
    if text.strip() == ":":
        return tuple(range(count))
    match = SLICE.fullmatch(text)
    if match is None or not int(match[1]) < int(match[2]) <= count:
        raise ValueError(
            f'channels of the input {name} must be names, or a slice within the {count} channels such as "0:{count}", '
            f'counted from 0, the last one excluded, got "{text[:80]}"'
        )
    return tuple(range(int(match[1]), int(match[2])))


def _position(name: str, one: str | int, count: int, names: Sequence[str]) -> int:
    if isinstance(one, int):
        if one >= count:
            raise ValueError(f"channels of the input {name} must be 0 to {count - 1}, got {one}: they are counted from 0")
        return one
    if one not in names:
        has = ", ".join(names[:8]) + ", ..." * (len(names) > 8) if names else "only their number"
        raise ValueError(f"channels of the input {name} must be of the contract's channels, got {one}, which has {has}")
    if names.count(one) > 1:
        raise ValueError(
            f"channels of the input {name} must be clear, and {names.count(one)} channels are called {one}: "
            'give their positions, or a slice such as "0:3"'
        )
    return names.index(one)


def check_inputs(inputs: Mapping[str, ModelInput], channels: int | Sequence[str], spatial: str) -> None:
    """Check that inputs use all channels, and that their axes and dates are possible.

    Args:
        inputs: the inputs, by name.
        channels: names or number of the stacked bands.
        spatial: letters of the spatial axes, ``HW`` or ``DHW``.

    Raises:
        ValueError: with the mend.
    """
    if not any(one.channels is not None for one in inputs.values()):
        raise ValueError("inputs must have one that takes channels, got constants only: name the one that gets the pixels")
    used: set[int] = set()
    for name, one in inputs.items():
        own = positions(name, one, channels)
        used.update(own)
        if one.channels is not None and not own:
            raise ValueError(f"the input {name} must take one channel or more, got none: leave it out, or give it a value")
        if one.dates is not None and len(own) % one.dates:
            raise ValueError(
                f"channels of the input {name} must be as many for each of {one.dates} dates, got {len(own)} in all"
            )
        if one.axes is not None:
            _check_axes(name, one, spatial)
    count = channels if isinstance(channels, int) else len(channels)
    if idle := [k for k in range(count) if k not in used]:
        shown = ", ".join(str(k) if isinstance(channels, int) else channels[k] for k in idle[:8])
        raise ValueError(
            f"each channel must be of an input, and none takes {shown}{', ...' * (len(idle) > 8)}: "
            "leave it out of channels, or give it to an input"
        )


def _check_axes(name: str, one: ModelInput, spatial: str) -> None:
    letters = sorted(one.axes or "")
    if letters not in (sorted("NC" + spatial), sorted("NTC" + spatial)):
        raise ValueError(
            f"axes of the input {name} must be N, C and {', '.join(spatial)}, each once, with T where it has dates, such as "
            f'"NTC{spatial}", got "{(one.axes or "")[:80]}"'
        )
    if one.dates is not None and "T" not in letters:
        raise ValueError(f'dates of the input {name} need an axis T, such as axes = "NTC{spatial}", got "{one.axes}"')


def over_dates(values: Mapping[str, Any], repeated: Sequence[str]) -> dict[str, Any]:
    """Keys of a contract whose ``dates`` says that ``channels``, and lists of ``repeated`` keys, are those of each date.

    >>> over_dates({"dates": 2, "channels": ["a", "b"], "mean": [1, 2], "std": 3}, ["mean", "std"])
    {'channels': ['a', 'b', 'a', 'b'], 'mean': [1, 2, 1, 2], 'std': 3}

    Raises:
        ValueError: the number of dates is none.
    """
    rest = {key: value for key, value in values.items() if key != "dates"}
    dates, channels = values["dates"], rest.get("channels")
    if isinstance(dates, bool) or not isinstance(dates, int) or not 1 <= dates <= 1_000:
        raise ValueError(f"dates must be a whole number, 1 to 1,000, got {str(dates)[:80]}")
    rest["channels"] = channels * dates if isinstance(channels, int | list) else channels
    count = len(channels) if isinstance(channels, list) else channels
    if isinstance(rest.get("inputs"), Mapping):
        rest["inputs"] = {name: _dated(one, dates) for name, one in rest["inputs"].items()}
    for key in repeated:
        own = rest.get(key)
        if isinstance(own, list) and len(own) == count and not _is_pair(key, own):
            rest[key] = own * dates
    return rest


def _dated(one: Any, dates: int) -> Any:
    """An input with an axis of dates has those of the contract, unless it names its own."""
    has = isinstance(one, Mapping) and isinstance(one.get("axes"), str) and "T" in one["axes"]
    return {"dates": dates, **one} if has else one


def _is_pair(key: str, own: Sequence[Any]) -> bool:
    """Whether a list is one pair of limits, for all channels."""
    return key in ("clip", "window") and not any(isinstance(one, list | tuple) for one in own)

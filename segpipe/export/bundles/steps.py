"""Steps of pre-processing, and how they become keys of a contract and operators in front of the network.

A contract computes ``clip(pixel * scale + offset)``, then one normalisation. Any sequence of affine maps and clips is one
affine map and one clip. What follows the statistics of a case, or is no affine map, is computed inside the graph.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import ExportError

LARGEST = float(np.finfo(np.float32).max)
"""Limit of a clip that has only its other one."""

OWN = "write the contract by hand: segpipe export attach MODEL.onnx --contract c.toml"
"""The way out of what no flag mends."""

Numbers = tuple[float, ...]
"""One number for all channels, or one per channel."""


@dataclass(frozen=True)
class Affine:
    """``x * gain + bias``."""

    gain: Numbers = (1.0,)
    bias: Numbers = (0.0,)


@dataclass(frozen=True)
class Fixed:
    """``(x - mean) / std``: an affine map, with the numbers that people know."""

    mean: Numbers
    std: Numbers

    @property
    def affine(self) -> Affine:
        """The same map as a factor and a summand: ``x * 1 / std - mean / std``."""
        count = max(len(self.mean), len(self.std))
        mean, std = (np.broadcast_to(np.array(v, np.float64), count) for v in (self.mean, self.std))
        return Affine(tuple((1 / std).tolist()), tuple((-mean / std).tolist()))


@dataclass(frozen=True)
class Clip:
    """``min(max(x, low), high)``."""

    low: float = -LARGEST
    high: float = LARGEST


@dataclass(frozen=True)
class CaseNormalization:
    """Normalisation by a case's own statistics."""

    kind: Literal["zscore", "minmax", "clip"]
    """``clip``: clip to percentiles, without a normalisation."""
    epsilon: float = 0.0
    percentiles: tuple[float, float] | None = None
    """Of the range of ``minmax``, or the limits of ``clip``."""
    nonzero: bool = False
    together: bool = False
    """One statistic for all channels."""


@dataclass(frozen=True)
class Pointwise:
    """A function of each pixel that is no affine map."""

    kind: Literal["sigmoid", "softmax", "binarize"]
    threshold: Numbers = (0.0,)


@dataclass(frozen=True)
class Step:
    """A step, and its name in the description."""

    name: str
    what: Affine | Fixed | Clip | CaseNormalization | Pointwise


@dataclass(frozen=True)
class Scaled:
    """Pre-processing as a contract and a graph compute it."""

    keys: dict[str, Any]
    inside: tuple[Affine | Clip | Pointwise, ...] = field(default=())
    """What the graph does before the network."""


def scaled(source: Path, steps: Sequence[Step], channels: int) -> Scaled:
    """Divide steps between contract and graph.

    Raises:
        ExportError: a step needs statistics of what only the graph computes.
    """
    before, rest = _affine_part(steps)
    statistics, rest = (rest[0], rest[1:]) if rest and isinstance(rest[0].what, CaseNormalization) else (None, rest)
    last = before[-1].what if before and statistics is None and not rest else None
    fixed = last if isinstance(last, Fixed) else None
    keys = _folded([step.what for step in (before[:-1] if fixed else before)], channels)
    if fixed:
        keys |= {"normalize": "fixed", "mean": _short(fixed.mean, channels), "std": _short(fixed.std, channels)}
    elif statistics is not None:
        rest, more = _of_case(source, statistics, rest, keys)
        keys |= more
    return Scaled({"normalize": "none", **keys}, tuple(_inside(source, step) for step in rest))


def _affine_part(steps: Sequence[Step]) -> tuple[list[Step], list[Step]]:
    """The steps before the first that is neither an affine map nor a clip, and all others."""
    for k, step in enumerate(steps):
        if isinstance(step.what, CaseNormalization | Pointwise):
            return list(steps[:k]), list(steps[k:])
    return list(steps), []


def _folded(steps: Iterable[Any], channels: int) -> dict[str, Any]:
    """Contract keys of affine maps and clips in a row."""
    gain, bias = np.ones(channels), np.zeros(channels)
    limits: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    for step in steps:
        if isinstance(step, Clip):
            low, high = limits or (np.full(channels, -LARGEST), np.full(channels, LARGEST))
            limits = np.clip(low, step.low, step.high), np.clip(high, step.low, step.high)
            continue
        affine = step.affine if isinstance(step, Fixed) else step
        a, b = (np.broadcast_to(np.array(v, np.float64), channels) for v in (affine.gain, affine.bias))
        gain, bias = gain * a, bias * a + b
        if limits is not None:
            ends = [np.clip(end * a + b, -LARGEST, LARGEST) for end in limits]
            limits = np.minimum(*ends), np.maximum(*ends)
    return _keys(gain, bias, limits)


def _keys(
    gain: NDArray[np.float64], bias: NDArray[np.float64], limits: tuple[NDArray[np.float64], NDArray[np.float64]] | None
) -> dict[str, Any]:
    count = len(gain)
    keys: dict[str, Any] = {"scale": _short(gain, count), "offset": _short(bias, count)}
    if limits is not None:
        pairs = np.stack(limits, axis=1).tolist()
        keys["clip"] = pairs[0] if all(pair == pairs[0] for pair in pairs) else pairs
    return {key: value for key, value in keys.items() if value != {"scale": 1.0, "offset": 0.0}.get(key)}


def _short(values: Sequence[float] | NDArray[np.float64], channels: int) -> float | list[float]:
    """One number if it is the same for all channels."""
    numbers: list[float] = np.broadcast_to(np.array(values, np.float64), channels).tolist()
    return numbers[0] if len(set(numbers)) == 1 else numbers


def _of_case(source: Path, step: Step, rest: list[Step], before: dict[str, Any]) -> tuple[list[Step], dict[str, Any]]:
    """Contract keys of a case's own statistics, and the steps that are left.

    Raises:
        ExportError: a contract has one set of limits, and the description two.
    """
    own = step.what
    assert isinstance(own, CaseNormalization)
    keys: dict[str, Any] = {"normalize": "none" if own.kind == "clip" else own.kind}
    keys |= {"epsilon": own.epsilon} if own.epsilon else {}
    keys |= {"statistics_over": "nonzero"} if own.nonzero else {}
    keys |= {"statistics_of": "case"} if own.together else {}
    if own.kind == "clip":
        if "clip" in before:
            raise refused(source, step.name, "limits pixels that are limited before, and a contract has one pair of limits")
        return _after_clip(source, step, rest, keys | {"clip_percentiles": list(own.percentiles or ())})
    if own.percentiles in (None, (0.0, 100.0)):
        return rest, keys
    cut = rest and isinstance(rest[0].what, Clip) and (rest[0].what.low, rest[0].what.high) == (0.0, 1.0)
    if cut and "clip" not in before:  # the range of the pixels that are left
        return rest[1:], keys | {"clip_percentiles": list(own.percentiles or ())}
    return rest, keys | {"range_percentiles": list(own.percentiles or ())}


def _after_clip(source: Path, clip: Step, rest: list[Step], keys: dict[str, Any]) -> tuple[list[Step], dict[str, Any]]:
    """A normalisation by the statistics of the clipped pixels, where one follows."""
    following = rest[0].what if rest else None
    own = clip.what
    assert isinstance(own, CaseNormalization)
    if not isinstance(following, CaseNormalization) or following.kind == "clip":
        return rest, keys
    if (following.together, following.nonzero) != (own.together, own.nonzero) or following.percentiles not in (
        None,
        (0.0, 100.0),
    ):
        raise refused(source, rest[0].name, f"takes its statistics over other pixels or channels than {clip.name} before it")
    more = {"epsilon": following.epsilon} if following.epsilon else {}
    return rest[1:], keys | {"normalize": following.kind} | more


def _inside(source: Path, step: Step) -> Affine | Clip | Pointwise:
    if isinstance(step.what, CaseNormalization):
        raise refused(source, step.name, "takes statistics of what other steps made, and a contract takes those of pixels")
    return step.what.affine if isinstance(step.what, Fixed) else step.what


def refused(source: Path, name: str, why: str) -> ExportError:
    """The error that names a step of a package, the reason, and the ways out."""
    return ExportError(
        f"{source}: the step {name} {why}: --without {name} leaves it out, if the model may run without it; or {OWN}"
    )

"""Pre- and post-processing of bioimage.io by the words of its specification."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segpipe.errors import ExportError
from segpipe.export.bundles.bioimageio_axes import Tensor
from segpipe.export.bundles.steps import Affine, CaseNormalization, Clip, Fixed, Numbers, Pointwise, Step, refused
from segpipe.messages.printable import counted
from segpipe.storage.documents import shortened

EPSILON = 1e-6
"""Default of the specification for ``eps``."""

_LETTERS = {"b": "batch", "c": "channel", "t": "time", "i": "index"}


def steps_of(source: Path, tensor: Tensor, channels: int, without: Sequence[str]) -> list[Step]:
    """The steps of a tensor, but for those that are left out, and those that change nothing.

    Raises:
        ExportError: a step cannot be expressed, or is not described by the standard.
    """
    found = []
    for described in tensor.steps:
        name = str(described.get("id", described.get("name", "")))
        if name in without:
            continue
        if name not in _READERS:
            raise refused(source, name, "has no counterpart in a contract")
        kwargs = described.get("kwargs") or {}
        try:
            what = _READERS[name](_Given(source, name, tensor, channels, kwargs))
        except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise ExportError(f"{source}: the step {name} of {tensor.id} must follow the specification: "
                              f"{shortened(repr(error))}") from None  # fmt: skip
        if what is not None:
            found.append(Step(name, what))
    return found


class _Given:
    """A step with its arguments."""

    def __init__(self, source: Path, name: str, tensor: Tensor, channels: int, kwargs: Mapping[str, Any]) -> None:
        self.source, self.name, self.tensor, self.channels, self.kwargs = source, name, tensor, channels, kwargs

    def refused(self, why: str) -> ExportError:
        return refused(self.source, self.name, why)

    @property
    def epsilon(self) -> float:
        return float(self.kwargs.get("eps", EPSILON))

    def numbers(self, key: str, default: float | None = None) -> Numbers:
        """A number for all channels, or one per channel.

        Raises:
            ExportError: they run along another axis, or are not as many as the channels.
        """
        value = self.kwargs.get(key, default)
        if value is None:
            raise KeyError(key)
        values = tuple(map(float, value)) if isinstance(value, list | tuple) else (float(value),)
        along = self.kwargs.get("axis", "channel")
        if len(values) > 1 and along not in ("channel", "c"):
            raise self.refused(f"has numbers along the axis {along}, and a contract has one per channel")
        if len(values) not in (1, self.channels):
            raise self.refused(f"has {counted(len(values), 'number')} of {key} for {counted(self.channels, 'channel')}")
        return values

    def together(self) -> bool:
        """Whether statistics are those of all channels together.

        Raises:
            ExportError: they are not those of one whole case.
        """
        axes, mode = self.kwargs.get("axes"), self.kwargs.get("mode", "per_sample")
        if mode == "per_dataset":
            raise self.refused("takes statistics of a whole data set, which a run does not know")
        names = {axis.id for axis in self.tensor.axes} - {"batch"} if axes is None else {_LETTERS.get(a, a) for a in axes}
        if "batch" in names:
            raise self.refused("takes statistics over several samples (axis batch), and a run those of each case")
        if missing := {axis.id for axis in self.tensor.space} - names:
            raise self.refused(
                f"takes statistics of each {', '.join(sorted(missing))} by itself, a contract those of a case"
            )
        return "channel" in names and self.channels > 1


def _dtype(given: _Given) -> None:
    dtype = str(given.kwargs.get("dtype", "float32"))
    last = given.tensor.steps and given.tensor.steps[-1].get("kwargs") == given.kwargs
    if not dtype.startswith("float") and not (last and _is_decided(given.tensor)):
        raise given.refused(f"makes {dtype} of numbers that may have fractions")


def _is_decided(tensor: Tensor) -> bool:
    """Whether a threshold made masks, which are whole numbers in any type."""
    return any(step.get("id", step.get("name")) == "binarize" for step in tensor.steps)


def _scale_linear(given: _Given) -> Affine:
    axes = given.kwargs.get("axes")
    if axes is not None and ("c" in axes or "channel" in axes) and len(given.numbers("gain", 1.0)) > 1:
        raise given.refused("has a factor per channel, and scales channels jointly")
    return Affine(given.numbers("gain", 1.0), given.numbers("offset", 0.0))


def _zero_mean(given: _Given) -> Fixed | CaseNormalization:
    if given.kwargs.get("mode") == "fixed" or "mean" in given.kwargs:
        return Fixed(given.numbers("mean"), tuple(std + given.epsilon for std in given.numbers("std")))
    return CaseNormalization("zscore", given.epsilon, together=given.together())


def _fixed_zero_mean(given: _Given) -> Fixed:
    return Fixed(given.numbers("mean"), given.numbers("std"))


def _scale_range(given: _Given) -> CaseNormalization:
    other = given.kwargs.get("reference_tensor")
    own = other == given.tensor.id and given.tensor.steps and given.tensor.steps[0].get("kwargs") == given.kwargs
    if other is not None and not own:
        raise given.refused(f"takes the percentiles of {other}, and a contract those of what it scales")
    low, high = float(given.kwargs.get("min_percentile", 0)), float(given.kwargs.get("max_percentile", 100))
    return CaseNormalization("minmax", given.epsilon, (low, high), together=given.together())


def _clip(given: _Given) -> Clip:
    if {"min_percentile", "max_percentile"} & given.kwargs.keys():
        raise given.refused("limits pixels to values at percentiles, which a contract interpolates (clip_percentiles)")
    limits = {key: float(given.kwargs[key]) for key in ("min", "max") if given.kwargs.get(key) is not None}
    if not limits:
        raise KeyError("min")
    return Clip(*(limits.get(key, default) for key, default in (("min", Clip().low), ("max", Clip().high))))


def _softmax(given: _Given) -> Pointwise:
    if given.kwargs.get("axis", "channel") not in ("channel", "c"):
        raise given.refused(f"runs along the axis {given.kwargs['axis']}, not along the classes")
    return Pointwise("softmax")


def _binarize(given: _Given) -> Pointwise:
    return Pointwise("binarize", given.numbers("threshold"))


_READERS: dict[str, Callable[[_Given], Any]] = {
    "ensure_dtype": _dtype,
    "scale_linear": _scale_linear,
    "zero_mean_unit_variance": _zero_mean,
    "fixed_zero_mean_unit_variance": _fixed_zero_mean,
    "scale_range": _scale_range,
    "clip": _clip,
    "sigmoid": lambda _: Pointwise("sigmoid"),
    "softmax": _softmax,
    "binarize": _binarize,
}

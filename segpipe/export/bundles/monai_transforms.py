"""Transforms of a MONAI bundle by the words of monai.transforms: before the network, and behind it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segpipe.contract.keys import ORIENTED
from segpipe.errors import ExportError
from segpipe.export.bundles.monai_config import Expression
from segpipe.export.bundles.steps import LARGEST, Affine, CaseNormalization, Clip, Fixed, Numbers, Pointwise, Step, refused
from segpipe.messages.printable import counted
from segpipe.storage.documents import shortened

KEPT = {
    *("EnsureChannelFirst", "AddChannel", "AsChannelFirst", "EnsureType", "ToTensor", "ToDevice", "ToNumpy", "CastToType"),
    *("FromMetaTensor", "ToMetaTensor", "Identity", "SelectItems", "DeleteItems", "CopyItems", "SaveImage", "SqueezeDim"),
    *("DataStats", "SimulateDelay", "SplitDim", "EnsureSameShape", "Decollate"),
}
"""Transforms that change the form of an array, or nothing."""

PADS = {"SpatialPad", "DivisiblePad", "BorderPad"}


@dataclass(frozen=True)
class Transform:
    """One transform of a pipeline."""

    name: str
    """Class without module and without the ``d`` of those for dictionaries."""
    values: Mapping[str, Any]


@dataclass
class Preprocessing:
    """What the transforms before a network ask for."""

    steps: list[Step] = field(default_factory=list)
    orientation: str | None = None
    spacing: list[float] | None = None
    notes: list[str] = field(default_factory=list)


def transforms_of(
    source: Path, described: Any, keys: Sequence[str], without: Sequence[str]
) -> tuple[list[Transform], list[str]]:
    """The transforms of a ``Compose`` on one of the keys, in order, and the names of all.

    Raises:
        ExportError: they are no list of transforms.
    """
    every = list(_flat(source, described))
    meant = [one for one in every if one.name not in without and _is_on(one, keys) and _is_enabled(one)]
    return meant, [one.name for one in every]


def _flat(source: Path, described: Any) -> Iterator[Transform]:
    if described is None:
        return
    if isinstance(described, list):
        for one in described:
            yield from _flat(source, one)
        return
    if not isinstance(described, Mapping) or not isinstance(described.get("_target_"), str):
        raise ExportError(
            f"{source}: transforms must be written out in the configuration, got {shortened(described)}: code is not run to "
            "find them"
        )
    name = base_name(described["_target_"])
    if name == "Compose":
        yield from _flat(source, described.get("transforms"))
    else:
        yield Transform(name, {key: value for key, value in described.items() if key != "_target_"})


def base_name(target: str) -> str:
    """Name of a transform without module and the suffix of those for dictionaries; one of the bundle's own scripts as it is.

    >>> base_name("monai.transforms.Spacingd")
    'Spacing'
    """
    module, _, name = target.rpartition(".")
    if module and not module.startswith("monai."):
        return target
    for suffix in ("Dict", "d", "D"):
        if name.endswith(suffix) and name not in ("SplitDim",):
            return name.removesuffix(suffix)
    return name


def _is_on(one: Transform, keys: Sequence[str]) -> bool:
    given = one.values.get("keys")
    named = given if isinstance(given, list) else [given]
    return given is None or bool({str(key) for key in named} & set(keys))


def _is_enabled(one: Transform) -> bool:
    return one.values.get("_disabled_") not in (True, "True", "true")


def prepared(source: Path, transforms: Sequence[Transform], channels: int) -> Preprocessing:
    """Read the transforms before the network.

    Raises:
        ExportError: one has no counterpart; the message names it.
    """
    found = Preprocessing()
    resampled = False
    for one in transforms:
        given = _Given(source, one, channels)
        if one.name in KEPT or one.name == "LoadImage":
            _check_type(given)
        elif one.name == "Orientation":
            found.orientation = _orientation(given)
        elif one.name == "Spacing":
            found.spacing, resampled = _spacing(given), True
        elif one.name in PADS:
            found.notes.append(f"{one.name}: segpipe pads small cases itself, by reflection")
        elif one.name in _SCALES:
            step = _SCALES[one.name](given)
            found.steps += [Step(one.name, part) for part in step]
            if resampled and any(isinstance(part, CaseNormalization) for part in step):
                found.notes.append(f"{one.name} comes after Spacing: segpipe takes a case's statistics before it resamples")
        else:
            raise refused(source, one.name, "has no counterpart in a contract")
    found.steps = _without_repeats(found.steps)
    return found


class _Given:
    """A transform with its arguments."""

    def __init__(self, source: Path, transform: Transform, channels: int) -> None:
        self.source, self.name, self.values, self.channels = source, transform.name, transform.values, channels

    def refused(self, why: str) -> ExportError:
        return refused(self.source, self.name, why)

    def get(self, key: str, default: Any = None) -> Any:
        """An argument; the only element of a list of one, for transforms that have one per key.

        Raises:
            ExportError: only running code would tell it.
        """
        value = self.values.get(key, default)
        if isinstance(value, Expression) and str(value) != "None":
            raise self.refused(f"has {key} = {shortened(value)}, which is code, and code is not run")
        return None if isinstance(value, Expression) else value

    def flag(self, key: str) -> bool:
        value = self.get(key, False)
        value = value[0] if isinstance(value, list) and value else value
        return value in (True, "True", "true", 1)

    def numbers(self, key: str) -> Numbers:
        """A number, or one per channel."""
        value = self.get(key)
        try:
            found = tuple(map(float, value)) if isinstance(value, list) else (float(value),)
        except (TypeError, ValueError):
            raise self.refused(f"needs numbers as {key}, got {shortened(value)}") from None
        if len(found) not in (1, self.channels):
            raise self.refused(f"has {counted(len(found), 'number')} of {key} for {counted(self.channels, 'channel')}")
        return found

    def number(self, key: str) -> float:
        return self.numbers(key)[0]

    @property
    def together(self) -> bool:
        return self.channels > 1 and not self.flag("channel_wise")


def _check_type(given: _Given) -> None:
    dtype = given.values.get("dtype")
    text = str(dtype)
    if dtype is not None and "float" not in text and text != "None" and given.name in ("EnsureType", "CastToType"):
        raise given.refused(f"makes {shortened(text)} of numbers that may have fractions")


def _orientation(given: _Given) -> str:
    codes = "RAS" if given.flag("as_closest_canonical") else str(given.get("axcodes", ""))
    if sorted(ORIENTED.get(letter, "") for letter in codes) != sorted(set(ORIENTED.values())):
        raise given.refused(f"must name three sides of the body, got {shortened(codes)}")
    return codes


def _spacing(given: _Given) -> list[float]:
    mode = given.get("mode", "bilinear")
    mode = mode[0] if isinstance(mode, list) and mode else mode
    if mode not in ("bilinear", "linear", 1):
        raise given.refused(f"interpolates by {mode}, and segpipe linearly")
    sizes = given.get("pixdim")
    values = [float(size) for size in sizes] if isinstance(sizes, list) else [float(sizes)] * 3
    if min(values) <= 0 or given.flag("diagonal"):
        raise given.refused(f"must give a size above 0 to each axis, got {values}")
    return values


def _range(given: _Given) -> list[Affine | Clip]:
    low, high = given.number("a_min"), given.number("a_max")
    if low == high:
        raise given.refused("has equal a_min and a_max")
    ends = [None if given.get(key) is None else given.number(key) for key in ("b_min", "b_max")]
    bottom, top = (ends[0], ends[1]) if ends[0] is not None and ends[1] is not None else (0.0, 1.0)
    gain = (top - bottom) / (high - low)
    cut = [Clip(*_limits(ends[0], ends[1]))] if given.flag("clip") and ends != [None, None] else []
    return [Affine((gain,), (bottom - low * gain,)), *cut]


def _limits(low: float | None, high: float | None) -> tuple[float, float]:
    return (-LARGEST if low is None else low), (LARGEST if high is None else high)


def _normalize(given: _Given) -> list[Fixed | CaseNormalization]:
    ends = [given.get(key) for key in ("subtrahend", "divisor")]
    nonzero = given.flag("nonzero")
    if all(end is not None for end in ends):
        if nonzero:
            raise given.refused("has subtrahend and divisor for non-zero pixels alone")
        return [Fixed(given.numbers("subtrahend"), given.numbers("divisor"))]
    if any(end is not None for end in ends):
        raise given.refused("has one of subtrahend and divisor, and takes the other from the case")
    return [CaseNormalization("zscore", nonzero=nonzero, together=given.together)]


def _scale(given: _Given) -> list[Affine | CaseNormalization]:
    low, high = (given.get(key, default) for key, default in (("minv", 0.0), ("maxv", 1.0)))
    if low is None and high is None:
        return [Affine((1 + given.number("factor"),))] if given.get("factor") is not None else []
    if low is None or high is None:
        raise given.refused("has one of minv and maxv")
    return [CaseNormalization("minmax", together=given.together), *_onto(float(low), float(high))]


def _onto(low: float, high: float) -> list[Any]:
    """The map of 0 to 1 onto a range."""
    return [] if (low, high) == (0, 1) else [Affine((high - low,), (low,))]


def _percentiles(given: _Given) -> list[Any]:
    low, high = given.number("lower"), given.number("upper")
    if given.flag("relative"):
        raise given.refused("scales onto percentiles of the range (relative)")
    if given.get("b_min") is None or given.get("b_max") is None:
        if given.flag("clip") and given.get("b_min") != given.get("b_max"):
            raise given.refused("limits pixels on one side of the range")
        return [CaseNormalization("minmax", percentiles=(low, high), together=given.together)]
    cut = [Clip(0.0, 1.0)] if given.flag("clip") else []
    ends = _onto(given.number("b_min"), given.number("b_max"))
    return [CaseNormalization("minmax", percentiles=(low, high), together=given.together), *cut, *ends]


def _clip_percentiles(given: _Given) -> list[CaseNormalization]:
    if given.get("sharpness_factor") is not None:
        raise given.refused("limits pixels softly (sharpness_factor)")
    low, high = (
        default if given.get(key) is None else given.number(key) for key, default in (("lower", 0.0), ("upper", 100.0))
    )
    return [CaseNormalization("clip", percentiles=(low, high), together=given.together)]


def _threshold(given: _Given) -> list[Clip]:
    limit, value, above = given.number("threshold"), given.get("cval", 0.0), given.values.get("above", True) is not False
    if float(value) != limit:
        raise given.refused(f"replaces pixels beyond {limit:g} by {value}, which is no limit")
    return [Clip(low=limit) if above else Clip(high=limit)]


_SCALES: Mapping[str, Callable[[_Given], Sequence[Any]]] = {
    "ScaleIntensityRange": _range,
    "NormalizeIntensity": _normalize,
    "ScaleIntensity": _scale,
    "ScaleIntensityRangePercentiles": _percentiles,
    "ClipIntensityPercentiles": _clip_percentiles,
    "ThresholdIntensity": _threshold,
}


def _without_repeats(steps: Sequence[Step]) -> list[Step]:
    """Drop a normalisation that the next one takes out again: statistics of all pixels follow an affine map."""
    kept: list[Step] = []
    for step in steps:
        before = next((k for k in range(len(kept) - 1, -1, -1) if not isinstance(kept[k].what, Affine | Fixed)), None)
        if before is not None and _takes_out(kept[before].what, step.what):
            del kept[before:]
        kept.append(step)
    return kept


def _takes_out(first: Any, second: Any) -> bool:
    if (
        not isinstance(first, CaseNormalization)
        or not isinstance(second, CaseNormalization)
        or "clip" in (first.kind, second.kind)
    ):
        return False
    plain = second.epsilon == 0 and second.percentiles is None and not (first.nonzero or second.nonzero)
    return plain and first.together == second.together


def finished(
    source: Path, transforms: Sequence[Transform], keys: Sequence[str], scores: int
) -> tuple[list[Step], list[str]]:
    """Read the transforms behind the network: steps towards labels, and the keys that they decide.

    Returns:
        The steps, and ``["multiclass"]`` where the largest score decides.

    Raises:
        ExportError: one has no counterpart; the message names it.
    """
    steps: list[Step] = []
    decided: list[str] = []
    for one in transforms:
        given = _Given(source, one, scores)
        if one.name in KEPT or one.name == "Invert":
            continue
        if decided or any(isinstance(step.what, Pointwise) and step.what.kind == "binarize" for step in steps):
            raise refused(source, one.name, "changes labels after they are decided, which cleaning of a run may replace")
        if one.name == "Activations":
            steps += [Step(one.name, Pointwise(kind)) for kind in _activations(given)]
        elif one.name == "AsDiscrete":
            step = _discrete(given, _position(one, keys))
            decided += ["multiclass"] if step is None else []
            steps += [] if step is None else [Step(one.name, step)]
        else:
            raise refused(source, one.name, "has no counterpart in a run")
    return steps, decided


def _activations(given: _Given) -> Iterator[Any]:
    if given.get("other") is not None:
        raise given.refused("calls a function (other)")
    for kind in ("sigmoid", "softmax"):
        if given.flag(kind):
            yield kind


def _position(one: Transform, keys: Sequence[str]) -> int:
    """Position of the network's output among the keys of a transform with an argument per key."""
    named = one.values.get("keys")
    named = named if isinstance(named, list) else [named]
    return next((k for k, key in enumerate(named) if str(key) in keys), 0)


def _discrete(given: _Given, position: int) -> Pointwise | None:
    """A threshold; None where the largest score decides."""

    def own(key: str) -> Any:
        value = given.get(key)
        return value[min(position, len(value) - 1)] if isinstance(value, list) and value else value

    if own("argmax") in (True, "True", "true"):
        return None
    threshold = own("threshold")
    if threshold is None:
        raise given.refused("has neither argmax nor threshold")
    return Pointwise("binarize", (float(0.5 if threshold is True else threshold),))

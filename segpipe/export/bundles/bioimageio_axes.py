"""Tensors of a bioimage.io description: their axes, in the form of 0.4 (letters and shapes) or 0.5 (tables)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segpipe.errors import ExportError
from segpipe.storage.documents import shortened

_KINDS = {"b": "batch", "c": "channel", "t": "time", "i": "index", "z": "space", "y": "space", "x": "space"}
_DEFAULT_ID = {"batch": "batch", "channel": "channel", "time": "time", "index": "index", "space": "x"}


@dataclass(frozen=True)
class Range:
    """Sizes ``least + n * step``."""

    least: int
    step: int


@dataclass(frozen=True)
class SizeReference:
    """The size of another tensor's axis, times a factor, plus an offset."""

    tensor: str
    offset: float
    factor: float = 1.0


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor."""

    kind: str
    id: str
    size: int | Range | None = None
    reference: SizeReference | None = None
    halo: int = 0
    names: tuple[str, ...] = ()
    """Of channels."""
    scale: float = 1.0
    unit: str | None = None


@dataclass(frozen=True)
class Tensor:
    """An input or output."""

    id: str
    axes: tuple[Axis, ...]
    steps: tuple[Mapping[str, Any], ...] = field(default=())
    """Pre- or post-processing, each with ``id`` or ``name`` and ``kwargs``."""
    example: str | None = None
    optional: bool = False

    @property
    def channel(self) -> Axis:
        """The channel axis."""
        return next((axis for axis in self.axes if axis.kind == "channel"), Axis("channel", "channel", 1))

    @property
    def space(self) -> list[Axis]:
        """Spatial axes in the order z, y, x."""
        return sorted((axis for axis in self.axes if axis.kind == "space"), key=lambda axis: "zyx".find(axis.id))


def tensors_of(source: Path, rdf: Mapping[str, Any], key: str, version: str) -> list[Tensor]:
    """Inputs or outputs of a description.

    Raises:
        ExportError: they are not described by the standard.
    """
    described = rdf.get(key)
    if not isinstance(described, list) or not all(isinstance(one, Mapping) for one in described) or not described:
        raise ExportError(f"{source}: {key} must be a list of tensors, got {shortened(described)}: correct the description")
    examples = rdf.get(f"test_{key}") or []
    try:
        if version == "0.5":
            return [_of_tables(one, key.removesuffix("s")) for one in described]
        return [_of_letters(one, examples[k : k + 1]) for k, one in enumerate(described)]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ExportError(
            f"{source}: {key} are not described by format {version} ({shortened(error)!s}): correct them"
        ) from None


def _of_tables(one: Mapping[str, Any], name: str) -> Tensor:
    test = one.get("test_tensor")
    return Tensor(
        str(one.get("id", name)),
        tuple(map(_table, one["axes"])),
        _steps(one),
        str(test["source"]) if isinstance(test, Mapping) else None,
        one.get("optional") is True,
    )


def _steps(one: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    return tuple(dict(step) for key in ("preprocessing", "postprocessing") for step in one.get(key) or ())


def _table(axis: Mapping[str, Any]) -> Axis:
    kind = str(axis["type"])
    names = axis.get("channel_names") or ()
    size, reference = _sized(axis.get("size"))
    return Axis(
        kind=kind,
        id=str(axis.get("id", _DEFAULT_ID.get(kind, kind))),
        size=len(names) or size,
        reference=reference,
        halo=int(axis.get("halo", 0)),
        names=tuple(map(str, names)),
        scale=float(axis.get("scale", 1.0)),
        unit=str(axis["unit"]) if axis.get("unit") else None,
    )


def _sized(size: Any) -> tuple[int | Range | None, SizeReference | None]:
    if not isinstance(size, Mapping):
        return (None if size is None else int(size)), None
    if "step" in size:
        return Range(int(size["min"]), max(1, int(size["step"]))), None
    if "tensor_id" in size:
        return None, SizeReference(str(size["tensor_id"]), float(size.get("offset", 0)))
    return None, None


def _of_letters(one: Mapping[str, Any], examples: Sequence[Any]) -> Tensor:
    letters = [_letter(axis) for axis in one["axes"]]
    sizes = list(_shape(one["shape"]))
    halo = list(one.get("halo") or [0] * len(letters))
    axes = tuple(
        Axis(
            _KINDS[letter], _DEFAULT_ID[_KINDS[letter]] if _KINDS[letter] != "space" else letter, size, reference, int(edge)
        )
        for letter, (size, reference), edge in zip(letters, sizes, halo, strict=True)
    )
    return Tensor(str(one["name"]), axes, _steps(one), str(examples[0]) if examples else None)


def _letter(axis: Any) -> str:
    """The letter of an axis, which may be written as a word."""
    return next(letter for letter, kind in _KINDS.items() if axis in (letter, kind))


def _shape(shape: Any) -> Iterator[tuple[int | Range | None, SizeReference | None]]:
    if not isinstance(shape, Mapping):
        yield from ((int(size), None) for size in shape)
    elif "reference_tensor" in shape:
        for factor, offset in zip(shape["scale"], shape["offset"], strict=True):
            fixed = None if factor else round(2 * offset)  # a new axis has the size of its offset
            reference = SizeReference(str(shape["reference_tensor"]), 2 * float(offset), float(factor)) if factor else None
            yield fixed, reference
    else:
        for least, step in zip(shape["min"], shape["step"], strict=True):
            yield (Range(int(least), int(step)) if step else int(least)), None

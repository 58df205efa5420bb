"""Print a model and its contract."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich import filesize
from rich.console import Console
from rich.table import Table
from rich.text import Text

from segpipe.contract import METADATA_KEY, Contract, SegmentationClass
from segpipe.contract.inputs import ModelInput
from segpipe.geometry.layout import Layout
from segpipe.inspect.facts import Flops, ModelFacts, TensorFacts, plain
from segpipe.inspect.section import Row, by, section
from segpipe.messages.console import words
from segpipe.messages.printable import counted
from segpipe.storage.documents import shortened

CLASS_ROWS = 24
"""Most classes with a line each; more are printed as running text."""

FIRST_KEYS = ("architecture", "framework", "weights_sha256", "precision", "date")
"""First keys of a provenance; the others follow, verification last."""


def print_model(console: Console, facts: ModelFacts) -> None:
    """Print the file, then its contract, classes and provenance if it has one."""
    section(console, f"model {facts.file}", _model_rows(facts))
    if facts.contract is None:
        return
    contract = Contract.model_validate(facts.contract)
    section(console, f"contract, from {facts.contract_origin}", _contract_rows(contract, facts.tiling))
    _print_classes(console, contract.mask_classes)
    section(console, "provenance", _provenance_rows(contract.provenance))


def _model_rows(facts: ModelFacts) -> Iterator[Row]:
    yield "size", filesize.decimal(facts.bytes)
    if facts.producer:
        yield "made by", facts.producer
    yield "opset", ", ".join(f"{name} {n}" for name, n in facts.opset.items()) + f"; IR {facts.ir}"
    yield from (("input", _tensor_words(tensor)) for tensor in facts.inputs)
    yield from (("output", _tensor_words(tensor)) for tensor in facts.outputs)
    parameters = facts.parameters
    types = ", ".join(parameters.types if len(parameters.types) < 2 else (f"{n:,} {t}" for t, n in parameters.types.items()))
    yield "parameters", f"{parameters.count:,} in {filesize.decimal(parameters.bytes)}" + f" ({types})" * bool(types)
    yield "FLOPs", _flops_words(facts.flops)
    yield "operators", ", ".join(f"{n} {name}" for name, n in facts.operators.items())
    if others := [key for key in facts.metadata if key != METADATA_KEY]:
        yield "metadata", ", ".join(others)
    if facts.sha256:
        yield "identity", facts.sha256


def _tensor_words(tensor: TensorFacts) -> str:
    return f"{tensor.name}  {tensor.dtype} ({', '.join(map(str, tensor.shape))})"


def _flops_words(flops: Flops | None) -> str:
    if flops is None:
        return "not known: the tile is not known, or the sizes inside depend on more than it"
    parts = ", ".join(f"{name} {n / flops.total:.0%}" for name, n in flops.operators.items() if n)
    left = f"; not counted: {', '.join(flops.not_counted)}" if flops.not_counted else ""
    return f"{_si(flops.total)} for one tile, {by(flops.shape)}" + f" ({parts})" * (len(flops.operators) > 1) + left


def _si(number: float) -> str:
    """Format a number with a unit prefix, such as ``2.86 G``."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {prefix}"
    return f"{number:.3g}"


def _contract_rows(contract: Contract, tiling: Mapping[str, Sequence[int]] | None) -> Iterator[Row]:
    names = contract.channel_names
    yield "channels", str(contract.channel_count) + (f": {', '.join(names)}" if names else ", without names")
    if contract.neighbours:
        yield (
            "neighbours",
            f"{contract.neighbours} on each side: the model takes {counted(contract.input_channels, 'channel')}",
        )
    yield from ((f"input {name}", _input_words(one)) for name, one in (contract.inputs or {}).items())
    yield "scaling", _scaling_words(contract)
    yield from ((key, ", ".join(f"{n:.6g}" for n in contract.column(key))) for key in _varying(contract))
    yield "tile", _tile_words(contract, tiling)
    yield "equivariant", _EQUIVARIANT[contract.equivariant]
    yield "spacing", _spacing_words(contract)
    if contract.crop is not None:
        yield "crop", "to the box of pixels that are not 0 in some channel"
    yield "task", _TASKS[contract.task] + f", above {contract.threshold:g}" * _has_threshold(contract)
    yield "activation", _ACTIVATIONS.get(contract.activation, contract.activation)
    yield from ((key, value) for key in ("input", "output", "orientation") if (value := getattr(contract, key)))
    if contract.layout is not Layout.NCHW:
        yield "layout", contract.layout


def _input_words(given: ModelInput) -> str:
    if given.value is not None:
        return f"constant {shortened(str(given.value))}"
    own = given.channels if isinstance(given.channels, str) else ", ".join(map(str, given.channels or ()))
    dates = f", {given.dates} dates" * (given.dates is not None)
    return f"channels {own}" + (f" as {given.axes}" if given.axes else "") + dates


def _has_threshold(contract: Contract) -> bool:
    return contract.task != "multiclass" and not contract.gives_labels


_TASKS = {
    "multiclass": "multiclass: each pixel has one class",
    "binary": "binary: one score, class 1",
    "regions": "regions: classes overlap, and the mask has the last of each pixel",
    "multilabel": "multilabel: each class has a mask band of its own",
}
_ACTIVATIONS = {
    "none": "none: the outputs are probabilities",
    "labels": "labels: the outputs are labels; the nearest tile decides",
}
_EQUIVARIANT = {
    True: "yes: scores do not depend on where a tile starts",
    False: "no: scores depend on where a tile starts",
    None: "not measured",
}


def _varying(contract: Contract) -> list[str]:
    """Scaling keys that differ between channels."""
    return [key for key in ("scale", "offset", "mean", "std") if len(set(contract.column(key))) > 1]


def _scaling_words(contract: Contract) -> str:
    """The scaling formula; values that differ between channels appear by key, and are listed after it."""
    if contract.scaling == "graph":
        return "inside the model, which takes pixels as they are"
    words = {key: key if key in _varying(contract) else f"{[*contract.column(key), 0][0]:.6g}" for key in _SCALING}
    x = "pixel" if contract.pixel == "stored" else "physical value by the file's tags"
    x += f" * {words['scale']}" * (words["scale"] != "1") + f" + {words['offset']}" * (words["offset"] != "0")
    x = _clip_words(x, contract)
    over = "the case's valid pixels" + " that are not 0" * any(contract.over_nonzero)
    over += " of all channels together" * (contract.statistics_of == "case")
    ends = [f"percentile {n:g}" for n in contract.range_percentiles or ()]
    after = {
        "fixed": f"({x} - {words['mean']}) / {words['std']}",
        "zscore": f"{x}; then mean 0 and deviation 1 over {over}",
        "minmax": f"{x}; then 0 to 1 " + (f"from {' to '.join(ends)} of {over}" if ends else f"over {over}"),
    }
    kinds = contract.normalizations
    if len(set(kinds)) > 1:
        return f"x = {x}; then by channel: {', '.join(kinds)}" + f", over {over}" * contract.is_measured
    return f"x = {after.get(kinds[0], x)}"


def _clip_words(x: str, contract: Contract) -> str:
    """The formula with its clip."""
    if contract.clip_percentiles is not None:
        ends = ", ".join(f"percentile {n:g}" for n in contract.clip_percentiles)
        return f"clip({x}, {ends} of the case)"
    if contract.limits is None:
        return x
    low, high = (", ".join(f"{n:g}" for n in dict.fromkeys(ends)) for ends in contract.limits)
    several = len({*zip(*contract.limits, strict=True)}) > 1
    return f"clip({x}, [{low}], [{high}])" if several else f"clip({x}, {low}, {high})"


_SCALING = ("scale", "offset", "mean", "std")


_TILING = ("tile", "margin", "overlap", "align")


def _tile_words(contract: Contract, tiling: Mapping[str, Sequence[int]] | None) -> str:
    sizes = tiling or {key: np.atleast_1d(getattr(contract, key) or []).tolist() for key in _TILING}
    known = [f"{key} {by(sizes[key])}" for key in _TILING[1:] if sizes.get(key)]
    return ", ".join([by(sizes["tile"]) or "not named", *known])


def _spacing_words(contract: Contract) -> str:
    if contract.spacing is None:
        return f"any: {'voxel' if contract.layout.is_volume else 'pixel'} sizes are not checked"
    ground = " on the ground" * (not contract.layout.is_volume)
    return f"{by(contract.spacing)} {contract.spacing_unit}{ground}, within {contract.spacing_tolerance:.0%}"


def _print_classes(console: Console, classes: Sequence[SegmentationClass]) -> None:
    title = counted(len(classes), "class")
    if len(classes) > CLASS_ROWS:
        section(console, title, [("", ", ".join(f"{c.id} {c.name}" for c in classes))])
        return
    grid = Table.grid(padding=(0, 2, 0, 0))
    for c in classes:
        swatch = Text("  ", style=f"on {c.color}") if c.color and console.color_system else ""
        score = f"score {c.channel}" * (c.channel != c.id)
        grid.add_row(Text(str(c.id), justify="right"), words(c.name), c.color or "", swatch, score)
    console.print(Text(title, style="bold"), grid, "", sep="\n")


def _provenance_rows(provenance: Mapping[str, Any]) -> Iterator[Row]:
    rest = [key for key in provenance if key not in FIRST_KEYS and key != "verification"]
    for key in (*FIRST_KEYS, *rest, "verification"):
        if key in provenance:
            yield from _flat(key, plain(provenance[key]))


def _flat(key: str, value: Any) -> Iterator[Row]:
    """Nested keys as rows, each with its full name."""
    if isinstance(value, dict) and value:
        for inner, below in value.items():
            yield from _flat(f"{key}.{inner}", below)
    else:
        yield key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)

"""Messages for a model without a contract: a template to fill in, or why none would help."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from segpipe.contract import DEFAULT_ALIGN
from segpipe.contract.deepness import deepness_values
from segpipe.errors import ContractError
from segpipe.geometry.layout import Layout, likely_layout
from segpipe.network.bare import BareMargin, BareModel, margin_of
from segpipe.network.coarser import align_corners_stride
from segpipe.network.form import check_graph, gives_labels
from segpipe.network.graph_stride import graph_stride, likely_align
from segpipe.network.output_facts import OutputFacts, output_facts
from segpipe.network.signature import TensorSpec, signature

WIDEST = 110
"""Longest line of the template, in characters."""

LISTED = 4
"""Most classes with a line each; more share lines, and take no more lines than this times `SHARED`."""

SHARED = 4

IMAGE_TILE, VOLUME_TILE = 512, 96
"""Default tile size along each axis, if neither the file nor its metadata has one."""

NOTED = 28
"""Column of comments."""


def check_rank(path: Path, inputs: Sequence[TensorSpec]) -> None:
    """Check that a model without a contract takes images or volumes; a template cannot help other models.

    Raises:
        ContractError: the model takes neither.
    """
    if not any(map(is_image, inputs)):
        taken = ", ".join(map(str, inputs)) or "nothing"
        layouts = " or ".join(layout.named("channels") for layout in (Layout.NCHW, Layout.NHWC))
        volumes = " or ".join(layout.named("channels") for layout in (Layout.NCDHW, Layout.NDHWC))
        raise ContractError(f"{path} must take a batch of images, {layouts}, or of volumes, {volumes}, got {taken}")


def is_image(tensor: TensorSpec) -> bool:
    """Whether an input may hold pixels, or those of several dates, by its axes."""
    return len(tensor.shape) in (4, 5) and tensor.shape[-2:] != (1, 1)


def input_lines(inputs: Sequence[TensorSpec], layout: Layout) -> list[str]:
    """Lines of a contract that say what each input gets: as many channels as the file says, in the graph's order."""
    lines, first = [], 0
    for tensor in inputs:
        if not is_image(tensor):
            lines.append(_constant_line(tensor))
            continue
        axes, count = _axes_of(tensor, layout)
        own = [f'channels = "{first}:{first + count}"', *([f'axes = "{axes}"'] if axes != layout else [])]
        other = f'; or axes = "NCT{axes[3:]}"' if axes.startswith("NTC") else ""
        comment = f"its channels, the first being 0: a slice of them, or a list of their names{other}"
        lines.append(_line(f"inputs.{json.dumps(tensor.name)} = {{ {', '.join(own)} }}", comment))
        first += count
    return lines


def _constant_line(tensor: TensorSpec) -> str:
    sizes = "a number" if len(tensor.shape) < 2 else f"lists of the shape {_sizes(tensor.shape[1:])}"
    comment = f"constant: write {sizes}, what {tensor} gets for each tile"
    return _line(f"inputs.{json.dumps(tensor.name)} = {{ value = [] }}", comment)


def _sizes(shape: Sequence[int | None]) -> str:
    return " x ".join("?" if n is None else str(n) for n in shape)


def _is_series(image: TensorSpec, scores: TensorSpec) -> bool:
    """Whether an input of five axes is images of several dates: one image of scores, and not a volume without classes."""
    if len(image.shape) != 5 or len(scores.shape) != 4:
        return False
    return all(layout.spatial(image.shape) != scores.shape[1:] for layout in (Layout.NCDHW, Layout.NDHWC))


def _axes_of(tensor: TensorSpec, layout: Layout) -> tuple[str, int]:
    """Axes of an input of pixels, and its number of channels on all dates; 3 where the file leaves it open."""
    if len(tensor.shape) == len(layout):
        own = likely_layout(tensor.shape)
        return str(own), own.channels(tensor.shape) or 3
    dated = "NTC" + str(layout).translate(str.maketrans("", "", "NC"))
    return dated, (tensor.shape[1] or 2) * (tensor.shape[2] or 3)


@dataclass(frozen=True)
class _ModelFacts:
    """Facts about a model that its file contains."""

    inputs: Sequence[TensorSpec]
    image: TensorSpec
    outputs: Sequence[TensorSpec]
    layout: Layout
    output: OutputFacts
    stride: int | None
    known: dict[str, Any]
    """Contract keys from Deepness's metadata."""
    narrow: BareMargin | None = None
    """The margin, if the output is smaller than a tile."""

    @property
    def channels(self) -> int | None:
        if self.is_several:
            return sum(_axes_of(tensor, self.layout)[1] for tensor in self.inputs if is_image(tensor))
        return self.layout.channels(self.image.shape)

    @property
    def is_several(self) -> bool:
        return len(self.inputs) > 1 or len(self.inputs[0].shape) > len(self.layout)

    @property
    def tile(self) -> list[int]:
        return _tile(self.image, self.layout, self.known)

    @property
    def scores(self) -> int | None:
        return self.output.classes

    @property
    def task(self) -> str:
        return self.output.task


def lines_to_write(path: Path, proto: onnx.ModelProto) -> str:
    """Message for a model without a contract: a contract template, filled in as far as the file allows.

    Raises:
        ModelError, ContractError: no contract would help.
    """
    inputs, outputs = signature(proto)
    check_rank(path, inputs)
    facts = _model_facts(proto, inputs, outputs)
    check_graph(proto, path, facts.image, outputs[0])
    if inputs == [facts.image]:
        scores = next(one for one in outputs if one.name == facts.output.name)
        bare = BareModel(path, proto, facts.image, scores, facts.layout, facts.output.layout)
        facts = replace(facts, narrow=margin_of(bare, facts.tile))
    lines = [
        f"{path} has no contract that says how its pixels are scaled and what its classes are.",
        f"Write these lines, corrected to how it was trained, to {path.with_suffix('.toml')} or a file for --contract:",
        "",
        "version = 1",
        *_image_lines(facts),
        *_tile_lines(facts),
        *_score_lines(facts),
        *_class_lines(facts),
    ]
    return "\n".join(lines)


def _model_facts(proto: onnx.ModelProto, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> _ModelFacts:
    image = min(filter(is_image, inputs), key=lambda tensor: len(tensor.shape))  # a series stands beside images
    if _is_series(image, outputs[0]):
        image = TensorSpec(image.name, image.dtype, (image.shape[0], _axes_of(image, Layout.NCHW)[1], *image.shape[-2:]))
    layout = likely_layout(image.shape)
    known = deepness_values({p.key: p.value for p in proto.metadata_props}, None, None)
    tile = _tile(image, layout, known)
    scores = next((one for one in outputs if not gives_labels(proto, one, image)), outputs[0])
    output = output_facts(proto, image, layout, tile, scores)
    known = deepness_values({p.key: p.value for p in proto.metadata_props}, None, output.classes)
    return _ModelFacts(inputs, image, outputs, layout, output, graph_stride(proto), known)


def _tile(image: TensorSpec, layout: Layout, known: Mapping[str, Any]) -> list[int]:
    """Sizes of a tile: those of the file, else of its metadata, else the default."""
    sizes = layout.spatial(image.shape)
    if None not in sizes:
        return [n for n in sizes if n is not None]
    tile = list(known.get("tile") or [VOLUME_TILE if layout.is_volume else IMAGE_TILE])
    return tile * layout.ndim if len(tile) == 1 else tile


def _image_lines(facts: _ModelFacts) -> list[str]:
    channels = facts.channels or 3
    count = "the file leaves their number open; " * (facts.channels is None)
    example = "T1" if facts.layout.is_volume else "B04"
    lines = [_line(f"channels = {channels}", f'{count}or their names in the model\'s order, such as ["{example}", ...]')]
    if facts.layout != Layout.NCHW or None in (facts.image.shape[1], facts.image.shape[-1]):
        either = " or ".join(f'"{layout}"' for layout in Layout if layout.ndim == facts.layout.ndim)
        lines.append(_line(f'layout = "{facts.layout}"', f"where the channels of {facts.image} are: {either}"))
    if facts.is_several:
        lines += input_lines(facts.inputs, facts.layout)
    elif facts.layout.is_volume:
        lines += _series_lines(facts.image)
    if facts.image.is_integer:
        return [
            *lines,
            _line('scaling = "graph"', f"it takes {facts.image.dtype} and scales them itself"),
            'normalize = "none"',
        ]
    if facts.layout.is_volume:
        return [*lines, _line('normalize = "zscore"', 'of each case; or "minmax", "none", or "fixed" with mean and std')]
    return [
        *lines,
        _line(f"scale = {1 / 255:.6f}", "x = pixel * scale + offset"),
        _line('normalize = "fixed"', '(x - mean) / std; or "zscore", "minmax", "none", without mean and std'),
        _line(f"mean = {[0.5] * channels}", "one number, or one per channel"),
        f"std = {[0.25] * channels}",
    ]


def _series_lines(image: TensorSpec) -> list[str]:
    """Optional lines for a network that takes images of several dates, whose input has as many axes as a volume."""
    name, comment = json.dumps(image.name), 'where it takes images of several dates: with layout = "NCHW", these two lines'
    return [
        _line("# dates = 3", f"{comment}, channels"),
        _line(
            f'# inputs.{name} = {{ channels = ":", axes = "NTCHW" }}', 'of one date, and two numbers for tile; or "NCTHW"'
        ),
    ]


def _tile_lines(facts: _ModelFacts) -> list[str]:
    tile = facts.tile if facts.narrow is None else list(facts.narrow.tile)
    align = _likely_align(facts)
    axes = "planes, rows and columns" if facts.layout.is_volume else "rows and columns"
    return [
        _line(f"tile = {tile}", axes + " that it was trained on" * (None in facts.image.shape[1:])),
        *([f"overlap = {[min(t // 4, t - align) for t in tile]}"] if facts.narrow is None else _margin_lines(facts.narrow)),
        _line(f"align = {align}", "total stride of the network"),
        *(_volume_lines() if facts.layout.is_volume else ()),
    ]


def _likely_align(facts: _ModelFacts) -> int:
    """The stride; with a margin, the stride of the layers, or the default, or the largest half of it that a tile scores."""
    if facts.narrow is None:
        return likely_align(facts.stride, facts.tile, fixed=None not in facts.layout.spatial(facts.image.shape))
    scored = min(t - 2 * m for t, m in zip(facts.narrow.tile, facts.narrow.margin, strict=True))
    return min(facts.stride or DEFAULT_ALIGN, 1 << (scored.bit_length() - 1))


def _margin_lines(narrow: BareMargin) -> list[str]:
    """Margin, and the overlap of scores."""
    shared = [max(0, t // 4 - 2 * m) for t, m in zip(narrow.tile, narrow.margin, strict=True)]
    why = "it scores the middle of a tile, without so many pixels on each side"
    return [
        _line(f"margin = {list(narrow.margin)}", why if narrow.is_sure else f"if {why}; not if its output is coarser"),
        _line(f"overlap = {shared}", "of the scores of neighbouring tiles"),
    ]


def _volume_lines() -> list[str]:
    """Template lines for optional keys on the grid of volumes."""
    return [
        _line("# spacing = [1.0, 1.0, 1.0]", "mm along each axis, where it was trained on volumes of one spacing"),
        _line('# orientation = "RAS"', "the side that the index of each axis grows towards: R or L, A or P, S or I"),
    ]


def _score_lines(facts: _ModelFacts) -> list[str]:
    """Activation, task, and the form of the output, by the end of the graph."""
    output = facts.output
    tasks = _LABEL_TASKS if output.is_labels else _TASKS
    lines = [
        _line(f'activation = "{output.activation}"', _why(output)),
        _line(f'task = "{output.task}"', tasks[output.task]),
    ]
    if len(facts.outputs) > 1:
        lines.append(_line(f'output = "{output.name}"', f"one of {', '.join(map(str, facts.outputs))}"))
    return [*lines, *_output_lines(facts)]


def _why(output: OutputFacts) -> str:
    ending = output.ending
    if output.is_labels:
        why = str(ending) if ending.labels else "it gives whole numbers"
        return f"{why}: what it gives are labels, and the nearest tile decides"
    means = "what it gives are probabilities" if ending.is_probability else "what it gives are logits"
    known = ending.range is not None and ending.operator != "input"
    return f"{ending}: {means}" if known else '"none" where it gives probabilities already'


def _output_lines(facts: _ModelFacts) -> Iterator[str]:
    """Lines on axes and grid of the output, where they are not those of the input."""
    output = facts.output
    name = next(one for one in facts.outputs if one.name == output.name)
    if output.layout is not facts.layout:
        yield _line(f'output_layout = "{output.layout}"', f"where the classes of {name} are")
    elif facts.layout.channels_last and facts.layout.has_class_axis(name.shape) and None in output.sizes:
        other = Layout.NCDHW if facts.layout.is_volume else Layout.NCHW
        yield _line(f'# output_layout = "{other}"', f"if {name} has its classes on that axis")
    stride = align_corners_stride(facts.tile, output.sizes)
    if stride is not None:
        size, tile = output.sizes[0], facts.tile[0]
        yield _line('upsampling = "align_corners"', f'{size} = ({tile} - 1) / {stride} + 1; or "half_pixel"')


_TASKS = {
    "binary": "one score, class 1 where it is above threshold = 0.5",
    "multiclass": 'each pixel has one class; or "multilabel" where classes do not exclude each other',
    "multilabel": 'classes do not exclude each other; or "multiclass" where each pixel has one',
}


_LABEL_TASKS = {
    "binary": "0 or 1 for each pixel",
    "multiclass": "each pixel has one class",
    "multilabel": "0 or 1 for each class",
}


def _class_lines(facts: _ModelFacts) -> list[str]:
    """One table per class; for many classes, several per line."""
    count = max(facts.scores or 2, 2) if facts.task == "binary" or facts.scores is None else facts.scores
    named = facts.known.get("classes", [])
    fits = sorted(c["id"] for c in named) == list(range(count))
    classes = named if fits else [{"id": i, "name": f"class {i}"} for i in range(count)]
    open_count = []
    if facts.output.is_labels and facts.task == "multiclass":
        left_open = ", as many as the file leaves open" * (facts.scores is None)
        open_count = [f"# one for each label that it gives{left_open}: id is the label, or index, if id is to be another"]
    elif facts.scores is None:
        open_count = ["# as many as it gives scores, which the file leaves open"]
    if count <= LISTED:
        return [*open_count, *(f"[[classes]]\nid = {c['id']}\nname = {json.dumps(c['name'])}" for c in classes)]
    entries = [f"{{ id = {c['id']}, name = {json.dumps(c['name'])} }}," for c in classes]
    return [*open_count, "classes = [", *_filled(entries), "]"]


def _filled(entries: Sequence[str]) -> list[str]:
    """Put entries on lines of about `WIDEST` characters, longer where that makes too many lines."""
    widest = max(WIDEST, sum(len(entry) + 1 for entry in entries) // (LISTED * SHARED) + 40)
    lines = ["   "]
    for entry in entries:
        if len(lines[-1]) + len(entry) > widest:
            lines.append("   ")
        lines[-1] += f" {entry}"
    return lines


def _line(key: str, comment: str) -> str:
    return f"{key:<{NOTED - 1}} # {comment}"

"""The output graph: a small graph behind a network that turns its output into scores ``(N, K, *tile)``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import onnx
from onnx import TensorProto, helper

from segpipe.errors import ContractError, ModelError
from segpipe.messages.printable import dims
from segpipe.network.coarser import CoarserGrid, placed_on
from segpipe.network.spec import ModelSpec

COORDINATES = {"half_pixel": "half_pixel", "align_corners": "align_corners"}


@dataclass(frozen=True, slots=True)
class Steps:
    """What an output needs to become scores ``(N, K, *tile)``, in this order."""

    rank: int
    """Axes of the output."""
    flat: bool = False
    """Add the channel axis, which one score or label per pixel may lack."""
    channels_last: bool = False
    """Move the channel axis from the end."""
    cut: tuple[int, ...] = ()
    """Leave out so many pixels on each side; empty: none."""
    placed: CoarserGrid | None = None
    """Upsample a coarser grid to the tile."""
    nearest: bool = False
    """Upsample with the value of the nearest pixel, as labels need, in place of linear interpolation."""
    activation: Literal["softmax", "sigmoid", "none"] = "none"

    @property
    def any(self) -> bool:
        """Whether the output needs a graph at all."""
        changed = self.flat or self.channels_last or any(self.cut)
        return changed or self.placed is not None or self.activation != "none"


def output_graph_for(spec: ModelSpec, shape: tuple[int, ...]) -> bytes | None:
    """Output graph for a network's output of some shape, which is checked; None where nothing is to be done.

    Raises:
        ModelError, ContractError: scores of this shape contradict the contract.
    """
    steps = _steps(spec, shape)
    return output_graph(steps).SerializeToString() if steps.any else None


def _steps(spec: ModelSpec, shape: tuple[int, ...]) -> Steps:
    contract = spec.contract
    spatial = _scores_shape(shape, spec)
    flat = not contract.scores_layout.has_class_axis(shape)
    return Steps(
        len(shape),
        flat=flat,
        channels_last=contract.scores_layout.channels_last and not flat,
        cut=_cut(spatial, spec),
        placed=None if _is_fine(spatial, spec) else _placed(spec, spatial),
        nearest=contract.gives_labels,
        activation=contract.activation if spec.blend_on == "probabilities" else "none",  # type: ignore[arg-type]
    )


def _is_fine(spatial: tuple[int, ...], spec: ModelSpec) -> bool:
    """Whether an output has a pixel for each pixel that it scores, or for each of the tile with the margin."""
    return spatial in (spec.tiling.tile, spec.tiling.input)


def _cut(spatial: tuple[int, ...], spec: ModelSpec) -> tuple[int, ...]:
    """What is cut from each side of an output: nothing, or the margin from one that has the size of the whole tile."""
    tiling = spec.tiling
    if not any(tiling.margin) or spatial == tiling.input:
        return tiling.margin
    if spatial == tiling.tile or _whole_stride(tiling.tile, spatial):
        return (0,) * len(spatial)
    raise ModelError(
        f"{spec.path}: the output must be the tile without its margin, {dims(tiling.input)} - 2 * {dims(tiling.margin)} = "
        f"{dims(tiling.tile)}, or one pixel per stride of it, or the whole tile, got {dims(spatial)}: "
        f"{_right_margin(spatial, spec)}"
    )


def _whole_stride(tile: Sequence[int], sizes: Sequence[int]) -> bool:
    """Whether one whole number of pixels of the tile, alike along all axes, makes a pixel of the output."""
    return len({t / s for t, s in zip(tile, sizes, strict=True) if s}) == 1 and not any(
        t % s if s else 1 for t, s in zip(tile, sizes, strict=True)
    )


def _right_margin(spatial: tuple[int, ...], spec: ModelSpec) -> str:
    """Say which margin the output would have."""
    less = [t - s for t, s in zip(spec.tiling.input, spatial, strict=True)]
    if min(less) < 0:
        return "correct the tile in the contract, or leave margin out"
    if any(n % 2 for n in less):
        return f"{dims(less)} pixels less are not the same number on both sides: take the --tile that it was trained on"
    return f"set margin = {[n // 2 for n in less]} in the contract if it is the middle of the tile"


def _placed(spec: ModelSpec, sizes: tuple[int, ...]) -> CoarserGrid:
    tile = spec.tiling.tile
    placed = placed_on(tile, sizes, spec.contract.upsampling)
    if placed is None:
        raise ModelError(
            f"{spec.path}: the output must have the input's size, or one pixel per stride, rounded up or down, got "
            f"{dims(sizes)} for a tile of {dims(tile)}: {_mend(tile, sizes)}"
        )
    return placed


def _mend(tile: Sequence[int], spatial: Sequence[int]) -> str:
    less = [t - s for t, s in zip(tile, spatial, strict=True)]
    if min(less) <= 0 or any(n % 2 for n in less):
        return "export the model with padded convolutions, so that sizes are kept"
    return (
        f"if it is the middle of the tile, as valid convolutions give, set margin = {[n // 2 for n in less]} in the contract"
    )


def output_graph(steps: Steps) -> onnx.ModelProto:
    """Build the graph from a network's output to scores ``(N, K, *tile)``: channel axis, cut, upsampling, activation.

    Upsampling is that of ``torch.nn.functional.interpolate(mode="bilinear")``: with half-pixel centres as with
    ``align_corners=False``, with aligned corners as with True.
    """
    graph = _Graph()
    graph.add("Cast", to=TensorProto.FLOAT)
    rank = steps.rank
    if steps.flat:
        graph.add("Unsqueeze", graph.constant(TensorProto.INT64, [1]))
        rank += 1
    if steps.channels_last:
        graph.add("Transpose", perm=[0, rank - 1, *range(1, rank - 1)])
    if any(steps.cut):
        _take_middle(graph, rank, steps.cut)
    if steps.placed is not None:
        _upsample(graph, rank, steps.placed, "nearest" if steps.nearest else "linear")
    if steps.activation != "none":
        graph.add(steps.activation.capitalize(), **({"axis": 1} if steps.activation == "softmax" else {}))
    return graph.model()


def _take_middle(graph: "_Graph", rank: int, cut: tuple[int, ...]) -> None:
    """Leave out pixels on both sides of the spatial axes."""
    ends = [-n or 2**31 - 1 for n in cut]
    graph.add("Slice", *(graph.constant(TensorProto.INT64, list(values)) for values in (cut, ends, range(2, rank))))


def _upsample(graph: "_Graph", rank: int, placed: CoarserGrid, mode: str) -> None:
    """Resize the spatial axes; by a factor where it is a whole number, so that each pixel is weighted alike."""
    options = {"mode": mode, "coordinate_transformation_mode": COORDINATES[placed.centres]}
    if placed.factor is not None:
        scales = [1.0, 1.0, *[float(placed.factor)] * (rank - 2)]
        graph.add("Resize", "", graph.constant(TensorProto.FLOAT, scales), **options)
    else:
        sizes = graph.constant(TensorProto.INT64, list(placed.sizes))
        graph.add("Resize", "", "", sizes, axes=list(range(2, rank)), **options)


class _Graph:
    """A chain of nodes from ``scores`` to ``out``."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[TensorProto] = []
        self._last = "scores"

    def constant(self, kind: int, values: list[Any]) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(helper.make_tensor(name, kind, [len(values)], values))
        return name

    def add(self, operator: str, *more: str, **attributes: Any) -> None:
        out = f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, [self._last, *more], [out], **attributes))
        self._last = out

    def model(self) -> onnx.ModelProto:
        self._nodes.append(helper.make_node("Identity", [self._last], ["out"]))
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("scores", "out")]
        graph = helper.make_graph(self._nodes, "output", ends[:1], ends[1:], self._constants)
        return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def _scores_shape(shape: tuple[int, ...], spec: ModelSpec) -> tuple[int, ...]:
    """Check batch and class axes of an output; return its spatial axes."""
    contract = spec.contract
    layout = contract.scores_layout
    if shape[:1] != (spec.batch,):
        raise ModelError(
            f"{spec.path} must give scores for each of {spec.batch} tiles, got shape {shape}: check its batch axis"
        )
    has_classes = layout.has_class_axis(shape)
    if has_classes is None:
        raise ModelError(
            f'{spec.path}: output "{spec.output}" must be class scores per pixel, {layout.named("K")}, got shape {shape}'
        )
    classes, spatial = (layout.channels(shape), layout.spatial(shape)) if has_classes else (1, shape[1:])
    if classes != contract.scores:
        raise ContractError(f"{spec.contract_origin}: {_wrong_count(classes, shape, spec)}")
    return tuple(spatial)


def _wrong_count(classes: int, shape: tuple[int, ...], spec: ModelSpec) -> str:
    """Say what is wrong if an output has not the number of channels that the contract expects."""
    contract = spec.contract
    other = next((one for one in type(contract.layout) if _fits(one, shape, spec)), None)
    if other is not None:
        return (
            f"the axes of the output {shape} are {other}, and the contract says {contract.scores_layout}: add "
            f'output_layout = "{other}" to the contract'
        )
    if contract.gives_labels and contract.task == "multiclass":
        return (
            f"the model gives {classes} values per pixel, and labels are one: "
            'take activation = "softmax" for scores, or task = "multilabel" for a 0 or 1 per class'
        )
    return (
        f"the model gives {classes} scores per pixel, and the contract's task "
        f'"{contract.task}" with {len(contract.classes)} classes needs {contract.scores}: correct classes or task'
    )


def _fits(layout: Any, shape: tuple[int, ...], spec: ModelSpec) -> bool:
    """Whether an output is scores of the tile in another axis order."""
    if layout.ndim != spec.contract.ndim or not layout.has_class_axis(shape):
        return False
    spatial = layout.spatial(shape)
    larger = any(size > tile for size, tile in zip(spatial, spec.tiling.tile, strict=True))
    return not larger and layout.channels(shape) == spec.contract.scores and layout is not spec.contract.scores_layout

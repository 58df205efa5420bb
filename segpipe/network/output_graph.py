"""The output graph: a small graph behind a network that turns its output into scores ``(N, K, *tile)``."""

import onnx
from onnx import TensorProto, helper

from segpipe.errors import ContractError, ModelError
from segpipe.network.spec import ModelSpec, by


def tail_of(spec: ModelSpec, shape: tuple[int, ...]) -> bytes | None:
    """Output graph for a network's output of some shape, which is checked; None where nothing is to be done.

    Raises:
        ModelError, ContractError: scores of this shape contradict the contract.
    """
    spatial = _scores_shape(shape, spec)
    factor = _upsampling(spatial, spec)
    activation = spec.contract.activation if spec.blend_on == "probabilities" else "none"
    flat, last = not spec.contract.layout.has_class_axis(shape), spec.contract.layout.channels_last
    if not (flat or last or factor > 1 or activation != "none"):
        return None
    graph: bytes = tail_graph(len(shape), flat, last and not flat, factor, activation).SerializeToString()
    return graph


def tail_graph(rank: int, flat: bool, channels_last: bool, factor: int, activation: str) -> onnx.ModelProto:
    """Build the graph from a network's output to scores ``(N, K, *tile)``: channel axis, bilinear upsampling, activation.

    Upsampling uses half-pixel centres, as ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)``.
    """
    nodes, constants, last = [], [], "float"
    nodes.append(helper.make_node("Cast", ["scores"], ["float"], to=TensorProto.FLOAT))
    if flat:
        constants.append(helper.make_tensor("axis", TensorProto.INT64, [1], [1]))
        nodes.append(helper.make_node("Unsqueeze", [last, "axis"], ["channelled"]))
        last, rank = "channelled", rank + 1
    if channels_last:
        nodes.append(helper.make_node("Transpose", [last], ["first"], perm=[0, rank - 1, *range(1, rank - 1)]))
        last = "first"
    if factor > 1:
        scales = [1.0, 1.0, *[float(factor)] * (rank - 2)]
        constants.append(helper.make_tensor("scales", TensorProto.FLOAT, [rank], scales))
        nodes.append(
            helper.make_node(
                "Resize", [last, "", "scales"], ["full"], mode="linear", coordinate_transformation_mode="half_pixel"
            )
        )
        last = "full"
    if activation != "none":
        axis = [helper.make_attribute("axis", 1)] if activation == "softmax" else []
        nodes.append(helper.make_node(activation.capitalize(), [last], ["probable"]))
        nodes[-1].attribute.extend(axis)
        last = "probable"
    return _wrap(nodes, constants, last)


def _wrap(nodes: list[onnx.NodeProto], constants: list[TensorProto], last: str) -> onnx.ModelProto:
    nodes.append(helper.make_node("Identity", [last], ["out"]))
    graph = helper.make_graph(
        nodes,
        "tail",
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        constants,
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def _scores_shape(shape: tuple[int, ...], spec: ModelSpec) -> tuple[int, ...]:
    """Check batch and class axes of an output; return its spatial axes."""
    layout = spec.contract.layout
    if shape[:1] != (spec.batch,):
        raise ModelError(
            f"{spec.path} must give scores for each of {spec.batch} tiles, got shape {shape}: check its batch axis"
        )
    expected = spec.contract.scores
    has_classes = layout.has_class_axis(shape)
    if has_classes is None:
        raise ModelError(
            f'{spec.path}: output "{spec.output}" must be class scores per pixel, {layout.named("K")}, got shape {shape}'
        )
    classes, spatial = (layout.channels(shape), layout.spatial(shape)) if has_classes else (1, shape[1:])
    if classes != expected:
        raise ContractError(
            f"{spec.contract_origin}: the model gives {classes} scores per pixel, and the contract's task "
            f'"{spec.contract.task}" with {len(spec.contract.classes)} classes needs {expected}: correct classes or task'
        )
    return tuple(spatial)


def _upsampling(spatial: tuple[int, ...], spec: ModelSpec) -> int:
    tile = spec.tiling.tile
    factors = {t / s for t, s in zip(tile, spatial, strict=True)}
    factor = factors.pop()
    if factors or factor != int(factor):
        crop = "a smaller output is the middle of the tile, or a grid of its own, which are not supported yet: "
        raise ModelError(
            f"{spec.path}: the output must have the input's size or an integer fraction of it, got {by(spatial)} for a tile "
            f"of {by(tile)}: {crop if min(t - s for t, s in zip(tile, spatial, strict=True)) > 0 else ''}"
            "export the model with padded convolutions, so that sizes are kept"
        )
    return int(factor)

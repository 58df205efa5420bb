"""One ONNX model at work: from a batch of scaled tiles to class scores at full resolution."""

import resource
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from segpipe.pipeline.device import open_session
from segpipe.pipeline.errors import ContractError, ModelError
from segpipe.pipeline.spec import ModelSpec, by, check_unchanged


def try_out(spec: ModelSpec) -> ModelSpec:
    """Run one empty batch: what the model really gives is checked, and the memory that it took is noted.

    Raises:
        ModelError, ContractError, DeviceError: it does not run, or its scores are not what the contract says.
    """
    before = _peak_mb()
    try:
        Model(spec, arena=False)
    except MemoryError:
        raise ModelError(f"a tile of {by(spec.tiling.tile)} does not fit into memory: lower --tile or --batch") from None
    return replace(spec, network_mb=_peak_mb() - before)


def load(spec: ModelSpec) -> "Model":
    """The model that a run was planned with.

    Raises:
        ModelError: the file is another one by now.
    """
    try:
        return Model(spec)
    finally:
        check_unchanged(spec)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Model:
    """An ONNX Runtime session with what comes after it; safe to call from several threads."""

    def __init__(self, spec: ModelSpec, *, arena: bool = True) -> None:
        self.spec = spec
        self._session = open_session(str(spec.path), spec.device, arena, spec.threads)
        self._layout_last = spec.contract.layout == "NHWC"
        self._dtype = np.dtype(spec.input_dtype)
        self._tail = self._make_tail()

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Scores ``(batch, classes, *tile)`` of tiles ``(batch, channels, *tile)``."""
        scores = self._raw(batch)
        if len(scores) != len(batch):
            raise ModelError(
                f"{self.spec.path} must give scores for each of {len(batch)} tiles, got {len(scores)}: check its batch axis"
            )
        if self._tail is not None:
            (scores,) = self._tail.run(None, {"scores": scores})
        return np.asarray(scores, np.float32)

    def _raw(self, batch: NDArray[Any]) -> NDArray[Any]:
        if self._layout_last:
            batch = np.moveaxis(batch, 1, -1)
        batch = np.ascontiguousarray(batch, dtype=self._dtype)
        try:
            (scores,) = self._session.run([self.spec.output], {self.spec.input: batch})
        except Exception as error:  # noqa: BLE001 - onnxruntime raises classes of its own that share no base
            raise ModelError(f"{self.spec.path} failed on a batch of shape {batch.shape}: {error}") from None
        return scores  # type: ignore[no-any-return]

    def _make_tail(self) -> onnxruntime.InferenceSession | None:
        """Try one empty batch, check the shape of what comes, and build what is needed to bring it to full size."""
        spec = self.spec
        shape = self._raw(np.zeros(spec.batch_shape, self._dtype)).shape
        spatial = _scores_shape(shape, spec)
        factor = _upsampling(spatial, spec)
        activation = spec.contract.activation if spec.blend_on == "probabilities" else "none"
        flat = len(shape) == len(spec.tiling.tile) + 1
        if not (flat or self._layout_last or factor > 1 or activation != "none"):
            return None
        proto = tail_graph(len(shape), flat, self._layout_last and not flat, factor, activation)
        return open_session(proto.SerializeToString(), "cpu", True)


def tail_graph(rank: int, flat: bool, channels_last: bool, factor: int, activation: str) -> onnx.ModelProto:
    """A small graph from a network's output to scores ``(N, K, *tile)``: channel axis, bilinear upsampling, activation.

    Upsampling is by half-pixel centres, as ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)``.
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
    """Check batch and class axes of an output; the spatial rest."""
    ndim = len(spec.tiling.tile)
    if shape[:1] != (spec.batch,):
        raise ModelError(
            f"{spec.path} must give scores for each of {spec.batch} tiles, got shape {shape}: check its batch axis"
        )
    expected = spec.contract.scores
    if len(shape) == ndim + 1:
        classes, spatial = 1, shape[1:]
    elif len(shape) == ndim + 2:
        last = spec.contract.layout == "NHWC"
        classes, spatial = (shape[-1], shape[1:-1]) if last else (shape[1], shape[2:])
    else:
        raise ModelError(
            f'{spec.path}: output "{spec.output}" must be class scores per pixel, (N, K, h, w), got shape {shape}'
        )
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
        raise ModelError(
            f"{spec.path}: the output must have the input's size or an integer fraction of it, "
            f"got {by(spatial)} for a tile of {by(tile)}: export the model with padding, so that sizes are kept"
        )
    return int(factor)

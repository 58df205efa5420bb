"""Small ONNX networks with seeded weights, and the contracts that tell of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


@dataclass
class Network:
    """Layers appended one by one; every weight comes from one seeded generator."""

    channels: int
    seed: int = 0
    ndim: int = 2
    """Spatial axes."""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    last: str = "image"

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def add(self, op: str, *constants: NDArray[Any], **attributes: Any) -> "Network":
        """Append one node that takes the last tensor and constants."""
        names = [self.constant(value) for value in constants]
        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [self.last, *names], [out], **attributes))
        self.last = out
        return self

    def constant(self, value: NDArray[Any]) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def conv(self, inside: int, outside: int, size: int) -> "Network":
        """A convolution that keeps sizes; weights of unit gain."""
        w = self.rng.normal(size=(outside, inside, *[size] * self.ndim)) * np.sqrt(2 / (inside * size**self.ndim))
        b = self.rng.normal(size=outside) * 0.1
        return self.add("Conv", w.astype(np.float32), b.astype(np.float32), pads=[size // 2] * 2 * self.ndim)

    def upsample(self, factor: int) -> "Network":
        """Nearest-neighbour upsampling."""
        scales = self.constant(np.array([1, 1, *[factor] * self.ndim], np.float32))
        out = f"t{len(self.nodes)}"
        options = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        self.nodes.append(helper.make_node("Resize", [self.last, "", scales], [out], **options))
        self.last = out
        return self

    def valid(self, inside: int, outside: int, size: int = 3) -> "Network":
        """A convolution without padding, which takes ``size - 1`` from each axis."""
        w = self.rng.normal(size=(outside, inside, *[size] * self.ndim)) * np.sqrt(2 / (inside * size**self.ndim))
        return self.add("Conv", w.astype(np.float32), (self.rng.normal(size=outside) * 0.1).astype(np.float32))

    def middle(self, margin: int) -> "Network":
        """The middle of the last tensor."""
        start, stop = np.array([margin] * self.ndim), np.array([-margin] * self.ndim)
        return self.add("Slice", start, stop, np.arange(2, self.ndim + 2))

    def beside(self, other: str) -> "Network":
        """The last tensor and another, channel by channel."""
        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node("Concat", [self.last, other], [out], axis=1))
        self.last = out
        return self

    def level(self, inside: int, deeper: int) -> int:
        """A level of a U-Net without padding, and those below it; returns what it takes from each axis."""
        self.valid(inside, 6).add("Relu").valid(6, 6).add("Relu")
        if not deeper:
            return 4
        skip = self.last
        self.add("MaxPool", kernel_shape=[2] * self.ndim, strides=[2] * self.ndim)
        less = self.level(6, deeper - 1)
        deep = self.upsample(2).last
        self.last = skip
        self.middle(less).beside(deep).valid(12, 6).add("Relu").valid(6, 6).add("Relu")
        return 8 + 2 * less

    def save(
        self,
        path: Path,
        contract: dict[str, Any] | None,
        *,
        classes: int,
        shape: Sequence[int | str] = ("n", "h", "w"),
        dtype: int = TensorProto.FLOAT,
        out_shape: Sequence[int | str] | None = None,
        metadata: dict[str, str] | None = None,
    ) -> Path:
        """Write the file; ``shape`` is batch and spatial sizes, free where they are names."""
        batch, *sizes = shape
        self.nodes.append(helper.make_node("Identity", [self.last], ["scores"]))
        outputs = list(out_shape or (batch, classes, *sizes))
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("image", dtype, [batch, self.channels, *sizes])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, outputs)],
            self.weights,
        )
        model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
        properties = dict(metadata or {})
        if contract is not None:
            properties["segpipe"] = json.dumps(contract)
        helper.set_model_props(model, properties)
        onnx.save(model, str(path))
        return path


def contract(channels: int | Sequence[str] = 3, classes: int = 3, /, **changes: Any) -> dict[str, Any]:
    """A whole contract; keyword arguments change or add keys, None removes one."""
    values: dict[str, Any] = {
        "version": 1,
        "channels": channels if isinstance(channels, int) else list(channels),
        "scale": 1 / 255,
        "offset": 0.0,
        "normalize": "none",
        "tile": [64, 64],
        "overlap": [16, 16],
        "align": 1,
        "activation": "softmax",
        "task": "multiclass",
        "classes": [{"id": i, "name": f"class{i}"} for i in range(classes)],
    }
    values.update(changes)
    return {key: value for key, value in values.items() if value is not None}


def toml(values: dict[str, Any]) -> str:
    """A contract as the text of a TOML file, key by key, whose values JSON writes alike; classes are last."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if key != "classes"]
    for one in values["classes"]:
        lines += ["[[classes]]", *(f"{key} = {json.dumps(value)}" for key, value in one.items())]
    return "\n".join(lines)


def pixelwise(path: Path, channels: int = 3, classes: int = 3, *, seed: int = 0, **changes: Any) -> Path:
    """Scores of a pixel depend on that pixel alone: tiling can change nothing."""
    net = Network(channels, seed).conv(channels, classes, 1)
    return net.save(path, contract(channels, classes, **changes), classes=classes)


def local(path: Path, channels: int = 3, classes: int = 3, *, seed: int = 0, **changes: Any) -> Path:
    """Three 3 x 3 convolutions: receptive radius 3, stride 1."""
    net = Network(channels, seed).conv(channels, 8, 3).add("Relu").conv(8, 8, 3).add("Relu").conv(8, classes, 3)
    return net.save(path, contract(channels, classes, **changes), classes=classes)


def pooling(path: Path, channels: int = 3, classes: int = 3, *, seed: int = 0, **changes: Any) -> Path:
    """Two poolings, so stride 4, and a receptive radius below 16."""
    net = Network(channels, seed).conv(channels, 8, 3).add("Relu")
    net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2]).conv(8, 8, 3).add("Relu")
    net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2]).conv(8, 8, 3).add("Relu").upsample(4).conv(8, classes, 3)
    return net.save(path, contract(channels, classes, **{"align": 4, **changes}), classes=classes)


def positional(path: Path, tile: int, channels: int = 3, classes: int = 3, *, seed: int = 0, **changes: Any) -> Path:
    """Scores depend on where in its tile a pixel lies, and on its neighbours: weights, windows and padding all show."""
    net = Network(channels, seed).conv(channels, classes, 5)
    net.add("Add", net.rng.normal(size=(1, classes, tile, tile)).astype(np.float32))
    values = contract(channels, classes, **{"tile": [tile, tile], **changes})
    return net.save(path, values, classes=classes, shape=("n", tile, tile))


def volumetric(path: Path, tile: Sequence[int], classes: int = 3, /, *, seed: int = 0, **changes: Any) -> Path:
    """A 3-D network whose scores depend on where in its tile a voxel lies, and on its neighbours."""
    net = Network(1, seed, ndim=len(tile)).conv(1, classes, 3)
    net.add("Add", net.rng.normal(size=(1, classes, *tile)).astype(np.float32))
    values = contract(1, classes, **{"layout": "NCDHW", "tile": list(tile), "overlap": [t // 4 for t in tile], **changes})
    return net.save(path, values, classes=classes, shape=("n", *tile))


def unpadded(
    path: Path, tile: int, channels: int = 3, classes: int = 3, *, levels: int = 2, free: bool = True, **changes: Any
) -> Path:
    """A U-Net of valid convolutions, as the first one was: stride ``2 ** levels``, 8 or 20 pixels of margin with 1 or 2."""
    net = Network(channels, changes.pop("seed", 0), ndim=changes.pop("ndim", 2))
    margin = net.level(channels, levels) // 2
    values = contract(channels, classes, tile=[tile], overlap=None, align=2**levels, margin=margin)
    net.valid(6, classes, 1)
    sizes = [f"s{k}" if free else tile for k in range(net.ndim)]
    out = [f"o{k}" if free else tile - 2 * margin for k in range(net.ndim)]
    values = {key: value for key, value in {**values, **changes}.items() if value is not None}
    return net.save(path, values, classes=classes, shape=("n", *sizes), out_shape=("n", classes, *out))

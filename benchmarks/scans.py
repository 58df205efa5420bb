"""A volume and a 3-D network with many classes for the benchmarks: seeded, written once to benchmarks/scratch."""

import gzip
import json
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from scenes import SCRATCH

ROWS, COLS = 512, 512
TILE, OVERLAP, WIDTH = 64, 16, 8


Zooms = tuple[float, float, float]


def volume(planes: int, zooms: Zooms = (0.8, 0.8, 1.0)) -> Path:
    """CT-like int16 voxels of some mm, 512 x 512 x ``planes``, packed; written plane by plane."""
    path = SCRATCH / f"volume_{planes}{'' if zooms[0] == 0.8 else f'_{zooms[0]}'}" / "volume.nii.gz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft, rng = path.with_suffix(".draft"), np.random.default_rng(0)
        with gzip.open(draft, "wb", 1) as stream:
            stream.write(_header(planes, zooms) + bytes(4))
            for _ in range(planes):
                fields = np.kron(rng.integers(-1000, 1200, (16, 16)), np.ones((32, 32), int))
                stream.write((fields + rng.integers(-15, 16, fields.shape)).astype("<i2").tobytes())
        draft.rename(path)
    return path


def _header(planes: int, zooms: Zooms) -> bytes:
    family: Any = nibabel.Nifti1Header
    header = family(endianness="<")
    header.set_data_shape((COLS, ROWS, planes))
    header.set_data_dtype("<i2")
    header.set_zooms(zooms)
    header.set_sform(np.diag([*zooms, 1.0]), 1)
    header.set_xyzt_units("mm")
    header["vox_offset"] = 352
    return bytes(header.binaryblock)


def volumetric(classes: int, *, percentiles: bool = False) -> Path:
    """A network of two 3 x 3 x 3 convolutions and one of 1 x 1 x 1, with seeded random weights and a contract.

    Args:
        classes: their number.
        percentiles: whether the contract clips a case at percentiles of its own.
    """
    path = SCRATCH / f"volumetric_{classes}{'_percentiles' if percentiles else ''}.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        more = {"clip_percentiles": [0.5, 99.5]} if percentiles else {}
        onnx.save(_network(classes, contract_of(classes) | more), path)
    return path


def _network(classes: int, contract: dict[str, object]) -> onnx.ModelProto:
    rng, nodes, weights, last = np.random.default_rng(0), [], [], "image"
    for n, (inside, outside, size) in enumerate([(1, WIDTH, 3), (WIDTH, WIDTH, 3), (WIDTH, classes, 1)]):
        values = rng.normal(size=(outside, inside, *[size] * 3)) * np.sqrt(2 / (inside * size**3))
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"w{n}"))
        name = "scores" if n == 2 else f"c{n}"
        nodes.append(helper.make_node("Conv", [last, f"w{n}"], [name], pads=[size // 2] * 6))
        last = name
        if n < 2:
            nodes.append(helper.make_node("Relu", [name], [f"r{n}"]))
            last = f"r{n}"
    return _model("volumetric", nodes, weights, [TILE] * 3, contract)


def _model(
    name: str, nodes: list[onnx.NodeProto], weights: list[TensorProto], shape: list[int], contract: dict[str, object]
) -> onnx.ModelProto:
    """A model from image to scores."""
    classes = len(cast(list[object], contract["classes"]))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, *shape])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", classes, *shape])
    graph = helper.make_graph(nodes, name, [image], [scores], weights)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    helper.set_model_props(model, {"segpipe": json.dumps(contract)})
    return model


def whole_body(spacing: float | None, *, classes: int = 117, tile: int = 128) -> Path:
    """A network with the shapes of TotalSegmentator's: patches of 128³, half of which overlap, and 117 classes.

    It is quick: one convolution of stride 4 sees the neighbourhood; a voxel's scores follow from it and the voxel.

    Args:
        spacing: that of the contract in mm; None: any.
        classes: their number.
        tile: side of a patch.
    """
    path = SCRATCH / f"whole_body_{classes}_{tile}_{spacing}.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        contract = contract_of(classes) | {"tile": [tile], "overlap": [tile // 2], "align": 32}
        if spacing is not None:
            contract |= {"spacing": [spacing] * 3, "spacing_unit": "mm"}
        onnx.save(_strided(classes, tile, contract), path)
    return path


def _strided(classes: int, tile: int, contract: dict[str, object]) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(0, 0.1, (WIDTH - 1, 1, 4, 4, 4)).astype(np.float32), "w0"),
        numpy_helper.from_array(rng.normal(0, 1, (classes, WIDTH, 1, 1, 1)).astype(np.float32), "w1"),
        numpy_helper.from_array(np.array([1, 1, 4, 4, 4], np.float32), "scales"),
    ]
    nodes = [
        helper.make_node("Conv", ["image", "w0"], ["c0"], strides=[4] * 3),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Resize", ["r0", "", "scales"], ["u0"], mode="nearest"),
        helper.make_node("Concat", ["u0", "image"], ["both"], axis=1),
        helper.make_node("Conv", ["both", "w1"], ["scores"]),
    ]
    return _model("whole_body", nodes, weights, [tile] * 3, contract)


def contract_of(classes: int) -> dict[str, object]:
    return {
        "version": 1,
        "channels": 1,
        "scale": 1 / 1000,
        "pixel": "physical",
        "normalize": "none",
        "layout": "NCDHW",
        "tile": [TILE],
        "overlap": [OVERLAP],
        "align": 1,
        "activation": "softmax",
        "classes": [{"id": n, "name": f"class {n}"} for n in range(classes)],
    }

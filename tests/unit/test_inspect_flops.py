"""Operations of a model, by hand, against torch and against ONNX Runtime's profiler."""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from inspecting import EXAMPLE, SHARED_MODELS, command, model_facts, settings, sidecar, told
from networks import Network, contract, local
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from segpipe.inspect.flops import _inferred, _profiled, count_flops, operations
from segpipe.network.read import read_spec


def test_two_convolutions_by_hand(tmp_path):
    """4 to 8 channels with a 3 x 3 kernel, 8 to 5 with a 1 x 1, on a tile of 64 x 64."""
    path = Network(4).conv(4, 8, 3).add("Relu").conv(8, 5, 1).save(tmp_path / "m.onnx", contract(4, 5), classes=5)
    facts = model_facts(path)
    assert facts.parameters.count == (8 * 4 * 9 + 8) + (5 * 8 + 5)
    assert facts.parameters.bytes == 4 * facts.parameters.count
    assert facts.flops.total == 2 * 64 * 64 * (4 * 9 * 8 + 8 * 5)
    assert facts.flops.shape == [1, 4, 64, 64]
    assert facts.error is None


@pytest.mark.parametrize(("batch", "tile"), [(2, (64, 64)), (1, (64, 128))])
def test_operations_are_for_one_tile_whatever_the_batch(batch, tile, tmp_path):
    net = Network(3).conv(3, 3, 3)
    path = net.save(tmp_path / "m.onnx", contract(tile=list(tile)), classes=3, shape=(batch, *tile))
    assert model_facts(path).flops.total == 2 * math.prod(tile) * 3 * 3 * 9


@pytest.mark.parametrize(
    ("op", "inputs", "output", "multiplications"),
    [
        ("Conv", [(1, 6, 9, 9), (4, 3, 5, 5)], (1, 4, 9, 9), 4 * 81 * 3 * 25),  # two groups
        ("Conv", [(1, 1, 8, 8, 8), (2, 1, 3, 3, 3)], (1, 2, 8, 8, 8), 2 * 512 * 27),
        ("ConvTranspose", [(1, 6, 4, 4), (6, 3, 2, 2), (3,)], (1, 3, 8, 8), 6 * 16 * 3 * 4),
        ("QLinearConv", [(1, 6, 9, 9), (), (), (4, 6, 1, 1), (), (), (), ()], (1, 4, 9, 9), 4 * 81 * 6),
        ("MatMul", [(2, 7, 10, 5), (5, 3)], (2, 7, 10, 3), 2 * 7 * 10 * 3 * 5),
        ("Gemm", [(5, 10), (5, 3)], (10, 3), 10 * 3 * 5),  # the first is transposed
    ],
)
def test_operations_of_a_node(op, inputs, output, multiplications):
    assert operations(op, inputs, output) == 2 * multiplications


class UNet(nn.Module):
    """As the bundled one: pairs of convolutions, poolings, transposed convolutions, concatenations."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.deep, self.last = self.pair(3, 8), self.pair(8, 12), self.pair(16, 8)
        self.up, self.head = nn.ConvTranspose2d(12, 8, 2, stride=2), nn.Conv2d(8, 5, 1)

    @staticmethod
    def pair(inside: int, outside: int) -> nn.Sequential:
        second = nn.Conv2d(outside, outside, 3, padding=1, groups=2)
        return nn.Sequential(nn.Conv2d(inside, outside, 3, padding=1), nn.ReLU(), second, nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        high = self.first(x)
        low = self.up(self.deep(nn.functional.max_pool2d(high, 2)))
        return self.head(self.last(torch.cat([high, low], 1)))


class Attending(nn.Module):
    """Tokens, attention with reduced keys, and bilinear upsampling, as in SegFormer: sizes from Shape and Reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.key, self.value = nn.Conv2d(3, 16, 4, stride=4), nn.Linear(16, 16), nn.Linear(16, 16, bias=False)
        self.reduce, self.head = nn.Conv2d(16, 16, 2, stride=2), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch(x)
        n, c, rows, cols = patches.shape
        queries = patches.reshape(n, c, rows * cols).transpose(1, 2)
        few = self.reduce(queries.transpose(1, 2).reshape(n, c, rows, cols)).flatten(2).transpose(1, 2)
        mixed = torch.softmax(queries @ self.key(few).transpose(1, 2), -1) @ self.value(few)
        scores = self.head(mixed.transpose(1, 2).reshape(n, c, rows, cols))
        return nn.functional.interpolate(scores, scale_factor=4.0, mode="bilinear")


def exported(network: nn.Module, path: Path) -> Path:
    """With free batch, rows and columns, and a contract beside it."""
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network.eval(),
            (torch.zeros(2, 3, 64, 64),),
            dynamo=True,
            opset_version=20,
            dynamic_shapes=(free,),
            verbose=False,
        )
    program.save(path, external_data=False)
    proto = onnx.load(path)
    helper.set_model_props(proto, {"segpipe": json.dumps(contract(3, 5, align=8))})
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize(("network", "inferred"), [(UNet, True), (Attending, False)])
def test_parameters_and_operations_are_torchs(network, inferred, tmp_path):
    """One whose shapes inference knows, and one where only the profiler does."""
    torch.manual_seed(0)
    module = network()
    path = exported(module, tmp_path / "m.onnx")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, 3, 64, 64))
    facts, proto = model_facts(path), onnx.load(path)
    assert facts.flops.total == counter.get_total_flops()
    assert facts.parameters.count == sum(p.numel() for p in module.parameters())
    assert (_inferred(proto, {proto.graph.input[0].name: [1, 3, 64, 64]}) is not None) is inferred


class Calibration(CalibrationDataReader):
    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.images = iter([{"image": rng.random((1, 3, 64, 64), np.float32)} for _ in range(2)])

    def get_next(self) -> Any:
        return next(self.images, None)


def quantised(form: str, source: Path, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "dynamic":
            quantize_dynamic(source, path)
        else:
            quantize_static(source, path, Calibration(), quant_format=QuantFormat[form], per_channel=form == "QDQ")
    return path


FORMS = {
    "QDQ": {"Conv", "MatMul"},
    "QOperator": {"QLinearConv", "QLinearMatMul"},
    "dynamic": {"ConvInteger", "MatMulInteger"},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_quantised_model_has_the_parameters_and_operations_of_its_source(form, tmp_path):
    net = Network(3).conv(3, 8, 3).add("Relu").add("Transpose", perm=[0, 2, 3, 1])
    net.add("MatMul", np.ones((8, 5), np.float32)).add("Transpose", perm=[0, 3, 1, 2]).conv(5, 3, 1)
    source = net.save(tmp_path / "m.onnx", contract(), classes=3)
    facts = model_facts(quantised(form, source, tmp_path / "q.onnx"), contract=sidecar(tmp_path / "q.toml", contract()))
    plain = model_facts(source)
    assert set(facts.flops.operators) == FORMS[form]
    assert facts.flops.total == plain.flops.total == 2 * 64 * 64 * (3 * 9 * 8 + 8 * 5 + 5 * 3)
    assert facts.parameters.count == plain.parameters.count == (27 * 8 + 8) + 40 + (15 + 3)
    assert facts.parameters.bytes < plain.parameters.bytes / 3


def branching(path: Path) -> Path:
    """One branch of a convolution of 3 x 3, one of 1 x 1; the sum of pixels decides, and zeros take the second."""
    rng = np.random.default_rng(0)
    branches = []
    for size in (3, 1):
        w = numpy_helper.from_array(rng.random((3, 3, size, size), np.float32), f"w{size}")
        node = helper.make_node("Conv", ["image", w.name], [f"out{size}"], pads=[size // 2] * 4)
        out = helper.make_tensor_value_info(f"out{size}", TensorProto.FLOAT, None)
        branches.append(helper.make_graph([node], f"branch{size}", [], [out], [w]))
    nodes = [
        helper.make_node("ReduceMax", ["image"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "zero"], ["any"]),
        helper.make_node("If", ["any"], ["scores"], then_branch=branches[0], else_branch=branches[1]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3, "h", "w"])
    zero = numpy_helper.from_array(np.array(0, np.float32), "zero")
    graph = helper.make_graph(nodes, "branching", [image], [scores], [zero])
    proto = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    helper.set_model_props(proto, {"segpipe": json.dumps(contract())})
    onnx.save(proto, path)
    return path


def test_of_two_branches_the_one_taken_counts(tmp_path):
    facts = model_facts(branching(tmp_path / "m.onnx"))
    assert facts.flops.total == 2 * 64 * 64 * 3 * 3
    assert facts.parameters.count == 3 * 3 * 9 + 3 * 3
    assert facts.operators["Conv"] == 2


def test_local_functions_are_looked_into(tmp_path):
    path = local(tmp_path / "m.onnx")
    before, proto = model_facts(path), onnx.load(path)
    conv = proto.graph.node[0]
    imports = [helper.make_opsetid("", 20)]
    inner = helper.make_node("Conv", ["a", "b", "c"], ["d"], pads=[1, 1, 1, 1])
    proto.functions.append(helper.make_function("own", "Wrapped", ["a", "b", "c"], ["d"], [inner], imports))
    conv.CopyFrom(helper.make_node("Wrapped", list(conv.input), list(conv.output), domain="own"))
    proto.opset_import.append(helper.make_opsetid("own", 1))
    onnx.save(proto, path)
    assert model_facts(path).flops == before.flops


def test_what_multiplies_and_is_not_counted_is_named(tmp_path):
    net = Network(3).conv(3, 3, 1)
    net.add("Einsum", np.ones((3, 3), np.float32), equation="nchw,kc->nkhw")
    facts = model_facts(net.save(tmp_path / "m.onnx", contract(), classes=3))
    assert facts.flops.not_counted == ["Einsum"]
    assert "not counted: Einsum" in command(tmp_path / "m.onnx").stdout


@pytest.mark.shared_data
@pytest.mark.parametrize("path", [EXAMPLE, *sorted(SHARED_MODELS.rglob("*.onnx"))], ids=lambda path: path.stem)
def test_inference_and_profiler_agree_on_real_models(path, tmp_path):
    proto = onnx.load(path)
    if path.parent.name == "brain":  # a run of 256³ pixels takes minutes; ten convolutions of a volume by hand
        shapes = [t.dims for t in proto.graph.initializer if len(t.dims) == 5]
        assert count_flops(proto, None).total == sum(2 * 256**3 * math.prod(dims) for dims in shapes)
        return
    values = contract(proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value, 1, tile=[512, 512], task="binary")
    values |= {"classes": [{"id": 1, "name": "found"}], "activation": "none", "output": proto.graph.output[0].name}
    spec = read_spec(settings(path, contract=sidecar(tmp_path / "c.toml", values)))
    counted, run = _inferred(proto, {spec.input: [1, values["channels"], 512, 512]}), _profiled(spec, 1)
    assert sorted(counted) == sorted(run)


def test_operations_without_contract_where_the_file_fixes_the_sizes(tmp_path):
    path = Network(4).conv(4, 6, 3).save(tmp_path / "m.onnx", None, classes=6, shape=("n", 128, 96))
    assert told(path, code=1)["flops"]["total"] == 2 * 128 * 96 * 6 * 4 * 9
    free = Network(4).conv(4, 6, 3).save(tmp_path / "f.onnx", None, classes=6)
    assert told(free, code=1)["flops"] is None

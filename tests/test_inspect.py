"""What ``segpipe inspect`` says of models and rasters, against hand, torch, rasterio and a run's own words."""

import json
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import rasterio
import torch
from click.testing import CliRunner, Result
from networks import Network, contract, local, pixelwise
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from segpipe.cli import main
from segpipe.pipeline import inspect
from segpipe.pipeline.config import Settings, load_settings
from segpipe.pipeline.inspect import ModelFacts, RasterFacts, count_flops, count_parameters, inspect_file
from segpipe.pipeline.spec import read_spec

EXAMPLE = Path(__file__).parents[1] / "examples" / "crops.onnx"
SCENE = Path(__file__).parents[1] / "examples" / "scenes" / "danube.tif"
SHARED_MODELS = Path(__file__).parents[2] / "shared" / "data" / "models"


def command(*arguments: Any, **environment: str) -> Result:
    """The command line without the second that a process takes to start."""
    return CliRunner(env=environment).invoke(main, ["inspect", *map(str, arguments)], catch_exceptions=False)


def told(*arguments: Any, code: int = 0) -> dict[str, Any]:
    """The JSON object on stdout."""
    ended = command(*arguments, "--json")
    assert ended.exit_code == code, ended.stderr
    return dict(json.loads(ended.stdout))


def settings(file: Path, **flags: Any) -> Settings:
    return load_settings(None, {"input": (str(file),), "model": file, "device": "cpu", **flags})


def model_facts(path: Path, **flags: Any) -> ModelFacts:
    facts = inspect_file(settings(path, **flags))
    assert isinstance(facts, ModelFacts)
    return facts


def raster_facts(path: Path, **flags: Any) -> RasterFacts:
    facts = inspect_file(settings(path, **flags))
    assert isinstance(facts, RasterFacts)
    return facts


# --- parameters and operations --------------------------------------------------------------------------------------------


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
    assert inspect.operations(op, inputs, output) == 2 * multiplications


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
    assert (inspect._inferred(proto, proto.graph.input[0].name, [1, 3, 64, 64]) is not None) is inferred


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


def test_sizes_scales_and_single_numbers_are_no_parameters(tmp_path):
    net = Network(3).conv(3, 3, 1).upsample(2).add("Mul", np.array(2, np.float32))
    net.add("Reshape", np.array([0, 0, -1, 32], np.int64)).add("AveragePool", kernel_shape=[2, 2], strides=[2, 2])
    assert count_parameters(onnx.load(net.save(tmp_path / "m.onnx", None, classes=3))).count == 12


def test_constant_nodes_are_parameters_too(tmp_path):
    proto = onnx.load(pixelwise(tmp_path / "m.onnx"))
    before = count_parameters(proto)
    weight = proto.graph.initializer.pop(0)
    proto.graph.node.insert(0, helper.make_node("Constant", [], [weight.name], value=weight))
    assert count_parameters(proto) == before


def test_parameters_in_external_data_are_counted_without_it(tmp_path):
    path = local(tmp_path / "m.onnx")
    before = model_facts(path)
    options = {"save_as_external_data": True, "location": "m.data", "size_threshold": 0}
    onnx.save(onnx.load(path), path, **options)
    facts = model_facts(path)
    assert (facts.parameters, facts.flops, facts.error) == (before.parameters, before.flops, None)
    assert facts.bytes == path.stat().st_size + (tmp_path / "m.data").stat().st_size
    (tmp_path / "m.data").unlink()
    without = model_facts(path)
    assert without.parameters == before.parameters
    assert re.search("needs its external data", without.error)


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
    feed = (spec.input, [1, values["channels"], 512, 512])
    counted, run = inspect._inferred(proto, *feed), inspect._profiled(spec, *feed)
    assert sorted(counted) == sorted(run)


# --- models ---------------------------------------------------------------------------------------------------------------


def sidecar(path: Path, values: dict[str, Any]) -> Path:
    """A contract as TOML; JSON writes TOML's values, but for the tables of the classes."""
    values = dict(values)
    classes = values.pop("classes")
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    lines += [line for c in classes for line in ("[[classes]]", *(f"{key} = {json.dumps(v)}" for key, v in c.items()))]
    path.write_text("\n".join(lines))
    return path


def test_a_model_in_a_terminal(segpipe):
    ended = segpipe("inspect", EXAMPLE, env={"COLUMNS": "80", "PATH": ""})
    assert ended.returncode == 0
    assert ended.stderr == ""
    assert max(map(len, ended.stdout.splitlines())) <= 80
    for words in (
        r"image  float32 \(batch, 4, 8\*y, 8\*x\)",
        "opset +ai.onnx 20; IR 10",
        "176,391 in 705.6 kB",
        "2.86 G for one tile, 1 x 4 x 256 x 256",
        "channels +4: B02, B03, B04, B08",
        r"scaling +x = \(pixel \* 0.0001 - mean\) / std",
        "mean +0.0556, 0.0838, 0.0763, 0.2925",
        "tile +256 x 256, overlap 64 x 64, align 8 x 8",
        "spacing +10 x 10 m",
        "6  rapeseed +#f4e01f",
        "architecture +U-Net",
    ):
        assert re.search(words, ended.stdout), words


def test_a_model_as_json(segpipe):
    """Nothing else on stdout, keys that stay, numbers as numbers."""
    ended = segpipe("inspect", EXAMPLE, "--json")
    facts = json.loads(ended.stdout)
    assert list(facts) == [
        *("kind", "file", "bytes", "producer", "ir", "opset", "operators", "inputs", "outputs", "parameters", "metadata"),
        *("flops", "contract_origin", "contract", "tiling", "sha256", "error"),
    ]
    assert facts["kind"] == "model"
    assert facts["bytes"] == EXAMPLE.stat().st_size
    assert facts["opset"] == {"ai.onnx": 20}
    assert facts["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["batch", 4, "8*y", "8*x"]}]
    assert facts["outputs"] == [{"name": "scores", "dtype": "float32", "shape": ["batch", 7, "8*y", "8*x"]}]
    assert facts["parameters"]["types"] == {"float32": facts["parameters"]["count"]}
    assert facts["contract"]["classes"][1] == {"id": 1, "name": "forest", "color": "#1f6b3a", "index": None}
    assert facts["tiling"] == {"tile": [256, 256], "overlap": [64, 64], "align": [8, 8]}
    assert facts["error"] is None


def test_the_identity_is_that_of_a_run(tmp_path):
    assert model_facts(EXAMPLE).sha256 == read_spec(settings(EXAMPLE)).sha256


def test_verification_is_shown_whatever_it_holds(tmp_path):
    verification = {"labels": {"agree": 0.99991, "worst image": "a.png"}, "max [logits]": 3e-06, "runs": [1, 2]}
    provenance = {"verification": verification, "own": {}, "date": "2026-11-21", "framework": "torch 2.15.0"}
    path = pixelwise(tmp_path / "m.onnx", provenance=provenance)
    lines = command(path).stdout.split("provenance\n")[1].splitlines()
    assert [re.split("  +", line.strip()) for line in lines if line] == [
        ["framework", "torch 2.15.0"],
        ["date", "2026-11-21"],
        ["own", "{}"],
        ["verification.labels.agree", "0.99991"],
        ["verification.labels.worst image", "a.png"],
        ["verification.max [logits]", "3e-06"],
        ["verification.runs", "[1, 2]"],
    ]
    assert told(path)["contract"]["provenance"] == provenance


def test_what_json_has_no_number_or_date_for_is_a_string(tmp_path):
    path = sidecar(tmp_path / "c.toml", contract())
    path.write_text(path.read_text() + "\n[provenance]\ndate = 2026-11-21\nmiou = nan\n")
    facts = told(pixelwise(tmp_path / "m.onnx"), "--contract", path)
    assert facts["contract"]["provenance"] == {"date": "2026-11-21", "miou": "nan"}
    assert re.search(r"date +2026-11-21", command(tmp_path / "m.onnx", "--contract", path).stdout)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scale": 1.0}, "x = pixel"),
        ({"scale": [1.0, 2.0, 2.0], "offset": -1.0}, "x = pixel * scale + -1"),
        ({"clip": [0, 1], "pixel": "physical"}, "x = clip(physical value by the file's tags * 0.00392157, 0, 1)"),
        ({"normalize": "fixed", "mean": 0.5, "std": [0.1, 0.2, 0.3]}, "x = (pixel * 0.00392157 - 0.5) / std"),
        ({"normalize": "zscore", "scale": 1.0}, "x = pixel; then mean 0 and deviation 1 over the case's valid pixels"),
        ({"normalize": "minmax", "scale": 1.0}, "x = pixel; then 0 to 1 over the case's valid pixels"),
        ({"scaling": "graph"}, "inside the model, which takes pixels as they are"),
    ],
)
def test_scaling_in_one_line(changes, words, tmp_path):
    shown = command(pixelwise(tmp_path / "m.onnx", **changes), COLUMNS="120").stdout
    assert re.search(rf"^scaling +{re.escape(words)} *$", shown, re.MULTILINE)


def test_many_classes_run_in(tmp_path):
    classes = [{"id": i, "name": f"class [{i}]", "color": "#aabbcc"} for i in range(150)]
    path = Network(3).conv(3, 150, 1).save(tmp_path / "m.onnx", contract(classes=classes), classes=150)
    shown = command(path, COLUMNS="80").stdout
    assert "149 class [149]" in " ".join(shown.split())
    assert len(shown.splitlines()) < 60
    assert len(told(path)["contract"]["classes"]) == 150


def test_a_model_without_contract_gives_its_facts_and_the_lines_to_write(segpipe, tmp_path):
    path = Network(4).conv(4, 6, 3).save(tmp_path / "m.onnx", None, classes=6, shape=("n", 128, 96))
    ended = segpipe("inspect", path)
    assert ended.returncode == 1
    assert "parameters  222" in ended.stdout
    assert "contract, from" not in ended.stdout
    assert re.search(r"no contract .*\nWrite these lines.*\n\nversion = 1\nchannels = 4", ended.stderr)
    (tmp_path / "m.toml").write_text(ended.stderr.split("\n\n", 1)[1])
    facts = told(path)
    assert facts["contract_origin"] == str(tmp_path / "m.toml")
    assert facts["flops"]["total"] == 2 * 128 * 96 * 6 * 4 * 9


def test_operations_without_contract_where_the_file_fixes_the_sizes(tmp_path):
    path = Network(4).conv(4, 6, 3).save(tmp_path / "m.onnx", None, classes=6, shape=("n", 128, 96))
    assert told(path, code=1)["flops"]["total"] == 2 * 128 * 96 * 6 * 4 * 9
    free = Network(4).conv(4, 6, 3).save(tmp_path / "f.onnx", None, classes=6)
    assert told(free, code=1)["flops"] is None


@pytest.mark.parametrize(
    ("classes", "changes", "words", "shown"),
    [
        (3, {"normalize": "mean"}, "normalize: Input should be", False),
        (3, {"channels": 4}, "got 4 in the contract .* and 3 in", True),
        (5, {}, "gives 5 scores per pixel", True),
        (3, {"tile": [60, 60], "align": 32}, "tile must be a multiple of align", True),
        (3, {"tile": [64, 64, 64]}, "tile must have one number or 2", True),
    ],
)
def test_a_contract_that_is_broken_or_does_not_fit(classes, changes, words, shown, tmp_path):
    net = Network(3).conv(3, classes, 1)
    path = net.save(tmp_path / "m.onnx", contract(**changes), classes=classes)
    facts = told(path, code=1)
    assert facts["parameters"]["count"] == 4 * classes
    assert (facts["contract"] is not None) is shown
    ended = command(path)
    assert ended.exit_code == 1
    assert re.search(words, facts["error"])
    assert facts["error"] in ended.stderr


def test_a_contract_of_its_own_file_wins(tmp_path):
    path = pixelwise(tmp_path / "m.onnx", tile=[64, 64])
    sidecar(tmp_path / "m.toml", contract(tile=[96, 96]))
    assert told(path)["tiling"]["tile"] == [96, 96]
    other = sidecar(tmp_path / "c.toml", contract(tile=[128, 128]))
    assert told(path, "--contract", other)["tiling"]["tile"] == [128, 128]
    assert told(path, "--contract", other, "--tile", "32")["flops"]["shape"] == [1, 3, 32, 32]


@pytest.mark.shared_data
@pytest.mark.parametrize("path", sorted(SHARED_MODELS.rglob("*.onnx")), ids=lambda path: path.stem)
def test_real_models_without_contract(path):
    facts = told(path, code=1)
    sizes = [t.dims for t in onnx.load(path).graph.initializer]
    assert facts["parameters"]["count"] == sum(map(math.prod, sizes))
    assert "has no contract" in facts["error"]


# --- what is neither, and flags -------------------------------------------------------------------------------------------


def text(path: Path) -> Path:
    path.write_text("neither")
    return path


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("x.bin", text, "takes an ONNX model or a raster, and .*x.bin opens as neither: rasters are GTiff, VRT"),
        ("x.onnx", text, "x.onnx is not an ONNX file"),
        ("x.tif", text, "x.tif cannot be opened: .*not recognized"),
        ("x.tif", lambda path: path, "takes one file that exists, got .*x.tif"),
        ("x", lambda path: path.mkdir() or path, "takes one file that exists, got the folder .*x"),
    ],
)
def test_neither_a_model_nor_a_raster(name, make, words, tmp_path):
    ended = command(make(tmp_path / name), "--json")
    assert ended.exit_code == 2
    assert ended.stdout == ""
    assert re.match(f"error: .*{words}", ended.stderr)


def test_what_it_is_shows_whatever_the_suffix(tmp_path):
    (tmp_path / "m.bin").write_bytes(EXAMPLE.read_bytes())
    (tmp_path / "r.bin").write_bytes(SCENE.read_bytes())
    assert told(tmp_path / "m.bin")["kind"] == "model"
    assert told(tmp_path / "r.bin")["kind"] == "raster"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((SCENE, "--tile", "64"), "--tile counts where a model is given"),
        ((SCENE, "--contract", "c.toml"), "--contract counts where a model is given"),
        ((EXAMPLE, "--bands", "1"), "--bands counts where a raster is inspected"),
        ((EXAMPLE, "--model", "m.onnx"), "--model counts where a raster is inspected"),
        ((SCENE, "--bands", "0"), "bands are counted from 1"),
        ((SCENE, "--model", "m.onnx"), "the model must exist, got m.onnx"),
    ],
)
def test_flags_that_mean_nothing_are_refused(arguments, words):
    ended = command(*arguments)
    assert ended.exit_code == 2
    assert words in ended.stderr


# --- rasters --------------------------------------------------------------------------------------------------------------


def noise(bands: int = 3, rows: int = 60, cols: int = 70) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 255, (bands, rows, cols), dtype=np.uint8)


def test_a_raster_as_json(raster):
    path = raster("a.tif", noise(2), ["red", "nir"], nodata=0, compress="deflate", tiled=True, blockxsize=32, blockysize=16)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.5, 1.0), (0.0, -3.0)
    facts = told(path)
    assert list(facts) == [
        *("kind", "file", "driver", "files", "shape", "compression", "overviews", "crs", "crs_name", "transform"),
        *("control_points", "rpcs", "pixel_size", "bands", "subdatasets", "needs", "valid", "fit", "notes", "error"),
    ]
    assert (facts["kind"], facts["driver"], facts["compression"], facts["shape"]) == ("raster", "GTiff", "DEFLATE", [60, 70])
    assert (facts["crs"], facts["crs_name"]) == ("EPSG:32633", "WGS 84 / UTM zone 33N")
    assert facts["transform"] == [10, 0, 500_000, 0, -10, 5_400_000]
    assert facts["pixel_size"] == pytest.approx([10, 10], rel=1e-3)
    assert facts["bands"][1] == {
        **{"index": 2, "dtype": "uint8", "description": "nir", "color": "undefined", "nodata": 0},
        **{"mask": ["nodata"], "scale": 1, "offset": -3, "block": [16, 32]},
    }
    assert facts["needs"] == {"channels": 2, "names": ["red", "nir"], "spacing": [10, 10]}
    assert facts["valid"] == {"share": 1, "pixels": 60 * 70}


def test_pixel_size_is_on_the_ground(raster):
    """Web Mercator at 48.7 degrees of latitude: 10 m of its own are 6.6 on the ground."""
    place = rasterio.transform.from_origin(1_669_792, 6_240_000, 10, 10)
    facts = told(raster("a.tif", noise(), crs="EPSG:3857", transform=place))
    assert facts["pixel_size"] == pytest.approx([6.6, 6.6], rel=0.01)
    assert facts["needs"]["spacing"] == [6.58, 6.6]


def half(pixels: np.ndarray) -> np.ndarray:
    """The upper half 0."""
    pixels = pixels.copy()
    pixels[:, : pixels.shape[1] // 2] = 0
    return pixels


VALIDITY: dict[str, tuple[dict[str, Any], np.ndarray]] = {
    "nodata": ({"nodata": 0}, half(noise())),
    "mask": ({"mask": half(np.full((1, 60, 70), 255, np.uint8))[0]}, noise()),
    "alpha": ({"photometric": "rgb", "alpha": "yes"}, np.concatenate([noise(), half(noise(1))])),
    "NaN": ({}, np.where(half(noise()) == 0, np.nan, 1).astype(np.float32)),
}


@pytest.mark.parametrize("form", VALIDITY)
def test_valid_share_by_the_rules_of_a_run(form, raster):
    options, pixels = VALIDITY[form]
    facts = raster_facts(raster("a.tif", pixels, **options))
    assert facts.valid == inspect.Valid(0.5, 60 * 70)
    assert facts.needs.channels == 3
    assert facts.error is None


def test_a_large_raster_is_sampled(raster, monkeypatch):
    monkeypatch.setattr(inspect, "SAMPLES", 20)
    path = raster("a.tif", half(noise(1, 200, 300)), nodata=0)
    facts = raster_facts(path)
    assert facts.valid.pixels == 20 * 20
    assert facts.valid.share == pytest.approx(0.5, abs=0.05)
    assert re.search(r"valid pixels +about 50%, sampled: 400 of 60,000 pixels read", command(path).stdout)


def test_many_bands_share_lines(raster):
    pixels = np.ones((200, 4, 4), np.uint16)
    shown = command(raster("a.tif", pixels, [f"band {i}" for i in range(200)], nodata=0), COLUMNS="80").stdout
    assert re.search(r"2 to 200 +band 1, band 2, ..., band 199 +uint16", shown)
    assert len(shown.splitlines()) < 20


def test_a_raster_in_a_terminal(segpipe):
    ended = segpipe("inspect", SCENE, "--model", EXAMPLE, env={"COLUMNS": "80", "PATH": ""})
    assert (ended.returncode, ended.stderr) == (0, "")
    assert max(map(len, ended.stdout.splitlines())) <= 80
    for words in (
        "GTiff, DEFLATE, blocks of 256 x 256, no overviews",
        "CRS +EPSG:4326, WGS 84",
        "pixel size +10 x 10 m on the ground",
        "4 +B08 +uint16 +0 +nodata",
        r'channels = \["B02", "B03", "B04", "B08"\]',
        r"spacing = \[10.0, 10.0\]",
        "93.2%, all pixels read",
        r"B08 +band 4 \(B08\)",
        "10 x 10 m wanted, 10 x 10 m on the ground",
        r"windows +9 \(3 x 3\) of 256 x 256 px; 0 without a valid pixel",
    ):
        assert re.search(words, ended.stdout), words


def test_a_raster_under_a_model(raster, tmp_path):
    """Names beat order; the upper rows of windows have no valid pixel: 64 px tiles that start at 0, 48, ... of 200."""
    pixels = noise(3, 200, 70)
    pixels[:, :120] = 0
    path = raster("a.tif", pixels, ["nir", "green", "red"], nodata=0)
    model = pixelwise(tmp_path / "m.onnx", channels=2, classes=3)
    sidecar(tmp_path / "m.toml", contract(["Green", "NIR"], 3, spacing=[10.0, 10.0]))
    fit = told(path, "--model", model)["fit"]
    assert fit["bands"] == [{"channel": "Green", "band": 2}, {"channel": "NIR", "band": 1}]
    cover = inspect.Cover((200, 70), inspect.read_spec(settings(model)).tiling)
    empty = sum(cover.window(index).stop[0] <= 120 for index in cover)
    assert (fit["windows"], fit["empty_windows"]) == (len(cover), empty)
    assert fit["grid"] == list(cover.counts)
    assert fit["spacing"] == [10, 10]
    assert 200 < fit["memory_mb"] < 2000


@pytest.mark.parametrize(
    ("changes", "flags", "words", "fits"),
    [
        ({"spacing": [5.0, 5.0]}, (), "pixels must be 5 x 5 m within 10%", True),
        ({}, ("--bands", "1"), "--bands must name 3 of the file's bands", False),
        ({"channels": ["a", "b", "c"]}, (), r"got 3 bands \(x, y, z\) for a, b, c", False),
    ],
)
def test_a_raster_that_does_not_fit_has_the_error_of_a_run(changes, flags, words, fits, raster, tmp_path):
    path = raster("in/a.tif", noise(), ["x", "y", "z"])
    model = Network(3).conv(3, 3, 1).save(tmp_path / "m.onnx", contract(**changes), classes=3)
    facts = told(path, "--model", model, *flags, code=1)
    assert re.search(words, facts["error"])
    assert (facts["fit"] is not None) is fits
    dry = ["run", "-i", str(path), "-m", str(model), "-o", str(tmp_path / "out"), "--dry-run", *flags]
    assert f"problem  a: {facts['error']}" in CliRunner().invoke(main, dry).stdout


def test_a_raster_under_a_model_without_contract(raster, tmp_path):
    model = Network(3).conv(3, 3, 1).save(tmp_path / "m.onnx", None, classes=3)
    facts = told(raster("a.tif", noise()), "--model", model, code=1)
    assert (facts["fit"], facts["needs"]["channels"]) == (None, 3)
    assert "has no contract" in facts["error"]


def test_bands_say_which_pixels_are_looked_at(raster):
    pixels = np.concatenate([noise(1), half(noise(1))])
    path = raster("a.tif", pixels, nodata=0)
    assert told(path, "--bands", "1")["valid"]["share"] == 1
    assert told(path, "--bands", "1,2")["valid"]["share"] == 0.5


REFUSED = {
    "evil/flower-palette-16.tif": "holds palette indices",
    "evil/multipage.tiff": "a file must hold one image, got 3",
    "evil/tiff_overflow_rows_per_strip.tif": "is damaged",
}


@pytest.mark.shared_data
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_run_refuses_is_described_and_refused(name, shared, tmp_path):
    path = shared / name
    facts = told(path, code=1)
    assert REFUSED[name] in facts["error"]
    with rasterio.open(path) as dataset:
        assert facts["shape"] == list(dataset.shape)
    model = pixelwise(tmp_path / "m.onnx", channels=facts["needs"]["channels"])
    assert told(path, "--model", model, code=1)["error"] == facts["error"]


@pytest.mark.shared_data
def test_pixels_that_cannot_be_read(shared, tmp_path):
    whole: Callable[[], bytes] = (shared / "geotiff/rgb1.tif").read_bytes
    (tmp_path / "a.tif").write_bytes(whole()[:200_000])
    facts = told(tmp_path / "a.tif", code=1)
    assert facts["valid"] is None
    assert re.match(rf"{re.escape(str(tmp_path))}/a.tif cannot be read", facts["error"])


@pytest.mark.shared_data
def test_real_rasters_are_as_rasterio_and_a_full_read_say(shared):
    """Valid share by the whole mask of GDAL, where no rule of segpipe differs from it."""
    for name in ("RGB.byte.tif", "cog_rgb_mask.tif", "all-nodata.tif", "goes.tif"):
        facts = raster_facts(shared / "geotiff" / name)
        with rasterio.open(shared / "geotiff" / name) as dataset:
            masks = dataset.read_masks()[: facts.needs.channels]
            assert facts.shape == list(dataset.shape)
            assert [band.dtype for band in facts.bands] == list(dataset.dtypes)
        assert facts.valid.share == pytest.approx((masks != 0).all(axis=0).mean(), abs=1e-9)
        assert facts.error is None

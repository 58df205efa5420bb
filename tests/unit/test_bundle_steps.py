"""Sequences of steps against their composition in NumPy: what the contract computes, then what the graph does."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import Network, contract
from onnx import helper

from segpipe.contract import parse_contract
from segpipe.export.bundles.monai_config import Config, Expression
from segpipe.export.bundles.package import opened
from segpipe.export.bundles.steps import Affine, CaseNormalization, Clip, Fixed, Pointwise, Step, refused, scaled
from segpipe.export.bundles.surround import surrounded, transposed
from segpipe.geometry.layout import Layout
from segpipe.network.scaling import case_scaling, fixed_scaling

numbers = st.sampled_from([-3.0, -0.5, 0.25, 1.0, 2.0])
channels = 2


def per_channel(values):
    return st.lists(values, min_size=1, max_size=channels).filter(lambda v: len(v) in (1, channels)).map(tuple)


affine = st.builds(Affine, per_channel(numbers), per_channel(st.sampled_from([-10.0, 0.0, 1.0, 40.0])))
fixed = st.builds(Fixed, per_channel(st.sampled_from([-2.0, 0.0, 30.0])), per_channel(st.sampled_from([0.5, 4.0])))
clip = st.tuples(st.sampled_from([-50.0, -1.0, 0.0]), st.sampled_from([1.0, 20.0, 200.0])).map(lambda ends: Clip(*ends))
statistics = st.builds(
    CaseNormalization, st.sampled_from(["zscore", "minmax"]), st.sampled_from([0.0, 0.1]), together=st.booleans()
)


def column(values):
    return np.array(values, np.float64)[:, None]


def applied(step, x):
    if isinstance(step, Affine):
        return x * column(step.gain) + column(step.bias)
    if isinstance(step, Fixed):
        return (x - column(step.mean)) / column(step.std)
    if isinstance(step, Clip):
        return np.clip(x, step.low, step.high)
    axis = None if step.together else 1
    if step.kind == "zscore":
        center, spread = x.mean(axis, keepdims=True), x.std(axis, keepdims=True)
    else:
        center, spread = x.min(axis, keepdims=True), np.ptp(x, axis, keepdims=True)
    return (x - center) / np.where(spread > 0, spread + step.epsilon, np.inf)


@given(st.lists(affine | fixed | clip, max_size=5), st.none() | statistics, st.lists(affine | clip, max_size=3))
def test_any_sequence_is_what_contract_and_graph_compute(before, middle, after):
    every = [*before, *([middle] if middle else []), *after]
    pixels = np.random.default_rng(0).normal(20, 30, (channels, 500)).astype(np.float32)
    expected = pixels.astype(np.float64)
    for step in every:
        expected = applied(step, expected)
    found = scaled(Path("p"), [Step("s", step) for step in every], channels)
    assert not (found.inside and middle is None)
    keys = {"scale": None, "offset": None, **found.keys}
    if isinstance(keys.get("clip"), list) and not (np.diff(np.atleast_2d(keys["clip"])) > 0).all():
        return  # all pixels are one number, which no contract expresses
    own = parse_contract(contract(channels, 3, **keys), "a test")
    scaling = fixed_scaling(own, None)
    if own.is_measured:
        scaling = case_scaling(own, scaling, lambda inner: iter([inner(pixels, None)]))
    x = scaling(pixels, None).astype(np.float64)
    for step in found.inside:
        x = applied(step, x)
    np.testing.assert_allclose(x, expected, rtol=2e-4, atol=2e-4 * max(1, np.abs(expected).max()))


def test_a_fixed_normalisation_at_the_end_keeps_its_numbers():
    steps = [Step("a", Affine((1 / 255,))), Step("b", Fixed((0.4, 0.5), (0.2,)))]
    keys = scaled(Path("p"), steps, channels).keys
    assert keys == {"scale": 1 / 255, "normalize": "fixed", "mean": [0.4, 0.5], "std": 0.2}


OPERATIONS = [Affine((2.0, -1.0), (0.5,)), Clip(-1, 0.5), Pointwise("sigmoid"), Clip(high=0.6), Pointwise("softmax")]
SHAPES = {Layout.NCHW: (2, 2, 5, 4), Layout.NHWC: (2, 5, 4, 2), Layout.NCDHW: (1, 2, 3, 5, 4), Layout.NDHWC: (1, 3, 5, 4, 2)}


def identity(layout):
    """A model that gives its image."""
    sizes = ["n", *[2 if letter == "C" else letter for letter in layout[1:]]]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes) for name in ("image", "scores")]
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["scores"])], "g", values[:1], values[1:])
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def run(proto, image):
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})[0]


@pytest.mark.parametrize("layout", Layout)
def test_operations_around_a_network(layout):
    image = np.random.default_rng(0).normal(size=SHAPES[layout]).astype(np.float32)
    axis = layout.channel_axis
    gain = np.array([2.0, -1.0]).reshape([2 if k == axis else 1 for k in range(image.ndim)])
    x = 1 / (1 + np.exp(-np.clip(image * gain + 0.5, -1, 0.5)))
    x = np.exp(np.minimum(x, 0.6))
    expected = x / x.sum(axis, keepdims=True)
    tensors = ("image", "scores")
    for before, after in ((OPERATIONS, ()), ((), OPERATIONS), (OPERATIONS[:2], OPERATIONS[2:])):
        found = run(surrounded(identity(layout), layout, tensors, before, after), image)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_masks_inside_a_graph():
    image = np.random.default_rng(0).normal(size=(1, 2, 5, 4)).astype(np.float32)
    found = run(
        surrounded(identity(Layout.NCHW), Layout.NCHW, ("image", "scores"), [Pointwise("binarize", (0.1, -0.5))]), image
    )
    np.testing.assert_array_equal(found, image > np.array([0.1, -0.5])[:, None, None])


@pytest.mark.parametrize("layout", Layout)
def test_reversed_axes(layout):
    """The network gets columns before rows, and its scores come back in the order of the image."""
    net = Network(2, ndim=layout.ndim)
    image = np.random.default_rng(0).normal(size=SHAPES[layout]).astype(np.float32)
    model = transposed(identity(layout), layout, ("image", "scores"))
    np.testing.assert_array_equal(run(model, image), image)
    inner = [node for node in model.graph.node if node.op_type == "Transpose"]
    space = [k for k, letter in enumerate(layout) if letter not in "NC"]
    assert [list(node.attribute[0].ints)[k] for node in inner for k in space] == [*space[::-1], *space[::-1]]
    assert net.ndim == len(space)


def test_values_of_a_configuration():
    values = {"a": [1, {"b": 2.5}], "c": "@a#1#b", "d": "$@c * 2 - 1", "e": "$[@a::0, -3]", "f": "$open('x')", "g": "$None"}
    config = Config(Path("p"), values)
    assert [config.get(key) for key in "cdeg"] == [2.5, 4.0, [1, -3], None]
    assert config.get("f") == Expression("open('x')")
    assert config.get("absent") is None


def test_the_refusal_has_ways_out():
    text = str(refused(Path("p"), "warp", "bends space"))
    assert text.startswith("p: the step warp bends space: --without warp leaves it out")
    assert "segpipe export attach MODEL.onnx --contract c.toml" in text


def test_names_that_leave_the_package(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "rdf.yaml").write_text("a: 1")
    (tmp_path / "secret").write_text("x")
    with opened(tmp_path / "p", ("rdf.yaml",), "a model") as (package, name):
        assert package.document(name) == {"a": 1}
        assert [package.has(n) for n in ("../secret", str(tmp_path / "secret"), "", "https://x.org/a", "rdf.yaml")] == [
            *[False] * 4,
            True,
        ]

"""Graphs within graphs, inputs that are no weights, and the names of types."""

import onnx
import pytest
from onnx import TensorProto, helper

from segpipe.inspect.graphs import free_inputs, graphs, type_name


def value(name, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, [1])


def branch(name, *nodes):
    return helper.make_graph([*nodes, helper.make_node("Identity", ["x"], [name])], name, [], [value(name)])


@pytest.fixture
def proto():
    """A condition in a condition, and one in a function."""
    inner = helper.make_node("If", ["c"], ["y"], then_branch=branch("c1"), else_branch=branch("c2"))
    outer = helper.make_node("If", ["c"], ["z"], then_branch=branch("b1", inner), else_branch=branch("b2"))
    weight = helper.make_tensor("x", TensorProto.FLOAT, [1], [1.0])
    graph = helper.make_graph([outer], "top", [value("c", TensorProto.BOOL), value("x")], [value("z")], [weight])
    within = helper.make_node("If", ["c"], ["f"], then_branch=branch("f1"), else_branch=branch("f2"))
    function = helper.make_function("own", "work", ["c"], ["f"], [within], [helper.make_opsetid("", 20)])
    return helper.make_model(graph, functions=[function])


def test_each_graph_comes_once(proto):
    names = [graph.name for graph in graphs(proto)]
    assert sorted(names) == ["b1", "b2", "c1", "c2", "f1", "f2", "top", "work"]
    assert (names[0], names.index("b1") < names.index("c1"), names.index("work") > names.index("b2")) == ("top", True, True)


def test_weights_are_no_inputs(proto):
    assert [one.name for one in free_inputs(proto)] == ["c"]
    assert free_inputs(onnx.ModelProto()) == []


@pytest.mark.parametrize("kind", ["float32", "float64", "float16", "uint8", "int64", "bool"])
def test_types_have_numpy_s_names(kind):
    import numpy as np

    assert type_name(helper.np_dtype_to_tensor_dtype(np.dtype(kind))) == kind

"""All files that hold weights are the model, wherever in the graph the weights are."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from networks import contract
from onnx import TensorProto, helper, numpy_helper

from segpipe.errors import ModelError
from segpipe.network.read import check_unchanged, read_spec
from segpipe.settings import load_settings

FLOATS = TensorProto.FLOAT


def outside(folder, name, value):
    """A tensor in a file of its own."""
    array = np.full(3, value, np.float32)
    (folder / name).write_bytes(array.tobytes())
    tensor = TensorProto(name="w", data_type=FLOATS, dims=array.shape, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=name)
    return tensor


def added(name, weights):
    """Nodes that add three weights to the three channels."""
    axes = numpy_helper.from_array(np.array([1, 2], np.int64), "axes")
    return [
        helper.make_node("Constant", [], ["axes"], value=axes),
        helper.make_node("Unsqueeze", ["w", "axes"], ["weights"]),
        helper.make_node("Add", ["image", "weights"], [name]),
    ], weights


def branch(tensor, how):
    """A graph that adds the tensor: as its initializer, or as an attribute of a node."""
    nodes, _ = added("sum", tensor)
    weights = [tensor] if how == "initializer" else []
    first = [] if weights else [helper.make_node("Constant", [], ["w"], value=tensor)]
    return helper.make_graph([*first, *nodes], "branch", [], [helper.make_tensor_value_info("sum", FLOATS, None)], weights)


def chosen(tensor, how):
    """Nodes of an If whose branches both add the tensor."""
    true = helper.make_node("Constant", [], ["true"], value=numpy_helper.from_array(np.array(True), "t"))
    inner = branch(tensor, how)
    return [true, helper.make_node("If", ["true"], ["scores"], then_branch=inner, else_branch=inner)]


def in_branch(tensor):
    return chosen(tensor, "initializer"), [], []


def in_attribute_of_a_branch(tensor):
    return chosen(tensor, "attribute"), [], []


def in_branch_of_a_branch(tensor):
    deep = helper.make_graph(
        [*chosen(tensor, "initializer")], "deep", [], [helper.make_tensor_value_info("scores", FLOATS, None)]
    )
    true = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True), "t"))
    both = {"then_branch": deep, "else_branch": deep}
    outer = helper.make_node("If", ["yes"], ["outside"], **both)
    return [true, outer, helper.make_node("Identity", ["outside"], ["scores"])], [], []


def in_attribute(tensor):
    nodes, _ = added("scores", tensor)
    return [helper.make_node("Constant", [], ["w"], value=tensor), *nodes], [], []


def in_function(tensor):
    nodes, _ = added("y", tensor)
    body = [
        helper.make_node("Constant", [], ["w"], value=tensor),
        *nodes[:2],
        helper.make_node("Add", ["x", "weights"], ["y"]),
    ]
    function = helper.make_function("own", "Shift", ["x"], ["y"], body, [helper.make_opsetid("", 20)])
    return [helper.make_node("Shift", ["image"], ["scores"], domain="own")], [function], []


def in_sparse(tensor):
    nodes, _ = added("scores", tensor)
    indices = numpy_helper.from_array(np.arange(3, dtype=np.int64), "")
    return nodes, [], [helper.make_sparse_tensor(tensor, indices, [3])]


WHERE = [in_branch, in_attribute_of_a_branch, in_branch_of_a_branch, in_attribute, in_function, in_sparse]


def save(folder, where):
    nodes, functions, sparse = where(outside(folder, "w.bin", 1.0))
    image = helper.make_tensor_value_info("image", FLOATS, ["n", 3, "h", "w"])
    scores = helper.make_tensor_value_info("scores", FLOATS, ["n", 3, "h", "w"])
    graph = helper.make_graph(nodes, "network", [image], [scores], sparse_initializer=sparse)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, ir_version=10, opset_imports=opsets, functions=functions)
    helper.set_model_props(model, {"segpipe": json.dumps(contract(3, 3))})
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def spec(path):
    return read_spec(load_settings(None, {"input": ("x",), "model": path, "device": "cpu"}))


@pytest.mark.parametrize("where", WHERE)
def test_weights_that_are_replaced_are_another_model(where, tmp_path):
    path = save(tmp_path, where)
    before = spec(path)
    assert before.files == (path, tmp_path / "w.bin")
    outside(tmp_path, "w.bin", 2.0)
    assert spec(path).sha256 != before.sha256
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelError, match="needs its external data"):
        spec(path)


def test_a_file_that_is_cut_off_is_named(tmp_path):
    path = save(tmp_path, in_branch)
    proto = onnx.load(path, load_external_data=False)
    for branch in proto.graph.node[1].attribute:
        branch.g.initializer[0].external_data.add(key="length", value="12")
    path.write_bytes(proto.SerializeToString())
    assert spec(path).files == (path, tmp_path / "w.bin")
    (tmp_path / "w.bin").write_bytes(b"\0" * 8)
    with pytest.raises(ModelError, match=r"m.onnx needs its external data .*w.bin of at least 12 bytes, got 8: .*copy both"):
        spec(path)


def test_a_file_that_changes_during_a_run_is_named(tmp_path):
    before = spec(save(tmp_path, in_branch))
    check_unchanged(before)
    outside(tmp_path, "w.bin", 2.0)
    with pytest.raises(ModelError, match=r"m.onnx or .*w.bin has changed since this run began"):
        check_unchanged(before)


@pytest.mark.parametrize("where", [in_branch, in_branch_of_a_branch, in_attribute_of_a_branch])
def test_onnx_runtime_takes_the_weights_from_there(where, tmp_path):
    """The oracle: what the file says shows in the scores."""
    path, image = save(tmp_path, where), np.zeros((1, 3, 2, 2), np.float32)
    for value in (1.0, 2.0):
        outside(tmp_path, "w.bin", value)
        (scores,) = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"image": image})
        assert (scores == value).all()


def test_all_tensors_are_found_that_onnx_itself_finds(tmp_path):
    for where in WHERE:
        proto = onnx.load(str(save(tmp_path, where)), load_external_data=False)
        ours = {bytes(tensor.SerializeToString()) for tensor in _all(proto)}
        theirs = {bytes(tensor.SerializeToString()) for tensor in onnx.external_data_helper._get_all_tensors(proto)}
        assert theirs <= ours


def _all(proto):
    from segpipe.network.model_file import tensors

    return list(tensors(proto))

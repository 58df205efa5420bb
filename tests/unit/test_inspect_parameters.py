"""Parameters, counted by hand and through every way to store them."""

import re

import numpy as np
import onnx
from inspecting import model_facts
from networks import Network, local, pixelwise
from onnx import helper

from segpipe.inspect.parameters import count_parameters


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

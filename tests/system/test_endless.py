"""Models that never end, or whose weights do not: refused, and a signal is answered meanwhile."""

import os
import signal

import numpy as np
import onnx
import pytest
from networks import Network, contract, pixelwise
from onnx import TensorProto, helper
from scenes import SEGPIPE, begin_and_stop

from segpipe.errors import ModelError
from segpipe.network.read import read_spec
from segpipe.pipeline.model_check import try_out
from segpipe.settings import load_settings


def endless(path):
    """A loop that never ends."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still"]), helper.make_node("Neg", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    net = Network(3)
    count, true = net.constant(np.array(2**62)), net.constant(np.array(True))
    net.nodes.append(helper.make_node("Loop", [count, true, "image"], ["turned"], body=body))
    net.last = "turned"
    return net.conv(3, 3, 1).save(path, contract(), classes=3)


def test_a_model_that_does_not_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("segpipe.pipeline.model_check.TRIAL_SECONDS", 0.5)
    settings = load_settings(None, {"input": ("-",), "model": endless(tmp_path / "m.onnx"), "device": "cpu"})
    with pytest.raises(ModelError, match=r"must score a batch of 1 tiles of 64 x 64 within 0\.5 s, and does not"):
        try_out(read_spec(settings))


def test_a_trial_that_does_not_end_answers_signals(raster, tmp_path):
    raster("in/a.tif", np.ones((3, 40, 40), np.uint8))
    endless(tmp_path / "m.onnx")
    command, log = [*SEGPIPE, "run", "-i", "in", "-m", "m.onnx"], tmp_path / "log"
    process = begin_and_stop(tmp_path, command, log, "pipeline.model_check:_in_time")
    try:
        process.send_signal(signal.SIGCONT)
        assert process.poll(1) is None
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 75
        assert log.read_text() == "interrupted: run the same command again to go on\n"
    finally:
        process.end_all()


@pytest.mark.parametrize(("location", "said"), [("pipe", "must be regular files"), ("../w.bin", "must lie in its folder")])
def test_weights_elsewhere_than_in_files_beside_the_model_are_refused(location, said, tmp_path):
    (tmp_path / "m").mkdir()
    model = pixelwise(tmp_path / "m" / "m.onnx")
    os.mkfifo(tmp_path / "m" / "pipe")
    proto = onnx.load(str(model))
    onnx.external_data_helper.set_external_data(proto.graph.initializer[0], location)
    proto.graph.initializer[0].ClearField("raw_data")
    model.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=said):
        read_spec(load_settings(None, {"input": ("-",), "model": model, "device": "cpu"}))

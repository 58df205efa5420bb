"""Models that never end, or whose weights do not: refused, and a signal is answered meanwhile."""

import os
import signal
import subprocess
import sys

import numpy as np
import onnx
import pytest
from networks import Network, contract, pixelwise
from onnx import TensorProto, helper
from scenes import PATIENCE, SEGPIPE, begin_and_stop
from test_privacy import CONTRACT

from segpipe.errors import ModelError
from segpipe.inspect.model import inspect_model
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
    with pytest.raises(ModelError, match=r"must score a batch of 1 tile of 64 x 64 within 0\.5 s, and does not"):
        try_out(read_spec(settings))


def test_a_model_that_does_not_end_is_not_run_again_to_count_its_operations(tmp_path, monkeypatch):
    monkeypatch.setattr("segpipe.pipeline.model_check.TRIAL_SECONDS", 0.5)
    settings = load_settings(None, {"input": ("-",), "model": endless(tmp_path / "m.onnx"), "device": "cpu"})
    facts = inspect_model(settings)
    assert "a graph with an endless loop never ends" in facts.error
    assert facts.flops is None


DEAF = """
from segpipe.network.session import RuntimeSession
from segpipe.pipeline import model_check
from segpipe.__main__ import start

RuntimeSession.stop = lambda session: None  # as a long step of a network, which ends only between two of them
model_check.TRIAL_SECONDS, model_check.PATIENCE = 0.3, 0.2
start()
"""


def test_a_process_ends_as_it_should_while_a_call_of_onnx_runtime_goes_on(tmp_path):
    """The call comes back while Python ends, to an interpreter that is not there: the process would abort."""
    endless(tmp_path / "m.onnx")
    (tmp_path / "c.toml").write_text(CONTRACT)
    words = [sys.executable, "-c", DEAF, "export", "attach", "m.onnx", "--contract", "c.toml", "-o", "out.onnx"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: out.onnx must score a batch of 1 tile of 64 x 64 within 0.3 s, and does not")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.toml", "m.onnx"]


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

"""Errors of engines, whose classes share no base."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from networks import pixelwise

from segpipe.errors import DeviceError, DeviceMemoryError, ModelError
from segpipe.network.device import engine_errors, failed_batch, open_session


def test_an_error_of_the_engine_names_the_model_and_the_batch_and_keeps_its_cause(tmp_path: Path) -> None:
    model = pixelwise(tmp_path / "m.onnx", tile=[16, 16])
    session, batch = open_session(str(model), arena="own"), np.zeros((1, 7, 16, 16), np.float32)
    name = session.get_inputs()[0].name
    said = pytest.raises(ModelError, match=r"m\.onnx failed on a batch of shape \(1, 7, 16, 16\): ")
    with said as raised, engine_errors(ModelError, lambda: failed_batch(model, [batch])):
        session.run(None, {name: batch})
    assert type(raised.value.__cause__).__module__.startswith(onnxruntime.__name__)


def test_a_file_that_the_engine_cannot_load_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match="ONNX Runtime cannot load the model on cpu: "):
        open_session(str(tmp_path / "m.onnx"), arena="own")


def test_an_error_of_segpipe_passes() -> None:
    with pytest.raises(DeviceMemoryError, match=r"^lower --batch$"), engine_errors(DeviceError, lambda: "unused"):
        raise DeviceMemoryError("lower --batch")

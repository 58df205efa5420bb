"""Models newer than the installed ONNX Runtime: converted down with the same labels, or refused with what to install."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import rasterio
from model_forms import Form, make
from networks import contract
from onnx import numpy_helper

from segpipe.errors import ModelError
from segpipe.network import conversion
from segpipe.network.conversion import takes

OPSET, IR = onnx.defs.onnx_opset_version(), onnx.IR_VERSION

too_new = pytest.mark.skipif(takes(IR, OPSET), reason="this ONNX Runtime takes whatever this onnx knows")


@pytest.fixture
def source(raster):
    return raster("in/a.tif", np.random.default_rng(5).integers(0, 256, (3, 70, 90), dtype=np.uint8))


def stamped(path, opset, ir, form=Form()):  # noqa: B008 - a form is frozen
    """A model with its contract inside, and other versions on it."""
    proto = onnx.load(make(path, form))
    raw = {"scale": 1.0, "scaling": "graph"} if form.dtype == onnx.TensorProto.UINT8 else {}
    onnx.helper.set_model_props(proto, {"segpipe": json.dumps(contract(3, 4, **raw))})
    for entry in proto.opset_import:
        entry.version = opset
    proto.ir_version = ir
    onnx.save(proto, path)
    return path


def mask(out):
    with rasterio.open(out / "a.tif") as dataset:
        return dataset.read(1)


def test_the_versions_of_today_are_taken_as_they_are():
    assert takes(10, 20)
    assert not takes(10, 2000)
    assert not takes(200, 20)


@too_new
@pytest.mark.parametrize("device", ["cpu", "cpu-tensors"])
def test_new_numbers_on_old_operators_change_nothing(device, source, tmp_path, run_serial):
    old = run_serial(source, stamped(tmp_path / "old.onnx", 20, 10), output=tmp_path / "o", device=device)
    new = run_serial(source, stamped(tmp_path / "new.onnx", OPSET, IR), output=tmp_path / "n", device=device)
    np.testing.assert_array_equal(mask(old), mask(new))


@too_new
def test_operators_with_a_new_definition_are_converted_and_compared(source, tmp_path, run_serial, monkeypatch):
    form = Form(dtype=onnx.TensorProto.UINT8)  # Cast has a new definition in opset 28
    old = run_serial(source, stamped(tmp_path / "old.onnx", 20, 10, form), output=tmp_path / "o")
    model = stamped(tmp_path / "new.onnx", OPSET, IR, form)
    assert conversion.older_form(onnx.load(model), model).changed == ("Cast",)
    new = run_serial(source, model, output=tmp_path / "n")
    np.testing.assert_array_equal(mask(old), mask(new))

    def wrong(proto, opset):
        del opset
        weight = next(t for t in proto.graph.initializer if len(t.dims) == 4)
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.1), weight.name))
        return proto

    monkeypatch.setattr(conversion.version_converter, "convert_version", wrong)
    conversion._converted.cache_clear()
    with pytest.raises(ModelError, match=r"its conversion gives other scores: install an onnxruntime newer than"):
        run_serial(source, model, output=tmp_path / "w")
    conversion._converted.cache_clear()


@too_new
def test_what_cannot_be_converted_names_the_version_to_install(source, tmp_path, run_serial, monkeypatch):
    def refuse(proto, opset):
        raise RuntimeError("no adapter")

    monkeypatch.setattr(conversion.version_converter, "convert_version", refuse)
    model = stamped(tmp_path / "new.onnx", OPSET, IR, Form(dtype=onnx.TensorProto.UINT8))
    said = rf"onnx cannot convert Cast \(no adapter\): install an onnxruntime newer than {onnxruntime.__version__}, one"
    with pytest.raises(ModelError, match=said):
        run_serial(source, model)


def test_an_opset_that_onnx_does_not_know_is_refused_with_what_to_install(source, tmp_path, run_serial):
    with pytest.raises(ModelError, match=r"has opset 2000 .*: install an onnxruntime newer than .*with opset"):
        run_serial(source, stamped(tmp_path / "new.onnx", 2000, 10))


@too_new
def test_external_data_is_found(source, tmp_path, run_serial):
    old = run_serial(source, stamped(tmp_path / "old.onnx", 20, 10), output=tmp_path / "o")
    model = stamped(tmp_path / "new.onnx", OPSET, IR)
    proto = onnx.load(model)
    onnx.save(proto, model, save_as_external_data=True, location="new.data", size_threshold=0)
    assert (tmp_path / "new.data").exists()
    np.testing.assert_array_equal(mask(old), mask(run_serial(source, model, output=tmp_path / "n")))

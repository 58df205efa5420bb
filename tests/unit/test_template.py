"""The lines to write for a model that says nothing of itself, filled in by their comments alone, against ONNX Runtime.

What the file says of its output is segpipe.network.output_facts.
"""

import re
import tomllib

import nibabel
import numpy as np
import onnx
import onnxruntime
import pytest
import rasterio
import volumes
from model_forms import Form, make
from networks import Network
from onnx import TensorProto, helper

from segpipe.errors import ContractError
from segpipe.network.read import read_spec
from segpipe.settings import load_settings

SHAPE = (64, 64)


@pytest.fixture
def pixels():
    return np.random.default_rng(5).integers(1, 256, (3, *SHAPE), dtype=np.uint8)


def reshaped(path, image, scores):
    """Shapes of input and output as a file may tell them."""
    proto = onnx.load(path)
    for value, sizes in ((proto.graph.input[0], image), (proto.graph.output[0], scores)):
        del value.type.tensor_type.shape.dim[:]
        for size in sizes:
            dim = value.type.tensor_type.shape.dim.add()
            if isinstance(size, str):
                dim.dim_param = size
            else:
                dim.dim_value = size
    onnx.save(proto, path)
    return path


def bare(path, *, last=False, last_out=None, count=4, end=(), free=False, dtype=TensorProto.FLOAT):
    """A model of one convolution without metadata, channels first or last, on both ends unless ``last_out`` differs."""
    last_out = last if last_out is None else last_out
    net = Network(3)
    if dtype != TensorProto.FLOAT:
        net.add("Cast", to=TensorProto.FLOAT).add("Mul", np.array(1 / 255, np.float32))
    if last:
        net.add("Transpose", perm=[0, 3, 1, 2])
    net.conv(3, count, 3)
    for op, attributes in end:
        net.add(op, **attributes)
    flat = dict(end).get("ArgMax", {}).get("keepdims", 1) == 0
    if last_out and not flat:
        net.add("Transpose", perm=[0, 2, 3, 1])
    model = net.save(path, None, classes=count, dtype=dtype)
    size, given = ("h", "w") if free else SHAPE, 1 if "ArgMax" in dict(end) else count
    image = ("n", *size, 3) if last else ("n", 3, *size)
    made = ("n", *size) if flat else ("n", *size, given) if last_out else ("n", given, *size)
    if "ArgMax" in dict(end):
        labelled(model)
    return reshaped(model, image, made)


def labelled(model):
    """Declare the output's type, which ``save`` takes for floats."""
    proto = onnx.load(model)
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    onnx.save(proto, model)


def said(model):
    with pytest.raises(ContractError, match="has no contract that says how its pixels are scaled") as told:
        read_spec(load_settings(None, {"input": ("-",), "model": model, "device": "cpu"}))
    return str(told.value).split("\n\n", 1)[1]


def truth(model, pixels, options):
    """Labels of ONNX Runtime on pixels of 0 to 1."""
    last, end = options.get("last", False), dict(options.get("end", ()))
    last_out = options.get("last_out", last)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    image = session.get_inputs()[0]
    given = pixels[None] if image.type == "tensor(uint8)" else (pixels[None] / 255).astype(np.float32)
    (scores,) = session.run(None, {image.name: np.moveaxis(given, 1, -1) if last else given})
    if scores.ndim == 3:
        return scores[0]
    scores = np.moveaxis(scores, -1, 1)[0] if last_out else scores[0]
    if "ArgMax" in end:
        return scores[0]
    return scores.argmax(axis=0) if len(scores) > 1 else scores[0] > (0.5 if end else 0)


SIGMOID, SOFTMAX, ARGMAX = ("Sigmoid", {}), ("Softmax", {"axis": 1}), ("ArgMax", {"axis": 1})
FLAT = ("ArgMax", {"axis": 1, "keepdims": 0})
FORMS = {
    "channels first": {},
    "channels last": {"last": True},
    "channels last, any size": {"last": True, "free": True},
    "any size": {"free": True},
    "softmax inside": {"end": [SOFTMAX]},
    "softmax inside, channels last": {"end": [SOFTMAX], "last": True},
    "log-softmax inside": {"end": [("LogSoftmax", {"axis": 1})]},
    "one score": {"count": 1},
    "sigmoid inside": {"count": 1, "end": [SIGMOID]},
    "sigmoid inside, channels last": {"count": 1, "end": [SIGMOID], "last": True},
    "integers": {"dtype": TensorProto.UINT8},
    "many classes": {"count": 30},
    "channels last in, first out": {"last": True, "last_out": False},
    "channels first in, last out": {"last_out": True},
    "channels last in, first out, any size": {"last": True, "last_out": False, "free": True},
    "argmax inside": {"end": [ARGMAX]},
    "argmax inside, any size": {"end": [ARGMAX], "free": True},
    "argmax inside, channels last": {"end": [ARGMAX], "last": True},
    "argmax inside, without a channel axis": {"end": [FLAT]},
    "argmax inside, without a channel axis, channels last": {"end": [FLAT], "last": True},
}


@pytest.mark.parametrize("form", FORMS)
def test_filled_in_by_its_comments_it_gives_the_right_mask(form, raster, run_serial, pixels, tmp_path):
    model, options = bare(tmp_path / "m.onnx", **FORMS[form]), FORMS[form]
    text = said(model)
    # trained on pixels of 0 to 1, on tiles of 64, with a stride of 1
    text = re.sub(r'normalize = "fixed"', 'normalize = "none"', text)
    text = re.sub(r"(?m)^(mean|std) = .*\n", "", text)
    text = re.sub(r"(?m)^tile = .*\noverlap = .*\nalign = \d+", "tile = [64, 64]\noverlap = [16, 16]\nalign = 1", text)
    (tmp_path / "c.toml").write_text(text)
    out = run_serial(raster("in/a.tif", pixels), model, contract=tmp_path / "c.toml")
    with rasterio.open(out / "a.tif") as mask:
        found = mask.read(1)
    np.testing.assert_array_equal(found, truth(model, pixels, options))
    assert len(np.unique(found)) > 1


@pytest.mark.parametrize("form", FORMS)
def test_the_lines_say_what_the_file_tells(form, tmp_path):
    options = FORMS[form]
    values = tomllib.loads(said(bare(tmp_path / "m.onnx", **options)))
    last, count = options.get("last", False), options.get("count", 4)
    assert (values["channels"], values.get("layout", "NCHW")) == (3, "NHWC" if last else "NCHW")
    assert values["tile"] == ([512, 512] if options.get("free") else [64, 64])
    assert [c["id"] for c in values["classes"]] == list(range(max(count, 2)))
    assert values["task"] == ("binary" if count == 1 else "multiclass")
    inside = any(op in ("Sigmoid", "Softmax") for op, _ in options.get("end", ()))
    labels = "ArgMax" in dict(options.get("end", ()))
    assert values["activation"] == ("labels" if labels else "none" if inside else "sigmoid" if count == 1 else "softmax")
    assert values.get("scaling") == ("graph" if "dtype" in options else None)


def test_what_the_graph_ends_in_is_said(tmp_path):
    assert re.search(
        r'activation = "none" +# the graph ends in Softmax: .* probabilities', said(bare(tmp_path / "a.onnx", end=[SOFTMAX]))
    )
    assert re.search(r'activation = "softmax" +# the graph ends in Conv: .* logits', said(bare(tmp_path / "b.onnx")))


@pytest.mark.parametrize("count", [1, 4, 5, 150, 1000])
def test_it_is_short_for_any_number_of_classes(count, tmp_path):
    text = said(bare(tmp_path / "m.onnx", count=count))
    assert len(text.splitlines()) <= 40
    assert len(tomllib.loads(text)["classes"]) == max(count, 2)


def test_several_outputs_are_listed(tmp_path):
    model = bare(tmp_path / "m.onnx")
    proto = onnx.load(model)
    proto.graph.node.append(helper.make_node("Sigmoid", ["scores"], ["aux"]))
    proto.graph.output.append(helper.make_tensor_value_info("aux", TensorProto.FLOAT, ["n", 4, *SHAPE]))
    onnx.save(proto, model)
    assert re.search(r'output = "scores" +# one of scores \(\?, 4, 64, 64\), aux', said(model))


def test_open_channels_and_scores_are_said_to_be_open(tmp_path):
    model = reshaped(bare(tmp_path / "m.onnx"), ("n", "c", "h", "w"), ("n", "k", "h", "w"))
    text = said(model)
    assert re.search(r"channels = 3 +# the file leaves their number open", text)
    assert 'layout = "NCHW"' in text
    tomllib.loads(text)


def refused(model, error, match):
    with pytest.raises(error, match=match):
        read_spec(load_settings(None, {"input": ("-",), "model": model, "device": "cpu"}))


VOLUMES = {
    "first, of one size": (("n", 1, 64, 32, 96), ("n", 3, 64, 32, 96), "NCDHW", (64, 32, 96)),
    "first, of any size": (("n", 1, "d", "h", "w"), ("n", 3, "d", "h", "w"), "NCDHW", (96, 96, 96)),
    "last, of any size": (("n", "d", "h", "w", 1), ("n", "d", "h", "w", 3), "NDHWC", (96, 96, 96)),
}


@pytest.mark.parametrize("form", VOLUMES)
def test_lines_for_volumes_are_a_contract_as_they_are(form, tmp_path):
    image, scores, layout, tile = VOLUMES[form]
    net = Network(1, ndim=3)
    if layout == "NDHWC":
        net.add("Transpose", perm=(0, 4, 1, 2, 3)).conv(1, 3, 3).add("Transpose", perm=(0, 2, 3, 4, 1))
    else:
        net.conv(1, 3, 3)
    model = reshaped(net.save(tmp_path / "m.onnx", None, classes=3, shape=("n", 8, 8, 8)), image, scores)
    text = said(model)
    (tmp_path / "m.toml").write_text(text.replace("# spacing", "spacing").replace("# orientation", "orientation"))
    spec = read_spec(load_settings(None, {"input": ("-",), "model": model, "device": "cpu"}))
    terms = spec.contract
    assert (terms.layout, spec.tiling.tile, len(terms.classes), terms.normalize) == (layout, tile, 3, "zscore")
    assert (terms.spacing, terms.spacing_unit, terms.orientation) == ([1.0, 1.0, 1.0], "mm", "RAS")


def test_lines_for_a_volume_filled_in_give_the_right_mask(tmp_path, run_serial):
    model = make(tmp_path / "m.onnx", Form(layout="NCDHW", sizes=(16, 24, 24)), channels=1)
    voxels = np.random.default_rng(1).integers(0, 256, (16, 24, 24), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    source = volumes.write(tmp_path / "in" / "a.nii.gz", voxels.T)
    text = re.sub(r'normalize = "zscore"', 'normalize = "none"', said(model))  # as the comment offers
    (tmp_path / "c.toml").write_text(text)
    out = run_serial(source, model, contract=tmp_path / "c.toml")
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"image": voxels[None, None].astype(np.float32)})
    found = np.asarray(nibabel.load(out / "a.nii.gz").dataobj).T
    np.testing.assert_array_equal(found, scores[0].argmax(axis=0))


@pytest.mark.parametrize(("task", "activation"), [("multilabel", "none"), ("multiclass", "none")])
def test_a_sigmoid_for_each_class_is_multilabel_unless_changed_as_the_comment_says(
    task, activation, raster, run_serial, pixels, tmp_path
):
    model = bare(tmp_path / "m.onnx", end=[SIGMOID])
    text = re.sub(r"(?m)^(mean|std) = .*\n", "", said(model).replace('normalize = "fixed"', 'normalize = "none"'))
    assert f'activation = "{activation}"' in text
    text = text.replace('task = "multilabel"', f'task = "{task}"')
    (tmp_path / "c.toml").write_text(text.replace("align = 32", "align = 1"))
    out = run_serial(raster("in/a.tif", pixels), model, contract=tmp_path / "c.toml")
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"image": (pixels[None] / 255).astype(np.float32)})
    with rasterio.open(out / "a.tif") as mask:
        found = mask.read()
    truth = scores[0] > 0.5 if task == "multilabel" else scores[0].argmax(axis=0)[None]
    np.testing.assert_array_equal(found, truth)


def test_other_ranks_are_refused(tmp_path):
    model = reshaped(bare(tmp_path / "m.onnx"), ("n", 64), ("n", 3))
    refused(model, ContractError, r"must take a batch of images, .*got image \(\?, 64\)")


def test_an_input_whose_value_is_in_the_file_is_none(tmp_path):
    model = bare(tmp_path / "m.onnx")
    proto = onnx.load(model)
    proto.graph.input.append(helper.make_tensor_value_info("prompt", TensorProto.FLOAT, [1, 2]))
    onnx.save(proto, model)
    assert "inputs" in said(model)
    value = onnx.numpy_helper.from_array(np.zeros((1, 2), np.float32), "prompt")
    proto.graph.initializer.append(value)
    onnx.save(proto, model)
    assert "inputs" not in said(model)


def test_that_the_nearest_tile_decides_labels_is_said(tmp_path):
    text = said(bare(tmp_path / "m.onnx", end=[("ArgMax", {"axis": 1})]))
    assert re.search(r'activation = "labels" +# the graph ends in ArgMax: what it gives are labels, and the nearest', text)
    assert [c["id"] for c in tomllib.loads(text)["classes"]] == [0, 1, 2, 3]


def test_one_integer_per_pixel_is_a_label(tmp_path):
    model = bare(tmp_path / "m.onnx", count=1, end=[("Cast", {"to": TensorProto.UINT8})])
    proto = onnx.load(model)
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8
    onnx.save(proto, model)
    text = said(model)
    assert re.search(r'activation = "labels" +# it gives whole numbers: what it gives are labels', text)
    assert "# one for each label that it gives, as many as the file leaves open" in text


def test_align_of_a_fixed_tile_is_that_of_its_strides(tmp_path):
    for size, align in ((65, 32), (300, 32), (40, 8)):
        values = tomllib.loads(said(make(tmp_path / "m.onnx", Form(sizes=(size, size), stride=4))))
        assert (values["tile"], values["align"]) == ([size, size], align)


def test_a_grid_of_aligned_corners_is_said(tmp_path):
    model = make(tmp_path / "m.onnx", Form(sizes=(65, 65), stride=4))
    assert re.search(r'upsampling = "align_corners" +# 17 = \(65 - 1\) / 4 \+ 1; or "half_pixel"', said(model))


def test_another_output_that_is_scores_is_pointed_at(tmp_path):
    model = bare(tmp_path / "m.onnx")
    proto = onnx.load(model)
    proto.graph.node.append(helper.make_node("ArgMax", ["scores"], ["labels"], axis=1))
    proto.graph.output.insert(0, helper.make_tensor_value_info("labels", TensorProto.INT64, ["n", 1, *SHAPE]))
    onnx.save(proto, model)
    assert re.search(r'output = "scores" +# one of labels', said(model))
    assert tomllib.loads(said(model))["activation"] == "softmax"

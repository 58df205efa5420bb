"""Models that give labels in place of scores, from trial to mask, and what needs scores (segpipe.network.scores_needed)."""

import numpy as np
import pytest
import rasterio
from model_forms import Form, make, of_windows
from networks import Network, contract, toml
from scenes import Silent

import segpipe as api
from segpipe.errors import ContractError, SettingsError
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import prepare
from segpipe.settings import load_settings

SIZE = (150, 203)
TILING = {"tile": [64, 64], "overlap": [16, 16], "align": 4}


def scaled(window):
    return window.astype(np.float32) * np.float32(1 / 255)


@pytest.fixture
def pixels():
    return np.random.default_rng(5).integers(0, 256, (3, *SIZE), dtype=np.uint8)


@pytest.fixture
def source(raster, pixels):
    return raster("in/a.tif", pixels)


def labelled(tmp_path, form, **changes):
    """A model of a form, with its contract beside it."""
    values = contract(3, form.classes, **{"activation": "labels", "layout": form.layout} | TILING | changes)
    model = make(tmp_path / "m.onnx", form)
    written(model, values)
    return model


def written(model, values):
    """Write a contract beside a model."""
    model.with_suffix(".toml").write_text(toml(values))


def mask(out, name="a.tif", band=1):
    with rasterio.open(out / name) as dataset:
        return dataset.read(band)


ENDINGS = ["argmax", "argmax flat", "argmax float", "argmax int32"]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_labels_are_those_of_the_nearest_window(ending, layout, pixels, source, tmp_path, run_serial):
    form = Form(layout=layout, ending=ending)
    out = run_serial(source, labelled(tmp_path, form))
    truth = of_windows(tmp_path / "m.onnx", pixels, form, tile=(64, 64), overlap=(16, 16), align=(4, 4), scale=scaled)
    assert len(np.unique(truth)) == 4
    np.testing.assert_array_equal(mask(out), truth[0])


@pytest.mark.parametrize("more", [{"parts": 2}, {"parts": 7}, {"device": "cpu-tensors", "parts": 3}])
def test_parts_and_arrays_change_no_byte(more, source, tmp_path, run_serial):
    model = labelled(tmp_path, Form(ending="argmax"))
    one = run_serial(source, model, output=tmp_path / "one")
    other = run_serial(source, model, output=tmp_path / "other", **more)
    assert (one / "a.tif").read_bytes() == (other / "a.tif").read_bytes()
    assert (one / "areas.csv").read_bytes() == (other / "areas.csv").read_bytes()


def test_two_workers_change_no_byte(source, tmp_path, segpipe):
    model = labelled(tmp_path, Form(ending="argmax flat"))
    run = ["run", "-i", source, "-m", model, "--device", "cpu"]
    assert segpipe(*run, "--executor", "serial", "-o", "one").returncode == 0
    assert segpipe(*run, "--executor", "processes", "--workers", 2, "--parts", 3, "-o", "two").returncode == 0
    assert (tmp_path / "one" / "a.tif").read_bytes() == (tmp_path / "two" / "a.tif").read_bytes()


def test_ids_and_values_may_differ_and_leave_gaps(pixels, source, tmp_path, run_serial):
    form = Form(ending="argmax")
    ids = [7, 300, 2, 40]
    classes = [{"id": n, "name": f"class{n}", "index": k} for k, n in enumerate(ids)]
    out = run_serial(source, labelled(tmp_path, form, classes=classes))
    truth = of_windows(tmp_path / "m.onnx", pixels, form, tile=(64, 64), overlap=(16, 16), align=(4, 4), scale=scaled)[0]
    np.testing.assert_array_equal(mask(out), np.array(ids)[truth])


def test_a_label_that_is_no_class_costs_its_case_and_is_named(raster, pixels, tmp_path):
    dark = raster("in/b.tif", np.full((3, *SIZE), 200, np.uint8))
    raster("in/a.tif", pixels)
    model = labelled(tmp_path, Form(ending="argmax"), classes=[{"id": n, "name": f"class{n}"} for n in (0, 1)])
    flags = {"input": (str(dark.parent),), "model": model, "output": tmp_path / "out", "executor": "serial", "device": "cpu"}
    summary = carry_out(prepare(load_settings(None, flags)), Silent())
    messages = [failure.error for failure in summary.failed]
    assert any("label values must be those of the contract's classes, 0 to 1, and the model gives" in m for m in messages)
    assert not (tmp_path / "out" / "a.tif").exists()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"confidence": True}, "confidence needs scores, .*leave --confidence out"),
        ({"audit": 5}, "audit needs scores, .*leave --audit out"),
        ({"tta": "flips"}, "tta flips needs scores, .*leave --tta out"),
        ({"blend_on": "logits"}, "blend_on logits needs scores, .*leave --blend-on out"),
        ({"blend": "gaussian"}, "blend gaussian averages scores, .*leave --blend out"),
        ({"confidence": True, "overlap_rule": "confidence"}, "confidence needs scores"),
    ],
)
def test_what_needs_scores_is_refused(asked, said, source, tmp_path, run_serial):
    model = labelled(tmp_path, Form(ending="argmax"))
    with pytest.raises(SettingsError, match=said):
        run_serial(source, model, **asked)


def test_several_models_are_refused(source, tmp_path, run_serial):
    model = labelled(tmp_path, Form(ending="argmax"))
    other = make(tmp_path / "n.onnx", Form(ending="argmax"), seed=1)
    other.with_suffix(".toml").write_bytes(model.with_suffix(".toml").read_bytes())
    with pytest.raises(SettingsError, match=r"the mean of 2 models needs scores, .*leave all models but one out"):
        run_serial(source, (model, other))


def test_crop_may_be_named(source, tmp_path, run_serial):
    model = labelled(tmp_path, Form(ending="argmax"))
    run_serial(source, model, blend="crop")


def test_a_contract_of_scores_is_refused_for_labels_and_the_reverse(source, tmp_path, run_serial):
    model = labelled(tmp_path, Form(ending="argmax"), activation="softmax")
    with pytest.raises(ContractError, match=r'is labels \(the graph ends in ArgMax\), .*set activation = "labels" .*scores'):
        run_serial(source, model)
    model = labelled(tmp_path, Form(ending="softmax"))
    with pytest.raises(ContractError, match="gives 4 values per pixel, and labels are one"):
        run_serial(source, model)
    one = Network(3).conv(3, 1, 1).save(tmp_path / "one.onnx", contract(3, 2, activation="labels"), classes=1)
    with pytest.raises(ContractError, match=r'its output is labels, and it gives .* set activation = "softmax"'):
        run_serial(source, one)


def test_two_classes_and_classes_that_overlap(pixels, source, tmp_path, run_serial):
    for task, count, bands in (("binary", 1, 1), ("multilabel", 3, 3)):
        form = Form(ending="above", classes=count)
        classes = [{"id": n + (count == 1), "name": f"class{n}"} for n in range(count)]
        out = run_serial(source, labelled(tmp_path, form, task=task, classes=classes), output=tmp_path / task)
        model = tmp_path / "m.onnx"
        truth = of_windows(model, pixels, form, tile=(64, 64), overlap=(16, 16), align=(4, 4), scale=scaled)
        for band in range(bands):
            np.testing.assert_array_equal(mask(out, band=band + 1), truth[band])


def test_a_coarser_grid_takes_the_nearest_label(pixels, source, tmp_path, run_serial):
    form = Form(ending="argmax", stride=4)
    out = run_serial(source, labelled(tmp_path, form, align=4, overlap=[0, 0]))
    found = mask(out)[:64, :64]
    np.testing.assert_array_equal(found, found[::4, ::4].repeat(4, 0).repeat(4, 1))


def test_another_spacing_takes_the_nearest_label(raster, tmp_path, run_serial):
    """Each label of the mask is one that the network gave for the pixel that it lies in."""
    image = np.random.default_rng(2).integers(0, 256, (3, 64, 64), dtype=np.uint8)
    source = raster("in/a.tif", image)
    model = labelled(tmp_path, Form(ending="argmax"), spacing=[20.0, 20.0])
    out = run_serial(source, model, resample=True)
    found = mask(out)
    assert found.shape == (64, 64)
    np.testing.assert_array_equal(found, found[::2, ::2].repeat(2, 0).repeat(2, 1))
    two = run_serial(source, model, resample=True, output=tmp_path / "two", parts=2)
    assert (out / "a.tif").read_bytes() == (two / "a.tif").read_bytes()


def test_lesions_cleaning_and_nodata_need_no_scores(raster, pixels, tmp_path, run_serial):
    pixels[:, 20:90, 30:80] = 0
    source = raster("in/a.tif", pixels, nodata=0)
    model = labelled(tmp_path, Form(ending="argmax"))
    out = run_serial(source, model, lesions=True, sieve="3", majority=3)
    assert (mask(out)[20:90, 30:80] == 255).all()
    assert (out / "lesions.csv").read_text().count("\n") > 1


def test_python_gives_the_same_labels_and_no_confidence(pixels, source, tmp_path, run_serial):
    model = labelled(tmp_path, Form(ending="argmax"))
    loaded = api.load(model, device="cpu")
    np.testing.assert_array_equal(loaded.predict(pixels).array, mask(run_serial(source, model)))
    with pytest.raises(SettingsError, match="confidence needs scores"):
        loaded.predict(pixels, confidence=True)


def test_inspect_and_tune_take_labels(source, tmp_path, segpipe):
    model = labelled(tmp_path, Form(ending="argmax"))
    shown = segpipe("inspect", model)
    assert shown.returncode == 0, shown.stderr
    assert "the nearest tile decides" in shown.stdout
    tuned = segpipe("tune", model, "-i", source, "--seconds", 4, "--device", "cpu")
    assert tuned.returncode == 0, tuned.stderr


def test_attach_puts_the_contract_into_the_file(source, tmp_path, segpipe, run_serial):
    classes = [{"id": n, "name": f"class{n}", "index": k} for k, n in enumerate((9, 8, 7, 6))]
    classes += [{"id": 5, "name": "class5", "index": 20}]  # values may leave gaps
    model = labelled(tmp_path, Form(ending="argmax"), classes=classes)
    done = segpipe("export", "attach", model, "--contract", model.with_suffix(".toml"), "-o", "new.onnx")
    assert done.returncode == 0, done.stderr
    out = run_serial(source, tmp_path / "new.onnx", output=tmp_path / "new")
    np.testing.assert_array_equal(mask(out), mask(run_serial(source, model, output=tmp_path / "old")))

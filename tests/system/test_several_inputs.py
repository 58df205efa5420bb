"""Networks of several inputs: two images, two sensors, constants and dates, against ONNX Runtime on the whole image."""

import json
import re

import numpy as np
import onnx
import pytest
import rasterio
from networks import contract
from PIL import Image
from several import CLASSES, FORMS, OFFSET, SCALE, labels_of, several

import segpipe as library
from segpipe.errors import ContractError
from segpipe.network.read import read_spec
from segpipe.settings import load_settings

SHAPE = (150, 130)


def pixels_of(form, seed=3):
    return np.random.default_rng(seed).integers(0, 256, (FORMS[form].channels, *SHAPE), dtype=np.uint8)


def read(path):
    with rasterio.open(path) as dataset:
        return dataset.read(1)


@pytest.mark.parametrize("form", FORMS)
def test_labels_are_those_of_the_whole_image_however_it_is_run(form, tmp_path, raster, run_serial):
    model, pixels = several(tmp_path / "m.onnx", form), pixels_of(form)
    scene = raster("in/a.tif", pixels)
    wanted = labels_of(model, form, pixels)
    assert len(np.unique(wanted)) > 1
    plain = run_serial(scene.parent, model)
    assert (read(plain / "a.tif") == wanted).mean() >= 0.9999
    ways = [{"device": "openvino"}, {"device": "cpu-tensors", "batch": 3}, {"batch": 2}, {"tta": "flips"}]
    for number, way in enumerate(ways):
        found = run_serial(scene.parent, model, output=tmp_path / f"out{number}", **way)
        assert (read(found / "a.tif") == wanted).mean() >= 0.9999, way


@pytest.mark.parametrize("form", FORMS)
def test_parts_give_the_same_bytes(form, tmp_path, raster, run_serial):
    model, scene = several(tmp_path / "m.onnx", form), raster("in/a.tif", pixels_of(form))
    found = [run_serial(scene.parent, model, output=tmp_path / f"out{n}", parts=n) / "a.tif" for n in (1, 2, 7)]
    assert len({mask.read_bytes() for mask in found}) == 1


@pytest.mark.parametrize("form", FORMS)
def test_workers_give_the_same_bytes(form, tmp_path, raster, run_serial, segpipe):
    model, scene = several(tmp_path / "m.onnx", form), raster("in/a.tif", pixels_of(form))
    one = run_serial(scene.parent, model)
    command = ["run", "--input", scene, "--model", model, "--output", tmp_path / "two", "--device", "cpu"]
    ended = segpipe(*command, "--workers", 2, "--parts", 4)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "two" / "a.tif").read_bytes() == (one / "a.tif").read_bytes()


@pytest.mark.parametrize("form", FORMS)
def test_python_predicts_the_same(form, tmp_path):
    model, pixels = several(tmp_path / "m.onnx", form), pixels_of(form)
    found = library.load(model).predict(pixels)
    assert (found.array == labels_of(model, form, pixels)).mean() >= 0.9999


def test_a_swap_of_the_inputs_is_seen(tmp_path, raster, run_serial):
    """The main test can fail: with the images exchanged, labels are others."""
    inputs = {"before": {"channels": "3:6"}, "after": {"channels": "0:3"}}
    model, pixels = several(tmp_path / "m.onnx", "two images"), pixels_of("two images")
    scene = raster("in/a.tif", pixels)
    wanted = labels_of(model, "two images", pixels)
    swapped = several(tmp_path / "swapped.onnx", "two images", inputs=inputs)
    assert (read(run_serial(scene.parent, swapped) / "a.tif") == wanted).mean() < 0.9


def test_folds_of_several_inputs_are_averaged(tmp_path, raster, run_serial):
    models = [several(tmp_path / f"m{seed}.onnx", "two images", seed=seed) for seed in (0, 1)]
    scene = raster("in/a.tif", pixels_of("two images"))
    one = run_serial(scene.parent, models[0], output=tmp_path / "one")
    both = run_serial(scene.parent, tuple(models), output=tmp_path / "both")
    assert (read(one / "a.tif") != read(both / "a.tif")).any()


@pytest.mark.parametrize("form", FORMS)
def test_a_bare_model_is_attached_inspected_and_tuned(form, tmp_path, raster, run_serial, segpipe):
    model, pixels, own = several(tmp_path / "m.onnx", form, bare=True), pixels_of(form), tmp_path / "c.toml"
    own.write_text(toml(form))
    ended = segpipe("export", "attach", model, "--contract", own)
    assert ended.returncode == 0, ended.stderr
    scene = raster("in/a.tif", pixels)
    wanted = labels_of(model, form, pixels)
    assert (read(run_serial(scene.parent, model) / "a.tif") == wanted).mean() >= 0.9999
    shown = segpipe("inspect", model)
    assert shown.returncode == 0, shown.stderr
    assert all(name in shown.stdout for name in FORMS[form].inputs)
    assert "for one tile, 1 x " in shown.stdout
    assert f"input {next(iter(FORMS[form].inputs))} " in re.sub(r" +", " ", shown.stdout)
    if "dates" in form:
        assert library.load(model).contract.inputs["image"].dates == 3
    ended = segpipe("tune", model, "--input", scene, "--seconds", 0.3, "--tile", 64)
    assert ended.returncode == 0, ended.stderr


def toml(form, **changes):
    lines = [f"inputs.{name} = {inline(given)}" for name, given in FORMS[form].inputs.items()]
    values = contract(FORMS[form].channels, CLASSES, scale=SCALE, offset=OFFSET, align=None, **changes)
    classes = values.pop("classes")
    lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join([*lines, *(f'[[classes]]\nid = {c["id"]}\nname = "{c["name"]}"' for c in classes)])


def inline(given):
    return "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in given.items()) + " }"


TRAINED = {
    "two images": {},
    "two sensors": {"s1": 'channels = "0:2"', "s2": 'channels = "2:6"'},
    "image and constants": {"date": "value = [0.25, -1.5]", "scale": "value = 0.5"},
    "dates before channels": {},
    "channels before dates": {},
}
"""What a user writes into the lines for a bare model, where they cannot know it."""


@pytest.mark.parametrize("form", FORMS)
def test_the_lines_for_a_bare_model_filled_in_by_their_comments_give_the_right_mask(form, tmp_path, raster, run_serial):
    model = several(tmp_path / "m.onnx", form, bare=True)
    pixels = pixels_of(form)
    with pytest.raises(ContractError) as told:
        read_spec(load_settings(None, {"input": ("-",), "model": model, "device": "cpu"}))
    text = str(told.value).split("\n\n", 1)[1]
    text = re.sub(r"(?m)^scale = .*", f"scale = {SCALE}\noffset = {OFFSET}", text)
    text = re.sub(r'normalize = "\w+"', 'normalize = "none"', text)
    text = re.sub(r"(?m)^(mean|std) = .*\n", "", text)
    if form == "channels before dates":  # "or axes = ..."
        text = text.replace("NTCHW", "NCTHW", 1)
    text = re.sub(r"(?m)^tile = .*\noverlap = .*\nalign = \d+", "tile = [64, 64]\noverlap = [16, 16]\nalign = 1", text)
    for name, value in TRAINED[form].items():
        if value.startswith("value"):
            text = re.sub(rf'inputs."{name}" = {{ value = \[\] }}', f'inputs."{name}" = {{ {value} }}', text)
    (tmp_path / "c.toml").write_text(text)
    out = run_serial(raster("in/a.tif", pixels), model, contract=tmp_path / "c.toml")
    if form == "two sensors":  # channels by their places in the graph: first those of s1
        order = [5, 1, 0, 2, 3, 4]
        pixels = pixels[np.argsort(order)]
    assert (read(out / "a.tif") == labels_of(model, form, pixels)).mean() >= 0.9999


def test_lines_for_a_volume_say_what_a_series_needs(tmp_path, raster, run_serial):
    """Where the file leaves all sizes open, five axes may be a volume or images of several dates."""
    form = "dates before channels"
    model, pixels = several(tmp_path / "m.onnx", form, bare=True), pixels_of(form)
    proto = onnx.load(model)
    for value, names in ((proto.graph.input[0], "ntchw"), (proto.graph.output[0], "nkhw")):
        for dim, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
            dim.dim_param = name
    onnx.save(proto, model)
    with pytest.raises(ContractError) as told:
        read_spec(load_settings(None, {"input": ("-",), "model": model, "device": "cpu"}))
    text = str(told.value).split("\n\n", 1)[1]
    text = re.sub(r'layout = "\w+"', 'layout = "NCHW"', re.sub(r"(?m)^channels = \d+", "channels = 2", text))
    text = text.replace("# dates = 3", "dates = 3").replace("# inputs.", "inputs.")
    text = re.sub(r'normalize = "\w+"', f'scale = {SCALE}\noffset = {OFFSET}\nnormalize = "none"', text)
    text = re.sub(r"(?m)^tile = .*\noverlap = .*\nalign = \d+", "tile = [64, 64]\noverlap = [16, 16]\nalign = 1", text)
    text = re.sub(r'task = "\w+"', 'task = "multiclass"', re.sub(r'activation = "\w+"', 'activation = "softmax"', text))
    text += '\n[[classes]]\nid = 2\nname = "class 2"\n' * ("id = 2" not in text)
    (tmp_path / "c.toml").write_text(text)
    out = run_serial(raster("in/a.tif", pixels), model, contract=tmp_path / "c.toml")
    assert (read(out / "a.tif") == labels_of(model, form, pixels)).mean() >= 0.9999


def cut_up(folder, pixels, raster):
    """A file per date or input of a pair of images, as data sets of changes have them."""
    return [raster(f"{folder}/A/x_1.png", pixels[:3]), raster(f"{folder}/B/x_1.png", pixels[3:])]


@pytest.mark.parametrize("pattern", ["{date:A,B}/{case}.png", "{input:A,B}/{case}.png"])
def test_pairs_of_pictures_are_cases(pattern, tmp_path, raster, run_serial):
    model, pixels = several(tmp_path / "m.onnx", "two images"), pixels_of("two images")
    cut_up("in", pixels, raster)
    out = run_serial(tmp_path / "in", model, bands_from=pattern)
    assert (read(out / "x_1.png") == labels_of(model, "two images", pixels)).mean() >= 0.9999


def test_a_file_for_each_input_and_a_coarse_one(tmp_path, raster, run_serial):
    """Sensors on one grid, by their names in the files' names; channels lie anywhere in the stack."""
    form = "two sensors"
    model, pixels = several(tmp_path / "m.onnx", form), pixels_of(form)
    raster("in/a_s1.tif", pixels[[5, 1]])
    raster("in/a_s2.tif", pixels[[0, 2, 3, 4]], photometric="MINISBLACK", alpha="no")
    out = run_serial(tmp_path / "in", model, bands_from="{case}_{input}.tif")
    assert (read(out / "a.tif") == labels_of(model, form, pixels)).mean() >= 0.9999


@pytest.mark.parametrize("form", ["dates before channels", "channels before dates"])
def test_a_missing_date_costs_its_case(form, tmp_path, raster, segpipe):
    inputs = {"image": FORMS[form].inputs["image"] | {"dates": 3}}
    model, pixels = several(tmp_path / "m.onnx", form, inputs=inputs), pixels_of(form)
    for name in ("a", "b"):
        for k, date in enumerate(("2024-03-01", "2024-05-01", "2024-07-01")):
            raster(f"in/{name}_{date}.tif", pixels[2 * k : 2 * k + 2])
    (tmp_path / "in" / "b_2024-05-01.tif").unlink()
    out = tmp_path / "out"
    command = ["run", "--input", tmp_path / "in", "--model", model, "--output", out, "--device", "cpu"]
    command += ["--bands-from", "{case}_{date}.tif", "--executor", "serial"]
    ended = segpipe(*command)
    assert ended.returncode == 1
    assert "b: the model takes 3 dates, got 2, 2024-03-01, 2024-07-01: add what is missing" in ended.stdout
    assert (read(out / "a.tif") == labels_of(model, form, pixels)).mean() >= 0.9999
    again = segpipe(*command)
    assert "1 done before" in again.stdout + again.stderr


def test_files_on_other_ground_are_an_error_of_their_case(tmp_path, raster, segpipe):
    model, pixels = several(tmp_path / "m.onnx", "two images"), pixels_of("two images")
    raster("in/a_1.tif", pixels[:3])
    raster("in/a_2.tif", pixels[3:, :100])
    raster("in/b_1.tif", pixels[:3])
    raster("in/b_2.tif", pixels[3:5])
    command = ["run", "--input", tmp_path / "in", "--model", model, "--output", tmp_path / "out", "--device", "cpu"]
    ended = segpipe(*command, "--bands-from", "{case}_{date}.tif", "--executor", "serial")
    assert ended.returncode == 1
    assert "bands of a scene must cover the same ground" in ended.stdout
    assert re.search(r"b_2.tif: the file's bands must be the model's channels, got 2 bands", ended.stdout)


def test_a_turned_picture_is_refused_and_not_taken_as_it_lies(tmp_path, raster, segpipe):
    model, pixels = several(tmp_path / "m.onnx", "two images"), pixels_of("two images")
    cut_up("in", pixels, raster)
    (tmp_path / "in" / "A" / "x_1.png").unlink()
    image = Image.fromarray(np.moveaxis(pixels[:3], 0, -1))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "in" / "A" / "x_1.jpg", exif=exif)
    command = ["run", "--input", tmp_path / "in", "--model", model, "--output", tmp_path / "out", "--device", "cpu"]
    ended = segpipe(*command, "--bands-from", "{date:A,B}/{case}.*", "--executor", "serial")
    assert ended.returncode == 1
    assert "x_1.jpg: pictures of a scene must be stored upright" in ended.stdout


@pytest.mark.parametrize("names", [None, ["red", "green", "blue", "red", "green", "blue"]])
def test_one_file_of_all_images_is_taken_in_its_order(names, tmp_path, raster, run_serial):
    channels = ["red", "green", "blue", "red", "green", "blue"]
    model, pixels = several(tmp_path / "m.onnx", "two images", channels=channels), pixels_of("two images")
    raster("in/a.tif", pixels, descriptions=names, photometric="MINISBLACK", alpha="no")
    out = run_serial(tmp_path / "in", model)
    assert (read(out / "a.tif") == labels_of(model, "two images", pixels)).mean() >= 0.9999


def test_folds_with_other_inputs_are_refused_with_both(tmp_path):
    one = several(tmp_path / "a.onnx", "two images")
    other = several(tmp_path / "b.onnx", "two images", inputs={"before": {"channels": "3:6"}, "after": {"channels": "0:3"}})
    with pytest.raises(ContractError, match=r'must agree in inputs, got \{"before": \{"channels": "0:3"\}.* and \{"before"'):
        read_spec(load_settings(None, {"input": ("-",), "model": (one, other), "device": "cpu"}))

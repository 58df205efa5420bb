"""Networks that score only the middle of a tile: equal to the network on the whole image with reflected borders.

Sizes are inferred by segpipe.network.shapes; for a model without a contract, segpipe.network.bare measures the margin.
"""

import json
import re
from contextlib import closing

import numpy as np
import onnx
import onnxruntime
import pytest
import rasterio
from networks import Network, contract, unpadded

from segpipe.api.arrays import ArraySource
from segpipe.errors import ContractError, ModelError, SettingsError
from segpipe.formats.case import Case
from segpipe.geometry.windows import Tiling, Window
from segpipe.jobs.prepare import prepare
from segpipe.network.read import read_spec
from segpipe.pipeline.blend import blend as blended
from segpipe.pipeline.infer import infer, load_model
from segpipe.pipeline.read import Reading, read
from segpipe.pipeline.tiles import batches, tiles
from segpipe.settings import load_settings
from segpipe.tune.candidates import candidates, open_networks
from segpipe.tune.labels import extent, reference_tiling, sample
from segpipe.tune.places import TunePlace
from segpipe.tune.settings import TuneSettings

MARGIN, ALIGN = 20, 4
"""Of ``unpadded`` with two levels."""


def scene(rows, cols, seed=0):
    return np.random.default_rng(seed).integers(1, 256, (3, rows, cols), dtype=np.uint8)


def whole(model, pixels, valid=None, margin=MARGIN, align=ALIGN, tile=None):
    """Scores of the network for the image with reflected borders, in one call."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    x = (pixels / 255).astype(np.float32)
    x = x if valid is None else np.where(valid, x, 0)
    far = [margin + -n % align for n in pixels.shape[1:]]
    x = np.pad(x, [(0, 0), *((margin, end) for end in far)], mode="reflect")
    scores = session.run(None, {"image": x[None]})[0][0]
    return scores[(slice(None), *(slice(n) for n in pixels.shape[1:]))]


def labels(folder, name="a"):
    with rasterio.open(folder / f"{name}.tif") as mask:
        return mask.read(1)


@pytest.mark.parametrize("free", [True, False], ids=["free", "fixed"])
@pytest.mark.parametrize("shape", [(44, 44), (131, 97), (5, 300), (1, 1), (64, 203)])
def test_labels_are_those_of_the_whole_image(shape, free, raster, run_serial, tmp_path):
    """One tile and many, odd sizes, images smaller than a tile and than the margin."""
    pixels = scene(*shape)
    out = run_serial(raster("in/a.tif", pixels), unpadded(tmp_path / "m.onnx", 84, free=free))
    expected = whole(unpadded(tmp_path / "free.onnx", 84), pixels).argmax(axis=0)
    assert pixels.size < 99 or np.bincount(expected.ravel()).max() < 0.95 * expected.size
    np.testing.assert_array_equal(labels(out), expected)


@pytest.mark.parametrize("blend", ["gaussian", "crop", "linear"])
def test_overlap_and_nodata_change_no_label(blend, raster, run_serial, tmp_path):
    """Invalid pixels are 0 after scaling, in margins, too; windows without a valid pixel to score are left out."""
    pixels = scene(150, 210)
    pixels[:, np.random.default_rng(1).random((150, 210)) < 0.1] = 0
    pixels[:, :, 90:180] = 0
    valid = (pixels != 0).all(axis=0)
    model = unpadded(tmp_path / "m.onnx", 84, overlap=[12, 20])
    out = run_serial(raster("in/a.tif", pixels, nodata=0), model, blend=blend)
    scores = np.sort(whole(model, pixels, valid), axis=0)
    found, clear = labels(out), scores[-1] - scores[-2] > 1e-5
    np.testing.assert_array_equal(found == 255, ~valid)
    expected = whole(model, pixels, valid).argmax(axis=0)
    np.testing.assert_array_equal(found[valid & clear], expected[valid & clear])
    assert (valid & clear).sum() > 0.999 * valid.sum()


@pytest.mark.parametrize("overlap", [[0, 0], [12, 8]])
@pytest.mark.parametrize("device", ["cpu", "cpu-tensors"])
def test_scores_are_those_of_the_whole_image(device, overlap, tmp_path):
    """Before any decision; on tensors, which is the code for GPUs."""
    if device == "cpu-tensors":
        pytest.importorskip("torch")
    pixels = scene(131, 97)
    path = unpadded(tmp_path / "m.onnx", 84, overlap=overlap)
    spec = read_spec(load_settings(None, {"input": ("-",), "model": path, "device": device}))
    found = np.empty((3, 131, 97), np.float32)
    model, case, source = load_model(spec), Case("a", "a"), ArraySource(pixels, None)
    arrays = model.arrays
    reading = Reading(spec, source=source)
    with closing(tiles(read([case], reading), reading)) as windows:
        for box in blended(infer(model, batches(windows, spec.batch), 1), arrays):
            where = tuple(slice(a, b) for a, b in zip(box.window.start, box.window.stop, strict=True))
            total = box.info.weights.total(where)
            found[(slice(None), *where)] = arrays.fetch(box.sums)()[0] / total
    expected = whole(path, pixels)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in {".tif", ".csv"}}


def test_parts_batches_and_workers_leave_the_same_bytes(raster, segpipe, tmp_path):
    pixels = scene(260, 330)
    pixels[:, 100:190, 40:] = 0
    source = raster("in/a.tif", pixels, nodata=0)
    raster("in/b.tif", scene(61, 200, 1))
    model = unpadded(tmp_path / "m.onnx", 84, overlap=[8])
    command = ["run", "--input", source.parent, "--model", model, "--device", "cpu", "--confidence"]
    ways = {
        "one": ["--executor", "serial", "--parts", 1],
        "two": ["--executor", "serial", "--parts", 2, "--batch", 3],
        "seven": ["--executor", "serial", "--parts", 7],
        "workers": ["--executor", "processes", "--workers", 2, "--parts", 7],
    }
    for name, flags in ways.items():
        done = segpipe(*command, "--output", tmp_path / name, *flags)
        assert done.returncode == 0, done.stderr
    first = contents(tmp_path / "one")
    assert len(first) == 5
    assert all(contents(tmp_path / name) == first for name in ways)


@pytest.mark.parametrize("large", [124, 204])
def test_a_resampled_case_does_not_depend_on_the_tile(large, raster, run_serial, tmp_path):
    pixels = scene(90, 140)
    pixels[:, 30:50, 60:] = 0
    source = raster("in/a.tif", pixels, nodata=0)
    model = unpadded(tmp_path / "m.onnx", 84, spacing=[7.0, 7.0])
    small = labels(run_serial(source, model, resample=True, output=tmp_path / "small"))
    np.testing.assert_array_equal(
        labels(run_serial(source, model, resample=True, tile=large, output=tmp_path / "large")), small
    )


def test_flips_are_averaged(raster, run_serial, tmp_path):
    """One tile: the mean over the four flips of what the network sees."""
    pixels, model = scene(44, 44), unpadded(tmp_path / "m.onnx", 84)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    x = np.pad((pixels / 255).astype(np.float32), [(0, 0), (20, 20), (20, 20)], mode="reflect")[None]
    flips = [(), (2,), (3,), (2, 3)]
    mean = sum(np.flip(session.run(None, {"image": np.flip(x, axes).copy()})[0], axes) for axes in flips)
    out = run_serial(raster("in/a.tif", pixels), model, tta="flips")
    np.testing.assert_array_equal(labels(out), mean[0].argmax(axis=0))


def test_volumes(tmp_path, run_serial):
    nibabel = pytest.importorskip("nibabel")
    voxels = np.random.default_rng(2).integers(0, 256, (19, 25, 31)).astype(np.uint8)
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "in" / "a.nii.gz")
    model = unpadded(tmp_path / "m.onnx", 28, 1, ndim=3, levels=1, layout="NCDHW")
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    seen = voxels.T  # the network sees planes, rows and columns of the file
    x = np.pad((seen / 255).astype(np.float32), [(8, 8 + n % 2) for n in seen.shape], mode="reflect")
    expected = session.run(None, {"image": x[None, None]})[0][0].argmax(axis=0)[tuple(slice(n) for n in seen.shape)]
    assert np.bincount(expected.ravel()).min() > 100
    masks = [run_serial(tmp_path / "in", model, parts=n, output=tmp_path / str(n)) / "a.nii.gz" for n in (1, 4)]
    np.testing.assert_array_equal(np.asarray(nibabel.load(masks[0]).dataobj).T, expected)
    assert masks[0].read_bytes() == masks[1].read_bytes()


def test_slices_of_a_volume(tmp_path, run_serial):
    nibabel = pytest.importorskip("nibabel")
    voxels = np.random.default_rng(2).integers(0, 256, (61, 50, 3)).astype(np.uint8)
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "in" / "a.nii.gz")
    model = unpadded(tmp_path / "m.onnx", 84, 1)
    mask = np.asarray(nibabel.load(run_serial(tmp_path / "in", model) / "a.nii.gz").dataobj)
    for plane in range(3):
        np.testing.assert_array_equal(mask[..., plane].T, whole(model, voxels[None, ..., plane].mT).argmax(axis=0))


def test_the_middle_is_taken_from_scores_of_the_whole_tile(raster, run_serial, tmp_path):
    """A halo, which the network scores and which its contract leaves out."""
    net = Network(3).conv(3, 8, 5).add("Relu").conv(8, 8, 5).add("Relu").conv(8, 3, 5)
    values = contract(3, 3, tile=[64, 64], overlap=None, margin=[6, 8])
    model = net.save(tmp_path / "m.onnx", values, classes=3)
    pixels = scene(120, 170)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    x = np.pad((pixels / 255).astype(np.float32), [(0, 0), (20, 20), (20, 20)], mode="reflect")
    expected = session.run(None, {"image": x[None]})[0][0, :, 20:-20, 20:-20].argmax(axis=0)
    np.testing.assert_array_equal(labels(run_serial(raster("in/a.tif", pixels), model)), expected)


@pytest.mark.parametrize(
    ("keys", "flags", "error", "message"),
    [
        ({"margin": 16}, {}, ModelError, "84 x 84 - 2 * 16 x 16 = 52 x 52, .*got 44 x 44: set margin = [20, 20]"),
        ({"margin": None}, {}, ModelError, "one pixel per stride, rounded up or down, got 44 x 44 .* set margin = [20, 20]"),
        ({"margin": 42}, {}, ContractError, "twice the margin, got tile [84, 84] and margin [42, 42]"),
        ({"margin": [20, 20, 20]}, {}, ContractError, "margin must have one number or 2, one per spatial axis"),
        ({}, {"tile": 90}, SettingsError, "got tile 90 x 90 .* tile 84 x 84 and align 4 x 4: take --tile 92,92"),
        ({"align": 8}, {"tile": 44}, SettingsError, "got 44 - 2 * 20 = 4 and align 8: take --tile 52"),
        ({}, {"overlap": 41}, SettingsError, "84 - 2 * 20 - 41 = 3 and align 4: lower --overlap to 40"),
        ({}, {"tile": 36}, ContractError, "twice the margin, got tile 36 x 36 and margin 20 x 20"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(keys, flags, error, message, raster, tmp_path):
    with pytest.raises(error, match=re.escape(message).replace(r"\.\*", ".*")):
        tried(raster("in/a.tif", scene(9, 9)), unpadded(tmp_path / "m.onnx", 84, **keys), **flags)


def tried(source, model, **flags):
    flags = {"input": (str(source),), "model": model, "output": source.parents[1] / "out", "device": "cpu", **flags}
    return prepare(load_settings(None, flags))


def test_a_coarser_grid_is_no_middle(raster, tmp_path):
    net = Network(3).conv(3, 8, 5).add("Relu").add("MaxPool", kernel_shape=[2, 2], strides=[2, 2]).conv(8, 3, 3)
    values = contract(3, 3, tile=[64, 64], overlap=[0, 0], align=2, margin=16)
    model = net.save(tmp_path / "m.onnx", values, classes=3, out_shape=("n", 3, "a", "b"))
    with pytest.raises(ModelError, match=r"must be the middle of the tile, and is all of it on a coarser grid"):
        tried(raster("in/a.tif", scene(9, 9)), model)


def coarse(path, levels, margin, **changes):
    """Valid convolutions between pools, and no upsampling: 84 pixels become 36 of stride 2, or 14 of stride 4."""
    net = Network(3).valid(3, 8).add("Relu").valid(8, 8).add("Relu")
    for _ in range(levels):
        net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2]).valid(8, 8).add("Relu").valid(8, 8).add("Relu")
    values = contract(3, 3, tile=[84, 84], overlap=[0, 0], align=2**levels, margin=margin, **changes)
    return net.conv(8, 3, 1).save(path, values, classes=3, out_shape=("n", 3, "a", "b"))


COARSE = {1: (6, 36), 2: (14, 14)}
"""Margin and size of the output, by levels."""


@pytest.mark.parametrize("levels", COARSE)
def test_the_middle_on_a_coarser_grid_is_interpolated_to_what_it_scores(levels, raster, run_serial, tmp_path):
    import torch

    margin, size = COARSE[levels]
    model, scored = coarse(tmp_path / "m.onnx", levels, margin), 84 - 2 * margin
    pixels = scene(2 * scored, scored)
    out = run_serial(raster("in/a.tif", pixels), model)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    x = np.pad((pixels / 255).astype(np.float32), [(0, 0), (margin,) * 2, (margin,) * 2], mode="reflect")
    windows = [session.run(None, {"image": x[None, :, top : top + 84]})[0] for top in (0, scored)]
    assert windows[0].shape == (1, 3, size, size)
    like = {"size": (scored, scored), "mode": "bilinear", "align_corners": False}
    each = [torch.nn.functional.interpolate(torch.from_numpy(one), **like)[0].argmax(0).numpy() for one in windows]
    assert (labels(out) == np.concatenate(each)).mean() >= 0.9999
    assert len(np.unique(labels(out))) > 1


@pytest.mark.parametrize("levels", COARSE)
def test_following_its_messages_leads_to_the_margin_of_a_coarser_middle(levels, raster, tmp_path):
    """From none, and from the margin that the output would have without a coarser grid."""
    source, found = raster("in/a.tif", scene(9, 9)), None
    for _ in range(3):
        try:
            tried(source, coarse(tmp_path / "m.onnx", levels, found))
            break
        except ModelError as error:
            found = int(re.search(r"set margin = \[(\d+), \1\] in the contract", str(error))[1])
    assert found == COARSE[levels][0]


def test_a_tile_that_its_poolings_do_not_divide_is_not_centred(raster, tmp_path):
    """A tile of 84 scores what one of 82 scores; taken for its middle, labels would lie a pixel beside their pixels."""
    net = Network(3).valid(3, 6).add("Relu")
    for _ in range(2):
        net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    values = contract(3, 3, tile=[84, 84], overlap=None, align=4, margin=2)
    model = net.upsample(4).conv(6, 3, 1).save(tmp_path / "m.onnx", values, classes=3, out_shape=("n", 3, "a", "b"))
    with pytest.raises(ModelError, match=r"of a tile of 84 x 84 the network leaves out 2 x 2 pixels .*: take --tile 82,82"):
        tried(raster("in/a.tif", scene(9, 9)), model)


def test_deepness_takes_a_smaller_output_as_the_middle(raster, run_serial, tmp_path):
    keys = {"standardization_mean": [0.0] * 3, "standardization_std": [1.0] * 3, "tile_size": 84, "tiles_overlap": 60}
    keys["class_names"] = {i: f"c{i}" for i in range(3)}
    path = unpadded(tmp_path / "own.onnx", 84)
    proto = onnx.load(path)
    onnx.helper.set_model_props(proto, {key: json.dumps(value) for key, value in keys.items()})
    onnx.save(proto, tmp_path / "m.onnx")
    pixels = scene(100, 120)
    out = run_serial(raster("in/a.tif", pixels), tmp_path / "m.onnx", crs="EPSG:32633")
    np.testing.assert_array_equal(labels(out), whole(path, pixels).argmax(axis=0))
    record = json.loads((out / "a.json").read_text())
    assert (record["settings"]["tile"], record["settings"]["overlap"]) == ([84, 84], [10, 10])


def bare(path, tile, **options):
    proto = onnx.load(unpadded(path, tile, **options))
    del proto.metadata_props[:]
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize(("free", "tile"), [(False, 84), (True, 512)])
def test_lines_to_write_have_the_margin(free, tile, raster, run_serial, tmp_path):
    """Filled in by their comments, they give the right mask."""
    pixels = scene(100, 120)
    model, source = bare(tmp_path / "m.onnx", 84, free=free), raster("in/a.tif", pixels)
    with pytest.raises(ContractError) as caught:
        tried(source, model)
    lines = str(caught.value).split("\n\n", 1)[1]
    assert re.search(rf"tile = \[{tile}, {tile}\].*\nmargin = \[20, 20\] .*scores the middle of a tile", lines)
    lines = re.sub("mean = .*", "mean = 0.0", re.sub("std = .*", "std = 1.0", lines)).replace("0.003922", str(1 / 255))
    (tmp_path / "c.toml").write_text(lines)
    out = run_serial(source, model, contract=tmp_path / "c.toml")
    np.testing.assert_array_equal(labels(out), whole(unpadded(tmp_path / "own.onnx", 84), pixels).argmax(axis=0))


def test_lines_to_write_for_sizes_that_do_not_fit_name_one_that_does(raster, tmp_path):
    """Sizes are free, and poolings fit only some: not 512, which the lines have otherwise."""
    path = unpadded(tmp_path / "own.onnx", 84, levels=3)
    proto = onnx.load(path)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ContractError, match=r"tile = \[516, 516\][^\n]*\nmargin = \[44, 44\]"):
        tried(raster("in/a.tif", scene(9, 9)), tmp_path / "m.onnx")


def test_tune_takes_tiles_that_fit(tmp_path):
    """Half and twice the tile, by whole strides; a choice is shown as the tile of a run."""
    model = unpadded(tmp_path / "m.onnx", 84)
    settings = TuneSettings(model=model, device="cpu")
    (network,) = open_networks(settings)
    found = {candidate.tiling.input for candidate in candidates([network], settings)}
    assert found == {(84, 84), (128, 128), (60, 60)}
    assert reference_tiling(network, (100, 43)).input == (140, 84)
    asked = TuneSettings(model=model, device="cpu", tiles=(100,), overlaps=(0,))
    assert {candidate.tiling.input for candidate in candidates([network], asked)} == {(84, 84), (100, 100)}


def test_tune_compares_where_no_pixel_is_mirrored():
    """A margin that is wider than half a tile reaches over the ends of a sample: whole steps more are left out."""
    tiling = Tiling((16,), (0,), (4,), "gaussian", margin=(20,))
    assert extent(tiling, (32,)) == (16 + 2 * 16 + 2 * 16,)
    found = sample(TunePlace(Window((0,), (80,)), (False,)), tiling, (32,))
    assert (found.laid, found.counted) == (Window((0,), (80,)), Window((24,), (56,)))

"""Volumes through all stages between source and sink, from memory: labels against float64 sums by brute force."""

import itertools
from contextlib import closing

import numpy as np
import onnx
import onnxruntime
import pytest
from networks import Network, contract, positional, volumetric
from test_oracle import BLENDS, profile, starts

from segpipe.formats.case import Case
from segpipe.network.read import read_spec
from segpipe.overrides import AS_STORED
from segpipe.pipeline import opening
from segpipe.pipeline.infer import load_model
from segpipe.pipeline.model_check import try_out
from segpipe.pipeline.read import Reading
from segpipe.pipeline.run import segmented
from segpipe.settings import load_settings
from segpipe.tune.places import BoxSource

SHAPE = (21, 30, 17)


@pytest.fixture
def volume():
    """Voxels ``(1, planes, rows, cols)`` of 8 bits; some are invalid, among them a whole tile."""
    pixels = np.random.default_rng(3).integers(1, 256, (1, *SHAPE), dtype=np.uint8)
    pixels[0, :, :16, :9] = 0
    pixels[0, 20, 29, :] = 0
    return pixels


@pytest.fixture
def labels(monkeypatch, tmp_path):
    """Run the pipeline on an array in memory: labels ``(bands, *shape)`` and confidence, each voxel written once."""

    def run(model, pixels, part=None, device="cpu", **settings):
        case = Case("volume", str(tmp_path / "volume"))
        (tmp_path / "volume").write_bytes(b"")
        monkeypatch.setattr(opening, "open_case", lambda *_: BoxSource(pixels, (pixels == 0).all(axis=0)))
        flags = {"input": (case.path,), "model": model, "device": device, **settings}
        spec = try_out(read_spec(load_settings(None, flags)))
        reading = Reading(spec, AS_STORED, part=part, allow_unusual=True)
        found, likely, seen = [np.zeros(pixels.shape[1:], np.uint8) for _ in range(3)]
        with closing(segmented([case], reading, load_model(spec), 1, confidence=True)) as cases:
            for _, boxes in cases:
                for box in boxes:
                    where = tuple(slice(a, b) for a, b in zip(box.window.start, box.window.stop, strict=True))
                    found[where], likely[where] = box.labels[0], box.confidence[0]
                    seen[where] += 1
        return found, likely, seen

    return run


def mean_score(sessions, given, flips):
    """Mean scores ``(classes, *tile)`` in float64 of one tile ``(channels, *tile)``, turned over along axes of the tile."""
    found = []
    for session, axes in itertools.product(sessions, flips):
        turned = np.flip(given, [axis + 1 for axis in axes])[None]
        found.append(np.flip(session.run(None, {"image": turned})[0][0].astype(float), [axis + 1 for axis in axes]))
    return np.mean(found, axis=0)


def brute_force(model, pixels, tile, overlap, align, blend, flips=((),)):
    """Mean scores ``(classes, *shape)`` in float64, every window inferred alone; the network's tile may lack an axis.

    ``model`` may be several, and every window is turned over along the network's axes in ``flips``: the mean of all.
    """
    models = model if isinstance(model, list) else [model]
    sessions = [onnxruntime.InferenceSession(str(one), providers=["CPUExecutionProvider"]) for one in models]
    shape = pixels.shape[1:]
    grid = [starts(*axis) for axis in zip(shape, tile, overlap, align, strict=True)]
    padding = [(0, axis[-1] + t - n) for axis, t, n in zip(grid, tile, shape, strict=True)]
    x = np.pad((pixels / 255).astype(np.float32), [(0, 0), *padding], mode="reflect")
    sums = total = 0
    for index in itertools.product(*map(range, map(len, grid))):
        weights, place = np.ones(()), []
        for axis, k, t in zip(grid, index, tile, strict=True):
            left = axis[k - 1] + t - axis[k] if k else 0
            right = axis[k] + t - axis[k + 1] if k + 1 < len(axis) else 0
            weights = weights[..., None] * profile(blend, t, left, right)
            place.append(slice(axis[k], axis[k] + t))
        given = x[(slice(None), *place)]
        scores = mean_score(sessions, given.reshape(len(x), *sessions[0].get_inputs()[0].shape[2:]), flips)
        if not np.ndim(total):
            sums, total = np.zeros((len(scores), *x.shape[1:])), np.zeros(x.shape[1:])
        sums[(slice(None), *place)] += scores.reshape(-1, *tile) * weights
        total[tuple(place)] += weights
    return (sums / np.maximum(total, 1e-300))[(slice(None), *map(slice, shape))]


def check(found, pixels, mean):
    """Labels and confidence of all voxels whose best two scores are not all but equal."""
    labels, likely, seen = found
    valid, ordered = (pixels != 0).any(axis=0), np.sort(mean, axis=0)
    clear = valid & (ordered[-1] - ordered[-2] > 1e-4)
    assert (seen == 1).all()
    assert clear.sum() > 0.95 * valid.sum()
    np.testing.assert_array_equal(labels[clear], mean.argmax(axis=0)[clear])
    assert (labels[~valid] == 255).all()
    softmax = np.exp(mean - mean.max(axis=0)).max(axis=0) / np.exp(mean - mean.max(axis=0)).sum(axis=0)
    assert np.abs(likely[clear] - 254 * softmax[clear]).max() < 0.6


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize(("batch", "align"), [(1, (1, 1, 1)), (3, (2, 4, 2))])
def test_a_network_of_volumes_equals_brute_force(blend, batch, align, volume, labels, tmp_path):
    tile, overlap = (8, 12, 10), (2, 4, 3)
    model = volumetric(tmp_path / "m.onnx", tile, overlap=list(overlap), align=list(align))
    check(labels(model, volume, blend=blend, batch=batch), volume, brute_force(model, volume, tile, overlap, align, blend))


@pytest.mark.parametrize("shape", [(1, 30, 17), (21, 1, 1), (3, 5, 7)])
def test_thin_and_small_volumes(shape, labels, tmp_path):
    """Smaller than a tile along some axis: mirrored there."""
    pixels = np.random.default_rng(4).integers(1, 256, (1, *shape), dtype=np.uint8)
    tile, overlap = (8, 12, 10), (2, 4, 3)
    model = volumetric(tmp_path / "m.onnx", tile, overlap=list(overlap))
    check(labels(model, pixels), pixels, brute_force(model, pixels, tile, overlap, (1, 1, 1), "gaussian"))


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("batch", [1, 4])
def test_a_network_of_images_takes_a_volume_slice_by_slice(blend, batch, volume, labels, tmp_path):
    model = positional(tmp_path / "m.onnx", 12, 1, overlap=[4, 4])
    mean = brute_force(model, volume, (1, 12, 12), (0, 4, 4), (1, 1, 1), blend)
    check(labels(model, volume, blend=blend, batch=batch), volume, mean)


@pytest.mark.parametrize(("layout", "perm"), [("NHWC", (0, 3, 1, 2)), ("NDHWC", (0, 4, 1, 2, 3))])
def test_channels_last(layout, perm, volume, labels, tmp_path):
    ndim = len(layout) - 2
    back = (0, *range(2, ndim + 2), 1)
    net = Network(1, ndim=ndim).add("Transpose", perm=perm).conv(1, 3, 3).add("Transpose", perm=back)
    size = [12] * ndim
    model = net.save(tmp_path / "m.onnx", contract(1, 3, layout=layout, tile=size, overlap=[4] * ndim), classes=3)
    proto = onnx.load(model)
    for value, count in ((proto.graph.input[0], 1), (proto.graph.output[0], 3)):
        del value.type.tensor_type.shape.dim[:]
        for n in ("n", *size, count):
            setattr(value.type.tensor_type.shape.dim.add(), "dim_param" if n == "n" else "dim_value", n)
    onnx.save(proto, model)
    first = Network(1, ndim=ndim).conv(1, 3, 3).save(tmp_path / "first.onnx", None, classes=3, shape=("n", *size))
    tile = (1,) * (3 - ndim) + tuple(size)
    mean = brute_force(first, volume, tile, tuple(4 * (t > 1) for t in tile), (1, 1, 1), "gaussian")
    check(labels(model, volume), volume, mean)


def test_scores_of_half_the_size_are_enlarged_along_three_axes(labels, tmp_path):
    """Half-pixel centres, as torch's ``interpolate(mode="trilinear", align_corners=False)``."""
    import torch

    pixels = np.random.default_rng(6).integers(1, 256, (1, 16, 12, 8), dtype=np.uint8)
    net = Network(1, ndim=3).add("AveragePool", kernel_shape=[2] * 3, strides=[2] * 3).conv(1, 3, 1)
    keys = {"layout": "NCDHW", "tile": [16, 12, 8], "overlap": [0, 0, 0]}
    model = net.save(
        tmp_path / "m.onnx", contract(1, 3, **keys), classes=3, shape=("n", 16, 12, 8), out_shape=("n", 3, 8, 6, 4)
    )
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (small,) = session.run(None, {"image": (pixels / 255).astype(np.float32)[None]})
    mean = torch.nn.functional.interpolate(torch.tensor(small), scale_factor=2, mode="trilinear", align_corners=False)
    check(labels(model, pixels), pixels, mean[0].numpy())


@pytest.mark.parametrize(("device", "batch"), [("cpu-tensors", 1), ("cpu-tensors", 4)])
@pytest.mark.parametrize("ndim", [2, 3])
def test_on_a_device_volumes_have_the_labels_of_the_cpu(ndim, device, batch, volume, labels, tmp_path):
    if ndim == 2:
        model = positional(tmp_path / "m.onnx", 12, 1, overlap=[4, 4])
    else:
        model = volumetric(tmp_path / "m.onnx", (8, 12, 10), overlap=[2, 4, 3])
    host, _, _ = labels(model, volume)
    there, _, seen = labels(model, volume, device=device, batch=batch)
    np.testing.assert_array_equal(there, host)
    assert (seen == 1).all()


@pytest.mark.parametrize("normalize", ["zscore", "minmax"])
def test_statistics_are_those_of_the_volumes_valid_voxels(normalize, labels, tmp_path):
    """More than a block along each axis."""
    rng = np.random.default_rng(2)
    pixels = rng.integers(1, 60_000, (1, 140, 150, 130)).astype(np.uint16)
    pixels[:, 20:40] = 0
    valid = pixels[pixels != 0].astype(float)
    center, spread = (valid.mean(), valid.std()) if normalize == "zscore" else (valid.min(), np.ptp(valid))
    sides = {"layout": "NCDHW", "tile": [70, 75, 130], "overlap": [0, 0, 0]}
    values = contract(1, 3, scale=1.0, normalize=normalize, **sides)
    model = Network(1, ndim=3).conv(1, 3, 1).save(tmp_path / "m.onnx", values, classes=3, shape=("n", "d", "h", "w"))
    w, b = (onnx.numpy_helper.to_array(t).astype(float) for t in onnx.load(model).graph.initializer)
    mean = w.reshape(3, 1, 1, 1) * ((pixels - center) / spread) + b.reshape(3, 1, 1, 1)
    check(labels(model, pixels), pixels, mean)

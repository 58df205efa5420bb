"""Averaging over flips and models: scores against float64 sums by brute force and torch; what a tile alone gives stays."""

import itertools

import numpy as np
import onnxruntime
import pytest
from networks import Network, contract, pixelwise, positional, volumetric
from test_oracle import starts
from test_volume_stages import brute_force

import segpipe
from segpipe.network.averaging import AS_IT_IS, flips_over, mean_scores

FLIPS = {2: [(), (0,), (1,), (0, 1)], 3: [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]}
RNG = np.random.default_rng(5)


def test_flips_are_all_sets_of_the_axes():
    assert [list(flips_over(range(n))) for n in (2, 3)] == [FLIPS[2], FLIPS[3]]
    assert flips_over([1]) == ((), (1,))


def uneven(number, ramp, xp=np):
    """A network whose scores depend on the place."""
    return lambda tiles: xp.stack([tiles[:, 0] * (number + 1) + ramp, tiles[:, 1] - ramp * number], 1)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("count", [1, 3])
def test_the_mean_is_that_of_float64_and_torch_has_its_bytes(ndim, count):
    torch = pytest.importorskip("torch")
    shape = (5, 7, 6)[:ndim]
    tiles = RNG.normal(size=(4, 2, *shape)).astype(np.float32)
    ramp = RNG.normal(size=shape).astype(np.float32)
    found = mean_scores([uneven(k, ramp) for k in range(count)], tiles, FLIPS[ndim], np)
    exact = 0
    for number, axes in itertools.product(range(count), FLIPS[ndim]):
        turned = [axis + 2 for axis in axes]
        exact += np.flip(uneven(number, ramp.astype(float))(np.flip(tiles.astype(float), turned)), turned)
    np.testing.assert_allclose(found, exact / count / len(FLIPS[ndim]), rtol=0, atol=1e-6)
    networks = [uneven(k, torch.from_numpy(ramp), torch) for k in range(count)]
    assert mean_scores(networks, torch.from_numpy(tiles), FLIPS[ndim], torch).numpy().tobytes() == found.tobytes()
    alone = [mean_scores([uneven(k, ramp) for k in range(count)], tile[None], FLIPS[ndim], np) for tile in tiles]
    assert np.concatenate(alone).tobytes() == found.tobytes()


def test_one_network_and_no_flip_give_the_scores_as_they_are():
    scores = RNG.normal(size=(1, 2, 4, 4)).astype(np.float32)
    assert mean_scores([lambda _: scores], scores, AS_IT_IS, np) is scores


def quarter(path, seed=0, **changes):
    """Scores of a quarter of the size, which are interpolated, and axes with the channels last."""
    net = Network(3, seed).add("Transpose", perm=[0, 3, 1, 2]).conv(3, 4, 5)
    net.add("AveragePool", kernel_shape=[4, 4], strides=[4, 4]).add("Transpose", perm=[0, 2, 3, 1])
    net.channels = 64  # the axis that save() puts second: rows
    values = contract(3, 4, layout="NHWC", **changes)
    return net.save(path, values, classes=4, shape=("n", 64, 3), out_shape=("n", 16, 16, 4))


def image(path, seed, **changes):
    return positional(path, 32, changes.pop("channels", 3), seed=seed, overlap=[8, 8], **changes)


def volume(path, seed, **changes):
    return volumetric(path, (8, 12, 10), seed=seed, **changes)


IMAGE, VOLUME = ((3, 70, 93), (32, 32), (8, 8)), ((1, 13, 20, 17), (8, 12, 10), (2, 3, 2))
"""Shape, tile and overlap."""

CASES = {
    "image": (image, {}, IMAGE, FLIPS[2]),
    "volume": (volume, {}, VOLUME, FLIPS[3]),
    "slices": (image, {"channels": 1}, ((1, 3, 40, 50), (1, 32, 32), (0, 8, 8)), FLIPS[2]),
    "columns alone": (image, {"flips": ["x"]}, IMAGE, [(), (1,)]),
    "planes and columns": (volume, {"flips": [2, "z"]}, VOLUME, [(), (0,), (2,), (0, 2)]),
}


@pytest.mark.parametrize("device", ["cpu", "cpu-tensors"])
@pytest.mark.parametrize(("tta", "count", "batch"), [("flips", 1, 1), ("none", 3, 2), ("flips", 2, 3)])
@pytest.mark.parametrize("name", CASES)
def test_labels_equal_brute_force(name, tta, count, batch, device, tmp_path):
    build, changes, (shape, tile, overlap), flips = CASES[name]
    pixels = RNG.integers(1, 256, shape, dtype=np.uint8)
    files = [build(tmp_path / f"{k}.onnx", k, **changes) for k in range(count)]
    model = segpipe.load(files, tta=tta, batch=batch, device=device)
    found = model.predict(pixels, confidence=True)
    flips = flips if tta == "flips" else [()]
    mean = brute_force(files, pixels, tile, overlap, (1,) * len(tile), "gaussian", flips)
    ordered = np.sort(mean, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-4
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(found.array[clear], mean.argmax(axis=0)[clear])
    likely = np.exp(mean - mean.max(axis=0)).max(axis=0) / np.exp(mean - mean.max(axis=0)).sum(axis=0)
    assert np.abs(found.confidence - 254 * likely)[clear].max() < 0.6


@pytest.mark.parametrize("device", ["cpu", "cpu-tensors"])
def test_what_is_averaged_is_what_is_blended(device, tmp_path):
    """Logits, or with ``blend_on`` probabilities, whose mean has another winner."""
    builds = [Network(1, k).conv(1, 2, 1) for k in range(2)]
    files = [net.save(tmp_path / f"{k}.onnx", contract(1, 2), classes=2) for k, net in enumerate(builds)]
    pixels = RNG.integers(0, 256, (1, 60, 60), dtype=np.uint8)
    x = (pixels / 255).astype(np.float32)
    logits = [onnxruntime.InferenceSession(str(f)).run(None, {"image": x[None]})[0][0].astype(float) for f in files]
    likely = [np.exp(one) / np.exp(one).sum(axis=0) for one in logits]
    for blend_on, truth in (("logits", np.mean(logits, axis=0)), ("probabilities", np.mean(likely, axis=0))):
        found = segpipe.load(files, blend_on=blend_on, device=device).predict(pixels, confidence=True)
        np.testing.assert_array_equal(found.array, truth.argmax(axis=0))
        expected = (
            truth.max(axis=0) if blend_on == "probabilities" else (np.exp(truth) / np.exp(truth).sum(axis=0)).max(axis=0)
        )
        assert np.abs(found.confidence - 254 * expected).max() < 0.6


def test_scores_of_a_coarse_network_with_channels_last_are_flipped_at_full_size(tmp_path):
    file, pixels = quarter(tmp_path / "m.onnx", overlap=[0, 0]), RNG.integers(1, 256, (3, 64, 64), dtype=np.uint8)
    found = segpipe.load(file, tta="flips", device="cpu").predict(pixels)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    torch = pytest.importorskip("torch")
    total = np.zeros((4, 64, 64))
    for axes in FLIPS[2]:
        turned = np.flip((pixels / 255).astype(np.float32), [axis + 1 for axis in axes]).transpose(1, 2, 0)
        (coarse,) = session.run(None, {"image": turned[None]})
        fine = torch.nn.functional.interpolate(
            torch.from_numpy(coarse.transpose(0, 3, 1, 2)), scale_factor=4, mode="bilinear"
        )
        total += np.flip(fine[0].numpy().astype(float), [axis + 1 for axis in axes])
    ordered = np.sort(total, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-3
    np.testing.assert_array_equal(found.array[clear], total.argmax(axis=0)[clear])


@pytest.mark.parametrize("device", ["cpu", "cpu-tensors"])
def test_a_network_that_sees_no_neighbours_gives_the_same_labels_with_flips(device, tmp_path):
    file, pixels = pixelwise(tmp_path / "m.onnx"), RNG.integers(0, 256, (3, 90, 70), dtype=np.uint8)
    plain, flipped = (
        segpipe.load(file, tta=tta, device=device).predict(pixels, confidence=True) for tta in ("none", "flips")
    )
    np.testing.assert_array_equal(flipped.array, plain.array)
    assert np.abs(flipped.confidence.astype(int) - plain.confidence).max() <= 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_scores_are_those_of_monai_given_the_same_windows(tmp_path):
    """Sizes are such that both start windows at the same places; MONAI's predictor is the mean over flips and folds."""
    import torch
    from monai.inferers import sliding_window_inference

    tile = (8, 12, 10)
    shape = tuple(t + 2 * (t // 2) for t in tile)
    assert all(len(starts(n, t, t // 2, 1)) == 3 for n, t in zip(shape, tile, strict=True))
    files = [volumetric(tmp_path / f"{k}.onnx", tile, seed=k, overlap=[t // 2 for t in tile]) for k in range(2)]
    sessions = [onnxruntime.InferenceSession(str(f), providers=["CPUExecutionProvider"]) for f in files]

    def predictor(x):
        """As nnU-Net does it."""
        total = 0
        for session, axes in itertools.product(sessions, FLIPS[3]):
            turned = [axis + 2 for axis in axes]
            scores = torch.from_numpy(session.run(None, {"image": torch.flip(x, turned).numpy()})[0])
            total = total + torch.flip(scores, turned)
        return total / 16

    pixels = RNG.integers(1, 256, (1, *shape), dtype=np.uint8)
    x = torch.from_numpy((pixels / 255).astype(np.float32))[None]
    mean = sliding_window_inference(x, tile, 1, predictor, overlap=0.5, mode="constant")[0].numpy()
    found = segpipe.load(files, tta="flips", blend="constant", device="cpu").predict(pixels)
    ordered = np.sort(mean, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-4
    np.testing.assert_array_equal(found.array[clear], mean.argmax(axis=0)[clear])


@pytest.mark.parametrize("fixed", [False, True])
def test_several_networks_on_a_device_go_on_with_half_the_batch(fixed, tmp_path):
    from segpipe.network.read import read_spec
    from segpipe.pipeline.infer_gpu import DeviceModel
    from segpipe.pipeline.tiles import Patch
    from segpipe.settings import load_settings

    shapes = [("n", 32, 32), (4 if fixed else "n", 32, 32)]
    nets = [Network(1, k).conv(1, 3, 3) for k in range(2)]
    values = contract(1, 3, tile=[32, 32], overlap=[8, 8])
    pairs = enumerate(zip(nets, shapes, strict=True))
    files = [net.save(tmp_path / f"{k}.onnx", values, classes=3, shape=shape) for k, (net, shape) in pairs]
    flags = {"input": ("x",), "model": files, "tta": "flips", "device": "cpu-tensors"}
    model = DeviceModel(read_spec(load_settings(None, flags | ({} if fixed else {"batch": 4}))))
    patches = [Patch(RNG.normal(size=(1, 32, 32)).astype(np.float32)) for _ in range(2)]

    def scores():
        with model.arrays.here():
            return model.score(patches)[0].numpy().tobytes()

    before = scores()
    assert model.shrink() is not fixed
    assert model.spec.batch == (4 if fixed else 2)
    assert scores() == before

"""Noise for trials: seeded, structured, and in the range of values that a contract makes of pixels."""

import numpy as np
import pytest
from networks import Network, contract
from onnx import TensorProto

from segpipe.network.noise import GRAIN, limits, loud_tiles, noise_tiles
from segpipe.network.read import read_spec
from segpipe.settings import load_settings


def spec_of(tmp_path, dtype=TensorProto.FLOAT, **changes):
    net = Network(2)
    if dtype != TensorProto.FLOAT:
        net.add("Cast", to=TensorProto.FLOAT)
    model = net.conv(2, 3, 1).save(tmp_path / "m.onnx", contract(2, 3, **changes), classes=3, dtype=dtype)
    return read_spec(load_settings(None, {"input": ("a.tif",), "model": model, "device": "cpu"}))


FIXED = {"normalize": "fixed", "mean": [0.4, 0.2], "std": [0.2, 0.1]}


def test_the_same_seed_gives_the_same_tiles_and_another_others(tmp_path):
    spec = spec_of(tmp_path, **FIXED)
    tiles = noise_tiles(spec, 2)
    assert (tiles.shape, tiles.dtype) == ((2, 2, 64, 64), np.float32)
    np.testing.assert_array_equal(tiles, noise_tiles(spec, 2))
    assert (tiles != noise_tiles(spec, 2, seed=1)).mean() > 0.99


def test_neighbours_are_alike_within_a_patch(tmp_path):
    tiles = noise_tiles(spec_of(tmp_path, **FIXED), 8)
    near, far = (np.corrcoef(tiles[..., :1].ravel(), tiles[..., n : n + 1].ravel())[0, 1] for n in (1, GRAIN))
    assert near > 0.9
    assert abs(far) < 0.5


@pytest.mark.parametrize("normalize", ["fixed", "none", "minmax", "zscore"])
def test_values_are_those_of_scaled_pixels(normalize, tmp_path):
    tiles = noise_tiles(spec_of(tmp_path, **(FIXED if normalize == "fixed" else {"normalize": normalize})), 8)
    if normalize in ("fixed", "zscore"):
        assert abs(tiles.mean()) < 0.3
        assert 0.8 < tiles.std() < 1.3
    else:
        assert (tiles.min() >= 0, tiles.max() <= 1) == (True, True)


def test_a_model_that_scales_gets_what_it_scales_to_that(tmp_path):
    changes = {"scaling": "graph", "scale": 1 / 255, **FIXED}
    stored, scaled = noise_tiles(spec_of(tmp_path, **changes), 2), noise_tiles(spec_of(tmp_path, **FIXED), 2)
    mean, std = (np.array(FIXED[key], np.float32)[:, None, None] for key in ("mean", "std"))
    np.testing.assert_allclose((stored / 255 - mean) / std, scaled, atol=1e-4)


@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16])
def test_integers_stay_within_their_type_and_use_it(kind, tmp_path):
    spec = spec_of(tmp_path, kind, scaling="graph", scale=1.0, normalize="none")
    low, high = limits(np.dtype(spec.input_dtype))
    loud = loud_tiles(spec, 2).astype(np.int64)
    assert (loud.min(), loud.max()) == (low, high)
    calm = noise_tiles(spec, 2).astype(np.int64)
    assert (calm.min() >= low, calm.max() <= high, np.ptp(calm) > 100) == (True, True, True)


def test_loud_floats_are_far_beyond(tmp_path):
    spec = spec_of(tmp_path, **FIXED)
    assert np.abs(loud_tiles(spec, 2)).max() > 10 * np.abs(noise_tiles(spec, 2)).max()


def test_wide_integers_hold_pixels_of_16_bits():
    assert limits(np.dtype(np.int64)) == limits(np.dtype(np.int32)) == (0, 65535)
    assert limits(np.dtype(np.int8)) == (-128, 127)

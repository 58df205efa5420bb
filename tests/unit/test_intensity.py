"""Scaling by a case's own statistics, against float64 brute force and the formulas that networks are trained with."""

import hashlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import volumes
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from segpipe.contract import Contract, parse_contract
from segpipe.errors import ContractError, SourceError
from segpipe.formats.case_scaling import scaling_of
from segpipe.formats.nifti.source import NiftiSource
from segpipe.geometry.windows import Window
from segpipe.network.intensity import Coarse, Extent, Moments
from segpipe.network.scaling import Scaling, case_scaling, fixed_scaling

LAYOUT = {"layout": "NCDHW", "tile": [16], "overlap": [4], "scale": 1.0}
Oracle = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def contract(channels: Any = 1, **changes: Any) -> Contract:
    return parse_contract(networks.contract(channels, 3, **{**LAYOUT, **changes}), "a test")


def scaled_file(path: Path, own: Contract) -> NDArray[np.float32]:
    """All voxels of a file as the network gets them, planes first."""
    source = NiftiSource(str(path), own)
    pixels, invalid = source.read(Window((0, 0, 0), source.grid.shape))
    scaling = scaling_of(source, own)
    source.close()
    return scaling(pixels, invalid)[0]


def nonzero(x: NDArray[np.float64], do: Oracle) -> NDArray[np.float64]:
    out = np.zeros_like(x)
    out[x != 0] = do(x[x != 0])
    return out


def zscore(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """nnU-Net's ZScoreNormalization, MONAI's NormalizeIntensity."""
    return (x - x.mean()) / max(x.std(), 1e-8)


def to_one(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """nnU-Net's RescaleTo01Normalization, MONAI's ScaleIntensity(0, 1)."""
    return (x - x.min()) / max(x.max() - x.min(), 1e-8)


def ct(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """nnU-Net's CTNormalization, with the intensity properties of a plan."""
    properties = {"percentile_00_5": -958.0, "percentile_99_5": 327.0, "mean": 82.92, "std": 136.61}
    x = np.clip(x, properties["percentile_00_5"], properties["percentile_99_5"])
    return (x - properties["mean"]) / max(properties["std"], 1e-8)


def range_of_percentiles(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """MONAI's ScaleIntensityRangePercentiles(1, 99, 0, 1, clip=True)."""
    low, high = np.percentile(x, (1, 99))
    return np.clip((x - low) / (high - low), 0, 1)


def window(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """MONAI's ScaleIntensityRange(-160, 240, 0, 1, clip=True): centre 40, width 400."""
    return np.clip((x + 160) / 400, 0, 1)


ORACLES: dict[str, tuple[dict[str, Any], Oracle]] = {
    "z-score": ({"normalize": "zscore"}, zscore),
    "z-score of non-zero voxels": (
        {"normalize": "zscore", "statistics_over": "nonzero"},
        lambda x: nonzero(x, zscore),
    ),
    "0 to 1": ({"normalize": "minmax"}, to_one),
    "0 to 1 of non-zero voxels": ({"normalize": "minmax", "statistics_over": "nonzero"}, lambda x: nonzero(x, to_one)),
    "CT": ({"normalize": "fixed", "clip": [-958, 327], "mean": 82.92, "std": 136.61}, ct),
    "percentiles to 0 to 1": ({"normalize": "minmax", "clip_percentiles": [1, 99]}, range_of_percentiles),
    "percentiles, then z-score": (
        {"normalize": "zscore", "clip_percentiles": [0.5, 99.5]},
        lambda x: zscore(np.clip(x, *np.percentile(x, (0.5, 99.5)))),
    ),
    "percentiles of non-zero voxels, then z-score": (
        {"normalize": "zscore", "clip_percentiles": [0.5, 99.5], "statistics_over": "nonzero"},
        lambda x: nonzero(x, lambda v: zscore(np.clip(v, *np.percentile(v, (0.5, 99.5))))),
    ),
    "range of percentiles, not cut off, and an epsilon": (
        {"normalize": "minmax", "range_percentiles": [1, 99.8], "epsilon": 0.5},
        lambda x: (x - np.percentile(x, 1)) / (np.percentile(x, 99.8) - np.percentile(x, 1) + 0.5),
    ),
    "z-score with an epsilon": ({"normalize": "zscore", "epsilon": 0.5}, lambda x: (x - x.mean()) / (x.std() + 0.5)),
    "percentiles, then a factor": (
        {"normalize": "fixed", "clip_percentiles": [2, 98], "mean": 10, "std": 250},
        lambda x: (np.clip(x, *np.percentile(x, (2, 98))) - 10) / 250,
    ),
    "percentiles alone": (
        {"normalize": "none", "clip_percentiles": [2, 98]},
        lambda x: np.clip(x, *np.percentile(x, (2, 98))),
    ),
    "window": ({"normalize": "none", "scale": 1 / 400, "offset": 0.4, "window": [0.5, 1]}, window),
    "window, then 0 to 1": ({"normalize": "fixed", "window": [40, 400], "mean": -160, "std": 400}, window),
}


@pytest.mark.parametrize("slope", [(1.0, 0.0), (0.5, -100.0)], ids=["plain", "slope"])
@pytest.mark.parametrize("dtype", ["i2", "f4", "i4"])
@pytest.mark.parametrize("rule", ORACLES)
def test_rules_of_intensity(tmp_path: Path, rule: str, dtype: str, slope: tuple[float, float]) -> None:
    keys, oracle = ORACLES[rule]
    data = volumes.voxels((31, 27, 29), dtype)
    data[:9] = round(-slope[1] / slope[0])  # air of value 0
    path = volumes.write(tmp_path / "a.nii", data, scl_slope=slope[0], scl_inter=slope[1])
    expected = oracle(data.astype(np.float64) * slope[0] + slope[1]).T
    found = scaled_file(path, contract(pixel="physical", **keys))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
    if "nonzero" in str(keys):
        assert (found[:, :, :9] == 0).all()


def test_statistics_over_blocks_of_a_large_volume(tmp_path: Path) -> None:
    """Several blocks of ``STATISTICS_BLOCK``, and voxels that are not valid."""
    data = volumes.voxels((140, 131, 10), "f4")
    data[:40], data[100:, 5] = 0, np.nan
    path, seen = volumes.write(tmp_path / "a.nii", data), data[np.isfinite(data)].astype(np.float64)
    low, high = np.percentile(seen[seen != 0], (0.5, 99.5))
    clipped = np.clip(seen[seen != 0], low, high)
    expected = np.where(data == 0, 0, (np.clip(data, low, high) - clipped.mean()) / clipped.std())
    found = scaled_file(path, contract(normalize="zscore", clip_percentiles=[0.5, 99.5], statistics_over="nonzero"))
    np.testing.assert_allclose(found, np.nan_to_num(expected).T, rtol=1e-5, atol=1e-5)


FLOATS = st.lists(
    st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=np.float32(-1e30), max_value=np.float32(1e30)),
    min_size=1,
    max_size=60,
)


@given(FLOATS, st.lists(st.floats(0, 100), min_size=1, max_size=4), st.integers(1, 7))
def test_percentiles_are_those_of_numpy_whatever_the_blocks(values: list[float], wanted: list[float], size: int) -> None:
    pixels = np.array(values, np.float32)
    blocks = [pixels[k : k + size] for k in range(0, len(pixels), size)]
    coarse = Coarse()
    for block in blocks[::-1]:
        coarse.add(block)
    fine = coarse.finer(wanted)
    for block in blocks:
        fine.add(block)
    expected = np.percentile(pixels.astype(np.float64), wanted)
    np.testing.assert_allclose(fine.values(), expected, rtol=1e-9, atol=1e-9 * np.abs(pixels).max(initial=1e-30))
    assert len(coarse) == len(values)


def test_the_order_of_floats_is_that_of_their_keys() -> None:
    from segpipe.network.intensity import _keys, _value

    values = np.array([-np.inf, -1e30, -1.5, -1e-40, -0.0, 0.0, 1e-40, 0.1, 2, 1e30, np.inf], np.float32)
    keys = [int(key) for some in _keys(values) for key in some]
    assert all(a < b for a, b in pairwise(keys))
    assert [_value(key) for key in keys] == values.tolist()


@pytest.mark.parametrize("kind", [Moments, Extent])
def test_no_pixels_have_no_statistics(kind: type[Moments] | type[Extent]) -> None:
    sums = kind()
    sums.add(np.empty((2, 0), np.float32))
    assert sums.center_and_spread() is None


def blocks_of(pixels: NDArray[Any]) -> Callable[[Scaling], Iterator[NDArray[np.float32]]]:
    return lambda scaling: (scaling(part, None) for part in np.array_split(pixels, 3, axis=1))


def test_each_channel_has_its_own_rule() -> None:
    """CT and PET, as in nnU-Net's plans: fixed statistics for one, those of the case for the others."""
    own = contract(
        ["CT", "PET", "b", "c"],
        normalize=["fixed", "zscore", "minmax", "none"],
        clip=[[-100, 200], [0, 50], [-1e9, 1e9], [-1, 1]],
        mean=[50, 0, 0, 0],
        std=[100, 1, 1, 1],
    )
    pixels = np.random.default_rng(1).normal(20, 90, (4, 3000)).astype(np.float32)
    found = case_scaling(own, fixed_scaling(own, None), blocks_of(pixels))(pixels, None)
    x = pixels.astype(np.float64)
    expected = [(np.clip(x[0], -100, 200) - 50) / 100, zscore(np.clip(x[1], 0, 50)), to_one(x[2]), np.clip(x[3], -1, 1)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    for channel, name in enumerate(["CT", "PET", "b", "c"]):
        alone = own.of_channels((channel,))
        assert (alone.channels, alone.channel_count, alone.normalizations) == ([name], 1, [own.normalizations[channel]])
        assert alone.limits == ([own.limits[0][channel]], [own.limits[1][channel]])  # type: ignore[index]
    assert own.fixed == ([50, 0, 0, 0], [100, 1, 1, 1])


def test_a_channel_without_signal_is_0() -> None:
    own = contract(2, normalize="zscore", statistics_over="nonzero", clip_percentiles=[1, 99])
    pixels = np.stack([np.zeros(500), np.arange(500)]).astype(np.float32)
    scaling = Scaling(np.ones(2), np.zeros(2), blank=np.zeros(2))

    def blocks(scale: Scaling) -> Iterator[list[NDArray[np.float32]]]:
        yield [channel[stored != 0][None] for channel, stored in zip(scale(pixels, None), pixels, strict=True)]

    found = case_scaling(own, scaling, blocks)(pixels, None)
    assert not found[0].any()
    seen = np.clip(pixels[1, 1:].astype(np.float64), *np.percentile(pixels[1, 1:], (1, 99)))
    np.testing.assert_allclose(found[1, 1:], zscore(seen), rtol=1e-5, atol=1e-5)
    assert found[1, 0] == 0


def test_no_voxel_is_blank_if_none_can_have_the_value_0(tmp_path: Path) -> None:
    """0 lies between two stored integers."""
    data = volumes.voxels((9, 8, 7))
    path = volumes.write(tmp_path / "a.nii", data, scl_slope=1, scl_inter=0.5)
    own = contract(pixel="physical", normalize="zscore", statistics_over="nonzero")
    np.testing.assert_allclose(scaled_file(path, own), zscore(data + 0.5).T, rtol=1e-5, atol=1e-5)


def test_stored_zeros_are_not_zeros_of_the_values(tmp_path: Path) -> None:
    own = contract(normalize="zscore", statistics_over="nonzero")
    NiftiSource(str(volumes.write(tmp_path / "a.nii", volumes.voxels(), scl_slope=2, scl_inter=0)), own).close()
    shifted = volumes.write(tmp_path / "b.nii", volumes.voxels(), scl_slope=2, scl_inter=-1024)
    with pytest.raises(SourceError, match='set pixel = "physical" in the contract'):
        NiftiSource(str(shifted), own)


def test_a_device_scales_as_the_host_does() -> None:
    torch = pytest.importorskip("torch")
    from segpipe.network.device_arrays import DeviceArrays, DeviceStreams, scaled

    arrays = DeviceArrays(DeviceStreams("cpu"), 0)
    for dtype in (np.int16, np.int32, np.float32):
        pixels = np.random.default_rng(2).integers(-3, 4, (2, 5, 6)).astype(dtype)
        scaling = Scaling(np.full(2, 0.3), np.full(2, 0.1), np.full(2, -0.5), np.full(2, 0.7), blank=np.array([0.0, np.nan]))
        found = scaled(torch.tensor(pixels)[None], scaling, None, arrays)
        assert found.numpy()[0].tobytes() == scaling(pixels, None).tobytes()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "two limits": ({"clip": [0, 1], "window": [0, 1]}, "one of clip, window and clip_percentiles .* clip and window"),
    "width": ({"window": [40, 0]}, r"window must be \[centre, width\] with a width above 0, got \[40.0, 0.0\]"),
    "no width": ({"window": [1e20, 1]}, r"width that floats can add to the centre, got \[1e\+20, 1.0\]: both limits"),
    "clip": ({"clip": [[0, 1], [1, 0]], "channels": 2}, r"clip must be \[low, high\]"),
    "length": ({"clip": [[0, 1]], "channels": 2}, "clip must be one pair or one per channel, got 1 for 2 channels"),
    "words": ({"normalize": ["none"], "channels": 2}, "normalize must be one word or one per channel, got 1 for 2"),
    "percentiles": ({"clip_percentiles": [99, 1]}, r"clip_percentiles must be \[low, high\] from 0 to 100"),
    "range": (
        {"range_percentiles": [1, 99]},
        'range_percentiles is for normalize = "minmax", got normalize = "none": leave',
    ),
    "range ends": ({"normalize": "minmax", "range_percentiles": [99, 1]}, r"range_percentiles must be \[low, high\] from 0"),
    "two ranges": (
        {"normalize": "minmax", "range_percentiles": [1, 99], "clip_percentiles": [1, 99]},
        "one of clip_percentiles, which cuts pixels off, and range_percentiles, .* leave one out",
    ),
    "epsilon": ({"epsilon": 1e-6}, 'statistics_of and epsilon are for .* got normalize = "none": leave them out'),
    "together": (
        {"channels": 2, "normalize": ["zscore", "minmax"], "statistics_of": "case"},
        'statistics_of = "case" needs one normalize for all channels, got "zscore, minmax": name one',
    ),
    "over": ({"statistics_over": "nonzero"}, 'statistics_over = "nonzero" is for statistics of each case'),
    "inside": (
        {"scaling": "graph", "clip_percentiles": [1, 99]},
        'clip_percentiles and statistics_over need statistics of the case: leave them out, or set scaling = "host"',
    ),
    "neighbours": ({"neighbours": 1}, "neighbours is for a network of images"),
    "mean": ({"normalize": ["zscore", "none"], "channels": 2, "mean": 1, "std": 1}, "mean and std are used by"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_rules_that_contradict_each_other(name: str) -> None:
    keys, message = REFUSED[name]
    with pytest.raises(ContractError, match=message):
        contract(**keys)


TOGETHER: dict[str, tuple[dict[str, Any], Oracle]] = {
    "zscore": ({"normalize": "zscore", "epsilon": 1e-6}, lambda x: (x - x.mean()) / (x.std() + 1e-6)),
    "minmax": ({"normalize": "minmax"}, lambda x: (x - x.min()) / (x.max() - x.min())),
    "range": (
        {"normalize": "minmax", "range_percentiles": [2, 98]},
        lambda x: (x - np.percentile(x, 2)) / (np.percentile(x, 98) - np.percentile(x, 2)),
    ),
    "clip": ({"normalize": "none", "clip_percentiles": [2, 98]}, lambda x: np.clip(x, *np.percentile(x, (2, 98)))),
}


@pytest.mark.parametrize("rule", TOGETHER)
def test_statistics_of_all_channels_together(rule: str) -> None:
    keys, oracle = TOGETHER[rule]
    own = contract(3, statistics_of="case", **keys)
    pixels = np.random.default_rng(0).normal([[5], [50], [500]], [[1], [2], [90]], (3, 4001)).astype(np.float32)
    parts = [pixels[:, :1000], pixels[:, 1000:]]
    scaling = case_scaling(own, fixed_scaling(own, None), lambda inner: (inner(part, None) for part in parts))
    np.testing.assert_allclose(scaling(pixels, None), oracle(pixels.astype(np.float64)), rtol=2e-5, atol=2e-5)
    apart = [[inner[None] for inner in part] for part in parts]  # channels that may differ in number of pixels
    again = case_scaling(own, fixed_scaling(own, None), lambda inner: iter(apart))
    np.testing.assert_allclose(again.gain, scaling.gain, rtol=1e-12)


HASHES = [
    (networks.contract(3, 3), "7dc73807116a903bb94754cd8fd739534c18a715005ac55cd41b0eddbc857f4b"),
    (
        networks.contract(
            ["a", "b"],
            2,
            normalize="fixed",
            mean=[1, 2],
            std=1,
            clip=[0, 1],
            spacing=[1.5, 1.5],
            provenance={"x": [1, None, 2.5]},
        ),
        "4e330730d44f2acf53954bc38e6842e333e96140257736902e35db54d71478a7",
    ),
    (
        networks.contract(
            1,
            2,
            layout="NCDHW",
            tile=[8, 8, 8],
            orientation="RAS",
            classes=[{"id": 0, "name": "ä"}, {"id": 1, "name": "b", "color": "#112233"}],
        ),
        "6fae5b0490939095b66500d3c690d54ba7cf7e8de617bf1072eff2bcf69bcc41",
    ),
]


@pytest.mark.parametrize(("values", "digest"), HASHES)
def test_contracts_without_later_keys_keep_their_hash(values: dict[str, Any], digest: str) -> None:
    """Hashes from before these keys were there: masks of such models still count as done."""
    written = parse_contract(values, "a test").model_dump_json()
    assert hashlib.sha256(written.encode()).hexdigest() == digest


def test_later_keys_that_are_set_change_the_hash() -> None:
    plain, other = contract(), contract(normalize="zscore", statistics_over="nonzero", clip_percentiles=[1, 99])
    assert {"statistics_over", "clip_percentiles"} <= other.model_dump().keys() - plain.model_dump().keys()
    assert parse_contract(other.model_dump(mode="json"), "a test") == other

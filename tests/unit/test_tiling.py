"""Tile, overlap and align: from the settings, else the contract, else the graph."""

import onnx
import pytest
from networks import Network, contract

from segpipe.contract import parse_contract
from segpipe.errors import ContractError, SettingsError
from segpipe.network.signature import signature
from segpipe.network.tiling import resolve_tiling
from segpipe.settings import load_settings


@pytest.fixture
def tiling(tmp_path):
    """Resolve it for a network, the keys of its contract and settings."""

    def resolve(shape=("n", "h", "w"), *, own=None, **flags):
        values = {key: value for key, value in contract(3, 3, **(own or {})).items() if value is not None}
        path = Network(3).conv(3, 3, 1).save(tmp_path / "m.onnx", values, classes=3, shape=shape)
        proto = onnx.load(path)
        settings = load_settings(None, {"input": ("in",), "model": path, "output": tmp_path / "out", **flags})
        return resolve_tiling(settings, parse_contract(values, "here"), signature(proto)[0][0], proto, path)

    return resolve


FREE, FIXED = ("n", "h", "w"), ("n", 96, 64)


@pytest.mark.parametrize(
    ("shape", "own", "flags", "tile", "overlap"),
    [
        (FREE, {"tile": [64, 80], "overlap": [8, 16]}, {}, (64, 80), (8, 16)),
        (FREE, {"tile": [64, 80], "overlap": [8, 16]}, {"tile": (128,)}, (128, 128), (8, 16)),
        (FREE, {"tile": [64, 80], "overlap": [8, 16]}, {"overlap": (4,)}, (64, 80), (4, 4)),
        (FREE, {"tile": [64, 80], "overlap": None}, {}, (64, 80), (16, 20)),
        (FREE, {"tile": [64, 80], "overlap": None, "margin": 4}, {}, (56, 72), (8, 12)),
        (FIXED, {"tile": None, "overlap": None}, {}, (96, 64), (24, 16)),
    ],
    ids=["contract", "tile asked for", "overlap asked for", "a quarter", "a quarter with a margin", "the graph's"],
)
def test_settings_come_before_the_contract_and_it_before_the_graph(shape, own, flags, tile, overlap, tiling):
    found = tiling(shape, own=own, **flags)
    assert (found.tile, found.overlap) == (tile, overlap)


@pytest.mark.parametrize(
    ("shape", "own", "flags", "error", "message"),
    [
        (FREE, {"tile": None, "overlap": None}, {}, ContractError, r"add tile = \[512, 512\], or give --tile"),
        (FIXED, {"tile": None, "overlap": None}, {"tile": (96,)}, ContractError, "got 96 x 96 .* give --tile 96,64"),
        (FREE, {}, {"overlap": (1, 2, 3)}, SettingsError, "overlap must have one number or 2, one per axis, got 1,2,3"),
        (
            FREE,
            {"tile": [16, 16], "overlap": None, "margin": 8},
            {},
            ContractError,
            "larger than twice the margin, got tile",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_the_mend(shape, own, flags, error, message, tiling):
    with pytest.raises(error, match=message):
        tiling(shape, own=own, **flags)

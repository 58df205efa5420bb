"""What a model gives in a trial is held against its contract: the whole tile, and scores that the activation is for."""

import numpy as np
import pytest
from networks import Network, contract

from segpipe.errors import ContractError, ModelError
from segpipe.network.outputs import check_output
from segpipe.network.read import read_spec
from segpipe.settings import load_settings


def spec_of(tmp_path, **changes):
    model = Network(3).conv(3, 3, 3).save(tmp_path / "m.onnx", contract(3, 3, **changes), classes=3)
    return read_spec(load_settings(None, {"input": ("a.tif",), "model": model, "device": "cpu"}))


def never(tiles):
    raise AssertionError("not called where the scores tell enough")


def test_logits_of_the_whole_tile_are_taken(tmp_path):
    scores = np.random.default_rng(0).normal(0, 4, (1, 3, 64, 64)).astype(np.float32)
    check_output(spec_of(tmp_path), scores, never)


def test_the_middle_of_a_tile_is_refused(tmp_path):
    """A stub that shows the middle half of what it is given, at every second pixel of the tile's size."""
    spec = spec_of(tmp_path)

    def middle(tiles):
        return np.asarray(tiles, np.float32)[:, :, 16:48, 16:48]

    scores = middle(np.random.default_rng(0).normal(0, 4, (1, 3, 64, 64)))
    with pytest.raises(ModelError, match="middle"):
        check_output(spec, scores, middle)


def test_probabilities_are_no_logits(tmp_path):
    logits = np.random.default_rng(0).normal(0, 4, (1, 3, 64, 64))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    with pytest.raises(ContractError, match="activation"):
        check_output(spec_of(tmp_path), shares.astype(np.float32), lambda tiles: shares.astype(np.float32))

"""A network that the trial has seen is loaded without another call, and gives the same scores."""

from dataclasses import replace

import numpy as np
import pytest
from networks import Network, contract

from segpipe.network.read import read_spec
from segpipe.pipeline.infer import HostModel, HostNetwork
from segpipe.pipeline.model_check import try_out
from segpipe.settings import load_settings


@pytest.fixture
def calls(monkeypatch):
    """Shapes of the batches that networks score."""
    shapes, score = [], HostNetwork.raw
    monkeypatch.setattr(HostNetwork, "raw", lambda self, batch: shapes.append(batch.shape) or score(self, batch))
    return shapes


def save(path, seed):
    return Network(3, seed).conv(3, 3, 3).save(path, contract(3, 3), classes=3)


@pytest.fixture(params=[1, 2], ids=["one", "two whose scores are averaged"])
def tried(request, tmp_path):
    files = tuple(save(tmp_path / f"{seed}.onnx", seed) for seed in range(request.param))
    settings = {"input": ("a.tif",), "model": files, "device": "cpu", "blend_on": "probabilities"}
    return try_out(read_spec(load_settings(None, settings)))


def test_what_was_tried_is_loaded_without_a_call(tried, calls):
    model = HostModel(tried)
    assert not calls
    batch = np.random.default_rng(0).normal(size=tried.batch_shape).astype(np.float32)
    untried = replace(tried, trial_shapes=None, folds=tuple(replace(fold, trial_shapes=None) for fold in tried.folds))
    assert model(batch).tobytes() == HostModel(untried)(batch).tobytes()
    assert model(batch).sum(1) == pytest.approx(1, abs=1e-5)  # the output graph is there


def test_a_batch_of_another_shape_is_tried_when_it_is_loaded(tried, calls):
    HostModel(replace(tried, batch=3))
    assert calls == [(3, *tried.batch_shape[1:])] * max(1, len(tried.folds))

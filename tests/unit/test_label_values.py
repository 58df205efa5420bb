"""Label values to class ids, by hand, on both kinds of arrays; a refusal names what it found."""

import numpy as np
import pytest
import torch
from networks import contract

from segpipe.contract import parse_contract
from segpipe.network.arrays import HOST
from segpipe.network.device_arrays import DeviceArrays, DeviceStreams
from segpipe.pipeline.label_values import LabelValues

CLASSES = [{"id": 7, "name": "a", "index": 0}, {"id": 2, "name": "b"}, {"id": 900, "name": "c", "index": 5}]
GIVEN = np.array([[0, 2, 5, 1, 255, -1, 0.5, np.nan]], np.float32)


@pytest.fixture(params=["host", "torch"])
def arrays(request):
    return HOST if request.param == "host" else DeviceArrays(DeviceStreams("cpu"), 1)


def values_of(arrays, **changes):
    return LabelValues(parse_contract(contract(3, 3, activation="labels", classes=CLASSES, **changes), "c.toml"), arrays)


def given(arrays, values=GIVEN):
    return values if arrays is HOST else torch.tensor(values)


def test_values_become_ids_and_others_are_unknown(arrays):
    ids, known = values_of(arrays).ids(given(arrays))
    assert np.asarray(known).tolist() == [[True, True, True, False, False, False, False, False]]
    assert np.asarray(ids)[0, :3].tolist() == [7, 2, 900]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([3, 4], "0, 2, 5, and the model gives 1 and 255 and perhaps others between them: add a class"),
        ([4], "the model gives 255: add a class"),
        ([6], "the model gives 0.5: add a class"),
        ([7], "the model gives nan: add a class"),
        ([], None),
    ],
)
def test_the_extremes_of_unknown_values_are_named(wrong, said, arrays):
    values, where = values_of(arrays), np.isin(np.arange(8), wrong)[None]
    found = values.extremes(given(arrays), where if arrays is HOST else torch.tensor(where))
    refusal = values.refusal(np.asarray(found))
    assert refusal is None if said is None else said in refusal


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_presence_is_0_or_1(task, arrays):
    own = [{"id": 1, "name": "a"}] if task == "binary" else [{"id": n, "name": f"c{n}"} for n in range(3)]
    _, known = LabelValues(
        parse_contract(contract(3, 3, activation="labels", task=task, classes=own), "c.toml"), arrays
    ).ids(given(arrays))
    assert np.asarray(known)[0].tolist() == [True, False, False, True, False, False, False, False]

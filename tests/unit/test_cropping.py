"""The box of non-zero pixels against the whole array, and statistics over it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import volumes

from segpipe.contract import Contract, parse_contract
from segpipe.errors import ContractError
from segpipe.formats import case_scaling
from segpipe.formats.cropping import cropped, nonzero_box, outside_scores
from segpipe.formats.nifti.source import NiftiSource
from segpipe.formats.resampled import Resampled
from segpipe.geometry.cropped_grids import CroppedGrids
from segpipe.geometry.regridding import Regridding, resample
from segpipe.geometry.windows import Window
from segpipe.network.scaling import stored_zero


def contract(channels: Any = 1, **changes: Any) -> Contract:
    keys = {"layout": "NCDHW", "tile": [16], "overlap": [4], "scale": 1.0, "crop": "nonzero", "normalize": "zscore"}
    return parse_contract(networks.contract(channels, 3, **{**keys, **changes}), "a test")


def written(path: Path, box: tuple[slice, ...], dtype: str = "i2", **fields: Any) -> np.ndarray:
    """Few non-zero voxels, the outermost of which span the box; returns them planes first."""
    data = np.zeros((11, 13, 17), dtype)
    inner = np.random.default_rng(0).integers(0, 2, data[box].shape)
    inner[0, 0, 0] = inner[-1, -1, -1] = 1
    data[box] = inner * 40
    volumes.write(path, data, **fields)
    return data.T


BOX = (slice(2, 9), slice(0, 12), slice(5, 16))
WANTED = Window((5, 0, 2), (16, 12, 9))


def test_the_box_spans_all_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "a.nii", BOX)
    for side in (4, 128):
        monkeypatch.setitem(case_scaling.STATISTICS_BLOCK, 3, side)
        assert nonzero_box(NiftiSource(str(tmp_path / "a.nii"), contract()), contract()) == WANTED


def test_a_voxel_is_zero_by_its_physical_value(tmp_path: Path) -> None:
    data = volumes.voxels() * 0 - 20
    data[3, 4, 5] = 0
    volumes.write(tmp_path / "a.nii", data, scl_slope=2.0, scl_inter=40.0)
    own = contract(pixel="physical")
    assert nonzero_box(NiftiSource(str(tmp_path / "a.nii"), own), own) == Window((5, 4, 3), (6, 5, 4))


def test_invalid_voxels_are_inside_and_zeros_alone_are_not_cropped(tmp_path: Path) -> None:
    data = np.zeros((11, 13, 7), np.float32)
    volumes.write(tmp_path / "zeros.nii", data)
    source = NiftiSource(str(tmp_path / "zeros.nii"), contract())
    assert nonzero_box(source, contract()) is None
    assert cropped(source, contract(), None) is None
    data[1, 2, 3] = np.nan
    volumes.write(tmp_path / "nan.nii", data)
    assert nonzero_box(NiftiSource(str(tmp_path / "nan.nii"), contract()), contract()) == Window((3, 2, 1), (4, 3, 2))


def test_grids_keep_the_factors_of_another_spacing(tmp_path: Path) -> None:
    written(tmp_path / "a.nii", BOX)
    source = NiftiSource(str(tmp_path / "a.nii"), contract())
    between = Regridding(source.grid.shape, (2.0, 1.0, 0.5))
    found = cropped(source, contract(), between)
    assert isinstance(found, CroppedGrids)
    assert (found.box, found.factors) == (WANTED, between.factors)
    assert cropped(source, contract(crop=None), between) is between
    written(tmp_path / "full.nii", (slice(None),) * 3)
    assert cropped(NiftiSource(str(tmp_path / "full.nii"), contract()), contract(), between) is between


def test_statistics_are_those_of_the_box(tmp_path: Path) -> None:
    data = written(tmp_path / "a.nii", BOX)
    scaling = case_scaling.scaling_of(NiftiSource(str(tmp_path / "a.nii"), contract()), contract(), WANTED)
    inside = data[tuple(slice(a, b) for a, b in zip(WANTED.start, WANTED.stop, strict=True))].astype(float)
    assert np.allclose([1 / scaling.gain[0], -scaling.bias[0] / scaling.gain[0]], [inside.std(), inside.mean()])


def test_zeros_become_0_before_a_case_is_resampled(tmp_path: Path) -> None:
    """As in nnU-Net; afterwards, voxels between zeros and others would be far from all that the network knows."""
    data = written(tmp_path / "a.nii", BOX)
    source, between = NiftiSource(str(tmp_path / "a.nii"), contract()), Regridding(data.shape, (1.7, 0.6, 1.0))
    own = contract(statistics_over="nonzero")
    scaling = replace(case_scaling.scaling_of(source, own), gain=np.array([0.02]), bias=np.array([-3.0]))
    whole = Window((0, 0, 0), between.shape)
    pixels, invalid = Resampled(source, between, blank=scaling).read(whole)
    scaled = np.where(data == 0, 0, data * 0.02 - 3.0)
    assert np.allclose(scaling(pixels, invalid), resample(between, whole, scaled[None], None)[0], atol=1e-5)
    late = scaling(*Resampled(source, between).read(whole))
    assert not np.allclose(late, scaling(pixels, invalid), atol=0.1)


def test_scores_outside_mean_background() -> None:
    assert outside_scores(contract()) == (1e4, -1e4, -1e4)
    classes = [{"id": 2, "name": "a", "index": 0}, {"id": 1, "name": "b", "index": 1}]
    assert outside_scores(contract(task="regions", activation="sigmoid", classes=classes)) == (-1e4, -1e4)


def test_zero_of_each_channel() -> None:
    assert stored_zero(contract(2, statistics_over=["nonzero", "all"]), None, np.dtype("i2")).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"classes": [{"id": 1, "name": "a", "index": 0}, {"id": 2, "name": "b", "index": 1}]},
            "crop needs a class of id 0",
        ),
        ({"scaling": "graph"}, 'crop needs pixels before they are scaled, got scaling = "graph"'),
        ({"statistics_over": ["nonzero", "all"]}, "statistics_over must be one word or one per channel, got 2 for 1"),
    ],
)
def test_a_contract_that_contradicts_itself(changes: Any, says: str) -> None:
    with pytest.raises(ContractError, match=says):
        contract(**changes)


def test_older_contracts_keep_their_hash() -> None:
    assert "crop" not in contract(crop=None).model_dump()
    assert contract().model_dump()["crop"] == "nonzero"


@pytest.mark.parametrize(
    ("task", "classes", "wanted"),
    [
        ("multiclass", [{"id": 0, "name": "ground", "index": 3}, {"id": 1, "name": "bone", "index": 0}], (3.0,)),
        ("multiclass", [{"id": 0, "name": "ground"}, {"id": 1, "name": "bone"}], (0.0,)),
        ("binary", [{"id": 1, "name": "bone"}], (0.0,)),
        ("multilabel", [{"id": 4, "name": "bone", "index": 0}, {"id": 7, "name": "skin", "index": 1}], (0.0, 0.0)),
    ],
)
def test_labels_outside_are_those_of_the_background(task: str, classes: Any, wanted: tuple[float, ...]) -> None:
    assert outside_scores(contract(task=task, activation="labels", classes=classes)) == wanted

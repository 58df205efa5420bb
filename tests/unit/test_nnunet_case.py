"""A case prepared as nnU-Net does, against its own preprocessor where nnunetv2 is installed, else scikit-image."""

from types import SimpleNamespace
from typing import Any

import networks
import numpy as np
import pytest
from skimage.transform import resize

from segpipe.contract import Contract, parse_contract
from segpipe.formats.nnunet_case import NnunetCase, grids_of, prepared
from segpipe.geometry.windows import Window

DATA = {"order": 3, "order_z": 0, "force_separate_z": None}
SCORES = {**DATA, "order": 1}


class Held:
    """A source in memory."""

    def __init__(self, pixels: np.ndarray, spacing: tuple[float, ...]) -> None:
        self.grid = SimpleNamespace(shape=pixels.shape[1:], spacing=spacing)
        self.pixels, self.dtype = pixels, pixels.dtype

    def read(self, window: Any) -> Any:
        return self.pixels, None

    def tags(self) -> None:
        return None


def contract(**changes: Any) -> Contract:
    told = {"resampling_fn_data_kwargs": DATA, "resampling_fn_probabilities_kwargs": SCORES}
    values = {
        "layout": "NCDHW",
        "tile": [8] * 3,
        "overlap": [4] * 3,
        "scale": 1.0,
        "provenance": {"nnunet": told},
        **changes,
    }
    return parse_contract(networks.contract(2, 2, **values), "test")


def made(spacing: tuple[float, ...], own: Contract) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.random.default_rng(2).integers(1, 900, (2, 12, 13, 14)).astype(np.int16)
    pixels[:, :2] = pixels[:, :, -3:] = 0
    source = Held(pixels, spacing)
    grids = grids_of("a", source, own)  # type: ignore[arg-type]
    return pixels, prepared(pixels.astype(np.float32), (pixels != 0).any(0), spacing, grids, own)


def test_crop_scale_and_splines():
    own = contract(
        normalize=["fixed", "zscore"], mean=[5, 0], std=[2, 1], clip=[[0, 400], [-1e30, 1e30]], spacing=[1.5, 1, 1]
    )
    pixels, found = made((1.0, 1.1, 0.9), own)
    crop = pixels[:, 2:, :-3].astype(np.float64)
    scaled = [(crop[0].clip(0, 400) - 5) / 2, (crop[1] - crop[1].mean()) / crop[1].std()]
    shape = (7, 11, 13)
    wanted = [resize(one, shape, order=3, mode="edge", anti_aliasing=False) for one in scaled]
    assert found.shape == (2, 8, 11, 13)
    assert np.abs(found[:, :7] - wanted).max() < 1e-4
    assert (found[:, 7] == 0).all()


def test_ranges_plain_channels_and_thick_slices_between_which_values_are_linear():
    """``RescaleTo01Normalization``, ``NoNormalization``, and ``order_z`` 1; rows and columns stay as they are."""
    told = {"resampling_fn_data_kwargs": {**DATA, "order_z": 1}, "resampling_fn_probabilities_kwargs": SCORES}
    own = contract(normalize=["minmax", "none"], spacing=[2.0, 1.1, 0.9], provenance={"nnunet": told})
    pixels, found = made((5.1, 1.1, 0.9), own)
    crop = pixels[:, 2:, :-3].astype(np.float64)
    scaled = [(crop[0] - crop[0].min()) / (crop[0].max() - crop[0].min()), crop[1]]
    thick, thin = len(crop[0]), round(len(crop[0]) * 5.1 / 2)
    places = (np.arange(thin) + 0.5) * thick / thin - 0.5
    wanted = [np.apply_along_axis(lambda line: np.interp(places, np.arange(thick), line), 0, one) for one in scaled]
    assert found.shape[1] == thin
    assert np.abs(found - wanted).max() < 1e-3


def test_stored_values_become_physical_before_they_are_scaled():
    own = contract(normalize="none", pixel="physical")
    stored = np.random.default_rng(3).integers(1, 900, (2, 8, 8, 8)).astype(np.int16)
    source: Any = Held(stored, (1.0, 1.0, 1.0))
    source.tags = lambda: (np.array([2.0, 0.5]), np.array([-1024.0, 0.0]))
    grids = grids_of("a", source, own)
    found = NnunetCase(source, grids, own).take(Window((0, 0, 0), (8, 8, 8)))().pixels
    assert np.array_equal(found, np.stack([stored[0] * 2.0 - 1024, stored[1] * 0.5]).astype(np.float32))


@pytest.mark.parametrize("spacing", [(1.0, 1.1, 0.9), (5.1, 1.1, 0.9)])
def test_the_same_as_nnunets_preprocessor(spacing: tuple[float, ...]):
    reason = "nnunetv2 is not installed"
    module = pytest.importorskip("nnunetv2.preprocessing.preprocessors.default_preprocessor", reason=reason)
    plans = pytest.importorskip("nnunetv2.utilities.plans_handling.plans_handler", reason=reason)
    name = "resample_data_or_seg_to_shape"
    settings = {f"resampling_fn_{what}": name for what in ("data", "seg", "probabilities")}
    settings |= {"resampling_fn_data_kwargs": DATA, "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1}}
    settings |= {"resampling_fn_probabilities_kwargs": SCORES, "spacing": [4.0, 1.2, 0.8], "patch_size": [8] * 3}
    schemes = {"normalization_schemes": ["ZScoreNormalization"] * 2, "use_mask_for_norm": [True, True], "architecture": {}}
    intensities = {"foreground_intensity_properties_per_channel": {"0": {}, "1": {}}}
    manager = plans.PlansManager(
        {"transpose_forward": [0, 1, 2], "configurations": {"c": {**settings, **schemes}}, **intensities}
    )
    own = contract(normalize="zscore", statistics_over="nonzero", spacing=[4.0, 1.2, 0.8])
    pixels, found = made(spacing, own)
    wanted, _, _ = module.DefaultPreprocessor(verbose=False).run_case_npy(
        pixels.astype(np.float32), None, {"spacing": list(spacing)}, manager, manager.get_configuration("c"), {}
    )
    low = [(a - b) // 2 for a, b in zip(found.shape, wanted.shape, strict=True)]
    inner = found[tuple(slice(a, a + n) for a, n in zip(low, wanted.shape, strict=True))]
    assert np.abs(inner - wanted).max() < 1e-4

"""``--like nnunet`` against nnU-Net's predictor, written down straight: whole arrays, resize of scikit-image."""

from pathlib import Path
from typing import Any

import networks
import nibabel
import numpy as np
import onnxruntime
import pytest
from command import invoke
from scenes import assert_same
from scipy.ndimage import binary_fill_holes, gaussian_filter
from skimage.transform import resize

from segpipe.contract import Contract, parse_contract
from segpipe.network.averaging import flips_over

RESAMPLING = {f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")} | {
    "resampling_fn_data_kwargs": {"order": 3, "order_z": 0, "force_separate_z": None},
    "resampling_fn_probabilities_kwargs": {"order": 1, "order_z": 0, "force_separate_z": None},
}
KEYS: dict[str, Any] = {
    "scale": 1.0,
    "pixel": "physical",
    "normalize": "zscore",
    "spacing_unit": "mm",
    "provenance": {"nnunet": RESAMPLING},
    "channels": ["MR"],
}
TILE = (8, 12, 10)


def scan(path: Path, shape: tuple[int, int, int], spacing: tuple[float, float, float], *, border: int = 3) -> np.ndarray:
    """Values above 0 with some holes, and a border of zeros; axes ``(k, j, i)``."""
    rng = np.random.default_rng(3)
    inner = gaussian_filter(rng.normal(size=shape), 1.2)
    values = np.round(400 + 900 * inner).clip(1, None).astype(np.int16)
    values[tuple(n // 2 for n in shape)] = 0
    for axis, n in enumerate(shape):
        values[(slice(None),) * axis + (np.r_[:border, n - border - 1 : n],)] = 0
    nibabel.save(nibabel.Nifti1Image(values.T, np.diag([*spacing[::-1], 1])), path)
    return values


def is_thick(spacing: Any) -> int | None:
    return int(np.argmax(spacing)) if max(spacing) / min(spacing) > 3 and list(spacing).count(max(spacing)) == 1 else None


def resampled(values: np.ndarray, shape: tuple[int, ...], order: int, now: Any, then: Any) -> np.ndarray:
    """Channels ``(c, k, j, i)`` to a shape; the axis of thick slices last and by the nearest."""
    if values.shape[1:] == shape:
        return values
    thick = is_thick(now) if is_thick(now) is not None else is_thick(then)
    how: dict[str, Any] = {"order": order, "mode": "edge", "anti_aliasing": False}
    values = values.astype(float)
    if thick is None:
        return np.stack([resize(one, shape, **how) for one in values])
    flat = tuple(n for axis, n in enumerate(shape) if axis != thick)
    planes = np.stack([[resize(plane, flat, **how) for plane in np.moveaxis(one, thick, 0)] for one in values])
    old, new = planes.shape[1], shape[thick]
    nearest = np.floor((np.arange(new) + 0.5) * old / new).clip(0, old - 1).astype(int)  # no ties in these tests
    return np.moveaxis(planes[:, nearest], 1, thick + 1)


def starts(size: int, tile: int) -> list[int]:
    count = int(np.ceil((size - tile) / (tile * 0.5))) + 1
    step = (size - tile) / (count - 1) if count > 1 else 0
    return [int(np.round(step * i)) for i in range(count)]


def predicted(stored: np.ndarray, spacing: Any, contract: Contract, model: Path, *, flips: bool = False) -> np.ndarray:
    """Scores ``(classes, k, j, i)`` on the case's grid; NaN outside the crop."""
    order = contract.axis_order or [0, 1, 2]
    image, spacing = stored.transpose(order).astype(np.float32), [spacing[axis] for axis in order]
    inside = binary_fill_holes(image != 0)
    box = tuple(slice(found.min(), found.max() + 1) for found in np.nonzero(inside))
    crop, inside = image[box], inside[box]
    counted = crop[inside] if contract.statistics_over == "nonzero" else crop
    scaled = (crop - counted.mean()) / counted.std()
    if contract.statistics_over == "nonzero":
        scaled = np.where(inside, scaled, crop)
    wanted = [*spacing[: 3 - contract.ndim], *contract.spacing]
    shape = tuple(round(a / b * n) for a, b, n in zip(spacing, wanted, crop.shape, strict=True))
    data = resampled(scaled[None], shape, 3, spacing, wanted)[0]
    tile = contract.tile
    short = [max(0, t - n) for t, n in zip((0,) * (3 - len(tile)) + tuple(tile), shape, strict=True)]
    data = np.pad(data, [(s // 2, s - s // 2) for s in short])
    scores = windowed(data, tile, model, flips_over(contract.flip_axes) if flips else ((),))
    scores = scores[(slice(None), *(slice(s // 2, s // 2 + n) for s, n in zip(short, shape, strict=True)))]
    own = np.full((len(scores), *image.shape), np.nan)
    own[(slice(None), *box)] = resampled(scores, crop.shape, 1, wanted, spacing)
    return own.transpose(0, *(1 + np.argsort(order)))


def windowed(data: np.ndarray, tile: list[int], model: Path, flips: Any) -> np.ndarray:
    session = onnxruntime.InferenceSession(model)
    peak = np.zeros(tile)
    peak[tuple(t // 2 for t in tile)] = 1
    weight = gaussian_filter(peak, [t / 8 for t in tile], mode="constant")
    weight /= weight.max()
    weight[weight == 0] = weight[weight > 0].min()
    total, seen = np.zeros((3, *data.shape)), np.zeros(data.shape)
    for place in np.ndindex(
        *data.shape[: 3 - len(tile)], *(len(starts(n, t)) for n, t in zip(data.shape[-len(tile) :], tile, strict=True))
    ):
        lead, index = place[: 3 - len(tile)], place[3 - len(tile) :]
        at = [starts(n, t)[i] for n, t, i in zip(data.shape[-len(tile) :], tile, index, strict=True)]
        where = (*lead, *(slice(a, a + t) for a, t in zip(at, tile, strict=True)))
        image = data[where][None, None].astype(np.float32)
        each = [
            np.flip(session.run(None, {"image": np.flip(image, [a + 2 for a in f])})[0], [a + 2 for a in f]) for f in flips
        ]
        mean = np.mean(each, axis=0)[0]
        total[(slice(None), *where)] += mean * weight
        seen[where] += weight
    return total / seen


def _unnamed(keys: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if key != "channels"}


def run(folder: Path, *words: Any) -> Any:
    common = ["--input", "in", "--model", "model.onnx", "--device", "cpu", "--executor", "serial"]
    return invoke(["run", *common, "--like", "nnunet", *words], folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path


def agreed(folder: Path, labels: np.ndarray, wanted: np.ndarray) -> None:
    """Labels are those of the scores, but for ties within rounding; those outside the crop are background."""
    outside = np.isnan(wanted[0])
    assert outside.any()
    assert (labels[outside] == 0).all()
    best = np.where(outside, 0, np.nan_to_num(wanted).argmax(0))
    ranked = np.sort(wanted, axis=0)
    clear = outside | (ranked[-1] - ranked[-2] > 1e-4)
    assert clear.mean() > 0.99
    assert (labels[clear] == best[clear]).all()
    assert len(np.unique(labels)) == 3


def labels_in(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj).T


@pytest.mark.parametrize(
    ("shape", "spacing", "wanted", "more"),
    [
        ((30, 27, 25), (1.0, 1.1, 0.9), [1.2, 0.9, 1.0], {}),  # several windows, all axes together
        ((30, 27, 25), (1.0, 1.0, 1.0), [1.0, 1.0, 1.0], {"statistics_over": "nonzero"}),  # no resampling
        ((13, 14, 30), (1.0, 1.1, 0.9), [1.3, 0.9, 1.0], {}),  # smaller than the tile
        ((19, 27, 25), (5.3, 1.1, 0.9), [3.9, 0.9, 1.0], {}),  # thick slices
        ((25, 19, 27), (0.9, 5.3, 1.1), [3.9, 1.0, 0.9], {"axis_order": [1, 2, 0]}),  # transposed
    ],
)
def test_labels_are_those_of_the_predictor(folder: Path, shape: Any, spacing: Any, wanted: Any, more: Any):
    stored = scan(folder / "in" / "a.nii.gz", shape, spacing)
    model = networks.volumetric(folder / "model.onnx", TILE, **KEYS, spacing=wanted, **more)
    values = networks.contract(
        1, 3, layout="NCDHW", **{**KEYS, "tile": list(TILE), "overlap": [2] * 3, "spacing": wanted, **more}
    )
    done = run(folder, "--output", "out")
    assert done.returncode == 0, done.stderr
    agreed(folder, labels_in(folder / "out" / "a.nii.gz"), predicted(stored, spacing, parse_contract(values, "test"), model))


def test_slices_and_flips(folder: Path):
    stored = scan(folder / "in" / "a.nii.gz", (11, 27, 25), (2.0, 1.1, 0.9))
    more = {"spacing": [0.9, 1.0], "flips": [1]}
    model = networks.positional(folder / "model.onnx", 8, 1, 3, **_unnamed({**KEYS, **more, "overlap": [4, 4]}))
    contract = parse_contract(networks.contract(1, 3, **{**KEYS, **more, "tile": [8, 8], "overlap": [4, 4]}), "test")
    done = run(folder, "--output", "out", "--tta", "flips")
    assert done.returncode == 0, done.stderr
    wanted = predicted(stored, (2.0, 1.1, 0.9), contract, model, flips=True)
    agreed(folder, labels_in(folder / "out" / "a.nii.gz"), wanted)


def test_parts_leave_the_same_bytes_and_the_choice_is_recorded(folder: Path):
    scan(folder / "in" / "a.nii.gz", (30, 27, 25), (1.0, 1.1, 0.9))
    networks.volumetric(folder / "model.onnx", TILE, **KEYS, spacing=[1.2, 0.9, 1.0])
    assert run(folder, "--output", "whole", "--confidence").returncode == 0
    assert run(folder, "--output", "cut", "--confidence", "--parts", 4).returncode == 0
    assert_same(folder / "cut", folder / "whole")
    plain = ["run", "--input", "in", "--model", "model.onnx", "--device", "cpu", "--executor", "serial", "--output", "whole"]
    assert "1 done, 0 done before" in (done := invoke([*plain, "--confidence"], folder)).stderr + done.stdout


@pytest.mark.parametrize(
    ("words", "changes", "says"),
    [
        ((), {"provenance": {}}, "like nnunet needs a model that segpipe export nnunet made"),
        (("--overlap", "2"), {}, "like nnunet takes nnU-Net's own windows, got --overlap"),
        (("--device", "openvino"), {}, "like nnunet is a comparison on the CPU, got device openvino"),
    ],
)
def test_what_does_not_go_together_is_refused(folder: Path, words: Any, changes: Any, says: str):
    scan(folder / "in" / "a.nii.gz", (12, 13, 14), (1.0, 1.0, 1.0))
    networks.volumetric(folder / "model.onnx", TILE, **{**KEYS, **changes}, spacing=[1.0] * 3)
    done = run(folder, *words)
    assert done.returncode == 2
    assert says in done.stderr


def test_a_case_of_zeros_or_nan_fails_alone(folder: Path):
    networks.volumetric(folder / "model.onnx", TILE, **KEYS, spacing=[1.0] * 3)
    scan(folder / "in" / "a.nii.gz", (22, 23, 24), (1.0, 1.0, 1.0))
    nibabel.save(nibabel.Nifti1Image(np.zeros((12, 13, 14), np.int16), np.eye(4)), folder / "in" / "b.nii.gz")
    values = np.ones((12, 13, 14), np.float32)
    values[3, 3, 3] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / "in" / "c.nii.gz")
    done = run(folder, "--output", "out")
    assert done.returncode == 1
    assert "b.nii.gz: --like nnunet crops to non-zero voxels, and all are 0" in done.stderr + done.stdout
    assert "c.nii.gz: --like nnunet needs voxels that are all valid" in done.stderr + done.stdout
    assert (folder / "out" / "a.nii.gz").is_file()

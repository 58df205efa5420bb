"""Volumes through ``segpipe run``: scores against MONAI and float64 sums, places against nibabel and SimpleITK."""

import csv
import io
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import networks
import nibabel
import numpy as np
import onnxruntime
import pytest
import SimpleITK
import volumes
from numpy.typing import NDArray
from test_volume_stages import brute_force
from test_voxel_grid import ALL

from segpipe.formats.cases import find_cases
from segpipe.network.read import read_spec
from segpipe.pipeline.blend import blend
from segpipe.pipeline.infer import infer, load_model
from segpipe.pipeline.model_check import try_out
from segpipe.pipeline.read import Reading, windows_of
from segpipe.pipeline.tiles import batches, cut_tiles
from segpipe.settings import load_settings

TILE = (8, 12, 10)
Run = Callable[..., Path]


def model(path: Path, **changes: Any) -> Path:
    """Three classes of values up to 255, stored."""
    return networks.volumetric(path, TILE, scale=1 / 255, pixel="physical", **changes)


def scores_of(volume: Path, network: Path, blending: str) -> NDArray[Any]:
    """Blended mean scores of a volume, ``(classes, *shape)``, as its labels are decided from."""
    flags = {"input": (str(volume),), "model": network, "device": "cpu", "blend": blending}
    spec = try_out(read_spec(load_settings(None, flags)))
    tiles = cut_tiles(windows_of(find_cases([str(volume)]), Reading(spec, allow_unusual=True)))
    found: NDArray[Any] | None = None
    for box in blend(infer(load_model(spec), batches(tiles, spec.batch), 1)):
        where = tuple(slice(a, b) for a, b in zip(box.window.start, box.window.stop, strict=True))
        found = np.zeros((len(box.sums), *box.info.grid.shape)) if found is None else found
        found[(slice(None), *where)] = box.sums / box.info.weights.total(where)
    assert found is not None
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)  # most of it to import torch and MONAI
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_scores_are_those_of_monai_given_the_same_windows(tmp_path: Path, name: str) -> None:
    """Sizes are such that both start windows at the same places: a tile, and steps of a tile less its overlap."""
    import torch  # which takes 10 s, as MONAI does
    from monai.inferers import sliding_window_inference

    network = model(tmp_path / "model.onnx", overlap=[t // 2 for t in TILE])
    shape = tuple(t + 2 * (t // 2) for t in TILE)
    data = volumes.voxels(shape[::-1], "u1")
    found = scores_of(volumes.write(tmp_path / name, data), network, "constant")
    x = torch.from_numpy((data.T / 255).astype(np.float32))[None, None]
    session = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"])
    expected = sliding_window_inference(
        x, TILE, 1, lambda x: torch.from_numpy(session.run(None, {"image": x.numpy()})[0]), overlap=0.5, mode="constant"
    )
    np.testing.assert_allclose(found, expected[0].numpy(), atol=1e-5)
    gaussian = scores_of(tmp_path / name, network, "gaussian")
    np.testing.assert_allclose(
        gaussian, brute_force(network, data.T[None], TILE, [t // 2 for t in TILE], (1,) * 3, "gaussian"), atol=1e-5
    )


def test_a_run_of_a_folder(tmp_path: Path, run_serial: Run) -> None:
    network = model(tmp_path / "model.onnx")
    (tmp_path / "in" / "deep").mkdir(parents=True)
    data = volumes.voxels((31, 23, 19), "u1")
    for name, affine in (("a.nii.gz", volumes.OBLIQUE), ("deep/b.nii", np.diag([-0.5, 0.75, 3, 1.0]))):
        volumes.write(tmp_path / "in" / name, data, affine)
    out = run_serial(tmp_path / "in", network, confidence=True)
    scores = brute_force(network, data.T[None], TILE, [t // 4 for t in TILE], (1,) * 3, "gaussian")
    sure = np.diff(np.sort(scores, axis=0)[-2:], axis=0)[0] > 1e-4
    rows = list(csv.DictReader(io.StringIO((out / "areas.csv").read_text())))
    for name in ("a.nii.gz", "deep/b.nii"):
        mask, source = nibabel.load(out / name), nibabel.load(tmp_path / "in" / name)
        labels = np.asarray(mask.dataobj).T
        np.testing.assert_array_equal(labels[sure], scores.argmax(axis=0)[sure])
        assert sure.mean() > 0.99
        np.testing.assert_array_equal(mask.affine, source.affine)
        for ask in ("GetOrigin", "GetSpacing", "GetDirection"):
            ours, theirs = SimpleITK.ReadImage(str(out / name)), SimpleITK.ReadImage(str(tmp_path / "in" / name))
            assert getattr(ours, ask)() == getattr(theirs, ask)()
        case = name.partition(".")[0]
        kept = [nibabel.load(out / f"{case}.confidence{name[len(case) :]}"), mask]
        likely = np.exp(scores - scores.max(0))
        expected = (likely / likely.sum(0)).max(0)
        assert np.abs(kept[0].get_fdata().T - expected).max() < 1 / 254
        size = abs(np.linalg.det(source.affine[:3, :3]))
        own = [row for row in rows if row["case"] == case]
        assert [int(row["pixels"]) for row in own] == [*np.bincount(labels.ravel(), minlength=3), 0]
        assert {row["unit"] for row in own} == {"mm3"}
        for row in own:
            assert float(row["area"]) == pytest.approx(int(row["pixels"]) * size, rel=1e-6)
            assert float(row["ml"]) == pytest.approx(float(row["area"]) / 1000)
    record = json.loads((out / "a.json").read_text())
    assert record["input"]["format"] == "nifti"
    assert record["input"]["grid"]["orientation"] == "SLA"


def in_orientation(image: Any, letters: str) -> Any:
    change = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(letters)
    )
    return image.as_reoriented(change)


@pytest.mark.parametrize("asked", ["RAS", "IPL"])
def test_all_48_orientations_of_a_volume_get_one_mask_in_the_world(tmp_path: Path, run_serial: Run, asked: str) -> None:
    network = model(tmp_path / "model.onnx", orientation=asked)
    (tmp_path / "in").mkdir()
    image = nibabel.load(volumes.write(tmp_path / "x.nii", volumes.voxels((21, 17, 13), "u1"), volumes.OBLIQUE))
    for letters in ALL:
        nibabel.save(in_orientation(image, letters), tmp_path / "in" / f"{letters}.nii.gz")
    out = run_serial(tmp_path / "in", network)
    masks = set()
    for letters in ALL:
        mask, source = nibabel.load(out / f"{letters}.nii.gz"), nibabel.load(tmp_path / "in" / f"{letters}.nii.gz")
        assert "".join(nibabel.aff2axcodes(mask.affine)) == letters
        np.testing.assert_array_equal(mask.affine, source.affine)
        masks.add(np.asarray(in_orientation(mask, asked).dataobj).tobytes())
    assert len(masks) == 1
    labels = np.asarray(in_orientation(mask, asked).dataobj)
    given = np.asarray(in_orientation(image, asked).dataobj)
    scores = brute_force(network, given[None], TILE, [t // 4 for t in TILE], (1,) * 3, "gaussian")
    sure = np.diff(np.sort(scores, axis=0)[-2:], axis=0)[0] > 1e-4
    np.testing.assert_array_equal(labels[sure], scores.argmax(axis=0)[sure])


def ball(shape: tuple[int, ...], affine: NDArray[Any], radius: float, parts: int = 4) -> NDArray[Any]:
    """Share of each voxel ``(i, j, k)`` that lies in a ball around the middle of a volume, by points within it."""
    middle = (affine @ [*((n - 1) / 2 for n in shape), 1])[:3]
    offsets = (np.arange(parts) + 0.5) / parts - 0.5
    share = np.zeros(shape)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    for offset in product(offsets, repeat=3):
        world = (index + offset) @ affine[:3, :3].T + affine[:3, 3]
        share += np.linalg.norm(world - middle, axis=-1) <= radius
    return share / parts**3


@pytest.mark.parametrize("orientation", [None, "RAS"])
def test_a_ball_in_an_anisotropic_volume_by_a_network_of_1_mm(
    tmp_path: Path, run_serial: Run, orientation: str | None
) -> None:
    """Steps of 0.7, 0.8 and 3 mm, oblique; a mean over 3 x 3 x 3 mm above half is the ball."""
    affine, radius = np.eye(4), 18.0
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    affine[:3, :3] = turn @ np.diag([0.7, 0.8, 3.0])
    share = ball((70, 62, 17), affine, radius)
    path = volumes.write(tmp_path / "ball.nii.gz", np.rint(share * 1000).astype("i2"), affine, (1, 1))
    net = networks.Network(1, ndim=3)
    net.add("Conv", np.full((1, 1, 3, 3, 3), 1 / 27, np.float32), pads=[1] * 6)
    net.add("Conv", np.array([0, 0.02], np.float32).reshape(2, 1, 1, 1, 1), np.array([0, -10], np.float32))
    values = networks.contract(
        1, 2, layout="NCDHW", tile=[24], overlap=[6], spacing=[1, 1, 1], orientation=orientation, scale=1.0
    )
    net.save(tmp_path / "model.onnx", values, classes=2, shape=("n", 24, 24, 24))
    out = run_serial(path, tmp_path / "model.onnx")
    mask = np.asarray(nibabel.load(out / "ball.nii.gz").dataobj) == 1
    truth = share >= 0.5
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.98
    rows = list(csv.DictReader(io.StringIO((out / "areas.csv").read_text())))
    assert float(rows[1]["area"]) == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.02)
    assert float(rows[1]["area"]) == pytest.approx(mask.sum() * 0.7 * 0.8 * 3)
    notes = json.loads((out / "ball.json").read_text())["notes"]
    assert any("are resampled to the model's 1 x 1 x 1 mm" in note for note in notes)


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.timeout(900)
def test_grey_and_white_matter_of_a_real_brain(tmp_path: Path, shared: Path, run_serial: Run) -> None:
    """Voxels as README of the data counts them, with the volume in the order in which nibabel gives its axes."""
    contract = """
        version = 1
        channels = ["T1"]
        normalize = "minmax"
        layout = "NCDHW"
        orientation = "LIA"
        tile = [256]
        overlap = [0]
        align = 1
        activation = "softmax"
        classes = [{id = 0, name = "background"}, {id = 1, name = "white"}, {id = 2, name = "grey"}]
    """
    (tmp_path / "brain.toml").write_text(contract)
    brain = shared / "models" / "brain"
    out = run_serial(brain / "t1_crop.nii.gz", brain / "model.onnx", contract=tmp_path / "brain.toml")
    rows = {row["class_name"]: row for row in csv.DictReader(io.StringIO((out / "areas.csv").read_text()))}
    assert int(rows["grey"]["pixels"]) == pytest.approx(737_032, rel=0.01)
    assert int(rows["white"]["pixels"]) == pytest.approx(520_985, rel=0.01)
    assert float(rows["grey"]["ml"]) == pytest.approx(int(rows["grey"]["pixels"]) / 1000)
    labels = np.asarray(nibabel.load(out / "t1_crop.nii.gz").dataobj)
    assert np.bincount(labels.ravel(), minlength=3)[1:].tolist() == [int(rows[name]["pixels"]) for name in ("white", "grey")]

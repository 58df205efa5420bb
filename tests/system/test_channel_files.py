"""Cases of several channels: one file each, or one file of four axes; whole runs against the network on stacked arrays."""

import json
from pathlib import Path
from typing import Any

import networks
import nibabel
import numpy as np
import onnxruntime
import pytest
import volumes
from command import invoke
from numpy.typing import NDArray
from scenes import assert_same

TILE = (8, 12, 10)
SHAPE = (21, 23, 17)
NAMES = ["FLAIR", "T1"]


def channel(number: int, dtype: str = "i2") -> NDArray[Any]:
    return volumes.voxels(SHAPE, dtype, seed=number)


def make_model(path: Path, *, plain: bool = False, channels: int = 2) -> Path:
    """Scores depend on both channels, and unless ``plain`` on neighbours and on the place in the tile."""
    net = networks.Network(channels, ndim=3).conv(channels, 3, 1 if plain else 3)
    if not plain:
        net.add("Add", net.rng.normal(size=(1, 3, *TILE)).astype(np.float32))
    names = NAMES[:channels] + [f"c{k}" for k in range(2, channels)]
    keys = {"layout": "NCDHW", "tile": TILE, "overlap": (4, 4, 4), "scale": 1.0, "pixel": "physical", "normalize": "zscore"}
    own = networks.contract(names, 3, orientation="RAS", **keys)
    return net.save(path, own, classes=3, shape=("n", *TILE))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_model(tmp_path / "model.onnx")
    inside = tmp_path / "in"
    inside.mkdir()
    volumes.write(inside / "p_0000.nii.gz", channel(0), volumes.OBLIQUE)
    volumes.write(inside / "p_0001.nii.gz", channel(1), volumes.OBLIQUE, scl_slope=0.5, scl_inter=-100)
    return tmp_path


def run(root: Path, *more: str) -> Any:
    done = invoke(["run", "-i", "in", "-m", "model.onnx", "--device", "cpu", "--executor", "serial", *more], root)
    done.stderr += done.stdout
    return done


def as_ras(path: Path) -> NDArray[Any]:
    image: Any = nibabel.as_closest_canonical(nibabel.load(path))
    return np.asarray(image.dataobj)


def check(model: Path, files: list[Path], mask: Path) -> None:
    """Labels against the network on z-scores, where two classes are not almost equal."""
    arrays = [as_ras(file).astype(np.float64) for file in files]
    stacked = np.stack([(x - x.mean()) / x.std() for x in arrays])[None].astype(np.float32)
    pads = [(0, 0), (0, 0), *((0, -n % t) for n, t in zip(stacked.shape[2:], TILE, strict=True))]
    padded, labels = (
        np.pad(stacked, pads),
        np.zeros((3, *(n + b for n, (_, b) in zip(stacked.shape[2:], pads[2:], strict=True)))),
    )
    session = onnxruntime.InferenceSession(str(model))
    for k in np.ndindex(*(n // t for n, t in zip(padded.shape[2:], TILE, strict=True))):
        box = tuple(slice(i * t, (i + 1) * t) for i, t in zip(k, TILE, strict=True))
        labels[(slice(None), *box)] = session.run(None, {"image": padded[(slice(None), slice(None), *box)]})[0][0]
    scores = labels[(slice(None), *(slice(n) for n in stacked.shape[2:]))]
    two = np.sort(scores, axis=0)
    clear = two[-1] - two[-2] > 1e-4
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(as_ras(mask)[clear], scores.argmax(axis=0)[clear])


def test_files_with_numbers_are_the_channels_of_one_case(folder: Path) -> None:
    model = make_model(folder / "model.onnx", plain=True)
    done = run(folder, "-o", "out")
    assert done.returncode == 0, done.stderr
    files = [folder / "in" / f"p_000{k}.nii.gz" for k in (0, 1)]
    check(model, files, folder / "out" / "p.nii.gz")
    record = json.loads((folder / "out" / "p.json").read_text())
    assert [Path(file["path"]).name for file in record["input"]["files"]] == [file.name for file in files]
    np.testing.assert_allclose(nibabel.load(folder / "out" / "p.nii.gz").affine, volumes.OBLIQUE, atol=1e-5)


def test_parts_workers_patterns_and_one_file_give_the_same_bytes(folder: Path) -> None:
    assert run(folder, "-o", "whole").returncode == 0
    assert run(folder, "-o", "cut", "--parts", "5").returncode == 0
    assert_same(folder / "cut", folder / "whole")
    for k, name in enumerate(("flair", "t1")):
        (folder / "in" / f"p_000{k}.nii.gz").rename(folder / "in" / f"p_{name}.nii.gz")
    assert run(folder, "-o", "named", "--channels", "T1=*_t1.nii.gz,FLAIR=*_flair.nii.gz").returncode == 0
    mask = (folder / "named" / "p.nii.gz").read_bytes()
    assert mask == (folder / "whole" / "p.nii.gz").read_bytes()


def test_a_later_run_sees_every_file_and_which_is_which(folder: Path) -> None:
    assert "1 done, 0 done before" in run(folder).stderr
    assert "0 done, 1 done before" in run(folder).stderr
    volumes.write(folder / "in" / "p_0001.nii.gz", channel(7), volumes.OBLIQUE)
    assert "1 done, 0 done before" in run(folder).stderr
    same = ["--channels", "FLAIR=*_0000.nii.gz,T1=*_0001.nii.gz"]
    assert "1 done, 0 done before" in run(folder, *same).stderr
    assert "0 done, 1 done before" in run(folder, *same).stderr
    turned = ["--channels", "T1=*_0001.nii.gz,FLAIR=*_0000.nii.gz"]
    assert "0 done, 1 done before" in run(folder, *turned).stderr
    assert "1 done, 0 done before" in run(folder, "--channels", "FLAIR=*_0001.nii.gz,T1=*_0000.nii.gz").stderr


def test_a_missing_channel_costs_its_case_alone(folder: Path) -> None:
    volumes.write(folder / "in" / "q_0000.nii.gz", channel(2), volumes.OBLIQUE)
    done = run(folder)
    assert done.returncode == 1
    output = " ".join(done.stderr.split())
    assert "1 done" in output
    assert "q: channel 1 (T1) has no file q_0001, got q_0000.nii.gz" in output


def test_channels_of_other_grids_are_refused_with_both_names_and_figures(folder: Path) -> None:
    inside, moved = folder / "in", volumes.OBLIQUE.copy()
    moved[0, 3] += 0.5
    volumes.write(inside / "q_0000.nii.gz", channel(0), volumes.OBLIQUE)
    volumes.write(inside / "q_0001.nii.gz", channel(1), moved)
    volumes.write(inside / "r_0000.nii.gz", channel(0), volumes.OBLIQUE)
    volumes.write(inside / "r_0001.nii.gz", channel(1)[:-1], volumes.OBLIQUE)
    volumes.write(inside / "s_0000.nii.gz", channel(0), volumes.OBLIQUE)
    volumes.write(inside / "s_0001.nii.gz", channel(1)[::-1], volumes.OBLIQUE @ np.diag([-1, 1, 1, 1]))
    done = run(folder)
    failed = {f["case"]: f["error"] for f in json.loads((folder / "segpipe-out" / "run.json").read_text())["failed"]}
    assert done.returncode == 1
    assert failed.keys() == {"q", "r", "s"}
    assert (
        "q_0000.nii.gz and in/q_0001.nii.gz: channels of a case must have one grid, got affines that lie 0.5 mm apart"
        in (failed["q"])
    )
    assert "got 23 x 21 x 17 and 23 x 20 x 17 voxels: resample one to the grid of the other" in failed["r"]
    assert "apart at a corner" in failed["s"]  # its first voxel is not where the other's last one is


def test_channels_that_are_stored_in_other_orders_are_turned(folder: Path) -> None:
    """The same voxels, the first axis from the other side."""
    assert run(folder, "-o", "out").returncode == 0
    back = volumes.OBLIQUE @ np.array([[-1, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    volumes.write(folder / "in" / "p_0001.nii.gz", channel(1)[::-1], back, scl_slope=0.5, scl_inter=-100)
    assert run(folder, "-o", "turned").returncode == 0
    assert (folder / "turned" / "p.nii.gz").read_bytes() == (folder / "out" / "p.nii.gz").read_bytes()


@pytest.mark.parametrize("axis", [3, 4])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_four_axes_are_channels(folder: Path, axis: int, suffix: str) -> None:
    data = np.stack([channel(0), channel(1)], axis=-1).astype("f4")
    data = data if axis == 3 else data[:, :, :, None]
    for k in (0, 1):
        volumes.write(folder / "in" / f"p_000{k}.nii.gz", channel(k).astype("f4"), volumes.OBLIQUE)
    volumes.write(folder / "in" / f"both{suffix}", data, volumes.OBLIQUE)
    done = run(folder, "-o", "out")
    assert done.returncode == 0, done.stderr
    both, apart = (nibabel.load(folder / "out" / name) for name in (f"both{suffix}", "p.nii.gz"))
    assert both.shape == SHAPE
    np.testing.assert_array_equal(np.asarray(both.dataobj), np.asarray(apart.dataobj))
    assert len(np.unique(np.asarray(both.dataobj))) > 1
    note = "the 2 volumes of the file are the model's channels (FLAIR, T1), in this order"
    assert note in json.loads((folder / "out" / "both.json").read_text())["notes"]
    assert run(folder, "-o", "cut", "--parts", "4").returncode == 0
    assert_same(folder / "cut", folder / "out")


def test_one_volume_along_the_fourth_axis_is_a_volume(tmp_path: Path) -> None:
    networks.volumetric(tmp_path / "model.onnx", TILE, scale=1.0)
    (tmp_path / "in").mkdir()
    volumes.write(tmp_path / "in" / "a.nii", channel(0)[..., None], volumes.OBLIQUE)
    volumes.write(tmp_path / "in" / "b.nii", channel(0), volumes.OBLIQUE)
    assert run(tmp_path, "-o", "out").returncode == 0
    a, b = (np.asarray(nibabel.load(tmp_path / "out" / name).dataobj) for name in ("a.nii", "b.nii"))
    np.testing.assert_array_equal(a, b)


def test_several_volumes_that_are_no_channels_are_refused(folder: Path) -> None:
    volumes.write(folder / "in" / "many.nii", np.stack([channel(k) for k in range(5)], axis=-1), volumes.OBLIQUE)
    volumes.write(folder / "in" / "one.nii", channel(0), volumes.OBLIQUE)
    run(folder)
    failed = {f["case"]: f["error"] for f in json.loads((folder / "segpipe-out" / "run.json").read_text())["failed"]}
    assert (
        "many.nii must hold one volume, or 2 for the model's channels, and holds 5 of them: take one out" in failed["many"]
    )
    assert "one.nii has one channel, and the model takes 2 (FLAIR, T1): give one file per channel" in failed["one"]


def test_a_voxel_is_valid_where_all_channels_are(folder: Path) -> None:
    data = channel(1).astype("f4")
    data[3, 4, 5] = np.nan
    volumes.write(folder / "in" / "p_0001.nii.gz", data, volumes.OBLIQUE)
    assert run(folder, "-o", "out").returncode == 0
    mask = np.asarray(nibabel.load(folder / "out" / "p.nii.gz").dataobj)
    assert np.argwhere(mask == 255).tolist() == [[3, 4, 5]]

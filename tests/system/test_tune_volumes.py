"""``segpipe tune`` on volumes: seam error against masks of runs, and pixels of boxes against arrays written here."""

import json
from pathlib import Path
from typing import Any

import networks
import nibabel
import numpy as np
import pytest
import volumes
from command import invoke

from segpipe.formats.cases import find_cases
from segpipe.overrides import AS_STORED
from segpipe.tune import candidates as choosing
from segpipe.tune.candidates import Candidate, open_networks
from segpipe.tune.measure import tune
from segpipe.tune.places import find_places, survey
from segpipe.tune.settings import TuneSettings

pytestmark = pytest.mark.usefixtures("measured_once")

SHAPE = (14, 16, 15)
WHOLE = "16,14,15"
"""The same volume under ``OBLIQUE`` (axes to A, L, S), turned to R, A, S."""


def local(path: Path, **changes: Any) -> Path:
    """Two 3 x 3 x 3 convolutions of free size: receptive radius 2."""
    net = networks.Network(1, 0, ndim=3).conv(1, 8, 3).add("Relu").conv(8, 3, 3)
    values = networks.contract(1, 3, layout="NCDHW", tile=[8, 8, 8], overlap=[2, 2, 2], orientation="RAS", **changes)
    return net.save(path, values, classes=3, shape=("n", "d", "h", "w"))


def tuned(model: Path, **flags: Any) -> Any:
    return tune(TuneSettings(model=model, device="cpu", **{"seconds": 60.0, **flags}), lambda _: None)


def errors(found: Any) -> dict[int, float]:
    return {row.candidate.tiling.overlap[0]: row.seam_error for row in found.rows if row.candidate.tiling.tile[0] == 8}


@pytest.mark.parametrize("kind", [".nii", ".nii.gz"])
def test_the_seam_error_is_that_of_runs(tmp_path: Path, kind: str) -> None:
    """The volume is smaller than the box, so that tune tiles all of it, as a run does."""
    model = local(tmp_path / "m.onnx")
    path = volumes.write(tmp_path / f"a{kind}", volumes.voxels(SHAPE, "u1"), volumes.OBLIQUE)
    found = tuned(model, input=(str(path),), tiles=(8,), overlaps=(0, 2, 5))
    masks = {}
    for tile, overlap in (("8", 0), ("8", 2), ("8", 5), (WHOLE, 0)):
        out = tmp_path / f"{tile}-{overlap}"
        sizes = ["--tile", tile, "--overlap", overlap]
        run = ["run", "-i", path, "-m", model, "-o", out, "--executor", "serial", "--device", "cpu", *sizes]
        assert invoke(list(map(str, run)), tmp_path).returncode == 0
        masks[tile, overlap] = np.asarray(nibabel.load(out / f"a{kind}").dataobj)
    seams = errors(found)
    for overlap in (0, 2, 5):
        assert seams[overlap] == pytest.approx((masks["8", overlap] != masks[WHOLE, 0]).mean(), abs=1e-12)
    assert seams[0] > seams[2] > seams[5]


def test_a_box_too_large_for_one_call_is_compared_with_the_middle_of_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cropped to the middle quarter, tiles of 8 show what one call shows, for the receptive radius is 2."""
    path = volumes.write(tmp_path / "a.nii", volumes.voxels(SHAPE, "u1"))
    flags: dict[str, Any] = {"input": (str(path),), "tiles": (8,), "overlaps": (0, 2)}
    whole = tuned(local(tmp_path / "m.onnx"), **flags)
    assert "on the whole box in one call" in whole.reference
    monkeypatch.setattr(choosing, "MEMORY_SHARE", 0.0)
    parts = tuned(local(tmp_path / "m.onnx"), **flags)
    assert "each label from the middle of one" in parts.reference
    assert errors(parts) == pytest.approx(errors(whole), abs=0.02)


def test_the_box_of_a_resampled_volume_is_on_the_networks_grid(tmp_path: Path) -> None:
    """A ramp of 10 per voxel of 2 mm is one of 5 per mm, whose ends repeat beyond the outer voxels' centres."""
    ramp = np.broadcast_to(10 * np.arange(12, dtype=np.uint8), (12, 12, 12))
    path = volumes.write(tmp_path / "a.nii.gz", np.ascontiguousarray(ramp), np.diag([2.0, 2, 2, 1]))
    (network,) = open_networks(TuneSettings(model=local(tmp_path / "m.onnx", spacing=[1, 1, 1]), device="cpu"))
    cases = find_cases([str(path)])
    assert survey(cases, network.spec, AS_STORED) == [(24, 24, 24)]
    (place,) = find_places(cases, (20, 20, 20), 1, network.spec, AS_STORED)
    held, scaling = place.hold(network.spec, AS_STORED)
    pixels, invalid = held.read(place.window.__class__((0, 0, 0), (20, 20, 20)))
    assert invalid is None
    # the box is 2 to 22 of 24; the point at index i is at (i + 0.5) / 2 - 0.5 voxels; axes are R, A, S: i is the first
    expected = 10 * ((np.arange(2, 22) + 0.5) / 2 - 0.5)
    np.testing.assert_allclose(pixels[0], np.broadcast_to(expected, (20, 20, 20)), rtol=1e-6)
    assert scaling.gain.shape == (1,)


def test_a_model_of_images_is_tuned_on_slices(tmp_path: Path) -> None:
    data = volumes.voxels((30, 28, 9), "u1")
    path = volumes.write(tmp_path / "a.nii", data)
    model = networks.local(tmp_path / "m.onnx", 1, tile=[16, 16], overlap=[4, 4])
    (network,) = open_networks(TuneSettings(model=model, device="cpu"))
    cases = find_cases([str(path)])
    assert survey(cases, network.spec, AS_STORED) == [(28, 30)]
    (place,) = find_places(cases, (20, 20), 1, network.spec, AS_STORED)
    held, _ = place.hold(network.spec, AS_STORED)
    pixels, _ = held.read(place.window.__class__((0, 0), (20, 20)))
    np.testing.assert_array_equal(pixels[0], data.T[4, 4:24, 5:25])
    found = tuned(model, input=(str(path),), tiles=(16,), overlaps=(0, 8), blend="crop")
    seams = {row.candidate.tiling.overlap[0]: row.seam_error for row in found.rows}
    assert seams[0] > seams[8] == 0


def test_the_command_on_a_volume(tmp_path: Path) -> None:
    volumes.write(tmp_path / "a.nii.gz", volumes.voxels(SHAPE, "u1"))
    local(tmp_path / "m.onnx")
    done = invoke(["tune", "m.onnx", "--input", "a.nii.gz", "--device", "cpu", "--seconds", "60", "--json"], tmp_path)
    assert done.returncode in (0, 1), done.stderr
    report = json.loads(done.stdout)
    assert "boxes of " in report["compared_on"] or "a box of 14 x 16 x 15 voxels of a" in report["compared_on"]
    assert {tuple(candidate["tile"]) for candidate in report["choices"]} >= {(8, 8, 8)}


def test_flips_are_measured_as_a_run_averages_them(tmp_path: Path) -> None:
    volumes.write(tmp_path / "a.nii.gz", volumes.voxels(SHAPE, "u1"))
    local(tmp_path / "m.onnx")
    command = ["tune", "m.onnx", "--input", "a.nii.gz", "--device", "cpu", "--tile", "8", "--overlap", "2"]
    done = invoke([*command, "--tta", "flips", "--min-agreement", "0.01", "--seconds", "60", "--json"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert " --tta flips" in json.loads(done.stdout)["command"]
    spec = TuneSettings(tmp_path / "m.onnx", tta="flips").of_run(tmp_path / "m.onnx")
    assert spec.tta == "flips"


def test_noise_for_a_model_of_volumes(tmp_path: Path) -> None:
    found = tuned(local(tmp_path / "m.onnx"), tiles=(8,), overlaps=(2,))
    assert [row.candidate.tiling.tile for row in found.rows] == [(8, 8, 8)]


def test_a_tile_that_does_not_fit_into_memory_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segpipe.tune.measure.TILES_SHARE", 0.0)
    found = tuned(local(tmp_path / "m.onnx"))
    assert all(row.candidate.is_own for row in found.rows)
    assert any("left out" in note for note in found.notes)
    assert isinstance(found.rows[0].candidate, Candidate)

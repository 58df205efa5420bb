"""What ``segpipe inspect`` says of volumes, against nibabel, NumPy and a run's own words."""

import re
from pathlib import Path
from typing import Any

import dicoms
import networks
import nibabel
import numpy as np
import pytest
import volumes
from click.testing import CliRunner
from inspecting import command, settings, told, volume_facts
from PIL import Image

from segpipe.cli import main
from segpipe.contract import any_contract
from segpipe.inspect.checks import noting, spec_of

SHAPE = (11, 13, 7)


def test_a_volume_as_json(tmp_path: Path) -> None:
    data = volumes.voxels(SHAPE)
    path = volumes.write(tmp_path / "a.nii.gz", data, volumes.OBLIQUE, scl_slope=2, scl_inter=-1024)
    facts, image = told(path), nibabel.load(path)
    assert list(facts) == [
        *("kind", "file", "format", "files", "shape", "spacing", "unit", "orientation", "affine", "dtype", "slope"),
        *("intercept", "values", "needs", "fit", "notes", "error"),
    ]
    assert (facts["kind"], facts["format"], facts["dtype"]) == ("volume", "nifti", "int16")
    assert facts["shape"] == list(reversed(image.shape))
    assert facts["spacing"] == pytest.approx(list(reversed(image.header.get_zooms())), rel=1e-6)
    assert facts["orientation"] == "".join(reversed(nibabel.aff2axcodes(image.affine)))
    assert (facts["slope"], facts["intercept"], facts["error"], facts["fit"]) == (2, -1024, None, None)
    values = np.asarray(image.dataobj)  # nibabel applies slope and intercept
    found = facts["values"]
    assert (found["share"], found["voxels"]) == (1, values.size)
    assert [found["min"], found["max"]] == [values.min(), values.max()]
    assert [found["mean"], found["std"]] == pytest.approx([values.mean(), values.std()], rel=1e-12)
    assert facts["needs"]["layout"], facts["needs"]["pixel"] == ("NCDHW", "physical")


def test_the_folder_of_one_series(tmp_path: Path) -> None:
    folder = dicoms.write(tmp_path / "p1" / "CT")
    facts = told(folder)
    units = dicoms.values().astype(int) - 1024
    assert (facts["kind"], facts["format"], facts["shape"]) == ("volume", "dicom", [6, 9, 11])
    assert [facts["values"]["min"], facts["values"]["max"]] == [units.min(), units.max()]
    assert len(facts["files"]) == 6
    dicoms.write(tmp_path / "p2" / "CT", series=2)
    ended = command(tmp_path)
    assert ended.exit_code == 2
    assert re.search(r"inspect takes one case, and the folder .* has 2: name one, such as .*p1/CT", ended.stderr)
    assert command(tmp_path / "p2").exit_code == 0


def test_the_path_that_the_message_names_is_one_of_several_series_or_volumes(tmp_path: Path) -> None:
    dicoms.write(tmp_path / "two", series=1)
    dicoms.write(tmp_path / "two", dicoms.values()[:3], suffix=".ima", series=2)
    both, places = dicoms.values((4, 5, 6)), np.repeat(dicoms.positions(2), 2, axis=0)
    dicoms.enhanced(tmp_path / "times.dcm", both, places, [1] * 4, times=[1, 2, 1, 2])
    for place, shape in ((tmp_path / "two", [6, 9, 11]), (tmp_path / "times.dcm", [2, 5, 6])):
        named = re.search(r"name one, such as (\S+)", command(place).stderr)
        assert named is not None
        assert told(named[1])["shape"] == shape
    assert command(tmp_path / "two" / "1.2.3").exit_code == 2


def test_a_folder_of_a_picture_names_the_file(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "a.png")
    ended = command(tmp_path)
    assert ended.exit_code == 2
    assert re.search(r"takes a folder only if it is a volume, such as a DICOM series: name the file, .*a\.png", ended.stderr)


def test_invalid_voxels_are_not_values(tmp_path: Path) -> None:
    data = volumes.voxels(SHAPE, "f4")
    data[:4], data[4, 0, 0] = np.nan, np.inf
    facts = volume_facts(volumes.write(tmp_path / "a.nii", data), nodata="-300")
    valid = data[np.isfinite(data) & (data != -300)]
    assert facts.values is not None
    assert facts.values.share == pytest.approx(valid.size / data.size)
    assert (facts.values.min, facts.values.max) == (valid.min(), valid.max())


def test_a_volume_without_a_valid_voxel(tmp_path: Path) -> None:
    path = volumes.write(tmp_path / "a.nii", np.full(SHAPE, np.nan, np.float32))
    assert told(path)["values"] == {"share": 0, "voxels": 1001, "min": None, "max": None, "mean": None, "std": None}
    assert "0.0%, all voxels read" in command(path).stdout


def test_of_a_very_large_volume_planes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segpipe.inspect.volume.MOST_READ", 11 * 13 * 3)
    data = volumes.voxels(SHAPE)
    values = volume_facts(volumes.write(tmp_path / "a.nii", data)).values
    assert values is not None
    assert (values.voxels, values.min, values.max) == (11 * 13 * 3, data[..., ::3].min(), data[..., ::3].max())


def test_blocks_of_planes_cover_a_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segpipe.inspect.volume.READ_AT_ONCE", 11 * 13 * 2)
    data = volumes.voxels(SHAPE)
    values = volume_facts(volumes.write(tmp_path / "a.nii", data)).values
    assert values is not None
    assert values.mean == pytest.approx(data.mean(), rel=1e-12)
    assert values.voxels == data.size


def test_planes_that_are_too_large_are_read_in_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``SHAPE`` has 7 planes of 13 rows of 11 voxels."""
    monkeypatch.setattr("segpipe.inspect.volume.READ_AT_ONCE", 11 * 4)
    data = volumes.voxels(SHAPE)
    values = volume_facts(volumes.write(tmp_path / "a.nii", data)).values
    assert values is not None
    assert (values.mean, values.voxels) == (pytest.approx(data.mean(), rel=1e-12), data.size)
    monkeypatch.setattr("segpipe.inspect.volume.MOST_READ", 11 * 13 // 2)
    few = volume_facts(volumes.write(tmp_path / "b.nii", data)).values
    assert few is not None
    assert few.voxels == 11 * (4 + 1)  # rows 0 to 3 and 12 of the first plane


def test_a_volume_under_a_model_of_volumes(tmp_path: Path) -> None:
    """21 x 19.5 x 10.5 mm at 1.5 mm are resampled to 14 x 13 x 7 voxels of a model at 1.5, 1.5 and 1.5 mm."""
    path = volumes.write(tmp_path / "a.nii.gz", volumes.voxels((14, 13, 14), "u1"), np.diag([1.5, 1.5, 0.75, 1]))
    model = networks.volumetric(tmp_path / "m.onnx", (8, 8, 8), orientation="RAS", spacing=[1.5] * 3)
    facts = told(path, "--model", model)
    fit = facts["fit"]
    assert (fit["orientation"], fit["wanted_spacing"], fit["resampled"]) == ("RAS", [1.5] * 3, True)
    assert (fit["shape"], fit["tile"], fit["windows"]) == ([14, 13, 7], [8, 8, 8], np.prod(fit["grid"]))
    assert any("are resampled to the model's" in note for note in facts["notes"])
    shown = command(path, "--model", model).stdout
    for words in (
        "14 x 13 x 14 voxels, slowest axis first",
        "orientation +SAR, slowest axis first; RAS in nibabel",
        "type +uint8",
        "valid voxels +100.0%, all voxels read",
        r"spacing = \[0.75, 1.5, 1.5\]",
        "RAS, as the network sees it",
        "1.5 x 1.5 x 1.5 mm wanted; resampled to 14 x 13 x 7 voxels",
        r"memory +about \d+ MB",
    ):
        assert re.search(words, shown), words


def test_a_volume_under_a_model_of_images_is_sliced(tmp_path: Path) -> None:
    path = volumes.write(tmp_path / "a.nii", volumes.voxels(dtype="u1"))
    fit = told(path, "--model", networks.pixelwise(tmp_path / "m.onnx", 1))["fit"]
    assert (fit["tile"], fit["windows"]) == ([1, 64, 64], 7)


REFUSED: dict[str, dict[str, Any]] = {
    "channels": {"make": lambda path: networks.pixelwise(path, 3), "words": "has one channel, and the model takes 3"},
    "slope": {"make": lambda path: networks.volumetric(path, (8, 8, 8)), "words": "scl_slope, scl_inter"},
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_run_refuses_is_described_and_refused(kind: str, tmp_path: Path) -> None:
    path = volumes.write(tmp_path / "a.nii", volumes.voxels(dtype="u1"), scl_slope=2, scl_inter=1)
    model = REFUSED[kind]["make"](tmp_path / "m.onnx")
    facts = told(path, "--model", model, code=1)
    assert REFUSED[kind]["words"] in facts["error"]
    assert (facts["fit"], facts["values"]["voxels"]) == (None, 1001)
    dry = ["run", "-i", str(path), "-m", str(model), "-o", str(tmp_path / "out"), "--dry-run"]
    assert f"problem  a: {facts['error']}" in CliRunner().invoke(main, dry).stdout


def test_voxels_that_cannot_be_read(tmp_path: Path) -> None:
    path = volumes.write(tmp_path / "a.nii.gz", volumes.voxels())
    path.write_bytes(path.read_bytes()[:-9])
    facts = told(path, code=1)
    assert facts["values"] is None
    assert "its gzip stream ends before its trailer" in facts["error"]


def test_a_header_that_contradicts_itself(tmp_path: Path) -> None:
    ended = command(volumes.write(tmp_path / "a.nii", volumes.voxels(), bitpix=7))
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert "contradicts itself" in ended.stderr


def test_flags_that_mean_nothing_for_a_volume(tmp_path: Path) -> None:
    path = volumes.write(tmp_path / "a.nii", volumes.voxels())
    assert "--tile counts where a model is given, and this is a volume alone" in command(path, "--tile", "8").stderr
    assert "has no CRS: leave out --crs" in command(path, "--crs", "EPSG:4326").stderr


def test_an_error_of_a_model_is_a_fact(tmp_path: Path) -> None:
    """``segpipe.inspect.checks``, ``segpipe.inspect.show_volume``: what rasters and volumes share, and what is printed."""
    errors: list[str] = []
    model = networks.Network(1).conv(1, 3, 1).save(tmp_path / "m.onnx", None, classes=3)
    assert spec_of(settings(tmp_path / "a.nii", model=model), errors) is None
    assert "has no contract" in errors[0]
    with noting(errors, "a.nii"):
        raise OSError(5, "Input/output error")
    assert len(errors) == 2
    assert any_contract(0, pixel="physical").channel_count == 1


@pytest.mark.shared_data
def test_a_real_volume_is_as_nibabel_says(shared: Path) -> None:
    path = next(iter(sorted((shared / "models" / "brain").rglob("*.nii.gz")) or sorted(shared.rglob("*T1*.nii.gz"))))
    facts, image = volume_facts(path), nibabel.load(path)
    values = np.asarray(image.dataobj)
    assert facts.shape == list(reversed(image.shape))
    assert facts.values is not None
    assert [facts.values.min, facts.values.max] == pytest.approx([values.min(), values.max()])
    assert facts.values.std == pytest.approx(values.std(dtype=np.float64), rel=1e-6)


def test_a_file_of_four_axes_with_the_model_of_its_channels(tmp_path: Path) -> None:
    data = volumes.voxels((*SHAPE, 2))
    path = volumes.write(tmp_path / "a.nii.gz", data)
    values = networks.contract(2, 3, layout="NCDHW", tile=[2, 6, 8], overlap=[0, 1, 2], scale=1 / 4096)
    networks.Network(2, 0, ndim=3).conv(2, 3, 1).save(tmp_path / "two.onnx", values, classes=3, shape=("n", 2, 6, 8))
    facts = told(path, "--model", tmp_path / "two.onnx")
    assert (facts["error"], facts["needs"]["channels"], facts["shape"]) == (None, 2, list(reversed(SHAPE)))
    found = facts["values"]
    assert (found["share"], found["voxels"]) == (1, data[..., 0].size)
    assert [found["min"], found["max"]] == [data.min(), data.max()]
    assert [found["mean"], found["std"]] == pytest.approx([data.mean(), data.std()], rel=1e-12)
    ended = command(path)
    assert ended.exit_code == 2
    assert re.search("must hold one volume, and holds 2 of them: take one out, with fslroi", ended.stderr)
    volumes.write(tmp_path / "one.nii.gz", data[..., 0])
    refused = command(tmp_path / "one.nii.gz", "--model", tmp_path / "two.onnx")
    assert refused.exit_code == 1
    assert re.search("has one channel, and the model takes 2", refused.stderr)

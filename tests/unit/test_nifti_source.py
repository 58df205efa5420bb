"""Windows of NIfTI volumes in any orientation, against nibabel's arrays."""

from pathlib import Path
from typing import Any

import networks
import nibabel
import numpy as np
import pytest
import volumes
from test_voxel_grid import ALL

from segpipe.contract import Contract, parse_contract
from segpipe.errors import ContractError, SourceError
from segpipe.formats.nifti.source import NiftiSource
from segpipe.formats.registry import FORMATS
from segpipe.geometry.windows import Window
from segpipe.overrides import Overrides
from segpipe.pipeline.read import scaling_of


def contract(**changes: Any) -> Contract:
    values = networks.contract(1, 3, layout="NCDHW", tile=[16], overlap=[4], scale=1.0)
    return parse_contract(values | changes, "a test")


def whole(source: NiftiSource) -> tuple[Any, Any]:
    return source.read(Window((0, 0, 0), source.grid.shape))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_axes_are_planes_rows_and_columns_as_stored(tmp_path: Path, name: str) -> None:
    path = volumes.write(tmp_path / name, volumes.voxels(), volumes.OBLIQUE)
    source = NiftiSource(str(path), contract())
    pixels, invalid = whole(source)
    np.testing.assert_array_equal(pixels[0], volumes.voxels().T)
    assert invalid is None
    assert source.dtype == np.dtype("i2")
    assert source.files == (str(path),)
    source.close()
    source.close()


@pytest.mark.parametrize("letters", ALL)
def test_a_window_in_the_models_orientation(tmp_path: Path, letters: str) -> None:
    path = volumes.write(tmp_path / "a.nii", volumes.voxels(), volumes.OBLIQUE)
    source = NiftiSource(str(path), contract(orientation=letters))
    change = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(volumes.OBLIQUE), nibabel.orientations.axcodes2ornt(letters)
    )
    expected = nibabel.load(path).as_reoriented(change)
    assert source.grid.shape == expected.shape
    np.testing.assert_allclose(source.grid.affine, expected.affine, atol=1e-5)
    window = Window((1, 2, 3), (4, 6, 7))
    pixels, _ = source.begin(window)()
    np.testing.assert_array_equal(pixels[0], np.asarray(expected.dataobj)[1:4, 2:6, 3:7])
    assert pixels.flags.c_contiguous
    source.close()


def test_left_and_right_are_not_guessed_for_a_model_that_has_an_orientation(tmp_path: Path) -> None:
    path = str(volumes.write(tmp_path / "a.nii", volumes.voxels(), volumes.OBLIQUE, (0, 0)))
    with pytest.raises(SourceError, match=r'must say how it lies, for the contract has orientation = "RAS".*set_sform'):
        NiftiSource(path, contract(orientation="RAS"))
    source = NiftiSource(path, contract())
    assert "sform_code and qform_code are 0" in source.notes[0]
    source.close()


def test_axes_as_stored_are_named_where_the_contract_has_no_orientation(tmp_path: Path) -> None:
    path = str(volumes.write(tmp_path / "a.nii", volumes.voxels(), volumes.OBLIQUE))
    for wanted, notes in (
        (contract(), ("the contract names no orientation: the network gets the axes as they are stored, SLA",)),
        (contract(orientation="RAS"), ()),
    ):
        source = NiftiSource(path, wanted)
        assert source.notes == notes
        source.close()


def test_files_without_a_checksum_are_not_verified(tmp_path: Path) -> None:
    files = [str(volumes.write(tmp_path / name, volumes.voxels())) for name in ("a.nii", "b.nii.gz")]
    assert FORMATS["nifti"].verify(files) == [f"{files[0]} is not verified: a file that is not packed has no checksum"]


def test_no_number_is_invalid(tmp_path: Path) -> None:
    data = volumes.voxels(dtype="f4")
    data[2, 3, 4], data[5, 6, 1] = np.nan, np.inf
    source = NiftiSource(str(volumes.write(tmp_path / "a.nii", data)), contract())
    _, invalid = whole(source)
    assert np.argwhere(invalid.T).tolist() == [[2, 3, 4], [5, 6, 1]]
    assert source.read(Window((0, 0, 0), (1, 13, 11)))[1] is None
    source.close()


def test_nodata_that_the_user_names_is_invalid(tmp_path: Path) -> None:
    path = volumes.write(tmp_path / "a.nii", volumes.voxels(dtype="u1"))
    source = NiftiSource(str(path), contract(), Overrides(nodata=255))
    np.testing.assert_array_equal(whole(source)[1], volumes.voxels(dtype="u1").T == 255)
    source.close()


@pytest.mark.parametrize("value", [-1, 256, 300, 0.5, "nan"])
def test_nodata_that_no_voxel_can_hold_is_refused_as_in_rasters(tmp_path: Path, value: Any) -> None:
    path = str(volumes.write(tmp_path / "a.nii", volumes.voxels(dtype="u1")))
    with pytest.raises(
        SourceError, match=rf"a.nii: --nodata must be a value that the pixels can hold, uint8 of 0 to 255.*{value}"
    ):
        NiftiSource(path, contract(), Overrides(nodata=value))
    source = NiftiSource(path, contract(), Overrides(nodata="none"))
    assert whole(source)[1] is None
    source.close()
    floats = NiftiSource(
        str(volumes.write(tmp_path / "b.nii", volumes.voxels(dtype="f4"))), contract(), Overrides(nodata=-1000.5)
    )
    assert whole(floats)[1] is None
    floats.close()


def test_slope_and_intercept_are_tags(tmp_path: Path) -> None:
    path = volumes.write(tmp_path / "a.nii", volumes.voxels(), scl_slope=2, scl_inter=-1024)
    source = NiftiSource(str(path), contract(pixel="physical"))
    assert [float(t[0]) for t in source.tags()] == [2, -1024]
    np.testing.assert_array_equal(whole(source)[0][0], volumes.voxels().T)
    source.close()
    source = NiftiSource(str(volumes.write(tmp_path / "b.nii", volumes.voxels())), contract(pixel="physical"))
    assert source.tags() is None
    source.close()


def test_values_that_the_contract_would_leave_as_stored_are_refused(tmp_path: Path) -> None:
    path = str(volumes.write(tmp_path / "a.nii", volumes.voxels(), scl_slope=1, scl_inter=-1024))
    with pytest.raises(SourceError, match=r'values are stored \* 1 \+ -1024.*set pixel = "physical" in the contract'):
        NiftiSource(path, contract())
    NiftiSource(path, contract(normalize="zscore")).close()  # which undoes it
    with pytest.raises(SourceError, match='set pixel = "physical"'):
        NiftiSource(path, contract(normalize="zscore", clip=[-100, 300]))


@pytest.mark.parametrize("normalize", ["none", "zscore"])
def test_a_slope_is_not_lost_before_a_network_that_scales_inside(tmp_path: Path, normalize: str) -> None:
    path = str(volumes.write(tmp_path / "a.nii", volumes.voxels(), scl_slope=7, scl_inter=-500))
    inside = contract(scaling="graph", normalize=normalize)
    with pytest.raises(
        SourceError, match=r'scaling = "graph" leaves that out: set scaling = "host", normalize = "none" and'
    ):
        NiftiSource(path, inside)
    with pytest.raises(ContractError, match=r'scaling = "graph" hands pixels .* as they are stored.*set scaling = "host"'):
        contract(scaling="graph", pixel="physical")
    source = NiftiSource(path, physical := contract(normalize="none", pixel="physical"))
    pixels, invalid = whole(source)
    taken = scaling_of(source, physical)(pixels, invalid)[0]
    np.testing.assert_array_equal(taken, nibabel.load(path).get_fdata(dtype=np.float32).T)
    source.close()
    NiftiSource(str(volumes.write(tmp_path / "b.nii", volumes.voxels())), inside).close()


def test_settings_of_rasters_are_refused(tmp_path: Path) -> None:
    path = str(volumes.write(tmp_path / "a.nii", volumes.voxels()))
    with pytest.raises(SourceError, match="is a volume, which has no CRS: leave out --crs"):
        NiftiSource(path, contract(), Overrides(crs="EPSG:32633"))
    with pytest.raises(SourceError, match="is a volume of one band, and --bands names others"):
        NiftiSource(path, contract(), Overrides(bands=(2,)))
    NiftiSource(path, contract(), Overrides(bands=(1,))).close()


def test_one_channel_and_a_file_of_this_machine(tmp_path: Path) -> None:
    path = str(volumes.write(tmp_path / "a.nii", volumes.voxels()))
    two = parse_contract(networks.contract(2, 3, layout="NCDHW", tile=[16], overlap=[4]), "a test")
    with pytest.raises(
        SourceError, match=r"has one channel, and the model takes 2: give one file per channel, named NAME_0000.*--channels"
    ):
        NiftiSource(path, two)
    for gone in ("s3://bucket/a.nii.gz", "https://host/a.nii", "/vsis3/bucket/a.nii"):
        with pytest.raises(SourceError, match="must be a file of this machine"):
            NiftiSource(gone, contract())


def test_a_header_is_read_without_unpacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = volumes.write(tmp_path / "a.nii.gz", volumes.voxels())
    monkeypatch.setattr("segpipe.formats.volume.source.unpacked", lambda volume: 1 / 0)
    source = NiftiSource(str(path), contract())
    assert source.grid.shape == (7, 13, 11)
    source.close()


def test_damage_is_told_when_voxels_are_read(tmp_path: Path) -> None:
    path = volumes.write(tmp_path / "a.nii.gz", volumes.voxels())
    path.write_bytes(path.read_bytes()[:-4])
    source = NiftiSource(str(path), contract())
    with pytest.raises(SourceError, match="is cut: its gzip stream ends before its trailer"):
        whole(source)
    source.close()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_box_near_a_place_lies_inside(tmp_path: Path, share: float) -> None:
    source = NiftiSource(str(volumes.write(tmp_path / "a.nii", volumes.voxels())), contract())
    box = source.near((share,) * 3, 5)
    assert all(0 <= a < b <= n and b - a <= 5 for a, b, n in zip(box.start, box.stop, source.grid.shape, strict=True))
    source.close()

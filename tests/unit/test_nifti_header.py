"""What is read of a NIfTI header, and what is refused; nibabel and SimpleITK say where a volume lies."""

import bz2
import gzip
import io
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import volumes

from segpipe.errors import SourceError
from segpipe.formats.nifti.header import read_volume
from segpipe.formats.volume.file import check_length

TURNED = np.array([[0.0, -3, 0, 5], [2, 0, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]])
"""Right-handed, so that pixdim[0] is 1."""


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_shape_type_and_place_are_those_of_nibabel(tmp_path: Path, name: str) -> None:
    path = volumes.write(tmp_path / name, volumes.voxels(), volumes.OBLIQUE)
    volume = read_volume(str(path))
    assert volume.shape == (7, 13, 11)
    assert volume.stored == np.dtype("<i2")
    assert volume.packed == name.endswith(".gz")
    np.testing.assert_allclose(volume.grid.affine[:, [2, 1, 0, 3]], nibabel.load(path).affine, atol=1e-6)
    assert volume.grid.directions == "SLA"
    assert volume.notes == ()


def test_spacing_is_that_of_simpleitk(tmp_path: Path) -> None:
    path = volumes.write(tmp_path / "a.nii", volumes.voxels(), volumes.OBLIQUE)
    image = SimpleITK.ReadImage(str(path))
    grid = read_volume(str(path)).grid
    assert grid.spacing[::-1] == pytest.approx(image.GetSpacing(), rel=1e-5)
    x, y, z = image.TransformIndexToPhysicalPoint((3, 4, 5))
    np.testing.assert_allclose(grid.world(np.array([5, 4, 3])), (-x, -y, z), atol=1e-3)  # ITK's x and y run the other way


def test_qform_alone_and_sform_alone(tmp_path: Path) -> None:
    for codes in ((1, 0), (0, 1)):
        path = volumes.write(tmp_path / "a.nii", volumes.voxels(), volumes.OBLIQUE, codes)
        grid = read_volume(str(path)).grid
        np.testing.assert_allclose(grid.affine[:, [2, 1, 0, 3]], nibabel.load(path).affine, atol=1e-5)


def test_big_endian_and_nifti2(tmp_path: Path) -> None:
    data = volumes.voxels()
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4), header), tmp_path / "big.nii")
    nibabel.save(nibabel.Nifti2Image(data, np.eye(4)), tmp_path / "two.nii.gz")
    assert read_volume(str(tmp_path / "big.nii")).stored == np.dtype(">i2")
    assert read_volume(str(tmp_path / "two.nii.gz")).shape == (7, 13, 11)


@pytest.mark.parametrize(
    ("codes", "affine", "message"),
    [
        ((2, 1), np.diag([-1.0, 1, 1, 1]), r"sform and qform must agree, and differ by 20 mm at a corner.*code 2.*code 1"),
        ((1, 1), np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0.6], [0, 0, 0, 1]]), "differ by 0.6 mm"),
    ],
)
def test_forms_that_disagree_are_refused(tmp_path: Path, codes: tuple[int, int], affine: np.ndarray, message: str) -> None:
    path = volumes.write(tmp_path / "a.nii", volumes.voxels(), np.eye(4), codes)
    image = nibabel.load(path)
    image = nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header)
    image.set_sform(affine, codes[0])
    nibabel.save(image, path)
    with pytest.raises(SourceError, match=message):
        read_volume(str(path))


def test_forms_that_differ_by_the_rounding_of_a_quaternion_agree(tmp_path: Path) -> None:
    angle = np.pi - 1e-4  # where the real part of the quaternion is lost in float32
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * 0.5
    path = volumes.write(tmp_path / "a.nii", np.zeros((512, 512, 2), "u1"), affine)
    assert read_volume(str(path)).shape == (2, 512, 512)


def test_a_file_that_does_not_say_how_it_lies_has_a_note(tmp_path: Path) -> None:
    path = volumes.write(tmp_path / "a.nii", volumes.voxels(), volumes.OBLIQUE, (0, 0))
    volume = read_volume(str(path))
    np.testing.assert_allclose(volume.grid.affine[:, [2, 1, 0, 3]], nibabel.load(path).affine, atol=1e-6)
    assert len(volume.notes) == 1
    assert "sform_code and qform_code are 0" in volume.notes[0]


@pytest.mark.parametrize("size", [0.0, -1.0, np.nan, np.inf])
def test_a_voxel_without_a_size_is_refused(tmp_path: Path, size: float) -> None:
    path = volumes.write(tmp_path / "a.nii", volumes.voxels(), pixdim=[1, 1, size, 1, 0, 0, 0, 0])
    with pytest.raises(SourceError, match=r"pixdim.*must be above 0, got 1, "):
        read_volume(str(path))


def test_pixdim_must_be_what_sform_says(tmp_path: Path) -> None:
    path = volumes.write(tmp_path / "a.nii", volumes.voxels(), volumes.OBLIQUE, (2, 0), pixdim=[1, 1, 1, 1, 0, 0, 0, 0])
    with pytest.raises(SourceError, match=r"pixdim and sform must give voxels one size, got 1 x 1 x 1 and 0.9 x"):
        read_volume(str(path))


def test_a_size_that_float32_does_not_explain_has_a_note(tmp_path: Path) -> None:
    for size, count in ((0.991, None), (1.0005, 1), (1.000001, 0)):
        path = volumes.write(tmp_path / "a.nii", volumes.voxels(), None, (2, 0), pixdim=[1, 1, size, 1, 0, 0, 0, 0])
        if count is None:
            with pytest.raises(
                SourceError, match=r"pixdim and sform must give voxels one size, got 1 x 0.991 x 1 and 1 x 1"
            ):
                read_volume(str(path))
        else:
            notes = read_volume(str(path)).notes
            assert ["pixdim and sform differ by 0.0005 of a voxel's size" in note for note in notes] == [True] * count


@pytest.mark.parametrize(("off", "count"), [(0.49, 1), (0.06, 1), (0.04, 0)])
def test_forms_that_lie_apart_by_less_than_is_refused_have_a_note(tmp_path: Path, off: float, count: int) -> None:
    path = volumes.write(tmp_path / "a.nii", volumes.voxels(), None, (1, 1), qoffset_x=off)
    notes = read_volume(str(path)).notes
    assert [f"sform and qform differ by {off:g} mm at a corner, and sform is taken" in note for note in notes] == [
        True
    ] * count


def test_a_sheared_volume_is_refused_from_half_a_voxel_on(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[1, 2] = 0.2
    path = volumes.write(tmp_path / "a.nii", volumes.voxels(), affine, (2, 0))
    with pytest.raises(SourceError, match=r"axes must be at right angles, and one is sheared by"):
        read_volume(str(path))
    for shear, count in ((0.01, 1), (0.001, 0)):
        affine[1, 2] = shear
        volume = read_volume(str(volumes.write(tmp_path / "a.nii", volumes.voxels(), affine, (2, 0))))
        assert ["axes are sheared by 0.13 mm over the volume" in note for note in volume.notes] == [True] * count


def test_pixdim_0_of_0_is_taken_as_1(tmp_path: Path) -> None:
    path = volumes.write(tmp_path / "a.nii", volumes.voxels(), TURNED, (0, 1))
    sizes = nibabel.load(path).header["pixdim"].copy()
    assert sizes[0] == 1
    sizes[0] = 0
    grid = read_volume(str(volumes.patch(path, pixdim=sizes))).grid
    np.testing.assert_allclose(grid.affine[:, [2, 1, 0, 3]], nibabel.load(path).affine, atol=1e-5)
    x, y, z = SimpleITK.ReadImage(str(path)).TransformIndexToPhysicalPoint((3, 4, 5))
    np.testing.assert_allclose(grid.world(np.array([5, 4, 3])), (-x, -y, z), atol=1e-3)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_all_extensions_lie_before_the_voxels(tmp_path: Path, name: str) -> None:
    """nibabel writes extensions of 32, 640 and 48 bytes, which end at byte 1072, and sets vox_offset to it."""
    image = nibabel.Nifti1Image(volumes.voxels(), np.eye(4))
    for size in (20, 620, 30):
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * size))
    nibabel.save(image, tmp_path / name)
    assert read_volume(str(tmp_path / name)).offset == 1072
    volumes.patch(tmp_path / name, vox_offset=1056)
    said = (
        "extension 3 of its header, of 48 bytes, ends at byte 1072, so vox_offset must be 1072 or more, got 1056: write it"
    )
    with pytest.raises(SourceError, match=said):
        read_volume(str(tmp_path / name))


def test_what_follows_the_extensions_is_no_extension(tmp_path: Path) -> None:
    """Bytes between the last extension and the voxels are not defined by the standard."""
    image = nibabel.Nifti1Image(volumes.voxels(), np.eye(4))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 20))
    nibabel.save(image, tmp_path / "a.nii")
    data = (tmp_path / "a.nii").read_bytes()
    for rest in (bytes(32), b"\xff" * 32, (17).to_bytes(4, "little") + bytes(28)):
        (tmp_path / "b.nii").write_bytes(data[:384] + rest + data[384:])
        assert read_volume(str(volumes.patch(tmp_path / "b.nii", vox_offset=416))).offset == 416


def test_an_extension_lies_before_the_voxels(tmp_path: Path) -> None:
    for family, name in ((nibabel.Nifti1Image, "one.nii"), (nibabel.Nifti2Image, "two.nii.gz")):
        image = family(volumes.voxels(), np.eye(4))
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 620))
        nibabel.save(image, tmp_path / name)
        assert read_volume(str(tmp_path / name)).offset == nibabel.load(tmp_path / name).dataobj.offset
    path = volumes.patch(tmp_path / "one.nii", vox_offset=352)
    with pytest.raises(
        SourceError, match="extension 1 of its header, of 640 bytes, ends at byte 992, so vox_offset must be 992"
    ):
        read_volume(str(path))


def test_vox_offset_of_0_is_refused_for_other_readers_take_the_header_for_voxels(tmp_path: Path) -> None:
    path = volumes.write(tmp_path / "a.nii", volumes.voxels(), vox_offset=0)
    assert not np.array_equal(np.asarray(nibabel.load(path).dataobj), volumes.voxels())
    with pytest.raises(SourceError, match="352 or more, got 0: write it again with the program that made it"):
        read_volume(str(path))


@pytest.mark.parametrize(
    ("code", "factor", "note"), [(1, 1000, "in m;"), (2, 1, None), (3, 0.001, "in um;"), (0, 1, "no unit")]
)
def test_units_become_mm(tmp_path: Path, code: int, factor: float, note: str | None) -> None:
    path = volumes.write(tmp_path / "a.nii", volumes.voxels(), np.diag([2.0, 3, 4, 1]), xyzt_units=code)
    volume = read_volume(str(path))
    assert volume.grid.spacing == pytest.approx((4 * factor, 3 * factor, 2 * factor))
    assert [note in text for text in volume.notes] == ([] if note is None else [True])


def test_an_unknown_unit_is_refused(tmp_path: Path) -> None:
    path = volumes.write(tmp_path / "a.nii", volumes.voxels(), xyzt_units=5)
    with pytest.raises(SourceError, match="the unit of length must be m, mm or um"):
        read_volume(str(path))


@pytest.mark.parametrize(
    ("dtype", "message"),
    [("complex64", "complex voxels"), ([("R", "u1"), ("G", "u1"), ("B", "u1")], "RGB colours")],
)
def test_voxels_that_are_no_single_numbers_are_refused(tmp_path: Path, dtype: object, message: str) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), dtype), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(SourceError, match=f"must be one integer or float.*{message}"):
        read_volume(str(tmp_path / "a.nii"))


def test_a_fourth_axis_of_one_is_dropped_and_of_more_refused(tmp_path: Path) -> None:
    assert read_volume(str(volumes.write(tmp_path / "a.nii", volumes.voxels((4, 5, 6, 1))))).shape == (6, 5, 4)
    with pytest.raises(SourceError, match=r"must hold one volume, and holds 3 of them"):
        read_volume(str(volumes.write(tmp_path / "a.nii", volumes.voxels((4, 5, 6, 3)))))


def test_one_slice_is_a_volume(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5), "u1"), np.eye(4)), tmp_path / "a.nii")
    assert read_volume(str(tmp_path / "a.nii")).shape == (1, 5, 4)


def test_axes_that_lie_in_one_plane_are_refused(tmp_path: Path) -> None:
    # numbers at random, and float32: most such affines have a determinant that is small, but not 0
    rng = np.random.default_rng(0)
    for number in range(50):
        one, other = rng.normal(size=(2, 3))
        flat = np.column_stack([one, other, one * rng.normal() + other * rng.normal(), rng.normal(size=3)])
        rows = dict(zip(("srow_x", "srow_y", "srow_z"), flat, strict=True))
        pixdim = [1, *np.linalg.norm(flat[:, :3], axis=0), 1, 1, 1, 1]
        path = tmp_path / f"{number}.nii"
        volumes.write(path, volumes.voxels(), **rows, pixdim=pixdim, sform_code=1, qform_code=0)
        with pytest.raises(SourceError, match="the affine must be of finite numbers and invertible"):
            read_volume(str(path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": [3, 11, -13, 7, 1, 1, 1, 1]}, "dim must hold the number of axes"),
        (
            {"dim": [9, 11, 13, 7, 1, 1, 1, 1]},
            r"dim must hold the number of axes, 1 to 7, and their sizes, 1 or more, got \[9, 11",
        ),
        ({"datatype": 1536, "bitpix": 128}, "the file has floats of 128 bits"),
        ({"datatype": 1, "bitpix": 1}, "the file has 1-bit voxels"),
        ({"datatype": 7}, "the file has data type 7"),
        ({"bitpix": 8}, "bitpix of int16 voxels must be 16, got 8: write it again"),
        ({"vox_offset": 100}, "vox_offset must be a whole number, 352 or more, got 100"),
        ({"magic": b"ni1"}, "is the header of a pair"),
        ({"magic": b""}, "is no NIfTI file: its magic must be"),
        ({"scl_slope": np.inf}, "scl_slope and scl_inter must be finite"),
        ({"scl_slope": 2, "scl_inter": np.nan}, "scl_slope and scl_inter must be finite"),
        ({"srow_x": [0, 0, 0, 0], "qform_code": 0}, "the affine must be of finite numbers and invertible"),
        ({"srow_x": [np.nan, 0, 0, 0], "qform_code": 0}, "the affine must be of finite numbers and invertible"),
    ],
)
def test_headers_that_make_no_sense_are_refused(tmp_path: Path, fields: dict[str, object], message: str) -> None:
    path = volumes.write(tmp_path / "a.nii", volumes.voxels(), **fields)
    with pytest.raises(SourceError, match=message):
        read_volume(str(path))


@pytest.mark.parametrize("content", [b"\x5c\x01\x00\x00", b"no volume at all" * 50])
def test_what_is_no_nifti_is_refused(tmp_path: Path, content: bytes) -> None:
    for name, data in (("a.nii", content), ("a.nii.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SourceError, match="is no NIfTI file"):
            read_volume(str(tmp_path / name))


def test_what_has_the_name_of_a_volume_is_told(tmp_path: Path) -> None:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a.nii", b"x" * 1000)
    whole = volumes.write(tmp_path / "whole.nii", volumes.voxels()).read_bytes()
    for data, message in (
        (b"", r"is empty \(0 bytes\): copy it again"),
        (gzip.compress(b""), "unpacks to 0 bytes: copy it again"),
        (gzip.compress(gzip.compress(whole)), "is packed twice: unpack it once: gunzip -c .* > out.nii.gz"),
        (b"<!DOCTYPE html><html><body>log in</body></html>" * 20, "is a web page.*download it again"),
        (zipped.getvalue(), "is a zip archive"),
        (bz2.compress(whole), "is packed with bzip2: unpack it: bunzip2 -c .* > out.nii"),
    ):
        for name in ("a.nii", "a.nii.gz"):
            (tmp_path / name).write_bytes(data)
            with pytest.raises(SourceError, match=f"{name} {message}"):
                read_volume(str(tmp_path / name))


@pytest.mark.parametrize(("slope", "inter", "expected"), [(0, 7, (1, 0)), (np.nan, np.nan, (1, 0)), (2, -1024, (2, -1024))])
def test_slope_and_intercept(tmp_path: Path, slope: float, inter: float, expected: tuple[float, float]) -> None:
    path = volumes.write(tmp_path / "a.nii", volumes.voxels(), scl_slope=slope, scl_inter=inter)
    assert read_volume(str(path)).scale == expected


def test_a_file_must_be_as_long_as_its_header_says(tmp_path: Path) -> None:
    path = volumes.write(tmp_path / "a.nii", volumes.voxels())
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(SourceError, match=r"a.nii is cut: its header says 11 x 13 x 7 voxels of 2 bytes, which end at byte"):
        read_volume(str(path))
    path.write_bytes(whole + bytes(8))  # some programs fill up a block
    check_length(read_volume(str(path)), len(whole) + 8)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_a_header_that_has_lost_a_slice_is_refused(tmp_path: Path, axis: int) -> None:
    dim = [3, 11, 13, 7, 1, 1, 1, 1]
    dim[axis] -= 1
    path = volumes.write(tmp_path / "a.nii", volumes.voxels(), dim=dim)
    with pytest.raises(SourceError, match=r"contradicts itself.*correct the sizes in its header"):
        read_volume(str(path))


@pytest.mark.shared_data
def test_real_volumes_are_read_as_nibabel_reads_them(shared: Path) -> None:
    several, colours = {"example4d.nii.gz", "example_nifti2.nii.gz", "functional.nii"}, {"rgb"}
    seen = 0
    for path in sorted(shared.rglob("*.nii*")):
        if path.name in several or path.parent.name in colours:
            with pytest.raises(SourceError, match=r"must hold one volume|RGBA colours"):
                read_volume(str(path))
            continue
        volume, image = read_volume(str(path)), nibabel.load(path)
        assert volume.shape == image.shape[::-1]
        np.testing.assert_allclose(volume.grid.affine[:, [2, 1, 0, 3]], image.affine, atol=1e-5)
        seen += 1
    assert seen >= 8

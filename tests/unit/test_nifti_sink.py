"""Masks of volumes: their header against nibabel's and SimpleITK's reading of the input, their voxels against an array."""

import errno
import gzip
import os
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
import volumes
from test_voxel_grid import ALL

from segpipe import __version__
from segpipe.errors import OutputError
from segpipe.formats.dicom.source import _header as grid_header
from segpipe.formats.nifti.header import read_volume
from segpipe.formats.nifti.sink import NiftiSink, is_own_volume, template_of
from segpipe.formats.sink import Target
from segpipe.formats.style import Style
from segpipe.formats.volume.sink import _pack, _same_place
from segpipe.geometry.voxel_grid import VoxelGrid, matrix_rows, turned_to
from segpipe.geometry.windows import Window
from segpipe.storage.draft import Draft
from segpipe.storage.folder import Folder
from segpipe.storage.retry import is_passing

PATIENT = {"descrip": b"Doe, Jane 1970", "aux_file": b"doe.mat", "db_name": b"Doe^Jane"}
MASK = Style("uint8", 255, ["class"])
CONFIDENCE = Style("uint8", 255, ["confidence"], scale=1 / 254)


def target(path: Path, out: Path, letters: str | None = None, style: Style = MASK) -> Target:
    volume = read_volume(str(path))
    grid = volume.grid if letters is None else volume.grid.turn(turned_to(volume.grid, letters))
    return Target(Folder(out), "case", grid, style, template_of(volume))


def fill(sink: NiftiSink, labels: Any, side: int = 4) -> None:
    """Write ``(bands, *shape)`` in boxes."""
    for start in product(*(range(0, n, side) for n in labels.shape[1:])):
        stop = tuple(min(a + side, n) for a, n in zip(start, labels.shape[1:], strict=True))
        sink.write(Window(start, stop), labels[(slice(None), *map(slice, start, stop))])


def labels_for(target: Target, bands: int = 1, dtype: str = "uint8") -> Any:
    return np.random.default_rng(1).integers(0, 5, (bands, *target.grid.shape)).astype(dtype)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("codes", [(2, 1), (1, 0), (0, 1), (4, 4), (0, 0)])
def test_a_mask_lies_where_its_input_lies(tmp_path: Path, name: str, codes: tuple[int, int]) -> None:
    path = volumes.write(
        tmp_path / name, volumes.voxels(), volumes.OBLIQUE, codes, scl_slope=3, scl_inter=7, cal_max=900, **PATIENT
    )
    to = target(path, tmp_path / "out")
    sink, labels = NiftiSink(to), labels_for(to)
    fill(sink, labels)
    assert sink.finish() == ["case" + name[1:]] == list(sink.files()) == [sink.name]
    written, source = nibabel.load(tmp_path / "out" / sink.name), nibabel.load(path)
    np.testing.assert_array_equal(np.asarray(written.dataobj).T, labels[0])
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(written.affine, source.affine)
    for key in (
        "sform_code",
        "qform_code",
        "xyzt_units",
        "pixdim",
        "srow_x",
        "srow_y",
        "srow_z",
        "quatern_b",
        "dim",
    ):
        np.testing.assert_array_equal(written.header[key], source.header[key])
    assert (written.header["cal_max"], written.header["intent_code"]) == (0, 1002)
    assert written.header["descrip"].item() == f"segpipe {__version__}".encode()
    assert (written.header["aux_file"].item(), written.header["db_name"].item()) == (b"", b"")
    assert written.dataobj.slope == 1
    assert written.dataobj.inter == 0
    assert sink.size == (tmp_path / "out" / sink.name).stat().st_size
    assert list((tmp_path / "out" / ".drafts").iterdir()) == []
    ours, theirs = (SimpleITK.ReadImage(str(p)) for p in (tmp_path / "out" / sink.name, path))
    for ask in ("GetOrigin", "GetSpacing", "GetDirection", "GetSize"):
        assert getattr(ours, ask)() == getattr(theirs, ask)()
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(ours), labels[0])


@pytest.mark.parametrize(("codes", "last"), [((2, 0), 1.0), ((2, 1), 2.5675864), ((0, 1), 2.5675864), ((0, 0), 1.0)])
def test_a_slice_of_two_axes_has_the_depth_that_its_affine_says(tmp_path: Path, codes: tuple[int, int], last: float) -> None:
    dim, sizes = [2, 11, 13, 1, 1, 1, 1, 1], [1, 0.9, 1.7117243, last, 0, 0, 0, 0]
    path = volumes.write(tmp_path / "a.nii", volumes.voxels((11, 13, 1)), volumes.OBLIQUE, codes, dim=dim, pixdim=sizes)
    to = target(path, tmp_path / "out")
    fill(sink := NiftiSink(to), labels_for(to))
    assert sink.finish() == ["case.nii"]
    written = nibabel.load(tmp_path / "out" / "case.nii")
    np.testing.assert_array_equal(written.affine, nibabel.load(path).affine)
    assert written.header.get_zooms() == pytest.approx(to.grid.spacing[::-1])


@pytest.mark.parametrize("letters", ALL)
def test_labels_come_back_to_the_stored_order(tmp_path: Path, letters: str) -> None:
    path = volumes.write(tmp_path / "a.nii", volumes.voxels(), volumes.OBLIQUE)
    to = target(path, tmp_path / "out", letters)
    sink, labels = NiftiSink(to), labels_for(to)
    fill(sink, labels, 3)
    sink.finish()
    change = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(volumes.OBLIQUE), nibabel.orientations.axcodes2ornt(letters)
    )
    turned = nibabel.load(tmp_path / "out" / "case.nii").as_reoriented(change)
    np.testing.assert_array_equal(np.asarray(turned.dataobj), labels[0])


def test_equal_volumes_are_equal_files_whatever_the_boxes(tmp_path: Path) -> None:
    path = volumes.write(tmp_path / "a.nii.gz", volumes.voxels())
    contents = set()
    for side, letters in ((3, None), (7, None), (5, "RAS")):
        to = target(path, tmp_path / "out", letters)
        sink, labels = NiftiSink(to), labels_for(target(path, tmp_path / "out"))
        fill(sink, to.grid.turned.array(labels), side)
        sink.finish()
        contents.add((tmp_path / "out" / "case.nii.gz").read_bytes())
    assert len(contents) == 1
    (data,) = contents
    assert data[3:8] == bytes(5)  # no name, no time


def test_big_endian_and_nifti2_and_one_volume_of_four_axes(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    header.set_xyzt_units("micron")
    nibabel.save(nibabel.Nifti1Image(volumes.voxels(), volumes.OBLIQUE, header), tmp_path / "big.nii")
    nibabel.save(nibabel.Nifti2Image(volumes.voxels(), volumes.OBLIQUE), tmp_path / "two.nii")
    volumes.write(tmp_path / "four.nii", volumes.voxels((11, 13, 7, 1)), volumes.OBLIQUE)
    for name in ("big", "two", "four"):
        to = replace(target(tmp_path / f"{name}.nii", tmp_path), stem=f"out/{name}")
        sink, labels = NiftiSink(to), labels_for(to)
        fill(sink, labels)
        sink.finish()
        written, source = nibabel.load(tmp_path / "out" / f"{name}.nii"), nibabel.load(tmp_path / f"{name}.nii")
        assert written.shape == (11, 13, 7)
        assert type(written) is type(source)
        np.testing.assert_array_equal(np.asarray(written.dataobj).T, labels[0])
        np.testing.assert_array_equal(written.affine, source.affine)
        assert written.header.get_xyzt_units()[0] == source.header.get_xyzt_units()[0]


def test_a_confidence_is_scaled_and_labels_of_16_bits_are_not(tmp_path: Path) -> None:
    path = volumes.write(tmp_path / "a.nii", volumes.voxels())
    for style in (CONFIDENCE, Style("uint16", 65535, ["class"])):
        to = target(path, tmp_path / "out", style=style)
        sink, labels = NiftiSink(to), labels_for(to, dtype=style.dtype) * 40
        fill(sink, labels)
        sink.finish()
        written = nibabel.load(tmp_path / "out" / "case.nii")
        np.testing.assert_allclose(written.get_fdata().T, labels[0] * style.scale, rtol=1e-6)
        assert written.get_data_dtype() == style.dtype


def test_independent_classes_are_volumes_along_a_fourth_axis(tmp_path: Path) -> None:
    path = volumes.write(tmp_path / "a.nii.gz", volumes.voxels(), volumes.OBLIQUE)
    to = target(path, tmp_path / "out", "RAS", Style("uint8", 255, ["a", "b", "c"]))
    sink, labels = NiftiSink(to), labels_for(to, 3)
    fill(sink, labels)
    sink.finish()
    written = nibabel.load(tmp_path / "out" / "case.nii.gz")
    assert written.shape == (11, 13, 7, 3)
    for band in range(3):
        np.testing.assert_array_equal(np.asarray(written.dataobj)[..., band].T, to.grid.turned.back(labels[band]))
    np.testing.assert_array_equal(written.affine, nibabel.load(path).affine)


def test_nothing_of_the_patient_is_taken_over(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(volumes.voxels(), np.eye(4))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    nibabel.save(image, tmp_path / "a.nii")
    to = target(tmp_path / "a.nii", tmp_path / "out")
    sink = NiftiSink(to)
    fill(sink, labels_for(to))
    sink.finish()
    assert b"Jane" not in (tmp_path / "out" / "case.nii").read_bytes()
    assert not nibabel.load(tmp_path / "out" / "case.nii").header.extensions


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_what_segpipe_has_written_is_known_by_its_header(tmp_path: Path, name: str) -> None:
    path = volumes.write(tmp_path / name, volumes.voxels())
    to = target(path, tmp_path)
    sink = NiftiSink(to)
    fill(sink, labels_for(to))
    sink.finish()
    assert is_own_volume(Folder(tmp_path), "case" + name[1:])
    assert not is_own_volume(Folder(tmp_path), name)
    for content in (b"", b"short", bytes(1000), gzip.compress(b"x" * 1000)[:20]):
        (tmp_path / name).write_bytes(content)
        assert not is_own_volume(Folder(tmp_path), name)


@pytest.mark.parametrize("umask", [0o002, 0o077])
def test_a_mask_has_the_mode_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        to = target(volumes.write(tmp_path / "a.nii", volumes.voxels()), tmp_path / "out")
        sink = NiftiSink(to)
        fill(sink, labels_for(to))
        sink.finish()
    finally:
        os.umask(before)
    assert (tmp_path / "out" / "case.nii").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("bands", [1, 2])
def test_a_mask_that_lies_elsewhere_is_not_published(tmp_path: Path, bands: int) -> None:
    path = volumes.write(tmp_path / "a.nii", volumes.voxels())
    to = target(path, tmp_path / "out", style=Style("uint8", 255, ["class", "other"][:bands]))
    sink = NiftiSink(
        replace(to, template=template_of(read_volume(str(volumes.write(path, volumes.voxels(), volumes.OBLIQUE)))))
    )
    fill(sink, labels_for(to, bands))
    with pytest.raises(OutputError, match="does not read back as it was written"):
        sink.finish()


def test_damage_on_the_way_to_the_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = volumes.write(tmp_path / "a.nii.gz", volumes.voxels())
    to = target(path, tmp_path / "out")
    sink = NiftiSink(to)
    fill(sink, labels_for(to))
    draft = next((tmp_path / "out" / ".drafts").iterdir())
    with draft.open("r+b") as stream:
        stream.seek(500)
        stream.write(b"\x77")
    with pytest.raises(OutputError, match="not all of it has reached the disk"):
        sink.finish()
    assert list((tmp_path / "out" / ".drafts").iterdir()) == []
    sink = NiftiSink(to)
    fill(sink, labels_for(to))
    pack = _pack

    def cut(draft: Draft, packed: int, before: bytes) -> None:
        pack(draft, packed, before)
        os.ftruncate(packed, os.fstat(packed).st_size - 3)

    monkeypatch.setattr("segpipe.formats.volume.sink._pack", cut)
    with pytest.raises(OutputError, match=r"case.nii.gz cannot be written: .* is cut"):
        sink.finish()
    assert not (tmp_path / "out" / "case.nii.gz").exists()
    assert list((tmp_path / "out" / ".drafts").iterdir()) == []


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_of_two_attempts_at_once_the_later_one_publishes(tmp_path: Path, name: str) -> None:
    to = target(volumes.write(tmp_path / name, volumes.voxels()), tmp_path / "out")
    labels = np.ones((1, *to.grid.shape), np.uint8)
    first = NiftiSink(to)
    fill(first, labels)
    later = NiftiSink(to)
    if name.endswith(".gz"):
        first.finish()  # its draft is whole, though nobody else finds it
        (tmp_path / "out" / first.name).unlink()
    else:
        with pytest.raises(OutputError, match=r"case.nii cannot be written: another process is writing the same mask"):
            first.finish()
    assert not (tmp_path / "out" / first.name).exists()
    fill(later, labels)
    later.finish()
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "out" / later.name).dataobj), 1)
    assert list((tmp_path / "out" / ".drafts").iterdir()) == []


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_an_attempt_that_begins_while_another_ends_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Between the check of a finished file and its name in the output, and before that check."""
    to = target(volumes.write(tmp_path / name, volumes.voxels()), tmp_path / "out")
    labels, later = np.ones((1, *to.grid.shape), np.uint8), []
    publish = Folder.publish

    def late(folder: Folder, draft: Path, name: str, *, flush: bool = True) -> None:
        later.append((NiftiSink(to), folder.draft(name).write_bytes(b"")))
        publish(folder, draft, name, flush=flush)

    monkeypatch.setattr(Folder, "publish", late)
    sink = NiftiSink(to)
    fill(sink, labels)
    sink.finish()
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "out" / sink.name).dataobj), 1)
    monkeypatch.undo()
    for other, _ in later:
        fill(other, labels)
        other.finish()
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "out" / sink.name).dataobj), 1)


def test_an_attempt_that_begins_while_another_packs_keeps_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to = target(volumes.write(tmp_path / "a.nii.gz", volumes.voxels()), tmp_path / "out")
    pack, others = _pack, []

    def overtaken(draft: Draft, packed: int, before: bytes) -> None:
        pack(draft, packed, before)
        others.append(to.output.draft("case.nii.gz"))
        others[-1].write_bytes(b"another's")

    monkeypatch.setattr("segpipe.formats.volume.sink._pack", overtaken)
    sink = NiftiSink(to)
    fill(sink, labels_for(to))
    with pytest.raises(OutputError, match="another process is writing the same mask: run segpipe again when it has ended"):
        sink.finish()
    assert not (tmp_path / "out" / "case.nii.gz").exists()
    assert others[0].read_bytes() == b"another's"


@pytest.mark.parametrize(("number", "passes"), [(errno.EIO, True), (errno.ESTALE, True), (errno.EACCES, False)])
def test_a_mask_that_cannot_be_read_just_now_is_not_taken_for_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, passes: bool
) -> None:
    to = target(volumes.write(tmp_path / "a.nii", volumes.voxels()), tmp_path)

    def fails(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("segpipe.formats.nifti.sink.opened", fails)
    if not passes:
        assert not is_own_volume(to.output, "a.nii")
        return
    with pytest.raises(OutputError, match=r"a\.nii cannot be read: ") as raised:
        is_own_volume(to.output, "a.nii")
    assert is_passing(raised.value)


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = volumes.write(tmp_path / "a.nii", volumes.voxels())
    to = target(path, tmp_path / "out")
    sink = NiftiSink(to)
    monkeypatch.setattr(os, "pwrite", volumes.full)
    with pytest.raises(OutputError, match=r"case.nii cannot be written: No space left on device"):
        fill(sink, labels_for(to))
    sink.discard()
    sink.discard()
    assert list((tmp_path / "out" / ".drafts").iterdir()) == []
    with pytest.raises(OutputError, match="No space left on device"):
        NiftiSink(to)
    assert list((tmp_path / "out" / ".drafts").iterdir()) == []


@pytest.mark.parametrize("origin", [(-349.3, -12.25, 40.0), (-189.6, 189.6, -0.02), (97.3, -349.3, -1031.7)])
@pytest.mark.parametrize("spacing", [(2.5, 0.683594, 0.683594), (0.7, 0.371094, 0.371094), (1.25, 0.976562, 0.976562)])
@pytest.mark.parametrize("letters", ["RAS", "LPS", "SAR"])
def test_a_grid_in_float64_agrees_with_its_header_in_float32(
    tmp_path: Path, origin: Any, spacing: Any, letters: str
) -> None:
    """As of a DICOM series: the far end of a turned axis lies anywhere, also near 0."""
    affine = np.eye(4)
    affine[:3, 3] = origin
    affine[:3, :3] = np.array([[0, 0, -spacing[2]], [0, -spacing[1], 0], [spacing[0], 0, 0]])
    grid = VoxelGrid((3, 512, 512), matrix_rows(affine))
    turned = grid.turn(turned_to(grid, letters))
    sink = NiftiSink(Target(Folder(tmp_path), "case", turned, MASK, grid_header(grid)))
    sink.write(Window((0, 0, 0), turned.shape), np.zeros((1, *turned.shape), np.uint8))
    assert sink.finish() == ["case.nii.gz"]


def test_a_grid_elsewhere_is_found() -> None:
    affine = np.eye(4)
    affine[:3, 3] = -349.3
    grid = VoxelGrid((3, 512, 512), matrix_rows(affine))
    for place in np.ndindex(3, 4):
        other = affine.copy()
        other[place] += 0.003 if place[1] == 3 else 1e-5
        moved = VoxelGrid((3, 512, 512), matrix_rows(other))
        assert _same_place(grid, grid)
        assert _same_place(moved, grid) == (place[1] == 0)  # three planes: 2e-5 mm

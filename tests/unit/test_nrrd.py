"""NRRD volumes, written by pynrrd and read by SimpleITK, and the masks of them."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK
import volumes
from command import invoke
from scenes import assert_same

from segpipe.contract import parse_contract
from segpipe.errors import OutputError, SourceError
from segpipe.formats.nrrd.header import read_nrrd
from segpipe.formats.nrrd.sink import is_own_nrrd
from segpipe.formats.nrrd.source import NrrdSource, read_mask
from segpipe.formats.registry import FORMATS
from segpipe.geometry.windows import Window
from segpipe.storage.folder import Folder

LPS = volumes.OBLIQUE * np.array([[-1], [-1], [1], [1]])
"""``OBLIQUE`` with the world coordinates that NRRD files have as a rule."""

PLACE: dict[str, Any] = {
    "space": "left-posterior-superior",
    "space directions": LPS[:3, :3].T,
    "space origin": LPS[:3, 3],
    "space units": ["mm"] * 3,
    "kinds": ["domain"] * 3,
}
TILE = (8, 12, 10)


def contract(channels: Any = 1, **changes: Any) -> Any:
    values = {"layout": "NCDHW", "tile": [16], "overlap": [4], "scale": 1.0, **changes}
    return parse_contract(networks.contract(channels, 3, **values), "a test")


def write(path: Path, data: Any = None, **fields: Any) -> Path:
    """A file of voxels ``(i, j, k)``; a field of None is left out."""
    header = {key: value for key, value in {**PLACE, **fields}.items() if value is not None}
    nrrd.write(str(path), volumes.voxels() if data is None else data, header)
    return path


def whole(source: NrrdSource) -> Any:
    pixels, _ = source.read(Window((0, 0, 0), source.grid.shape))
    source.close()
    return pixels


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr"])
def test_voxels_and_place_are_those_that_simpleitk_reads(tmp_path: Path, name: str, encoding: str, dtype: str) -> None:
    data = volumes.voxels(dtype="i2").clip(0, 120).astype(dtype)
    path = write(tmp_path / name, data, encoding=encoding)
    source = NrrdSource(str(path), contract())
    image = SimpleITK.ReadImage(str(path))
    np.testing.assert_array_equal(whole(source)[0], SimpleITK.GetArrayFromImage(image))
    corner = np.array(image.TransformIndexToPhysicalPoint((10, 12, 6))) * (-1, -1, 1)
    np.testing.assert_allclose(source.grid.affine @ (6, 12, 10, 1), [*corner, 1], atol=1e-9)
    assert source.dtype == np.dtype(dtype)
    assert source.notes == ("the contract names no orientation: the network gets the axes as they are stored, SLA",)
    assert len(source.files) == (1 if name == "a.nrrd" else 2)


@pytest.mark.parametrize(
    ("space", "signs"), [("RAS", (1, 1)), ("left-anterior-superior", (-1, 1)), ("left-posterior-superior", (-1, -1))]
)
def test_spaces(tmp_path: Path, space: str, signs: tuple[int, int]) -> None:
    turn = np.diag([*signs, 1, 1]) @ volumes.OBLIQUE
    path = write(tmp_path / "a.nrrd", space=space, **{"space directions": turn[:3, :3].T, "space origin": turn[:3, 3]})
    volume, _ = read_nrrd(str(path))
    np.testing.assert_allclose(volume.grid.affine[:, [2, 1, 0, 3]], volumes.OBLIQUE, atol=1e-12)
    source = NrrdSource(str(path), contract(orientation="RAS"))
    image: Any = nibabel.as_closest_canonical(nibabel.Nifti1Image(volumes.voxels(), volumes.OBLIQUE))
    np.testing.assert_array_equal(whole(source)[0], np.asarray(image.dataobj))


@pytest.mark.parametrize(("unit", "factor"), [("um", 1e-3), ("cm", 10.0)])
def test_units_are_mm_here(tmp_path: Path, unit: str, factor: float) -> None:
    volume, _ = read_nrrd(str(write(tmp_path / "a.nrrd", **{"space units": [unit] * 3})))
    np.testing.assert_allclose(volume.grid.spacing, np.array([2.5678, 1.7117, 0.9]) * factor, rtol=1e-3)
    assert f"lengths of the file are in {unit}" in volume.notes[0]


def test_a_file_without_a_place_gets_notes_and_no_orientation(tmp_path: Path) -> None:
    bare = {"space": None, "space directions": None, "space origin": None, "space units": None, "spacings": [1, 2, 3]}
    path = str(write(tmp_path / "a.nrrd", **bare))
    volume, _ = read_nrrd(path)
    assert volume.grid.spacing == (3, 2, 1)
    assert [note.split(" ")[1:4] for note in volume.notes] == [["file", "does", "not"], ["file", "names", "no"]]
    with pytest.raises(SourceError, match=r'must say how it lies, for the contract has orientation = "RAS".*set space'):
        NrrdSource(path, contract(orientation="RAS"))


@pytest.mark.parametrize("kind", ["list", "vector"])
def test_a_fourth_axis_is_channels(tmp_path: Path, kind: str) -> None:
    both = np.stack([volumes.voxels(), volumes.voxels(seed=1)], axis=-1)
    fields = {"space directions": np.vstack([PLACE["space directions"], [np.nan] * 3]), "kinds": ["domain"] * 3 + [kind]}
    source = NrrdSource(str(write(tmp_path / "a.nrrd", both, **fields)), contract(["T1", "T2"]))
    np.testing.assert_array_equal(whole(source), both.T)
    assert "the 2 volumes of the file are the model's channels (T1, T2), in this order" in source.notes
    with pytest.raises(SourceError, match="must hold one volume, and holds 2 of them: take one out"):
        NrrdSource(str(tmp_path / "a.nrrd"), contract())
    first = {"space directions": np.vstack([[np.nan] * 3, PLACE["space directions"]]), "kinds": [kind] + ["domain"] * 3}
    path = write(tmp_path / "b.nrrd", np.moveaxis(both, -1, 0), **first)
    with pytest.raises(SourceError, match=r"channels must be along the last axis, the slowest, got axis 1 of 4") as refused:
        NrrdSource(str(path), contract(2))
    exec(str(refused.value).partition("another order: ")[2], {"nrrd": nrrd, "file": str(path)})
    np.testing.assert_array_equal(whole(NrrdSource(str(path), contract(2))), both.T)


def header(path: Path, change: Callable[[bytes], bytes]) -> Path:
    head, blank, voxels = path.read_bytes().partition(b"\n\n")
    path.write_bytes(change(head) + blank + voxels)
    return path


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(head: bytes) -> bytes:
        assert old in head
        return head.replace(old, new)

    return change


REFUSED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "magic": (replaced(b"NRRD000", b"NIRD000"), "is no NRRD file: its first bytes must be NRRD000"),
    "ascii": (replaced(b"encoding: raw", b"encoding: ascii"), "voxels must be encoded as raw or gzip, got ascii"),
    "bzip2": (replaced(b"encoding: raw", b"encoding: bzip2"), "must be encoded as raw or gzip, got bzip2"),
    "block": (replaced(b"type: int16", b"type: block"), "a voxel must be one integer or float .* the file has block"),
    "endian": (replaced(b"endian: little", b"endian: mixed"), 'endian must be little or big, got "mixed"'),
    "sizes": (replaced(b"sizes: 11 13 7", b"sizes: 11 0 7"), r"sizes must be 3 whole numbers above 0, got \[11, 0, 7\]"),
    "too small": (replaced(b"sizes: 11 13 7", b"sizes: 11 13 6"), "contradicts itself: its header says 11 x 13 x 6 voxels"),
    "too large": (replaced(b"sizes: 11 13 7", b"sizes: 11 13 8"), "is cut: its header says 11 x 13 x 8 voxels"),
    "two axes": (replaced(b"sizes: 11 13 7", b"sizes: 11 91"), "sizes must be 3 whole numbers"),
    "words": (replaced(b"dimension: 3", b"dimension: three"), "its header is not valid: .*: write it again"),
    "no type": (replaced(b"type: int16\n", b""), "its header must have type: write it again"),
    "line skip": (replaced(b"encoding: raw", b"encoding: raw\nline skip: 2"), "line skip is not supported"),
    "units": (
        replaced(b'"mm" "mm" "mm"', b'"mm" "mm" "ly"'),
        "the unit of length must be one of mm, cm, m and um, got ly, mm",
    ),
    "flat": (replaced(b"(1.7,", b"(0.0,"), "the affine must be of finite numbers and invertible|at right angles"),
    "no blank line": (lambda head: head + b"\nkey:=" + b"x" * 70_000, "must end with a blank line within 65,536 bytes"),
    "elsewhere": (replaced(b"encoding: raw", b"encoding: raw\ndata file: ../x.raw"), "must lie in the header's folder, got"),
    "gone": (replaced(b"encoding: raw", b"encoding: raw\ndata file: x.raw"), "the file with the voxels must exist, got"),
    "list": (
        replaced(b"encoding: raw", b"encoding: raw\ndata file: LIST"),
        "must lie in one file, and the header names sev",
    ),
    "pattern": (replaced(b"encoding: raw", b"encoding: raw\ndata file: %03d.raw 1 7 1"), "must lie in one file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_headers_that_are_refused(tmp_path: Path, name: str) -> None:
    change, message = REFUSED[name]
    path = header(write(tmp_path / "a.nrrd", encoding="raw"), change)
    with pytest.raises(SourceError, match=message):
        NrrdSource(str(path), contract())


def test_no_size_of_a_voxel(tmp_path: Path) -> None:
    bare = {"space": None, "space directions": None, "space origin": None, "space units": None}
    for spacings in (None, [1, 0, 1]):
        path = write(tmp_path / "a.nrrd", **bare, spacings=spacings)
        with pytest.raises(SourceError, match="the size of a voxel must be above 0, and the header has neither"):
            read_nrrd(str(path))


def test_sheared_axes(tmp_path: Path) -> None:
    tilted = np.array(PLACE["space directions"])
    tilted[2] += tilted[1] * 0.4
    with pytest.raises(SourceError, match="axes must be at right angles, and one is sheared by"):
        read_nrrd(str(write(tmp_path / "a.nrrd", **{"space directions": tilted})))


def test_bytes_before_the_voxels_are_skipped(tmp_path: Path) -> None:
    voxels = volumes.voxels().tobytes(order="F")
    for skip, before in (("7", 7), ("-1", 99)):
        write(tmp_path / "a.nhdr", encoding="raw")
        path, data = tmp_path / "a.nhdr", tmp_path / "a.raw"
        text = path.read_text()
        path.write_text(text.replace("encoding: raw", f"encoding: raw\nbyte skip: {skip}"))
        data.write_bytes(b"x" * before + voxels)
        np.testing.assert_array_equal(whole(NrrdSource(str(path), contract()))[0], volumes.voxels().T)


@pytest.mark.parametrize("end", [-4, -40])
def test_a_stream_that_is_cut_is_told_when_voxels_are_read(tmp_path: Path, end: int) -> None:
    path = write(tmp_path / "a.nrrd", encoding="gzip")
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(SourceError, match="is cut: its gzip stream ends before its trailer"):
        whole(NrrdSource(str(path), contract()))


def test_damage_is_seen_by_the_checksum(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nrrd", encoding="gzip")
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    with pytest.raises(SourceError, match="is damaged: its gzip stream does not decode"):
        whole(NrrdSource(str(path), contract()))


def test_which_files_have_a_checksum(tmp_path: Path) -> None:
    files = [str(write(tmp_path / f"{encoding}.nrrd", encoding=encoding)) for encoding in ("raw", "gzip")]
    assert FORMATS["nrrd"].verify(files) == [f"{files[0]} is not verified: a file that is not packed has no checksum"]


def run(root: Path, *more: str) -> Any:
    done = invoke(["run", "-i", "in", "-m", "model.onnx", "--device", "cpu", "--executor", "serial", *more], root)
    done.stderr += done.stdout
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    networks.volumetric(tmp_path / "model.onnx", TILE, scale=1 / 255, orientation="RAS")
    (tmp_path / "in").mkdir()
    data = volumes.voxels((21, 23, 17), "u1")
    write(tmp_path / "in" / "a.nrrd", data, encoding="gzip", type="uint8", patient="Doe")
    write(tmp_path / "in" / "b.nhdr", data, encoding="raw")
    volumes.write(tmp_path / "in" / "c.nii.gz", data, volumes.OBLIQUE)
    return tmp_path


def test_masks_are_those_of_the_same_volume_as_nifti_on_the_inputs_place(folder: Path) -> None:
    done = run(folder, "-o", "out", "--confidence")
    assert done.returncode == 0, done.stderr
    expected = np.asarray(nibabel.load(folder / "out" / "c.nii.gz").dataobj)
    for name, theirs in (("a", "a.nrrd"), ("b", "b.nhdr")):
        image, given = (
            SimpleITK.ReadImage(str(folder / "out" / f"{name}.nrrd")),
            SimpleITK.ReadImage(str(folder / "in" / theirs)),
        )
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image).T, expected)
        assert image.GetOrigin() == given.GetOrigin()
        assert image.GetDirection() == given.GetDirection()
        assert image.GetSpacing() == given.GetSpacing()
        stored, fields = nrrd.read(str(folder / "out" / f"{name}.nrrd"))
        np.testing.assert_array_equal(stored, expected)
        np.testing.assert_array_equal(fields["space directions"], PLACE["space directions"])
        bands, grid = read_mask(folder / "out" / f"{name}.nrrd")
        np.testing.assert_array_equal(bands[0].T, expected)
        np.testing.assert_allclose(grid.affine[:, [2, 1, 0, 3]], volumes.OBLIQUE, atol=1e-9)  # type: ignore[attr-defined]
    assert b"Doe" not in (folder / "out" / "a.nrrd").read_bytes()
    confidence, fields = nrrd.read(str(folder / "out" / "a.confidence.nrrd"))
    assert float(fields["scale"]) == pytest.approx(1 / 254)
    np.testing.assert_array_equal(confidence, nibabel.load(folder / "out" / "c.confidence.nii.gz").dataobj.get_unscaled())


def test_parts_resuming_and_ownership(folder: Path) -> None:
    assert run(folder, "-o", "whole").returncode == 0
    assert run(folder, "-o", "cut", "--parts", "4").returncode == 0
    assert_same(folder / "cut", folder / "whole")
    assert "0 done, 3 done before" in run(folder, "-o", "whole").stderr
    detached = folder / "in" / "b.raw"
    detached.write_bytes(detached.read_bytes()[::-1])
    assert "1 done, 2 done before" in run(folder, "-o", "whole").stderr
    output = Folder(folder / "whole")
    assert FORMATS["nrrd"].owns(output, "a.nrrd")
    (folder / "whole" / "a.json").unlink()
    assert "1 done, 2 done before" in run(folder, "-o", "whole").stderr
    write(folder / "whole" / "a.nrrd")
    assert not FORMATS["nrrd"].owns(output, "a.nrrd")
    assert not is_own_nrrd(output, "run.json")
    (folder / "whole" / "a.json").unlink()
    assert "was not written by segpipe" in run(folder, "-o", "whole").stderr


def test_a_mask_of_several_bands(tmp_path: Path) -> None:
    networks.volumetric(
        tmp_path / "model.onnx", TILE, scale=1 / 255, task="multilabel", activation="sigmoid", orientation="RAS"
    )
    (tmp_path / "in").mkdir()
    data = volumes.voxels((21, 23, 17), "u1")
    write(tmp_path / "in" / "a.nrrd", data)
    volumes.write(tmp_path / "in" / "c.nii.gz", data, volumes.OBLIQUE)
    assert run(tmp_path, "-o", "out").returncode == 0
    stored, fields = nrrd.read(str(tmp_path / "out" / "a.nrrd"))
    np.testing.assert_array_equal(stored, np.asarray(nibabel.load(tmp_path / "out" / "c.nii.gz").dataobj))
    assert fields["kinds"] == ["domain"] * 3 + ["list"]
    assert np.isnan(fields["space directions"][3]).all()
    assert read_mask(tmp_path / "out" / "a.nrrd")[0].shape == (3, 17, 23, 21)


def test_channels_of_both_formats(tmp_path: Path) -> None:
    net = networks.Network(2, ndim=3).conv(2, 3, 3)
    keys = {"layout": "NCDHW", "tile": TILE, "overlap": (4, 4, 4), "scale": 1.0, "normalize": "zscore"}
    net.save(tmp_path / "model.onnx", networks.contract(2, 3, **keys), classes=3, shape=("n", *TILE))
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "p_0000.nrrd")
    volumes.write(tmp_path / "in" / "p_0001.nii.gz", volumes.voxels(seed=1), volumes.OBLIQUE)
    write(tmp_path / "in" / "q_0000.nrrd")
    write(tmp_path / "in" / "q_0001.nhdr", volumes.voxels(seed=1))
    done = run(tmp_path, "-o", "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "p.nrrd").read_bytes() == (tmp_path / "out" / "q.nrrd").read_bytes()
    text = (tmp_path / "out" / "p.nrrd").read_bytes().partition(b"\n\n")
    assert len(np.unique(np.frombuffer(gzip.decompress(text[2]), np.uint8))) > 1
    assert "0 done, 2 done before" in run(tmp_path, "-o", "out").stderr


WRONG = {
    "spacings": ("spacings: 1 1", r"spacings must have a value for each of 3 axes, got 2: write it again"),
    "thicknesses": ("thicknesses: 1 1 1 1", r"thicknesses must have a value for each of 3 axes, got 4"),
    "kinds": ("kinds: domain domain", r"kinds must have a value for each of 3 axes, got 2"),
    "directions": ("space directions: (1,0,0) (0,1,0)", r"space directions must have a value for each of 3 axes, got 2"),
    "sizes": ("sizes: 99999999999999999999 4 4", r"sizes must be 3 whole numbers above 0"),
    "large": ("sizes: 4611686018427387904 4 4", r"is cut: its header says 4611686018427387904 x 4 x 4 voxels"),
    "nul": ("data file: a\0b.raw", r"the name of the file with the voxels must be text, got 'a\\x00b.raw': write it again"),
    "long": (f"data file: {'a' * 5000}", r"the file with the voxels must exist, got"),
    "several": ("data file: a.%03d.raw 1 4 1", r"voxels must lie in one file, and the header names several"),
    "list": ("data file: LIST", r"voxels must lie in one file, and the header names several"),
    "cut": ("byte skip: -1", r"is cut: its voxels take 64 bytes, and it has 63 for them: copy it again"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_header_that_contradicts_itself_is_an_error_of_its_case(tmp_path: Path, fault: str) -> None:
    line, why = WRONG[fault]
    lines = [
        "type: uint8",
        "dimension: 3",
        "sizes: 4 4 4",
        "spacings: 1 1 1",
        "kinds: domain domain domain",
        "encoding: raw",
    ]
    if fault == "directions":
        lines = [*lines, "space: RAS"]
    kept = [other for other in lines if other.split(":")[0] != line.split(":")[0]]
    path = tmp_path / "a.nrrd"
    path.write_bytes("\n".join(["NRRD0005", *kept, line, "", ""]).encode() + bytes(63))
    with pytest.raises(SourceError, match=why):
        read_nrrd(str(path))


@pytest.mark.parametrize("name", ["listing.raw", "50%.raw"])
def test_a_file_of_voxels_may_have_any_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a.nhdr", encoding="raw")
    (tmp_path / "a.raw").rename(tmp_path / name)
    path.write_text(path.read_text().replace("data file: a.raw", f"data file: {name}"))
    np.testing.assert_array_equal(whole(NrrdSource(str(path), contract()))[0], volumes.voxels().T)


@pytest.mark.parametrize("name", ["a.nrrd", "a.nii.gz"])
def test_a_mask_that_is_damaged_is_an_error(tmp_path: Path, name: str) -> None:
    """Two bytes of the gzip stream at many places: where it still unpacks, its checksum tells."""
    labels = np.random.default_rng(0).integers(0, 3, (12, 12, 12)).astype("u1")
    path = tmp_path / name
    if name == "a.nrrd":
        write(path, labels, encoding="gzip")
    else:
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), path)
    read = FORMATS["nrrd" if name == "a.nrrd" else "nifti"].read_mask
    assert read is not None
    content = path.read_bytes()
    np.testing.assert_array_equal(read(path)[0][0], labels.T)
    for at in range(len(content) - 400, len(content) - 8, 39):
        path.write_bytes(content[:at] + b"\x12\x34" + content[at + 2 :])
        with pytest.raises(OutputError, match=r"cannot be read: "):
            read(path)
    path.write_bytes(content[:-8] + bytes(4) + content[-4:])
    with pytest.raises(OutputError, match=r"cannot be read: "):
        read(path)

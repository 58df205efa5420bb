"""Files that other readers take the wrong way without a word: each is right here, or an error that names what is wrong."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import nibabel
import nrrd
import numpy as np
import pytest
import volumes
from command import invoke
from numpy.typing import NDArray

from segpipe.formats.registry import FORMATS

TILE = (8, 12, 10)
SHAPE = (21, 23, 17)
Maker = Callable[[Path], Any]


def phantom() -> NDArray[Any]:
    return volumes.voxels(SHAPE, "u1")


def plain(path: Path, data: Any = None, affine: Any = None, **fields: Any) -> Path:
    return volumes.write(path, phantom() if data is None else data, volumes.OBLIQUE if affine is None else affine, **fields)


def moved(millimetres: float) -> Any:
    affine = volumes.OBLIQUE.copy()
    affine[0, 3] += millimetres
    return affine


def two_forms(path: Path, off: float) -> None:
    image = nibabel.Nifti1Image(phantom(), None)
    image.set_sform(volumes.OBLIQUE, 1)
    image.set_qform(moved(off), 1)
    nibabel.save(image, path)


def tilted(path: Path) -> None:
    affine = volumes.OBLIQUE.copy()
    affine[:3, 2] += 0.5 * affine[:3, 1]
    plain(path, affine=affine, codes=(2, 0), pixdim=[1, *np.linalg.norm(affine[:3, :3], axis=0), 1, 1, 1, 1])


def cut(path: Path, end: int) -> None:
    plain(path)
    path.write_bytes(path.read_bytes()[:end])


def wrong_checksum(path: Path) -> None:
    plain(path)
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)


def colours(path: Path) -> None:
    dtype = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(np.zeros(SHAPE, dtype), volumes.OBLIQUE), path)


def big_endian(path: Path) -> None:
    image = nibabel.Nifti1Image(phantom(), volumes.OBLIQUE, nibabel.Nifti1Header(endianness=">"))
    image.set_data_dtype(">u1")
    image.set_sform(volumes.OBLIQUE, 2)
    nibabel.save(image, path)


def upside_down(path: Path) -> None:
    """Index 0 of the third axis is the topmost slice; voxels lie in the same places."""
    back = volumes.OBLIQUE @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, SHAPE[2] - 1], [0, 0, 0, 1]])
    plain(path, phantom()[:, :, ::-1], back)


def almost_placed(path: Path) -> None:
    """Directions that differ in the last digits of float32."""
    two_forms(path, 1e-6)


def cut_nrrd(path: Path) -> None:
    nrrd.write(str(path), phantom(), {"space": "RAS", "space directions": np.eye(3), "space origin": np.zeros(3)})
    path.write_bytes(path.read_bytes()[:-4])


REFUSED: dict[str, tuple[str, Maker, str]] = {
    "sform and qform": ("a.nii", lambda p: two_forms(p, 3.0), "sform and qform must agree, and differ by 3 mm at a corner"),
    "no codes": (
        "b.nii",
        lambda p: plain(p, codes=(0, 0)),
        "sform_code and qform_code are 0, so that left and right are a gu",
    ),
    "gz without its end": ("c.nii.gz", lambda p: cut(p, -8), "is cut: its gzip stream ends before its trailer"),
    "gz of a few slices": ("d.nii.gz", lambda p: cut(p, -1000), "is cut"),
    "wrong CRC": ("e.nii.gz", wrong_checksum, "is damaged: its gzip stream does not decode: CRC check failed"),
    "shrunken dim": (
        "f.nii",
        lambda p: plain(p, dim=[3, 21, 23, 16, 1, 1, 1, 1]),
        "contradicts itself: its header says 21 x",
    ),
    "grown dim": ("g.nii", lambda p: plain(p, dim=[3, 21, 23, 18, 1, 1, 1, 1]), "is cut: its header says 21 x 23 x 18"),
    "zero pixdim": (
        "h.nii",
        lambda p: plain(p, pixdim=[1, 0.9, 0, 2.568, 1, 1, 1, 1]),
        "pixdim, the size of a voxel, must be",
    ),
    "several volumes": (
        "i.nii",
        lambda p: plain(p, np.stack([phantom()] * 4, -1)),
        "must hold one volume, and holds 4 of them",
    ),
    "RGB": ("j.nii", colours, "a voxel must be one integer or float of at most 64 bits, and the file has RGB colours"),
    "shear": ("k.nii", tilted, "axes must be at right angles, and one is sheared by .* as a tilted gantry does"),
    "nrrd without its end": ("l.nrrd", cut_nrrd, "is cut: its gzip stream ends before its trailer"),
}

RIGHT: dict[str, tuple[str, Maker]] = {
    "plain": ("m.nii.gz", plain),
    "4-D of one volume": ("n.nii", lambda p: plain(p, phantom()[..., None])),
    "big-endian": ("o.nii", big_endian),
    "index 0 on top": ("p.nii", upside_down),
    "directions off by 1e-7": ("q.nii", almost_placed),
    "slope": ("r.nii", lambda p: plain(p, scl_slope=0.816, scl_inter=-3)),
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """All files in one run, and what failed in it."""
    root = tmp_path_factory.mktemp("traps")
    networks.volumetric(root / "model.onnx", TILE, scale=1.0, pixel="physical", normalize="zscore", orientation="RAS")
    (root / "in").mkdir()
    for _, (name, make, *_) in [*REFUSED.items(), *RIGHT.items()]:
        make(root / "in" / name)
    flags = ["-i", "in", "-m", "model.onnx", "-o", "out", "--device", "cpu", "--executor", "serial"]
    assert invoke(["run", *flags], root).returncode == 1
    return root, {one["case"]: one["error"] for one in json.loads((root / "out" / "run.json").read_text())["failed"]}


def test_nothing_else_fails(done: tuple[Path, dict[str, str]]) -> None:
    assert done[1].keys() == {name.split(".")[0] for name, *_ in REFUSED.values()}


@pytest.mark.parametrize("trap", REFUSED)
def test_an_error_names_the_trap(done: tuple[Path, dict[str, str]], trap: str) -> None:
    name, _, message = REFUSED[trap]
    assert __import__("re").search(message, done[1][name.split(".")[0]])


@pytest.mark.parametrize("trap", RIGHT)
def test_labels_lie_where_they_belong(done: tuple[Path, dict[str, str]], trap: str) -> None:
    """The same labels at the same places as of the plain file, in integers without the slope of the input."""
    root, _ = done
    name, _ = RIGHT[trap]
    mask, expected = (nibabel.load(root / "out" / one) for one in (name, "m.nii.gz"))
    found = np.asarray(nibabel.as_closest_canonical(mask).dataobj)
    np.testing.assert_array_equal(found, np.asarray(nibabel.as_closest_canonical(expected).dataobj))
    assert found.dtype == np.uint8
    assert mask.shape == SHAPE
    np.testing.assert_allclose(mask.affine, nibabel.load(root / "in" / name).affine, atol=1e-5)
    with (gzip.open if name.endswith("gz") else open)(root / "out" / name, "rb") as stream:
        header = nibabel.Nifti1Header(stream.read(348), check=False)
    assert (float(header["scl_slope"]), float(header["scl_inter"])) == (1.0, 0.0)


@pytest.mark.shared_data
def test_a_real_nrrd_file(shared: Path) -> None:
    import SimpleITK

    from segpipe.formats.nrrd.header import read_nrrd

    path = shared / "medical" / "dicom" / "dcmqi" / "liver_seg.nrrd"
    image, (volume, _) = SimpleITK.ReadImage(str(path)), read_nrrd(str(path))
    assert tuple(reversed(volume.shape)) == image.GetSize()
    np.testing.assert_allclose(volume.grid.spacing[::-1], image.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(volume.grid.affine[:3, 3], np.array(image.GetOrigin()) * (-1, -1, 1), rtol=1e-6)
    assert FORMATS["nrrd"].suffixes == (".nrrd", ".nhdr")

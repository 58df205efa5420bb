"""Every file under the real medical images: right against pydicom or nibabel, voxel by voxel, or refused for its reason."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import networks
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.errors import SegpipeError
from segpipe.formats.case import Case
from segpipe.formats.cases import find_input
from segpipe.formats.dicom.series import unpack
from segpipe.formats.registry import open_case
from segpipe.geometry.windows import Window

pytestmark = pytest.mark.shared_data

Voxels = NDArray[np.float64]

DICOM = "dicom/dicom2nifti"

OUTCOMES = {
    "dicom": "1 of 2 lie where another does, of which 1 are copies of one file",
    "dicom/dcmqi/23x38x3/image": "",
    "dicom/dcmqi/ct-3slice": "",
    "dicom/dcmqi/liver_seg": "",
    f"{DICOM}/failing/sliceincrement/001": "1 slice is missing at steps of 5 mm: 1 between 28.107 and 38.107 mm",
    f"{DICOM}/failing/sliceorientation/001": "",
    f"{DICOM}/generic/anatomical/001": "",
    f"{DICOM}/generic/anatomical/001_ground_truth": "",
    f"{DICOM}/generic/anatomical/002_non_isotropic": "",
    f"{DICOM}/generic/anatomical/002_non_isotropic_ground_truth": "",
    f"{DICOM}/generic/compressed_jpegls/001": "",
    f"{DICOM}/generic/compressed_jpegls/001_ground_truth": "",
    f"{DICOM}/generic/rgb/001": "PhotometricInterpretation is RGB",
    f"{DICOM}/generic/rgb/001_ground_truth": "RGBA colours",
    "dicom/pydicom": "MR_truncated.dcm is cut: its pixels take 8,192 bytes",
    "dicom/pydicom/emri_small": "10 of 10 have no ImagePositionPatient",
    "nifti/anatomical": "",
    "nifti/example4d": "must hold one volume",
    "nifti/example_mr_sm": "",
    "nifti/example_nifti2": "must hold one volume",
    "nifti/example_seg_mr": "",
    "nifti/functional": "must hold one volume",
    "nifti/reoriented_anat_moved": "",
    "nifti/someones_anatomy": "",
}
"""Of each case, the reason for which it is refused; nothing if its voxels are right."""


def contract() -> Contract:
    values = networks.contract(1, 2, layout="NCDHW", tile=[8, 8, 8], overlap=[2, 2, 2], pixel="physical", scale=1.0)
    return Contract.model_validate(values)


def test_each_file_is_in_a_case_or_counted(shared: Path) -> None:
    found = find_input([str(shared / "medical")])
    assert {case.name for case in found.cases} == OUTCOMES.keys()
    assert found.left_out == {
        ".seg": 1,
        ".svs": 2,
        "DICOM DX without position": 1,
        "DICOM NM without position": 1,
        "DICOM RTDOSE (no image)": 1,
        "DICOM SEG (no image)": 5,
        "DICOM SM (no image)": 2,
        "DICOM US without position": 1,
    }
    (refused,) = found.refused
    assert "no_meta.dcm is no DICOM file: it has no DICM at byte 128" in refused.error
    taken = sum(len(unpack(case.index).files) if isinstance(case.index, bytes) else 1 for case in found.cases)
    files = sum(path.is_file() for path in (shared / "medical").rglob("*"))
    assert taken + sum(found.left_out.values()) + len(found.refused) == files


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_case_is_right_or_refused_for_its_reason(shared: Path, name: str) -> None:
    (case,) = [case for case in find_input([str(shared / "medical")]).cases if case.name == name]
    if OUTCOMES[name]:
        with pytest.raises(SegpipeError, match=OUTCOMES[name]):
            open_case(case, contract()).close()
        return
    with closing(open_case(case, contract())) as source:
        window = Window((0, 0, 0), source.grid.shape)
        stored, invalid = source.read(window)
        slope, intercept = (1, 0) if (tags := source.tags()) is None else (float(part.flat[0]) for part in tags)
        values = np.asarray(stored[0]) * slope + intercept
        compare(values, np.zeros(values.shape, bool) if invalid is None else invalid, source.grid, case)


def compare(values: Any, invalid: Any, grid: Any, case: Case) -> None:
    """Every voxel of an image is at the place that its format's formula gives it, and nothing else is in the volume."""
    seen = 0
    for places, expected, padding in planes(case):
        index = np.linalg.inv(grid.affine) @ np.c_[places, np.ones(len(places))].T
        there = np.rint(index[:3].T).astype(int)
        assert np.abs(index[:3].T - there).max() < 0.02
        np.testing.assert_allclose(values[tuple(there.T)], expected, rtol=1e-6)
        np.testing.assert_array_equal(invalid.reshape(values.shape)[tuple(there.T)], padding)
        seen += len(places)
    assert seen == values.size


def planes(case: Case) -> Iterator[tuple[Voxels, Voxels, Any]]:
    """Places in mm (RAS) and values of the voxels of a file, and which are padding, by its own library."""
    if case.format == "dicom":
        yield from map(of_slice, unpack(case.index).files)
    elif case.format == "nifti":
        image: Any = nibabel.load(case.path)
        yield nibabel.affines.apply_affine(image.affine, every(image.shape)), image.get_fdata().ravel(), False
    else:
        picture = SimpleITK.ReadImage(case.path)
        whole = SimpleITK.GetArrayFromImage(picture).T
        steps = np.array(picture.GetDirection()).reshape(3, 3) * picture.GetSpacing()
        yield (every(whole.shape) @ steps.T + picture.GetOrigin()) * (-1, -1, 1), whole.ravel(), False


def of_slice(path: str) -> tuple[Voxels, Voxels, Any]:
    """By the formula of PS3.3, section C.7.6.2.1.1; LPS becomes RAS."""
    data = pydicom.dcmread(path)
    index, steps = every(data.pixel_array.shape), np.array(data.ImageOrientationPatient, float).reshape(2, 3)
    down, along = (float(n) for n in data.PixelSpacing)
    places = np.array(data.ImagePositionPatient, float) + index[:, :1] * down * steps[1] + index[:, 1:] * along * steps[0]
    units = data.pixel_array * float(data.get("RescaleSlope", 1)) + float(data.get("RescaleIntercept", 0))
    padding = data.pixel_array.ravel() == data.PixelPaddingValue if "PixelPaddingValue" in data else False
    return places * (-1, -1, 1), units.ravel(), padding


def every(shape: tuple[int, ...]) -> NDArray[np.int64]:
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, len(shape))

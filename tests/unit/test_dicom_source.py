"""A series is read as a volume: values of the modality on the right grid; every real series against other readers."""

import tempfile
from pathlib import Path

import dicoms
import gdcm
import networks
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
import volumes
from dicoms import Each
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from segpipe.errors import SourceError
from segpipe.formats.case import Case
from segpipe.formats.cases import find_input
from segpipe.formats.dicom import decoder_process, plane_cache
from segpipe.formats.dicom import pixels as decoding
from segpipe.formats.dicom.series import Frame
from segpipe.formats.dicom.sink import is_own_file, series_sink
from segpipe.formats.dicom.source import SeriesSource
from segpipe.formats.nifti.header import read_volume
from segpipe.formats.registry import open_case
from segpipe.formats.sink import Target
from segpipe.formats.style import Style
from segpipe.geometry.windows import Window
from segpipe.inspect.file import inspect_file
from segpipe.network.read import read_spec
from segpipe.overrides import Overrides
from segpipe.settings import load_settings
from segpipe.storage.folder import Folder


@pytest.fixture(scope="session")
def contract_of(tmp_path_factory):
    def make(**terms):
        model = networks.volumetric(tmp_path_factory.mktemp("m") / "m.onnx", (2, 4, 4), **terms)
        return read_spec(load_settings(None, {"input": ("x",), "model": model, "device": "cpu"})).contract

    return make


@pytest.fixture(scope="session")
def contract(contract_of):
    return contract_of()


@pytest.fixture(autouse=True)
def _released():
    yield
    plane_cache.release()


def opened(path, contract, overrides=None):
    (case,) = find_input([str(path)]).cases
    return open_case(case, contract, *([overrides] if overrides else []))


def whole(source):
    pixels, invalid = source.read(Window((0, 0, 0), source.grid.shape))
    return pixels[0], invalid


@pytest.mark.parametrize(
    "other", [{"RescaleIntercept": -1000}, {"SliceThickness": 2.25, "SeriesDescription": "of another length"}]
)
def test_headers_that_the_search_read_are_those_of_the_files(tmp_path, contract, other):
    """Cases are read hours after the search; new pixels with the slope and place of old headers would be a mix."""
    dicoms.write(tmp_path)
    (case,) = find_input([str(tmp_path)]).cases
    open_case(case, contract).close()
    path = tmp_path / "IM0003.dcm"
    dicoms.save(dicoms.slice_of(dicoms.values()[3], dicoms.positions(6)[3], 4, **other), path)
    with pytest.raises(SourceError, match=r"IM0003.dcm has changed since its header was read: run the same command again"):
        open_case(case, contract)
    opened(tmp_path, contract).close()


def test_values_are_hounsfield_units_in_the_order_of_the_normal(tmp_path, contract):
    pixels = dicoms.values()
    source = opened(dicoms.write(tmp_path, pixels), contract)
    values, invalid = whole(source)
    np.testing.assert_array_equal(values, pixels.astype(int) - 1024)
    assert invalid is None
    assert source.grid.spacing == pytest.approx((2.5, 0.7, 0.8))
    assert len(source.files) == 6
    assert source.tags() is None
    assert not source.empty(Window((0, 0, 0), (1, 1, 1)))
    assert source.near((0.5, 0.5, 0.5), 4).shape == (4, 4, 4)
    source.close()


def test_a_series_whose_first_file_is_the_topmost_has_the_same_volume(tmp_path, contract):
    pixels, places = dicoms.values(), dicoms.positions(6)
    up = opened(dicoms.write(tmp_path / "up", pixels, places), contract)
    down = opened(dicoms.write(tmp_path / "down", pixels[::-1], places[::-1]), contract)
    assert up.grid == down.grid
    np.testing.assert_array_equal(whole(up)[0], whole(down)[0])


def test_slope_and_intercept_of_each_slice(tmp_path, contract):
    pixels = dicoms.values()
    slopes = [0.5, 1, 2, 3, 0.25, 1.5]
    source = opened(dicoms.write(tmp_path, pixels, RescaleSlope=Each(slopes), RescaleIntercept=Each([*range(6)])), contract)
    expected = pixels * np.array(slopes)[:, None, None] + np.arange(6)[:, None, None]
    np.testing.assert_allclose(whole(source)[0], expected, rtol=1e-7)
    assert source.dtype == np.float32
    assert "slope of its own for each slice" in " ".join(source.notes)


def test_monochrome1_is_not_inverted_and_noted(tmp_path, contract):
    pixels = dicoms.values()
    source = opened(dicoms.write(tmp_path, pixels, PhotometricInterpretation="MONOCHROME1"), contract)
    np.testing.assert_array_equal(whole(source)[0], pixels.astype(int) - 1024)
    assert "MONOCHROME1" in " ".join(source.notes)


def test_an_orientation_that_is_off_by_1e_7_is_the_same(tmp_path, contract):
    turns = Each([[1, 1e-7 * n, 0, 0, 1, 0] for n in range(6)])
    spacings = Each([[0.7 + 1e-7 * n, 0.8] for n in range(6)])
    source = opened(dicoms.write(tmp_path, ImageOrientationPatient=turns, PixelSpacing=spacings), contract)
    assert source.grid.shape == (6, 9, 11)


def test_frames_of_an_enhanced_file_have_their_own_slopes(tmp_path, contract):
    pixels, slopes = dicoms.values((4, 5, 6)), [1, 2, 3, 4]
    path = dicoms.enhanced(tmp_path / "e.dcm", pixels[::-1], dicoms.positions(4)[::-1], slopes[::-1])
    source = opened(path, contract)
    np.testing.assert_array_equal(whole(source)[0], pixels * np.array(slopes)[:, None, None])
    assert source.files == (str(path),)
    assert source.grid.spacing == pytest.approx((2.5, 0.7, 0.8))


def test_a_concatenation_is_one_volume_of_the_frames_of_its_files(tmp_path, contract):
    """Files with three frames, two and one; each frame has a slope of its own."""
    pixels, slopes = dicoms.values((6, 5, 6)), [1, 2, 3, 4, 5, 6]
    dicoms.enhanced(tmp_path / "e.dcm", pixels, dicoms.positions(6), slopes)
    paths = dicoms.concatenate(tmp_path / "e.dcm", [3, 2, 1])
    source = opened(tmp_path, contract)
    np.testing.assert_array_equal(whole(source)[0], pixels * np.array(slopes)[:, None, None])
    assert source.files == tuple(map(str, paths))


def test_what_a_private_group_of_a_frame_repeats_is_not_taken_for_its_values(tmp_path, contract):
    path = dicoms.enhanced(tmp_path / "e.dcm", pixels := dicoms.values((4, 5, 6)), dicoms.positions(4), [1] * 4)
    data = pydicom.dcmread(path)
    shared = data.SharedFunctionalGroupsSequence[0]
    shared.PixelValueTransformationSequence = data.PerFrameFunctionalGroupsSequence[0].PixelValueTransformationSequence
    for group in data.PerFrameFunctionalGroupsSequence:
        del group.PixelValueTransformationSequence
        old = dicoms.slice_of(pixels[0], (0, 0, 0), 1, RescaleSlope=7, PixelSpacing=[9, 9])
        group.private_block(0x2005, "Philips MR Imaging DD 005", create=True).add_new(0x0F, "SQ", [old])
    data.save_as(path)
    source = opened(path, contract)
    np.testing.assert_array_equal(whole(source)[0], pixels)
    assert source.grid.spacing == pytest.approx((2.5, 0.7, 0.8))


@pytest.mark.parametrize("keyword", ["PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID", "Modality"])
def test_slices_that_do_not_belong_together_make_no_volume(tmp_path, contract, keyword):
    other = {"Modality": "PT", "PatientID": "4712", "PatientName": "Mustermann^Max"}.get(keyword, dicoms.uid(903))
    path = dicoms.write(tmp_path) / "IM0003.dcm"
    data = pydicom.dcmread(path)
    setattr(data, keyword, "")
    data.save_as(path)
    assert len(opened(tmp_path, contract).files) == 6
    setattr(data, keyword, other)
    data.save_as(path)
    first = tmp_path / "IM0000.dcm"
    rule = f"must have one {keyword}, and {first} and {path} have two: label the files of"
    with pytest.raises(SourceError, match=rule) as caught:
        opened(tmp_path, contract)
    assert other == "PT" or other not in str(caught.value)


def test_a_name_in_another_case_or_with_padding_is_of_the_same_patient(tmp_path, contract):
    dicoms.write(tmp_path, PatientName=Each(["Doe^Jo", "DOE^JO", "Doe^Jo^^^", "Doe^Jo ", "Doe^Jo==", ""]))
    assert len(opened(tmp_path, contract).files) == 6


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("kind", ["slices", "frames"])
def test_compressed_pixels_are_those_before(tmp_path, contract, syntax, kind):
    pixels = dicoms.values((4, 16, 20))
    if kind == "slices":
        dicoms.write(tmp_path, pixels.astype(np.uint16), RescaleIntercept=0)
    else:
        dicoms.enhanced(tmp_path / "e.dcm", pixels.astype(np.uint16), dicoms.positions(4), [1] * 4)
    for path in tmp_path.iterdir():
        _compress(path, syntax)
    source = opened(tmp_path, contract)
    np.testing.assert_array_equal(whole(source)[0], pixels)


def _compress(path, syntax):
    if syntax == JPEG2000Lossless:
        dicoms.compress(path, gdcm.TransferSyntax.JPEG2000Lossless)
    else:
        data = pydicom.dcmread(path)
        data.compress(syntax, generate_instance_uid=False)
        data.save_as(path)


@pytest.mark.parametrize("signed", [False, True])
def test_jpeg_lossless_of_a_ct(tmp_path, contract, signed):
    pixels = dicoms.values((3, 16, 20))
    stored = (pixels - 2000).astype(np.int16) if signed else pixels.astype(np.uint16)
    dicoms.write(tmp_path, stored)
    for path in tmp_path.iterdir():
        dicoms.compress(path, gdcm.TransferSyntax.JPEGLosslessProcess14_1)
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.70"
    np.testing.assert_array_equal(whole(opened(tmp_path, contract))[0], stored.astype(int) - 1024)


def test_a_syntax_that_nothing_decodes_is_an_error_before_any_pixel(tmp_path, contract):
    dicoms.write(tmp_path)
    for path in tmp_path.iterdir():
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"  # HTJ2K
        data["PixelData"].VR = "OB"
        data.PixelData = pydicom.encaps.encapsulate([b"0123"])
        data.save_as(path)
    with pytest.raises(SourceError, match=r"no installed library decodes .*High-Throughput.*Explicit VR Little Endian"):
        opened(tmp_path, contract)


@pytest.mark.parametrize(("kind", "samples"), [("RGB", 3), ("PALETTE COLOR", 1), ("YBR_FULL", 3)])
def test_colours_are_no_values(tmp_path, contract, kind, samples):
    dicoms.write(tmp_path, PhotometricInterpretation=kind, SamplesPerPixel=samples, BitsAllocated=8 if samples == 3 else 16)
    with pytest.raises(SourceError, match=f"one grey value, and PhotometricInterpretation is {kind}|is cut"):
        opened(tmp_path, contract)


def test_a_file_that_is_cut_is_an_error_before_any_pixel(tmp_path, contract):
    dicoms.write(tmp_path)
    path = tmp_path / "IM0003.dcm"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(SourceError, match=r"IM0003.dcm is cut: its pixels take 198 bytes, and .* copy it again"):
        opened(tmp_path, contract)


def test_pixels_that_do_not_decode_are_an_error_with_the_file(tmp_path, contract):
    dicoms.write(tmp_path, dicoms.values((4, 16, 20)).astype(np.uint16))
    for path in tmp_path.iterdir():
        _compress(path, JPEGLSLossless)
    path = tmp_path / "IM0002.dcm"
    data = pydicom.dcmread(path)
    data.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xf7 no picture"])
    data.save_as(path)
    source = opened(tmp_path, contract)
    with pytest.raises(SourceError, match=r"IM0002.dcm: its pixels cannot be decoded"):
        whole(source)


def test_a_tilt_is_named_with_the_path_of_the_series(tmp_path, contract):
    places = dicoms.positions(6) + np.arange(6)[:, None] * [0, 0.3, 0]
    with pytest.raises(SourceError, match=rf"^{tmp_path}: .* sheared by 6.84 degrees, as a tilted gantry does: 1.5 mm"):
        opened(dicoms.write(tmp_path, places=places), contract)


@pytest.mark.parametrize("letters", ["RAS", "LPS", "SRA", "PIL", "ASR"])
def test_any_orientation_of_the_contract(tmp_path, contract_of, letters):
    turned = [0.0, 0.8, -0.6, 1.0, 0, 0]
    pixels = dicoms.values()
    folder = dicoms.write(tmp_path, pixels, dicoms.positions(6, orientation=turned), ImageOrientationPatient=turned)
    plain, source = opened(folder, contract_of()), opened(folder, contract_of(orientation=letters))
    assert source.grid.directions == letters
    values, _ = whole(source)
    corners = np.array([[a * (n - 1) for a, n in zip(bits, values.shape, strict=True)] for bits in np.ndindex(2, 2, 2)])
    back = np.linalg.inv(plain.grid.affine) @ np.c_[source.grid.world(corners), np.ones(8)].T
    there = np.rint(back[:3].T).astype(int)
    np.testing.assert_allclose(back[:3].T, there, atol=1e-9)
    np.testing.assert_array_equal(values[tuple(corners.T)], whole(plain)[0][tuple(there.T)])


def test_the_grid_is_simpleitks(tmp_path, contract):
    turned = [0.0, 0.8, -0.6, 1.0, 0, 0]
    places = dicoms.positions(6, orientation=turned)
    dicoms.write(tmp_path, dicoms.values(), places, ImageOrientationPatient=turned)
    _compare_with_simpleitk(opened(tmp_path, contract), tmp_path)


def _compare_with_simpleitk(source, folder):
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), reader.GetGDCMSeriesIDs(str(folder))[0]))
    image = reader.Execute()
    values, _ = whole(source)
    last = np.array(values.shape) - 1
    for bits in np.ndindex(2, 2, 2):
        index = np.array(bits) * last
        x, y, z = source.grid.world(index)
        there = image.TransformPhysicalPointToContinuousIndex([-x, -y, z])
        i, j, k = np.rint(there).astype(int).tolist()
        np.testing.assert_allclose(there, [i, j, k], atol=0.02)
        assert values[tuple(index)] == pytest.approx(image[i, j, k], rel=1e-6)


SHARED = ["dcmqi/ct-3slice", "dcmqi/23x38x3/image", "dicom2nifti/failing/sliceorientation/001"]
TRUE = [
    f"dicom2nifti/generic/{name}" for name in ("anatomical/001", "anatomical/002_non_isotropic", "compressed_jpegls/001")
]


@pytest.mark.shared_data
@pytest.mark.parametrize("name", [*SHARED, *TRUE])
def test_real_series_lie_where_simpleitk_has_them(shared, contract, name):
    folder = shared / "medical" / "dicom" / name
    _compare_with_simpleitk(opened(folder, contract), folder)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", TRUE)
def test_real_series_equal_their_ground_truth_voxel_for_voxel(shared, contract, name):
    folder = shared / "medical" / "dicom" / name
    source, truth = opened(folder, contract), nibabel.load(f"{folder}_ground_truth.nii.gz")
    values, _ = whole(source)
    index = np.stack(np.meshgrid(*map(np.arange, values.shape), indexing="ij"), -1).reshape(-1, 3)
    there = nibabel.affines.apply_affine(np.linalg.inv(truth.affine), source.grid.world(index))
    voxels = np.rint(there).astype(int)
    np.testing.assert_allclose(there, voxels, atol=1e-4)
    assert truth.shape == tuple(voxels.max(axis=0) + 1)
    np.testing.assert_allclose(values.reshape(-1), np.asarray(truth.dataobj)[tuple(voxels.T)], rtol=1e-6)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("dicom2nifti/failing/sliceincrement/001", "1 slice is missing at steps of 5 mm: 1 between 28.107 and 38.107 mm"),
        ("dicom2nifti/generic/rgb/001", "PhotometricInterpretation is RGB"),
        ("pydicom/emri_small.dcm", "10 of 10 have no ImagePositionPatient"),
        ("pydicom/MR_truncated.dcm", "is cut: its pixels take 8,192 bytes"),
    ],
)
def test_real_series_that_are_no_volume_are_refused_with_the_reason(shared, contract, name, why):
    with pytest.raises(SourceError, match=why):
        opened(shared / "medical" / "dicom" / name, contract)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["pydicom/CT_small.dcm", "pydicom/MR_small.dcm", "highdicom/ct_image.dcm"])
def test_real_single_slices(shared, contract, name):
    path = shared / "medical" / "dicom" / name
    source = opened(path, contract)
    data = pydicom.dcmread(path)
    expected = data.pixel_array * float(data.get("RescaleSlope", 1)) + float(data.get("RescaleIntercept", 0))
    np.testing.assert_array_equal(whole(source)[0], expected[None])
    assert "its SliceThickness" in " ".join(source.notes)


@pytest.mark.shared_data
def test_what_of_the_real_files_is_no_slice(shared):
    found = find_input([str(shared / "medical" / "dicom" / name) for name in ("pydicom", "highdicom")])
    assert found.left_out == {
        "DICOM DX without position": 1,
        "DICOM NM without position": 1,
        "DICOM RTDOSE (no image)": 1,
        "DICOM SEG (no image)": 2,
        "DICOM SM (no image)": 2,
        "DICOM US without position": 1,
    }
    assert "no_meta.dcm is no DICOM file" in " ".join(failure.error for failure in found.refused)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [({"crs": "EPSG:4326"}, "no CRS"), ({"bands": (2,)}, "--bands"), ({"nodata": 5_000_000_000}, "--nodata")],
)
def test_what_a_series_cannot_be(tmp_path, contract, overrides, why):
    with pytest.raises(SourceError, match=why):
        opened(dicoms.write(tmp_path), contract, Overrides(**overrides))


def test_nodata_is_a_value_of_the_modality(tmp_path, contract):
    pixels = dicoms.values()
    pixels[2, 3, 4] = 24
    _, invalid = whole(opened(dicoms.write(tmp_path, pixels), contract, Overrides(nodata=-1000)))
    np.testing.assert_array_equal(invalid, pixels == 24)


@pytest.mark.parametrize("letters", ["LPS", "PSR"])
@pytest.mark.parametrize("slope", [1, 0.5])
def test_pixels_of_padding_are_invalid(tmp_path, contract_of, letters, slope):
    """One slice has no padding, one has a range, one has the sign of the element wrong, and one has another slope."""
    pixels = np.random.default_rng(0).integers(-3, 6, (4, 5, 6)).astype(np.int16)
    slopes = Each([slope, slope, slope, 3])
    for n, path in enumerate(sorted(dicoms.write(tmp_path, pixels, RescaleSlope=slopes).iterdir())):
        data = pydicom.dcmread(path)
        if n:
            data.add_new("PixelPaddingValue", "US" if n == 2 else "SS", 65534 if n == 2 else -2)
        if n == 1:
            data.add_new("PixelPaddingRangeLimit", "SS", 1)
        data.save_as(path)
    plain, turned = opened(tmp_path, contract_of()), opened(tmp_path, contract_of(orientation=letters))
    _, invalid = whole(plain)
    expected = pixels == -2
    expected[0], expected[1] = False, (pixels[1] >= -2) & (pixels[1] <= 1)
    np.testing.assert_array_equal(invalid, expected)
    np.testing.assert_array_equal(whole(turned)[1], turned.grid.turned.array(expected))
    assert "PixelPaddingValue, of each slice as stored, are invalid" in " ".join(plain.notes)
    for value in ("none", 5000):
        other = opened(tmp_path, contract_of(), Overrides(nodata=value))
        assert whole(other)[1] is None
        assert "PixelPaddingValue" not in " ".join(other.notes)


def test_a_slice_without_the_scale_of_the_others_is_an_error(tmp_path, contract):
    path = dicoms.write(tmp_path, modality="MR", RescaleIntercept=0) / "IM0002.dcm"
    data = pydicom.dcmread(path)
    del data.RescaleSlope, data.RescaleIntercept
    data.save_as(path)
    assert len(opened(tmp_path, contract).files) == 6  # slopes of 1 change nothing
    other = pydicom.dcmread(tmp_path / "IM0003.dcm")
    other.RescaleSlope = 2
    other.save_as(tmp_path / "IM0003.dcm")
    with pytest.raises(SourceError, match=rf"^{path}: RescaleSlope and .* in every slice .*, and 1 of 6 have none: copy"):
        opened(tmp_path, contract)


def _float_pixels(data):
    del data.PixelData, data.BitsStored, data.HighBit, data.PixelRepresentation
    data.BitsAllocated, data.FloatPixelData = 32, bytes(4 * data.Rows * data.Columns)


def _table(data):
    table = pydicom.Dataset()
    table.add_new("LUTDescriptor", "US", [16, 0, 16])
    table.ModalityLUTType = "HU"
    table.add_new("LUTData", "OW", bytes(32))
    data.ModalityLUTSequence = [table]


UNUSABLE = [
    (_float_pixels, r"pixels must be integers, .* such as Float Pixel Data: convert it to NIfTI first"),
    (_table, r"ModalityLUTSequence \(0028,3000\): apply it first, as with pydicom.pixels.apply_modality_lut"),
    ({"RescaleSlope": 0}, r"RescaleSlope must be a number but 0, .*, got 0 and -1024: copy it again"),
    ({"RescaleSlope": "NaN"}, r"RescaleSlope must be .*, got nan and -1024"),
    ({"RescaleIntercept": "inf"}, r"RescaleSlope must be .*, got 1 and inf"),
    ({"BitsStored": 0}, r"BitsStored must be 1 to BitsAllocated, 16, got 0: copy it again"),
    ({"BitsStored": 65535}, r"BitsStored must be 1 to BitsAllocated, 16, got 65535"),
    ({"BitsStored": 12}, r"HighBit must be BitsStored - 1 .*, got 15 for 12 bits: .* dcmodify -m HighBit=11"),
    ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]}, r"one slice, and ImageType says MOSAIC, .* dcm2niix"),
]


@pytest.mark.parametrize(("change", "why"), UNUSABLE)
def test_pixels_that_make_no_values_are_an_error_of_their_series(tmp_path, contract, change, why):
    path = dicoms.write(tmp_path) / "IM0002.dcm"
    with pydicom.config.disable_value_validation():
        data = pydicom.dcmread(path)
        if isinstance(change, dict):
            for keyword, value in change.items():
                setattr(data, keyword, value)
        else:
            change(data)
        data.save_as(path)
    with pytest.raises(SourceError, match=f"^{path}: .*{why}"):
        opened(tmp_path, contract)


def test_frames_without_an_item_of_their_own_are_an_error(tmp_path, contract):
    path = dicoms.enhanced(tmp_path / "e.dcm", dicoms.values((4, 5, 6)), dicoms.positions(4), [1] * 4)
    data = pydicom.dcmread(path)
    del data.PerFrameFunctionalGroupsSequence[3]
    data.save_as(path)
    with pytest.raises(SourceError, match=r"an item for each frame, and has 3 for NumberOfFrames 4: copy it again"):
        opened(path, contract)


def test_a_path_alone_is_a_case_too(tmp_path, contract):
    path = dicoms.write(tmp_path) / "IM0001.dcm"
    assert SeriesSource(Case("a", str(path), "dicom"), contract).grid.shape == (1, 9, 11)
    with pytest.raises(SourceError, match=r"files of this machine, got s3://b/a.dcm: copy it here"):
        SeriesSource(Case("a", "s3://b/a.dcm", "dicom"), contract)


def test_a_plane_is_decoded_when_it_is_read_and_once_for_all_openings(tmp_path, contract, monkeypatch):
    dicoms.write(tmp_path)
    decoded, plane = [], decoding.Decoder.plane
    monkeypatch.setattr(decoding.Decoder, "plane", lambda own, f, **k: decoded.append(f.number) or plane(own, f, **k))
    first, second = opened(tmp_path, contract), opened(tmp_path, contract)
    assert not decoded
    first.read(Window((1, 0, 0), (3, 9, 11)))
    second.read(Window((2, 0, 0), (4, 9, 11)))
    assert len(decoded) == 3
    path = tmp_path / "IM0002.dcm"
    data = pydicom.dcmread(path)
    data.PixelData = bytes(198)
    data.save_as(path)
    third = opened(tmp_path, contract)
    assert (third.read(Window((2, 0, 0), (3, 9, 11)))[0] == -1024).all()
    assert first.memory((2, 9, 11)) == first.block == 9 * 11 * (16 + first.dtype.itemsize)


def _denied(**_):
    raise PermissionError(13, "Permission denied")


def test_a_full_tmpdir_is_an_error_that_says_so(tmp_path, contract, monkeypatch):
    source = opened(dicoms.write(tmp_path), contract)
    monkeypatch.setattr("os.posix_fallocate", volumes.full)
    with pytest.raises(SourceError, match=r"takes 2,376 bytes decoded, and .* set TMPDIR"):
        whole(source)
    monkeypatch.setattr(
        tempfile, "TemporaryFile", lambda **_: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    with pytest.raises(SourceError, match="Permission denied: set TMPDIR"):
        whole(source)


@pytest.mark.parametrize(
    ("more", "dtype"),
    [
        ({"bits": 12}, "i2"),
        ({"bits": 12, "intercept": -1024.0}, "i2"),
        ({"bits": 16}, "u2"),
        ({"bits": 16, "intercept": -1024.0}, "i4"),
        ({"bits": 16, "signed": True}, "i2"),
        ({"bits": 8}, "u1"),
        ({"bits": 12, "slope": 0.5}, "f4"),
    ],
)
def test_values_have_the_smallest_type_that_holds_them(more, dtype):
    frame = Frame("a", 0, "1", None, None, None, (1, 1), **more)
    assert decoding.value_type([frame]) == np.dtype(dtype)


def test_the_mask_of_a_series_lies_on_its_own_grid(tmp_path, contract_of):
    turned = [0.0, 0.8, -0.6, 1.0, 0, 0]
    folder = dicoms.write(
        tmp_path / "CT", dicoms.values(), dicoms.positions(6, orientation=turned), ImageOrientationPatient=turned
    )
    source = opened(folder, contract_of(orientation="RAS"))
    (tmp_path / "out").mkdir()
    sink = series_sink(Target(Folder(tmp_path / "out"), "CT", source.grid, Style("uint8", 255, ["class"]), source.template))
    values = np.random.default_rng(0).integers(0, 3, source.grid.shape).astype(np.uint8)
    sink.write(Window((0, 0, 0), source.grid.shape), values[None])
    assert sink.finish() == ["CT.nii.gz"]
    mask = nibabel.load(tmp_path / "out" / "CT.nii.gz")
    index = np.array([3, 4, 5])
    there = nibabel.affines.apply_affine(np.linalg.inv(mask.affine), source.grid.world(index))
    assert np.asarray(mask.dataobj)[tuple(np.rint(there).astype(int))] == values[tuple(index)]
    assert (int(mask.header["sform_code"]), int(mask.header["qform_code"])) == (1, 1)
    assert read_volume(str(tmp_path / "out" / "CT.nii.gz")).notes == ()
    assert dicoms.PATIENT.encode() not in Path(tmp_path / "out" / "CT.nii.gz").read_bytes()


DAMAGED = [
    (gdcm.TransferSyntax.JPEGLosslessProcess14_1, b"\xff\xc4", b"\xff\x01"),
    (gdcm.TransferSyntax.JPEGLSLossless, b"\xff\xf7\x00\x0b\x08", b"\xff\xf7\x00\x0b\xff"),
    (gdcm.TransferSyntax.JPEGBaselineProcess1, b"\xff\xc4", b"\xff\x01"),
]
"""Syntaxes, and bytes whose change makes GDCM abort its process."""


@pytest.mark.parametrize(("syntax", "right", "wrong"), DAMAGED)
@pytest.mark.parametrize("kind", ["slices", "frames"])
def test_pixels_over_which_gdcm_aborts_are_an_error_of_their_case(tmp_path, contract, syntax, right, wrong, kind):
    pixels = dicoms.values((2, 4, 4)) % 200
    for name in ("good", "bad"):
        for path in _written(tmp_path / name, pixels.astype(np.uint16), kind):
            _of_8_bits(path)
            dicoms.compress(path, syntax)
    path = sorted((tmp_path / "bad").iterdir())[-1]
    content = path.read_bytes()
    at = content.rindex(right)
    path.write_bytes(content[:at] + wrong + content[at + len(right) :])
    with pytest.raises(SourceError, match=rf"{path}: its pixels cannot be decoded: .*: copy it again"):
        whole(opened(tmp_path / "bad", contract))
    np.testing.assert_allclose(whole(opened(tmp_path / "good", contract))[0], pixels, atol=2)
    decoder_process.release()


def _written(folder, pixels, kind):
    if kind == "frames":
        return [dicoms.enhanced(folder / "e.dcm", pixels, dicoms.positions(len(pixels)), [1] * len(pixels))]
    return sorted(dicoms.write(folder, pixels, RescaleIntercept=0).iterdir())


def _of_8_bits(path):
    data = pydicom.dcmread(path)
    pixels = data.pixel_array
    data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
    data.PixelData = pixels.astype(np.uint8).tobytes()
    data["PixelData"].VR = "OB"
    data.save_as(path)


def test_a_decoder_in_another_process_ends_with_its_release_and_starts_again(tmp_path, contract):
    pixels = dicoms.values((2, 4, 4))
    for path in dicoms.write(tmp_path, pixels.astype(np.uint16), RescaleIntercept=0).iterdir():
        dicoms.compress(path, gdcm.TransferSyntax.JPEGLosslessProcess14_1)
    for _ in range(2):
        np.testing.assert_array_equal(whole(opened(tmp_path, contract))[0], pixels)
        decoder_process.release()
        plane_cache.release()
    with pytest.raises(decoder_process.DecodingError, match="No such file"):
        decoder_process.decode_in_process(str(tmp_path / "nowhere"), 0, True)
    decoder_process.release()


def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next(tmp_path, monkeypatch):
    paths = []
    for n in (1, 2):
        (path,) = dicoms.write(tmp_path / str(n), np.full((1, 4, 4), n, np.uint16), RescaleIntercept=0).iterdir()
        dicoms.compress(path, gdcm.TransferSyntax.JPEGLosslessProcess14_1)
        paths.append(str(path))

    def interrupted(stream):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(decoder_process.pickle, "load", interrupted)
        with pytest.raises(KeyboardInterrupt):
            decoder_process.decode_in_process(paths[0], 0, True)
    assert (decoder_process.decode_in_process(paths[1], 0, True) == 2).all()
    decoder_process.release()


@pytest.mark.parametrize("cut", [10, 60, 300])
def test_a_damaged_dicom_file_of_somebody_else_is_not_segpipes(tmp_path, cut):
    data = dicoms.slice_of(dicoms.values((9, 11)), (0, 0, 0), 1, Manufacturer="another")
    plain = dicoms.save(data, tmp_path / "plain.seg.dcm")
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    for path in (plain, dicoms.save(data, tmp_path / "packed.seg.dcm")):
        path.write_bytes(path.read_bytes()[:-cut])
        assert not is_own_file(Folder(tmp_path), path.name)


@pytest.mark.parametrize("name", ["IM0001", "scan.dcm", "1.2.840.1"])
def test_inspect_takes_a_slice_of_any_name(tmp_path, name):
    path = dicoms.save(dicoms.slice_of(dicoms.values((9, 11)), (0, 0, 0), 1), tmp_path / name)
    facts = inspect_file(load_settings(None, {"input": (str(path),), "model": path}))
    assert (facts.kind, facts.format, facts.shape) == ("volume", "dicom", [1, 9, 11])


@pytest.mark.parametrize("syntax", [gdcm.TransferSyntax.JPEG2000Lossless, gdcm.TransferSyntax.JPEGLSLossless])
@pytest.mark.parametrize("slope", [1, 0.5])
def test_compressed_values_above_bits_stored_are_an_error_and_unused_bits_of_others_are_ignored(
    tmp_path, contract, syntax, slope
):
    true = dicoms.values((3, 16, 20)).astype("u2")
    overlaid = true | 0x8000
    dicoms.write(tmp_path, overlaid, BitsStored=12, HighBit=11, RescaleSlope=slope, RescaleIntercept=0)
    np.testing.assert_array_equal(whole(opened(tmp_path, contract))[0], true * np.float32(slope))
    dicoms.write(tmp_path, overlaid, RescaleSlope=slope, RescaleIntercept=0)
    for path in tmp_path.iterdir():
        dicoms.compress(path, syntax)
        data = pydicom.dcmread(path)
        data.BitsStored, data.HighBit = 12, 11
        data.save_as(path)
    plane_cache.release()
    with pytest.raises(SourceError, match=r"pixels, 3\d+ to 3\d+ as stored, must fit BitsStored, 12: set BitsStored"):
        whole(opened(tmp_path, contract))


@pytest.mark.parametrize("signed", [False, True])
def test_padding_that_bits_stored_cannot_hold_is_an_error_and_nodata_mends_it(tmp_path, contract, signed):
    """Words of -2000 in 12 bits: without the bits above, which are ignored, they read as 2096 or -2000."""
    pixels = dicoms.values((3, 5, 6)) // 2
    pixels[:, 0] = -5000 if signed else -2000
    low = -2048 if signed else 0
    word = int(pixels[0, 0, 0])
    dicoms.write(tmp_path, pixels if signed else pixels.astype("u2"), BitsStored=12, HighBit=11)
    for path in tmp_path.iterdir():
        data = pydicom.dcmread(path)
        data.add_new("PixelPaddingValue", "SS", word)
        data.save_as(path)
    reads = int(SimpleITK.ReadImage(str(path))[0, 0, 0])
    shown = word if signed else word + 65536
    rule = rf"PixelPaddingValue must fit BitsStored, {low} to {low + 4095}, got {shown}, .* --nodata {reads} takes"
    with pytest.raises(SourceError, match=rule):
        opened(tmp_path, contract)
    valued = opened(tmp_path, contract, Overrides(nodata=reads))
    assert whole(valued)[1][:, 0].all()

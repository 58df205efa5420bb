"""Which library decodes which syntax, and that it gives the pixels that were stored."""

from contextlib import closing

import dicoms
import gdcm
import numpy as np
import pytest
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from segpipe.formats.dicom.stored import Reader, plugin_of


@pytest.mark.parametrize(
    ("syntax", "bits", "plugin"),
    [
        (ExplicitVRLittleEndian, 16, ""),
        (RLELossless, 16, "pydicom"),
        (JPEGLSLossless, 12, "pyjpegls"),
        (JPEGBaseline8Bit, 8, "pillow"),
        (JPEGExtended12Bit, 12, None),
        (JPEG2000Lossless, 16, "pillow"),
        (JPEG2000Lossless, 24, None),
        (JPEGLosslessSV1, 16, None),
        (UID("1.2.840.10008.1.2.4.201"), 16, None),
    ],
)
def test_gdcm_which_may_abort_decodes_nothing_here_that_another_library_decodes(syntax, bits, plugin):
    assert plugin_of(syntax, bits) == plugin


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", [gdcm.TransferSyntax.JPEG2000Lossless, gdcm.TransferSyntax.JPEGLSLossless])
def test_pixels_of_any_depth_and_sign_are_those_that_gdcm_compressed(tmp_path, syntax, signed, bits):
    low = -(2 ** (bits - 1)) if signed else 0
    pixels = np.random.default_rng(0).integers(low, low + 2**bits, (33, 37)).astype("i2" if signed else "u2")
    path = dicoms.save(dicoms.slice_of(pixels, (0, 0, 0), 1, BitsStored=bits, HighBit=bits - 1), tmp_path / "a.dcm")
    dicoms.compress(path, syntax)
    with closing(Reader()) as reader:
        for alone in (True, False):
            np.testing.assert_array_equal(np.squeeze(reader.read(str(path), 0, alone=alone)), pixels)

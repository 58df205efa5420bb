"""Values of ``--nodata``: NumPy says which of them a type can hold."""

import math

import numpy as np
import pytest

from segpipe.errors import SourceError
from segpipe.formats.nodata import checked_nodata

INTEGERS = ["uint8", "int8", "uint16", "int16", "int32"]


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_hold_whole_numbers_within_their_range(name):
    dtype = np.dtype(name)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    for value in (low, 0, high, float(high)):
        assert np.array(value).astype(dtype) == checked_nodata(value, dtype) == value
    for value in (low - 1, high + 1, 0.5, "nan", math.inf):
        with pytest.raises(SourceError, match=rf"{name} of {low} to {high}, got .*or --nodata none"):
            checked_nodata(value, dtype)


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_floats_hold_what_does_not_overflow_and_what_is_not_finite(name):
    dtype = np.dtype(name)
    largest = float(np.finfo(dtype).max)
    for value in (0.1, largest, -largest, math.inf):
        assert checked_nodata(value, dtype) == value
    assert math.isnan(checked_nodata("nan", dtype))


def test_beyond_float32_is_refused():
    with pytest.raises(SourceError, match=r"float32 up to 3\.4028235e"):
        checked_nodata(1e39, np.dtype(np.float32))


@pytest.mark.parametrize("name", [*INTEGERS, "float32"])
def test_none_is_none(name):
    assert checked_nodata("none", np.dtype(name)) is None

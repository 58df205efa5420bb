"""Check the nodata value that ``--nodata`` declares."""

import math
from typing import Any

import numpy as np

from segpipe.errors import SourceError
from segpipe.overrides import Nodata


def checked_nodata(chosen: Nodata, dtype: np.dtype[Any]) -> int | float | None:
    """The chosen nodata value as a number; None for ``none``.

    Raises:
        SourceError: pixels of this type cannot hold it.
    """
    if chosen == "none":
        return None
    value = math.nan if chosen == "nan" else chosen
    if not _fits(value, dtype):
        raise SourceError(
            f"--nodata must be a value that the pixels can hold, {_limits(dtype)}, got {value}: "
            "give such a value, or --nodata none"
        )
    return value


def _fits(value: float, dtype: np.dtype[Any]) -> bool:
    if dtype.kind == "f":
        return not math.isfinite(value) or abs(value) <= float(np.finfo(dtype).max)
    limits = np.iinfo(dtype)
    return math.isfinite(value) and value == int(value) and limits.min <= value <= limits.max


def _limits(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "f":
        return f"{dtype} up to {np.finfo(dtype).max:.8g}"
    return f"{dtype} of {np.iinfo(dtype).min} to {np.iinfo(dtype).max}"

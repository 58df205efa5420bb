"""Check the sampled pixels of a case by all rules."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.formats.unusual.case_statistics import NO_DATA, constant, of_own_statistics, sentinel
from segpipe.formats.unusual.far_off import far_off, linear_or_decibels, outside_clip
from segpipe.formats.unusual.scale import below_clip, too_large, too_large_in_volume, too_small, type_too_small, without_tags
from segpipe.formats.unusual.shifted import negative, shifted
from segpipe.formats.unusual.values import BYTE, Expected, Finding, Tags, Values, expected_of, values_of
from segpipe.network.scaling import Scaling

ORDINARY = 2.0
"""Deviations within which the median of a common scene lies."""

NODATA_OF_RASTER = "declare it with gdal_edit.py -a_nodata"

NODATA_OF_VOLUME = "say so with --nodata"

Rule = Callable[[Values, Expected], Finding | None]
"""Detects one kind of mistake."""

_RULES: tuple[Rule, ...] = (
    negative,
    linear_or_decibels,
    type_too_small,
    too_small,
    too_large,
    shifted,
    far_off,
    without_tags,
)

_VOLUME_RULES: tuple[Rule, ...] = (type_too_small, too_small, too_large_in_volume, far_off)
"""Rules for volumes, which contain neither reflectance nor backscatter: air is -1,000 in CT, whatever a model's window."""

_OWN_RULES: tuple[Rule, ...] = (type_too_small, below_clip, outside_clip)
"""Rules for cases scaled by their own statistics, which undo any other scale."""


class PixelCheck:
    """Finds unusual properties of sampled pixels, for many cases and one contract."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._expected: dict[bytes, Expected] = {}
        """Expectations by the tags of the file, which are the same for most files of a run."""

    def __call__(self, pixels: NDArray[Any], scaling: Scaling | None, tags: Tags | None, *, axes: int) -> list[Finding]:
        """Unusual properties of the pixels of a case, the most serious first.

        Args:
            pixels: valid pixels as stored, shape ``(channels, count)``, in any order.
            scaling: scaling of the case, with its own statistics if the contract uses them; None if these are not known.
            tags: scale and offset of the file's bands; None if stored values are physical values, as in most volumes.
            axes: number of axes of the case: 3 for a volume, even if the model takes images.
        """
        values = values_of(pixels)
        if values is None:
            return []
        key = b"" if tags is None else tags[0].tobytes() + tags[1].tobytes()
        expected = self._expected.get(key) or self._expected.setdefault(key, expected_of(self._contract, tags))
        rules, mend = (_VOLUME_RULES, NODATA_OF_VOLUME) if axes > 2 else (_RULES, NODATA_OF_RASTER)
        if self._contract.is_measured:
            return list(_of_own(values, expected, scaling, mend))
        if _is_ordinary(values, expected):
            return []
        if (expected.gain < 0).any():  # the quantiles would swap
            return list(constant(values, expected))
        found = _first(rules, values, expected)
        more = [*constant(values, expected), *sentinel(values, self._contract, mend)]
        return [found, *more] if found else more


def _is_ordinary(values: Values, expected: Expected) -> bool:
    """Whether quick tests rule out every finding: a small picture is read in less than 1 ms."""
    if not (values.low < values.high).all() or values.least.min() <= NO_DATA:
        return False
    eight = values.dtype.itemsize == 1
    if expected.byte or eight:
        return expected.byte and eight
    if expected.mean is None or values.most.max() == BYTE:
        return False
    off = (np.stack([values.low, values.mid, values.high]) * expected.gain + (expected.bias - expected.mean)) / expected.std
    return bool((np.abs(off[1]) < ORDINARY).all() and (off[2] - off[0] > 1).all() and (off[2] > 0).all())


def _of_own(values: Values, expected: Expected, scaling: Scaling | None, mend: str) -> Iterator[Finding]:
    """Findings for a case that is scaled by its own statistics: only what precedes the statistics can be wrong."""
    if (expected.gain > 0).all() and (found := _first(_OWN_RULES, values, expected)):
        yield found
    if scaling is None:
        yield from constant(values, expected)
    else:
        yield from of_own_statistics(values, expected.contract, scaling)
    yield from sentinel(values, expected.contract, mend)


def _first(rules: Iterable[Rule], values: Values, expected: Expected) -> Finding | None:
    return next(filter(None, (rule(values, expected) for rule in rules)), None)

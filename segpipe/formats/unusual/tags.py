"""Scale and offset tags of a file, which physical values need."""

import numpy as np

from segpipe.formats.unusual.finding import Finding
from segpipe.formats.unusual.values import Expected, Values

NO_TAGS = 'the contract\'s pixel = "physical" applies the scale and offset tags of the file, and it has none'


def has_scale(expected: Expected) -> bool:
    """Whether the file's tags change the gain of any band."""
    return expected.tagged and bool((expected.gain != np.array(expected.contract.column("scale"))).any())


def has_tags(expected: Expected) -> bool:
    """Whether the file's tags change the gain or the bias of any band."""
    offset = np.array(expected.contract.column("offset"))
    return has_scale(expected) or (expected.tagged and bool((expected.bias != offset).any()))


def without_tags(values: Values, expected: Expected) -> Finding | None:
    """Integers that should have been converted to physical values, where no mean can show it."""
    if not expected.tagged or has_tags(expected) or values.dtype.kind not in "iu":
        return None
    if set(expected.contract.normalizations) != {"none"}:
        return None
    return Finding(
        f"{NO_TAGS}: its integers are taken as they are; set the tags, as with gdal_translate -a_scale 0.0001, or use "
        'pixel = "stored"'
    )

"""Sample a few pixels at a few places of a case: enough to recognise its units."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.formats.source import Invalid, Pixels, Source
from segpipe.formats.unusual.values import FEWEST
from segpipe.geometry.windows import Window

BOXES, LOOKED_AT = 4, 64
"""Most boxes with valid pixels in a sample, and most places that are tried for them: each decodes a block, which mostly is
still in GDAL's cache when its windows are read."""

BOX = 256**2
"""Pixels of a box, if a block of the file has at least as many."""

WHOLE = 512 * 512
"""Largest case, in pixels, that is sampled as a whole: it is mostly read in one go anyway."""

BASES = (2, 3, 5)
"""Bases of the Halton sequence, one per axis; no two have a common factor."""

TAKEN = 1024
"""Pixels sampled from a box, or from a small case: then ten lie beyond the quantiles of 1 and 99 %."""


def sampled(source: Source) -> Pixels:
    """Sample at most ``BOXES * TAKEN`` stored valid pixels of a case, ``(channels, count)``.

    The sample depends on the file alone: not on tiles, parts, workers, or what else is read.
    """
    shape = source.grid.shape
    if is_small(shape):
        return thinned(*source.read(Window.whole(shape)))
    boxes = (box for box in _boxes(source) if not source.empty(box))
    taken = list(islice((some for box in boxes if (some := thinned(*source.read(box))).shape[1]), BOXES))
    return np.concatenate(taken, axis=1) if taken else np.empty((0, 0), source.dtype)


def is_small(shape: Sequence[int]) -> bool:
    """Whether a case of this shape is sampled as a whole."""
    return math.prod(shape) <= WHOLE


def thinned(pixels: Pixels, invalid: Invalid | None) -> Pixels:
    """Valid pixels of a box or of a case, ``(channels, count)``, evenly thinned."""
    flat = pixels.reshape(len(pixels), -1)
    step = (flat.shape[1] // TAKEN) | 1  # odd, so that the sample does not follow a column
    if invalid is None:
        return flat[:, ::step]
    valid = ~invalid.reshape(-1)
    some: NDArray[Any] = flat[:, ::step][:, valid[::step]]
    return some if some.shape[1] >= FEWEST else flat[:, valid][:, :TAKEN]


def _boxes(source: Source) -> Iterator[Window]:
    """Yield boxes, each once, far from those before."""
    seen: set[Window] = set()
    ndim = len(source.grid.shape)
    for n in range(1, LOOKED_AT + 1):
        box = source.near(tuple(_halton(n, base) for base in BASES[:ndim]), side(ndim))
        if box not in seen:
            seen.add(box)
            yield box


def side(ndim: int) -> int:
    """Side of a box in pixels, the same along each axis."""
    return round(math.pow(BOX, 1 / ndim))


def _halton(n: int, base: int) -> float:
    """The n-th number of the Halton sequence (Halton 1960): 1/2, 1/4, 3/4, 1/8 ... for base 2."""
    value, share = 0.0, 1.0
    while n:
        n, digit = divmod(n, base)
        share /= base
        value += share * digit
    return value

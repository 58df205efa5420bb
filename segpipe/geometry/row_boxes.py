"""Boxes of whole rows, or of whole planes of a volume: the order in which a finished mask is read again."""

import math
from collections.abc import Iterator, Sequence

from segpipe.geometry.windows import Window

AT_ONCE = 2**21
"""Pixels of a box, where that is at least one row or plane."""


def row_boxes(shape: Sequence[int]) -> Iterator[Window]:
    """Boxes that cover an array, from its first row to its last.

    >>> [(box.start[0], box.stop[0]) for box in row_boxes((5, 1024, 1024))]
    [(0, 2), (2, 4), (4, 5)]
    """
    height = max(1, AT_ONCE // max(1, math.prod(shape[1:])))
    rest = tuple(shape[1:])
    for top in range(0, shape[0], height):
        yield Window((top, *(0 for _ in rest)), (min(top + height, shape[0]), *rest))

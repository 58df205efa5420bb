"""Published examples of area and accuracy estimation, with what the papers print."""

import numpy as np

from segpipe.accuracy.design import Matrix
from segpipe.accuracy.estimators import Sample, Strata

OLOFSSON_2014 = Matrix(
    ("deforestation", "forest gain", "stable forest", "stable non-forest"),
    ("deforestation", "forest gain", "stable forest", "stable non-forest"),
    np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]]),
    np.array([18000.0, 13500, 288000, 580500]),
    unit="ha",
)
"""Olofsson et al. (2014), Remote Sensing of Environment 148, table 8."""

OLOFSSON_2013 = Matrix(
    ("deforestation", "forest", "non-forest"),
    ("deforestation", "forest", "non-forest"),
    np.array([[97, 0, 3], [3, 279, 18], [2, 1, 97]]),
    np.array([22353.0, 1122543, 610228]),
    unit="pixels",
)
"""Olofsson et al. (2013), Remote Sensing of Environment 129, example 1."""

CLASSES = "ABCD"
_STRATUM = "A" * 10 + "B" * 10 + "C" * 10 + "D" * 10
_MAP = "A" * 7 + "B" * 3 + "A" + "B" * 11 + "C" * 6 + "BB" + "D" * 10
_REFERENCE = "AAAAACBABC" + "ABBBBBAABB" + "CCCCCDDBBA" + "DDDDDDDCCB"


def _positions(text: str) -> np.ndarray:
    return np.array([CLASSES.index(letter) for letter in text])


STEHMAN_2014 = (
    Sample(*map(_positions, (_STRATUM, _MAP, _REFERENCE)), np.ones(40, int), np.ones(40)),
    Strata(sizes := np.array([40000.0, 30000, 20000, 10000]), 10 / sizes),
)
"""Stehman (2014), International Journal of Remote Sensing 35, table 2: strata that are not the classes of the map."""

UNITS = np.array(
    [788889906, 781490883, 1280971777, 859622001, 909836775, 20652357, 1749051047, 199430534, 986295412, 234157691], float
)
AREAS = np.array(
    [
        *(0.000754548, 0.0004261, 0.00073879, 0.000565682, 0.000736237),
        *(0.000701678, 0.000390463, 0.000740631, 0.000420496, 0.000690284),
    ]
)
"""Area in km2 of the units of each stratum."""
ROWS = np.array(
    [
        *((1, 0, 0, 132), (1, 0, 1, 2), (2, 0, 0, 96), (2, 0, 0.1, 1), (2, 0, 1, 3), (3, 0, 0, 204), (3, 0, 1, 8)),
        *((3, 0.3, 0.1, 1), (4, 0, 0, 109), (5, 0, 0, 143), (5, 0, 1, 5), (5, 0.2, 0, 1), (5, 0.2, 0.3, 1)),
        *((6, 0.5, 0, 1), (6, 0.6, 0.7, 1), (6, 0.7, 0.8, 1), (6, 1, 0, 44), (6, 1, 1, 53), (7, 0.5, 0.5, 1)),
        *((7, 0.7, 0.4, 1), (7, 0.9, 1, 1), (7, 1, 0, 27), (7, 1, 1, 123), (8, 1, 0, 37), (8, 1, 0.9, 1), (8, 1, 1, 62)),
        *((9, 1, 0, 7), (9, 1, 1, 93), (10, 0.8, 0.5, 1), (10, 1, 0, 37), (10, 1, 1, 62)),
    ]
)
"""Stratum, share of the class on the map and in the reference, number of units: Tyukavina et al. (2025), Remote Sensing of
Environment 324, example of appendix A.1.1."""


def tyukavina_2025() -> tuple[Sample, Strata, np.ndarray, np.ndarray]:
    """The sample, its strata, and the share of the class in each row, on the map and in the reference."""
    stratum, mapped, reference, count = ROWS.T
    at, none = stratum.astype(int) - 1, np.zeros(len(ROWS), int)
    sample = Sample(at, none, none, count.astype(int), AREAS[at])
    return sample, Strata(UNITS, np.bincount(at, count) / UNITS), mapped, reference

"""Labels in memory are cleaned alike in any slabs: a majority filter by hand, and GDAL's sieve."""

import numpy as np
import pytest
from rasterio.features import sieve as gdal_sieve

from segpipe.geometry.grid import BareGrid
from segpipe.geometry.quantity import Quantity
from segpipe.results.cleaning.cleaner import ArrayPlanes, Cleaner, MaskForm
from segpipe.results.cleaning.rule import Cleaning, ElementSizes

SHAPE, NODATA = (40, 50), 255
LABELS = np.random.default_rng(0).integers(0, 3, (2, *SHAPE)).astype(np.uint8)
LABELS[0, :5, :9] = NODATA


def filtered(labels):
    """The most frequent label of 3 x 3 pixels; a pixel keeps its own where several are, and nodata stays."""
    wide = np.pad(labels, 1, constant_values=NODATA)
    shifts = [wide[r : r + SHAPE[0], c : c + SHAPE[1]] for r in range(3) for c in range(3)]
    counts = np.stack([sum((one == k).astype(int) for one in shifts) for k in range(3)])
    alone = (counts == counts.max(0)).sum(0) == 1
    return np.where((labels != NODATA) & alone, counts.argmax(0), labels).astype(np.uint8)


def cleaned(rule, rows, confidence=None):
    form = MaskForm(2, LABELS.dtype, NODATA, two_labels=False, confidence=confidence is not None)
    weights = None if rule.least is None else ElementSizes.of_grid(rule.least, BareGrid(SHAPE), "a")
    given = None if confidence is None else ArrayPlanes(confidence)
    before = LABELS.copy()
    cleaner = Cleaner(ArrayPlanes(LABELS), given, lambda: ArrayPlanes(np.empty_like(LABELS)), form, rule, weights)
    slabs = list(cleaner.slabs(rows, SHAPE[1:]))
    assert np.array_equal(LABELS, before)
    assert [slab.window.start[0] for slab in slabs] == list(rows[:-1])
    likely = None if confidence is None else np.concatenate([slab.confidence for slab in slabs], axis=1)
    return np.concatenate([slab.labels for slab in slabs], axis=1), likely


@pytest.mark.parametrize("rows", [(0, 40), (0, 1, 2, 17, 40), (0, 20, 40)])
@pytest.mark.parametrize(("side", "least"), [(3, None), (None, 6), (3, 6)])
def test_slabs_change_nothing(rows, side, least):
    rule = Cleaning(side, None if least is None else Quantity.parse(str(least)))
    likely = np.full(LABELS.shape, 200, np.uint8)
    found, confidence = cleaned(rule, rows, likely)
    wanted = LABELS if side is None else np.stack([filtered(band) for band in LABELS])
    if least is not None:
        wanted = np.stack([gdal_sieve(band, least, mask=band != NODATA) for band in wanted])
    assert np.array_equal(found, wanted)
    assert np.array_equal(confidence, np.where(found == LABELS, 200, 0))
    assert (found != LABELS).any()

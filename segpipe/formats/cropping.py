"""The box of a case outside which every pixel is 0 in all channels, for a network that was trained on such boxes."""

import math

import numpy as np

from segpipe.contract import Contract
from segpipe.formats.case_scaling import blocks_of
from segpipe.formats.source import Source
from segpipe.geometry.cropped_grids import CroppedGrids
from segpipe.geometry.regridding import Regridding
from segpipe.geometry.windows import Window
from segpipe.network.scaling import stored_zero

FOREIGN = -1e4
"""Score of every class but the background outside the box; 1e4 is that of the background."""


def cropped(source: Source, contract: Contract, regridding: Regridding | None) -> Regridding | None:
    """The two grids of a case, whose network sees the box of its non-zero pixels if the contract says so.

    All pixels are read. A case without a zero border, or of zeros alone, is not cropped.
    """
    shape = source.grid.shape
    if contract.crop is None or (box := nonzero_box(source, contract)) is None or box.shape == shape:
        return regridding
    factors = (1.0,) * len(shape) if regridding is None else regridding.factors
    return CroppedGrids(shape, factors, outside_scores(contract), box=box)


def nonzero_box(source: Source, contract: Contract) -> Window | None:
    """The smallest box with all pixels that are invalid, or not 0 in some channel; None if there is none."""
    shape = source.grid.shape
    tags = source.tags() if contract.pixel == "physical" else None
    zero = stored_zero(contract, tags, source.dtype).reshape(-1, *[1] * len(shape))
    low, high = list(shape), [0] * len(shape)
    for window in blocks_of(shape):
        if source.empty(window):
            occupied = np.ones(window.shape, np.bool_)
        else:
            stored, invalid = source.read(window)
            kind = np.float32 if stored.dtype.itemsize <= 2 or stored.dtype == np.float32 else np.float64
            occupied = (stored != zero.astype(kind)).any(axis=0)
            occupied = occupied if invalid is None else occupied | invalid
        for axis, first in enumerate(window.start):
            found = np.flatnonzero(occupied.any(axis=tuple(k for k in range(len(shape)) if k != axis)))
            if len(found):
                low[axis], high[axis] = min(low[axis], first + int(found[0])), max(high[axis], first + int(found[-1]) + 1)
    return Window(tuple(low), tuple(high)) if math.prod(high) else None


def outside_scores(contract: Contract) -> tuple[float, ...]:
    """The score of each class where there is nothing but background; of a network of labels, the value of background."""
    background = {c.channel for c in contract.classes if c.id == 0 and contract.task == "multiclass"}
    if contract.gives_labels:
        return (float(max(background, default=0)),) * contract.scores
    return tuple(-FOREIGN if channel in background else FOREIGN for channel in range(contract.scores))

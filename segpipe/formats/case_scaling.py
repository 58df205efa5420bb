"""The scaling of one case, from the contract or from the case's own statistics."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.formats.source import Source
from segpipe.geometry.windows import Window
from segpipe.network.scaling import Scaling, case_scaling, fixed_scaling, unscaled

STATISTICS_BLOCK = {2: 1024, 3: 128}
"""Side of the blocks in which statistics of an image (2 axes) or a volume (3) are computed: 1 and 2 million pixels. It must
not change, since it determines the order of the sums."""


def scaling_of(source: Source, contract: Contract) -> Scaling:
    """The scaling of one case; a z-score or min-max of its own needs a pass over its pixels."""
    if contract.scaling == "graph":
        return unscaled(contract)
    scaling = fixed_scaling(contract, source.tags() if contract.pixel == "physical" else None)
    if contract.normalize in ("fixed", "none"):
        return scaling
    return case_scaling(contract, scaling, _valid_blocks(source, scaling))


def _valid_blocks(source: Source, scaling: Scaling) -> Iterator[NDArray[np.float32]]:
    """Yield the valid pixels of each block, shape ``(channels, pixels)``; blocks are in row-major order."""
    shape = source.grid.shape
    side = STATISTICS_BLOCK[len(shape)]
    for block in np.ndindex(*(-(-n // side) for n in shape)):
        start = tuple(k * side for k in block)
        stop = tuple(min(a + side, n) for a, n in zip(start, shape, strict=True))
        window = Window(start, stop)
        if source.empty(window):
            continue
        stored, invalid = source.read(window)
        scaled = scaling(stored, None)
        yield scaled.reshape(len(scaled), -1) if invalid is None else scaled[:, ~invalid]

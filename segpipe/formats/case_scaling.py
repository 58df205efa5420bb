"""The scaling of one case: the contract's, or that of the case's own statistics."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.formats.source import Source
from segpipe.geometry.windows import Window
from segpipe.network.scaling import Scaling, case_scaling, fixed_scaling, unscaled

STATISTICS_BLOCK = {2: 1024, 3: 128}
"""Side of the blocks over which the statistics of an image or a volume are taken: 1 and 2 million pixels. Fixed: it decides
the order of a sum."""


def scaling_of(source: Source, contract: Contract) -> Scaling:
    """The contract's scaling for one case; its own z-score or min-max takes a pass over its pixels."""
    if contract.scaling == "graph":
        return unscaled(contract)
    scaling = fixed_scaling(contract, source.tags() if contract.pixel == "physical" else None)
    if contract.normalize in ("fixed", "none"):
        return scaling
    return case_scaling(contract, scaling, _valid_blocks(source, scaling))


def _valid_blocks(source: Source, scaling: Scaling) -> Iterator[NDArray[np.float32]]:
    """The valid pixels of a case, ``(channels, pixels)`` per block, in row-major order of blocks."""
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

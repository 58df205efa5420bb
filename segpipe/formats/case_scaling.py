"""The scaling of one case, from the contract or from the case's own statistics."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from segpipe.contract import Contract
from segpipe.formats.source import Source
from segpipe.geometry.windows import Window
from segpipe.network.scaling import Block, Scaling, blank_of, case_scaling, fixed_scaling, unscaled

STATISTICS_BLOCK = {2: 1024, 3: 128}
"""Side of the blocks in which statistics of an image (2 axes) or a volume (3) are computed: 1 and 2 million pixels. It must
not change, since it determines the order of the sums."""


def scaling_of(source: Source, contract: Contract, box: Window | None = None) -> Scaling:
    """The scaling of one case; statistics of its own need one pass over its pixels, and percentiles two more.

    Args:
        source: the opened case.
        contract: of the model.
        box: the pixels whose statistics count; None: all.
    """
    if contract.scaling == "graph":
        return unscaled(contract)
    tags = source.tags() if contract.pixel == "physical" else None
    scaling = replace(fixed_scaling(contract, tags), blank=blank_of(contract, tags, source.dtype))
    if not contract.is_measured:
        return scaling
    return case_scaling(contract, scaling, partial(_valid_blocks, source, box))


def _valid_blocks(source: Source, box: Window | None, scaling: Scaling) -> Iterator[Block]:
    """Yield the valid pixels of each block, shape ``(channels, pixels)``; blocks are in row-major order.

    If the scaling has blank pixels, which statistics leave out, the channels of a block have arrays of their own.
    """
    for window in blocks_of(source.grid.shape, box):
        if source.empty(window):
            continue
        stored, invalid = source.read(window)
        scaled = scaling(stored, None)
        if scaling.blank is not None:
            kept = ~scaling.is_blank(stored) & (True if invalid is None else ~invalid)
            yield [channel[there][None] for channel, there in zip(scaled, kept, strict=True)]
        else:
            yield scaled.reshape(len(scaled), -1) if invalid is None else scaled[:, ~invalid]


def blocks_of(shape: tuple[int, ...], box: Window | None = None) -> Iterator[Window]:
    """The blocks of a case, or of a box of it, in row-major order."""
    return (box or Window.whole(shape)).blocks((STATISTICS_BLOCK[len(shape)],) * len(shape))

"""Check that an output smaller than its input shows what the contract says: the whole tile, or its middle (a crop)."""

from collections.abc import Sequence

import numpy as np

from segpipe.errors import ModelError
from segpipe.messages.printable import dims
from segpipe.network.activation import Raw, by_class
from segpipe.network.coarser import stride_between
from segpipe.network.noise import loud_tiles, noise_tiles
from segpipe.network.shapes import margin_by_size
from segpipe.network.spec import ModelSpec
from segpipe.network.view import (
    Probe,
    Scores,
    Tiles,
    View,
    check_centred,
    coarse_margin,
    is_clearly,
    stride_of_middle,
    view_of,
)


def probe_of(spec: ModelSpec, raw: Raw) -> Probe:
    """A probe with noise in the range of a model's pixels."""

    def score(tile: Tiles) -> Scores:
        scores = by_class(raw(np.repeat(tile, spec.batch, axis=0)), spec)[0]
        return np.asarray(np.nan_to_num(scores), np.float32)

    return Probe(score, noise_tiles(spec, 1, seed=2), loud_tiles(spec, 1, seed=3), spec.tiling.align)


def check_view(spec: ModelSpec, raw: Raw) -> None:
    """Check that an output smaller than the tile shows what the contract says: with a margin the middle, else all of it.

    Raises:
        ModelError: it does not; the message says what to set.
    """
    probe, margin, scored = probe_of(spec, raw), spec.tiling.margin, spec.tiling.tile
    taken = [t / s for t, s in zip(scored, probe.sizes, strict=True)] if any(margin) else probe.factors
    _check_stride(spec, probe, taken)
    view = _view(probe, taken) if any(margin) and probe.sizes != scored else view_of(probe)
    if any(margin) and view != "whole":
        check_centred(probe, str(spec.path))
    elif any(margin):
        raise ModelError(
            f"{spec.path}: with margin = {list(margin)}, the output must be the middle of the tile, and is all of it on a "
            f"coarser grid: a change of the tile of {dims(probe.tile)} shows smaller in the output of {dims(probe.sizes)}: "
            "leave margin out of the contract"
        )
    elif view == "middle":
        raise ModelError(
            f"{spec.path}: without margin in the contract, the output must show the whole tile, and it is the middle of it: "
            f"a change of the tile of {dims(probe.tile)} shows unscaled in the output of {dims(probe.sizes)}: {_mend(probe)}"
        )


def _check_stride(spec: ModelSpec, probe: Probe, taken: Sequence[float]) -> None:
    """Refuse an output that is the middle of the tile on a coarser grid than it would be taken for."""
    stride = stride_of_middle(probe, taken)
    if stride is not None:
        margin = coarse_margin(probe.tile, probe.sizes, stride)
        raise ModelError(
            f"{spec.path}: the output must lie where the contract says, and its {dims(probe.sizes)} pixels are the middle "
            f"of the tile of {dims(probe.tile)} on a grid of stride {stride}: set margin = {list(margin or ())} in the "
            "contract"
        )


def _view(probe: Probe, taken: Sequence[float]) -> View | None:
    """As ``view_of``, for an output that is taken as the middle on a coarser grid."""
    stride = stride_between(probe.tile, probe.sizes)
    return "whole" if stride is not None and is_clearly(probe, stride, taken) else None


def _mend(probe: Probe) -> str:
    margin = margin_by_size(probe.tile, probe.sizes)
    if margin is None:
        return "export it with padded convolutions, so that sizes are kept"
    return f"set margin = {list(margin)} in the contract"

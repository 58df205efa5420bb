"""Check that an output smaller than its input shows what the contract says: the whole tile, or its middle (a crop)."""

import numpy as np

from segpipe.errors import ModelError
from segpipe.network.activation import Raw, by_class
from segpipe.network.noise import loud_tiles, noise_tiles
from segpipe.network.shapes import by, margin_by_size
from segpipe.network.spec import ModelSpec
from segpipe.network.view import Probe, Scores, Tiles, check_centred, view_of


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
    probe = probe_of(spec, raw)
    view, margin = view_of(probe), spec.tiling.margin
    if any(margin) and view != "whole":
        check_centred(probe, str(spec.path))
    elif any(margin):
        raise ModelError(
            f"{spec.path}: with margin = {list(margin)}, the output must be the middle of the tile, and is all of it on a "
            f"coarser grid: a change of the tile of {by(probe.tile)} shows smaller in the output of {by(probe.sizes)}: "
            "leave margin out of the contract"
        )
    elif view == "middle":
        raise ModelError(
            f"{spec.path}: without margin in the contract, the output must show the whole tile, and it is the middle of it: "
            f"a change of the tile of {by(probe.tile)} shows unscaled in the output of {by(probe.sizes)}: {_mend(probe)}"
        )


def _mend(probe: Probe) -> str:
    margin = margin_by_size(probe.tile, probe.sizes)
    if margin is None:
        return "export it with padded convolutions, so that sizes are kept"
    return f"set margin = {list(margin)} in the contract"

"""What a model gives in a trial, held against what its contract says."""

import numpy as np
from numpy.typing import NDArray

from segpipe.network.activation import Raw, check_activation
from segpipe.network.crop import check_not_cropped
from segpipe.network.spec import ModelSpec


def check_output(spec: ModelSpec, scores: NDArray[np.float32], raw: Raw) -> None:
    """Scores must show the whole tile, and be what the contract's activation is for.

    Args:
        spec: the model.
        scores: of noise, ``(batch, classes, *sizes)``.
        raw: the model on the CPU, for further calls where these scores do not tell.

    Raises:
        ModelError, ContractError: with the mend.
    """
    sizes = scores.shape[2:]
    if sizes != spec.tiling.tile:
        check_not_cropped(spec, sizes, raw)
    check_activation(spec, scores, raw)

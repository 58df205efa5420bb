"""Check a model's trial output against its contract."""

import numpy as np
from numpy.typing import NDArray

from segpipe.network.activation import Raw, check_activation
from segpipe.network.crop import check_view
from segpipe.network.spec import ModelSpec


def check_output(spec: ModelSpec, scores: NDArray[np.float32], raw: Raw) -> None:
    """Check that scores cover the whole tile without its margin, and suit the contract's activation.

    Args:
        spec: the model.
        scores: scores of noise, ``(batch, classes, *sizes)``.
        raw: the model on the CPU, for further calls where these scores are inconclusive.

    Raises:
        ModelError, ContractError: they do not; the message says what to mend.
    """
    sizes = scores.shape[2:]
    if sizes != spec.tiling.input:
        check_view(spec, raw)
    check_activation(spec, scores, raw)

"""Run the test input that a package brings, as a run would, and compare with the output of its makers."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.errors import ExportError
from segpipe.export.bundles.described import Example
from segpipe.export.large import loadable
from segpipe.network.device import open_session
from segpipe.network.scaling import case_scaling, fixed_scaling

MOST_BYTES = 2**30
"""Largest example that is run: each sample is one call of the network."""


def reproduce(source: Path, example: Example, proto: onnx.ModelProto, contract: Contract, *, masks: bool) -> str:
    """Check that scaling, network and activation give the output that the package brings; return a note.

    Args:
        source: the package, for messages.
        example: arrays of test input and output.
        proto: the graph, without a contract.
        contract: names its tensors, scaling and activation.
        masks: whether post-processing ends with a threshold.

    Raises:
        ExportError: the arrays cannot be read, or the outputs differ.
    """
    given, wanted = (_array(source, path, contract, example.flipped) for path in (example.given, example.wanted))
    sizes = next(v for v in proto.graph.input if v.name == contract.input).type.tensor_type.shape.dim
    fixed = contract.layout.spatial(tuple(d.dim_value or None for d in sizes))
    if given.nbytes > MOST_BYTES or any(f is not None and f != n for f, n in zip(fixed, given.shape[2:], strict=True)):
        return "the example of the package has another size than the graph takes, and was not run"
    with loadable(proto) as graph:
        session = open_session(graph, arena="none")
    found = np.concatenate([_output(session, contract, sample) for sample in given])
    if masks:
        found = np.asarray(found > contract.threshold, np.float64)
    if found.shape != wanted.shape:
        raise ExportError(
            f"{source}: its test output must have the shape {found.shape} of the network's, got {wanted.shape}"
        )
    _compare(source, example, found, wanted)
    return f"gives the test output of the package on its test input, largest difference {np.abs(found - wanted).max():.2g}"


def _array(source: Path, path: Path, contract: Contract, flipped: bool) -> NDArray[Any]:
    """An array as ``(samples, channels, *space)``."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ExportError(f"{source}: {path.name} must be an array of NumPy: {error}") from None
    if not isinstance(array, np.ndarray) or array.ndim != contract.ndim + 2 or array.dtype.kind not in "fiub":
        raise ExportError(f"{source}: {path.name} must hold numbers along {contract.ndim + 2} axes: correct the package")
    first = array.transpose(contract.layout.to_first)
    return first.transpose(0, 1, *reversed(range(2, first.ndim))) if flipped else first


def _output(session: Any, contract: Contract, sample: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities, as a run makes them of one case."""
    pixels = sample.reshape(len(sample), -1)
    scaling = fixed_scaling(contract, None)
    if contract.is_measured:
        scaling = case_scaling(contract, scaling, lambda inner: iter([inner(pixels, None)]))
    batch = contract_input(session, contract, scaling(sample, None)[None])
    (scores,) = session.run([contract.output], {contract.input: batch})
    return _activated(np.asarray(scores, np.float64).transpose(contract.layout.to_first), contract.activation)


def contract_input(session: Any, contract: Contract, scaled: NDArray[np.float32]) -> NDArray[Any]:
    """A batch in the order and type of the graph's input."""
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
    kind = next(one.type for one in session.get_inputs() if one.name == contract.input)
    return np.ascontiguousarray(scaled.transpose(contract.layout.from_first)).astype(kinds.get(kind, np.float32))


def _activated(scores: NDArray[np.float64], activation: str) -> NDArray[np.float64]:
    if activation == "sigmoid":
        return np.asarray(0.5 * (1 + np.tanh(scores / 2)))
    if activation == "softmax":
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))
    return scores


def _compare(source: Path, example: Example, found: NDArray[np.float64], wanted: NDArray[Any]) -> None:
    apart = np.abs(found - wanted) > example.absolute + example.relative * np.abs(wanted)
    if apart.mean() > example.mismatched:
        raise ExportError(
            f"{source}: its test input must give its test output, and {apart.mean():.2%} of the values differ by more than "
            f"{example.absolute:g} + {example.relative:g} of the value, at most {np.abs(found - wanted).max():.3g}: "
            "weights and "
            "description do not belong together, or the description leaves steps out"
        )

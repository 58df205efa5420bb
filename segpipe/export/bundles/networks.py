"""The network of a described model as one ONNX graph: read, or exported from torch and compared with it."""

from collections.abc import Sequence

import onnx

from segpipe.contract import Contract
from segpipe.errors import ExportError
from segpipe.export.attach import load_whole
from segpipe.export.bundles.described import Described, WeightsFile
from segpipe.network.signature import TensorSpec, signature
from segpipe.process.extras import install


def graph_of(
    described: Described, weights: WeightsFile, contract: Contract, *, trust: bool
) -> tuple[onnx.ModelProto, tuple[str, str]]:
    """The graph, and the names of its image input and of its scores.

    Args:
        described: the model.
        weights: the file with its network.
        contract: channels, tile and layout; torch exports at this size.
        trust: load files that can run code.

    Raises:
        SegpipeError: the network cannot be read, or ONNX Runtime's scores are not torch's.
    """
    if weights.form == "onnx":
        proto = load_whole(weights.path)
        inputs, outputs = signature(proto)
        return proto, (_named(inputs, described.tensors[0], weights), _named(outputs, described.tensors[1], weights))
    try:
        from segpipe.export.bundles.torch_networks import exported
    except ModuleNotFoundError as error:
        raise ExportError(
            f"{weights.path.name} is a network of torch, and exporting it needs {error.name}, which is not "
            f"installed: {install('export')}"
        ) from None
    return exported(described, weights, contract, trust=trust), ("image", "scores")


def _named(tensors: Sequence[TensorSpec], wanted: str | int, weights: WeightsFile) -> str:
    """The tensor of a name; the only one; or the one in that position.

    Raises:
        ExportError: there is none.
    """
    names = [tensor.name for tensor in tensors]
    if wanted in names:
        return str(wanted)
    if len(names) == 1:
        return names[0]
    if isinstance(wanted, int) and wanted < len(names):
        return names[wanted]
    raise ExportError(
        f"{weights.path.name} must have a tensor called {wanted}, as its description says, got "
        f"{', '.join(names)}: rename it in one of them"
    )

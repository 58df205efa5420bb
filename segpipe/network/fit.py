"""Find the contract of a model file, and check the graph against it."""

from pathlib import Path

import onnx

from segpipe.contract import METADATA_KEY, Contract, contract_of_metadata, read_contract
from segpipe.errors import ContractError, ModelError
from segpipe.geometry.layout import Layout
from segpipe.messages.printable import counted
from segpipe.network.ending import ending_of
from segpipe.network.feeds import as_image
from segpipe.network.form import score_count
from segpipe.network.shapes import margin_by_size, output_sizes
from segpipe.network.signature import TensorSpec, signature
from segpipe.network.template import input_lines, lines_to_write
from segpipe.settings import Settings
from segpipe.storage.existence import is_file


def find_contract(settings: Settings, model: Path, proto: onnx.ModelProto) -> tuple[Contract, str]:
    """Find the contract: ``--contract``, else the sidecar ``model.toml``, else the file's metadata."""
    sidecar = model.with_suffix(".toml")
    for path in (settings.contract, sidecar if is_file(sidecar) else None):
        if path is not None:
            return read_contract(path), str(path)
    metadata = {p.key: p.value for p in proto.metadata_props}
    inputs, outputs = signature(proto)
    channels = inputs[0].shape[1] if inputs and len(inputs[0].shape) == 4 else None
    contract = contract_of_metadata(metadata, channels, score_count(outputs[0], Layout.NCHW) if outputs else None)
    if contract is None:
        raise ContractError(lines_to_write(model, proto))
    if METADATA_KEY not in metadata and contract.task == "multiclass" and ending_of(proto, outputs[0].name).is_open:
        # Deepness takes the largest score, of logits or of probabilities, and its metadata does not say which
        contract = contract.model_copy(update={"activation": "softmax"})
    if METADATA_KEY not in metadata:
        contract = _as_deepness_crops(contract, proto, inputs[0], outputs[0])
    return contract, f"metadata of {model.name}"


def _as_deepness_crops(contract: Contract, proto: onnx.ModelProto, image: TensorSpec, scores: TensorSpec) -> Contract:
    """The contract with the margin of a smaller output, which Deepness takes as the middle; its overlap is that of tiles."""
    fixed = contract.layout.spatial(image.shape) if len(image.shape) == 4 else ()
    tile = contract.axes("tile", 2) or tuple(n for n in fixed if n is not None)
    if contract.layout is not Layout.NCHW or len(tile) != 2:
        return contract
    sizes = output_sizes(proto, {image.name: (1, contract.channel_count, *tile)}, scores.name, contract.layout)
    margin = None if sizes is None else margin_by_size(tile, sizes)
    if margin is None or not any(margin):
        return contract
    shared = contract.axes("overlap", 2) or (0, 0)
    overlap = [max(0, n - 2 * m) for n, m in zip(shared, margin, strict=True)]
    return contract.model_copy(update={"margin": list(margin), "overlap": overlap})


def image_of(inputs: list[TensorSpec], contract: Contract, path: Path) -> TensorSpec:
    """The input of pixels, the first of several; its shape is ``(N, C, *tile)`` in the contract's layout.

    Raises:
        ContractError: the graph has several inputs, and the contract does not say what each gets.
    """
    if contract.inputs is None and len(inputs) > 1:
        raise ContractError(
            f"{path} takes {counted(len(inputs), 'input')}, and the contract must say what each gets, such as\n"
            + "\n".join(input_lines(inputs, contract.layout))
        )
    if contract.inputs is None:
        return choose(inputs, contract.input, "input", path)
    taken = [tensor for tensor in inputs if (given := contract.inputs.get(tensor.name)) and given.value is None]
    if not taken:
        raise ContractError(f"{path} has none of the contract's inputs: it has {', '.join(map(str, inputs))}")
    return as_image(taken, contract, path)


def choose(tensors: list[TensorSpec], name: str | None, what: str, path: Path) -> TensorSpec:
    """The input or output that the contract names, or the only one.

    Raises:
        ContractError: there is no such, or there are several and none is named.
    """
    names = ", ".join(map(str, tensors))
    if name is not None:
        for tensor in tensors:
            if tensor.name == name:
                return tensor
        raise ContractError(f"{path} has no {what} called {name}: it has {names}")
    if len(tensors) != 1:
        raise ContractError(
            f'{path} has {len(tensors)} {what}s, and the contract must say which is meant, with {what} = "...": {names}'
        )
    return tensors[0]


def check_channels(image: TensorSpec, contract: Contract, path: Path) -> None:
    """Check type, axes and channels of the input of pixels.

    Raises:
        ContractError, ModelError: they are not the contract's.
    """
    rank = contract.ndim + 2
    if image.dtype is None or image.dtype.kind == "b":
        raise ModelError(f'{path}: input "{image.name}" must hold floats or integers')
    if len(image.shape) != rank:
        raise ContractError(
            f'{path}: input "{image.name}" must have {rank} axes for layout "{contract.layout}", got {image}'
        )
    channels = contract.layout.channels(image.shape)
    if channels is not None and channels != contract.input_channels:
        slices = f" in each of {2 * contract.neighbours + 1} slices (neighbours)" if contract.neighbours else ""
        raise ContractError(
            f"the contract's channels must be the model's, got {contract.channel_count}{slices} in the contract "
            f"({', '.join(contract.channel_names or ['unnamed'])}) and {channels} in {path}"
        )


def check_scaling(image: TensorSpec, contract: Contract, path: Path) -> None:
    """Check that a graph that takes integers gets them unscaled.

    Raises:
        ContractError: the contract scales them before.
    """
    assert image.dtype is not None
    if image.dtype.kind in "iu" and contract.scaling == "host" and not _identity(contract):
        raise ContractError(
            f"{path} takes {image.dtype} pixels, so the contract cannot scale them before: "
            'set scaling = "graph" where the model scales them itself'
        )


def _identity(contract: Contract) -> bool:
    clipped = contract.limits is not None or contract.clip_percentiles is not None
    plain = set(contract.normalizations) == {"none"} and not clipped and contract.pixel == "stored"
    return plain and set(contract.column("scale")) == {1.0} and set(contract.column("offset")) == {0.0}

"""Make one ONNX file of a described model: its network, and a contract of what its description says."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import onnx

from segpipe.contract import Contract, parse_contract
from segpipe.errors import ContractError, ExportError
from segpipe.export.attach import Attached, check_new, put
from segpipe.export.bundles import bioimageio, monai
from segpipe.export.bundles.decision import class_tables, decision_keys, on_graph, sorted_steps
from segpipe.export.bundles.described import Described, WeightsFile
from segpipe.export.bundles.example import reproduce
from segpipe.export.bundles.networks import graph_of
from segpipe.export.bundles.package import Package, opened
from segpipe.export.bundles.surround import Operation, surrounded, transposed
from segpipe.network.ending import ending_of
from segpipe.storage.documents import DocumentError, read_toml
from segpipe.storage.existence import is_file

Kind = Literal["bioimageio", "monai"]
Reader = Callable[[Package, str, Mapping[str, Any], Sequence[str]], Described]

_KINDS: Mapping[str, tuple[tuple[str, ...], str, Reader]] = {
    "bioimageio": (bioimageio.NAMES, "a model of bioimage.io", bioimageio.read),
    "monai": (monai.NAMES, "a MONAI bundle", monai.read),
}


@dataclass(frozen=True)
class Choices:
    """What the user says beside the description."""

    contract: Path | None = None
    """TOML with keys of the contract that take precedence."""
    weights: Path | None = None
    """A file in place of the package's weights."""
    without: tuple[str, ...] = ()
    """Names of steps to leave out."""
    trust: bool = False
    """Load files that can run code."""


def attach_described(kind: Kind, source: Path, output: Path, choices: Choices) -> Attached:
    """Write an ONNX file with the network of a package and a contract from its description.

    The network is run on noise, as ``attach`` does; one of torch is compared with torch. If the package brings a test input
    and output, they are compared as well.

    Args:
        kind: standard of the description.
        source: folder or zip of the package.
        output: path of the new file.
        choices: what the user adds.

    Raises:
        SegpipeError: the model cannot be run exactly as described; no file is written.
    """
    check_new(output, source)
    names, what, read = _KINDS[kind]
    given = _given(choices.contract)
    with opened(source, names, what) as (package, name):
        described = read(package, name, given, choices.without)
        weights = described.own_weights() if choices.weights is None else _replaced(choices.weights, described)
        _check_without(package, described, choices.without)
        contract, proto, notes = _made(package, described, weights, given, choices)
        attached = put(proto, contract, weights.path.name, output)
    return replace(attached, notes=(*notes, *attached.notes))


def _given(contract: Path | None) -> dict[str, Any]:
    """The user's keys."""
    if contract is None:
        return {}
    try:
        return read_toml(contract)
    except DocumentError as error:
        raise ContractError(f"the contract {contract} {error}") from None


def _replaced(path: Path, described: Described) -> WeightsFile:
    """Weights that the user names, in place of the package's."""
    if not is_file(path):
        raise ExportError(f"--weights must be a file, got {path}, which is not one")
    if path.suffix == ".onnx":
        return WeightsFile("onnx", path)
    from segpipe.export.weights import form_of

    if form_of(path) == "torchscript":
        return WeightsFile("torchscript", path)
    return WeightsFile("state", path, described.own_architecture())


def _check_without(package: Package, described: Described, without: Sequence[str]) -> None:
    unknown = sorted(set(without) - set(described.named))
    if unknown:
        raise ExportError(
            f"--without must name steps of {package.source}, got {', '.join(unknown)}: it has "
            f"{', '.join(described.named) or 'none'}"
        )


def _made(
    package: Package, described: Described, weights: WeightsFile, given: Mapping[str, Any], choices: Choices
) -> tuple[Contract, onnx.ModelProto, list[str]]:
    """The contract, the graph around its network, and notes."""
    source = package.source
    draft = _contract(source, {**described.keys, "activation": "none", **_placeholder(described), **_sizes(given)})
    proto, tensors = graph_of(described, weights, draft, trust=choices.trust)
    if described.reversed_axes:
        proto = transposed(proto, draft.layout, tensors)
    bare = proto

    def around(after: Sequence[Operation]) -> onnx.ModelProto:
        return surrounded(bare, draft.layout, tensors, described.before, after)

    decision = on_graph(
        sorted_steps(source, described.after),
        ending_of(bare, tensors[1]),
        lambda after: ending_of(around(after), tensors[1]),
    )
    proto = around(decision.operations)
    keys = decision_keys(source, decision, described.scores, ending_of(proto, tensors[1]), given)
    classes = class_tables(described.class_names, described.scores, keys["task"])
    own = {key: value for key, value in given.items() if key not in ("input", "output")}
    named = {"input": tensors[0], "output": tensors[1]}
    contract = _contract(source, {**described.keys, **keys, "classes": classes, **own, **named})
    notes = list(described.notes)
    if described.example is not None and not choices.without:
        masks = decision.threshold is not None
        notes.append(reproduce(source, described.example, proto, contract, masks=masks))
    return contract, proto, notes


def _placeholder(described: Described) -> dict[str, Any]:
    return {"classes": class_tables((), described.scores, "multiclass"), "task": "multiclass"}


def _sizes(given: Mapping[str, Any]) -> dict[str, Any]:
    """The user's keys that a network of torch is exported with."""
    return {key: given[key] for key in ("tile", "overlap", "align") if key in given}


def _contract(source: Path, values: Mapping[str, Any]) -> Contract:
    return parse_contract(values, f"the contract of {source}, by its description and --contract")

"""Classes from a larger head: some of a model's outputs, or several in one class, combined inside the graph."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from segpipe.contract import Contract, parse_contract, read_contract
from segpipe.contract.keys import SegmentationClass
from segpipe.errors import ContractError
from segpipe.network.signature import TensorSpec, signature
from segpipe.storage.documents import DocumentError, read_toml
from segpipe.storage.existence import is_file

Groups = tuple[tuple[int, ...], ...]
"""Outputs of the model by class, in the order of the classes."""

PREFIX = "segpipe/classes/"
"""Begins the names of the nodes that combine outputs."""


@dataclass(frozen=True)
class Head:
    """The outputs that become classes, of all that a model has."""

    tensor: TensorSpec
    """The output of the graph that holds all of them."""
    groups: Groups
    size: int

    @property
    def left_out(self) -> list[int]:
        """Channels of the output that no class has."""
        return sorted(set(range(self.size)) - {k for group in self.groups for k in group})

    def notes(self) -> Iterator[str]:
        """Tell what becomes of the outputs of no class."""
        if self.left_out:
            some = ", ".join(map(str, self.left_out[:10])) + (" and more" if len(self.left_out) > 10 else "")
            yield (
                f"{len(self.left_out)} of the model's {self.size} outputs belong to no class ({some}): "
                "their pixels get the most likely of the classes"
            )


def read_classes(path: Path) -> tuple[Contract, Groups | None]:
    """A contract in which a class may have several outputs, ``index = [3, 4]``, and some outputs may have no class.

    Returns:
        The contract of the combined outputs, and the outputs of each class; None where they are the model's own.

    Raises:
        ContractError: it cannot be read, or an output is in two classes, or a class says no output.
    """
    try:
        values = read_toml(path)
    except DocumentError:
        return read_contract(path), None  # raises the error
    classes = values.get("classes")
    groups = groups_of(classes) if isinstance(classes, list) and all(isinstance(c, dict) for c in classes) else None
    labels = values.get("activation") == "labels" and not any(isinstance(c.get("index"), list) for c in classes or ())
    if groups is None or labels:  # label values may leave gaps
        return parse_contract(values, str(path)), None
    _check(groups, values, path)
    own = [{**one, "index": k} for k, one in enumerate(values["classes"])]
    return parse_contract({**values, "classes": own}, str(path)), groups


def groups_of(classes: Sequence[Mapping[str, Any]]) -> Groups | None:
    """The outputs of each class, if some class has several or some output none; None if nothing is to be combined."""
    said = [one.get("index") for one in classes]
    if any(index is None for index in said) and not any(isinstance(index, list) for index in said):
        return None
    groups = tuple(tuple(index if isinstance(index, list) else [index]) for index in said)
    flat = [k for group in groups for k in group]
    if all(len(group) == 1 for group in groups) and sorted(map(str, flat)) == sorted(map(str, range(len(flat)))):
        return None
    return groups


def _check(groups: Groups, values: Mapping[str, Any], path: Path) -> None:
    for one, group in zip(values["classes"], groups, strict=True):
        if not group or any(type(k) is not int or k < 0 for k in group):
            raise ContractError(
                f"{path}: a class of a larger head must say its outputs, numbers from 0, by index, "
                f"got {list(group)} for class {one.get('name')!r}"
            )
    twice = [k for k, count in Counter(k for group in groups for k in group).items() if count > 1]
    if twice:
        raise ContractError(f"{path}: an output must belong to one class, got {', '.join(map(str, twice))} more than once")
    if values.get("activation") not in ("softmax", "sigmoid", "none"):
        raise ContractError(
            f"{path}: outputs can be combined if they are scores, got activation = {values.get('activation')!r}: "
            'say by activation what they are, "softmax", "sigmoid" or "none"'
        )
    if values.get("task") == "binary":
        raise ContractError(
            f'{path}: task = "binary" is for a model of one score, and index names several: '
            'name both classes, with task = "multiclass"'
        )


def head_of(proto: onnx.ModelProto, contract: Contract, groups: Groups, path: Path) -> Head:
    """The output that holds the scores, and the outputs of its classes.

    Raises:
        ContractError: the model does not have these outputs.
    """
    outputs = {tensor.name: tensor for tensor in signature(proto)[1]}
    name = contract.output or (next(iter(outputs)) if len(outputs) == 1 else None)
    if name not in outputs:
        raise ContractError(
            f'{path}: the contract must name the output with the scores, output = "...": it has {", ".join(outputs)}'
        )
    tensor = outputs[name]
    rank = contract.ndim + 2
    size = contract.layout.channels(tensor.shape) if len(tensor.shape) == rank else None
    if size is None:
        raise ContractError(
            f"{path}: to combine outputs, the model must say how many it has, got {tensor}: "
            "export it with a fixed number of scores, or name all of them as classes"
        )
    largest = max(k for group in groups for k in group)
    if largest >= size:
        again = "; they were combined before, so take the original" if _is_combined(proto) else ""
        raise ContractError(f"{path} has outputs 0 to {size - 1}, and a class names {largest} by index: correct it{again}")
    return Head(tensor, groups, size)


def _is_combined(proto: onnx.ModelProto) -> bool:
    return any(node.name.startswith(PREFIX) for node in proto.graph.node)


def check_beside(model: Path) -> None:
    """Refuse a contract beside the model: a run would take it instead of that of the combined outputs.

    Raises:
        ContractError: there is one; usually it is the file that says what to combine.
    """
    beside = model.with_suffix(".toml")
    if is_file(beside):
        raise ContractError(
            f"a run of {model} would take {beside.name} beside it for its contract, not the one of the combined outputs: "
            "rename that file, or name another output"
        )


def whole(contract: Contract, head: Head) -> Contract:
    """The contract of all outputs, by which the model is tried before they are combined."""
    classes = [SegmentationClass(id=k, name=f"output {k}") for k in range(head.size)]
    return contract.model_copy(update={"classes": classes})


def combine(proto: onnx.ModelProto, contract: Contract, head: Head) -> Contract:
    """Replace a model's output by one score per class; returns the contract with a record of it.

    With p the softmax over the outputs of all classes, a class has the sum of p over its outputs. For logits
    (``activation = "softmax"``) that is the softmax of log(sum(exp(x))) over each class's outputs x, so scores stay logits.
    For probabilities (``"none"``) it is their sum, divided by the sum over all classes where outputs are left out. A class
    of a multilabel model has the maximum of its outputs.
    """
    graph = _Combining(proto, contract, head.tensor)
    scores = [graph.score(group) for group in head.groups]
    graph.finish(scores, normalised=bool(head.left_out) and graph.sums)
    record = {"outputs": [list(group) for group in head.groups], "of_outputs": head.size}
    update: dict[str, Any] = {"provenance": {**contract.provenance, **record}}
    if contract.output is not None:
        update["output"] = graph.name
    return contract.model_copy(update=update)


class _Combining:
    """Appends nodes to a graph; only operators whose form has not changed since opset 8."""

    def __init__(self, proto: onnx.ModelProto, contract: Contract, tensor: TensorSpec) -> None:
        self._graph, self._source, self._count = proto.graph, tensor, 0
        self._axis = len(tensor.shape) - 1 if contract.layout.channels_last else 1
        self._logits = contract.activation == "softmax"
        self.sums = contract.task == "multiclass" and not self._logits
        self.name = f"{tensor.name}/classes"

    def _node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{PREFIX}{self._count}"
        self._count += 1
        self._graph.node.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def _constant(self, value: np.ndarray[Any, Any]) -> str:
        """A node, not an initializer: before version 4 of ONNX's format these had to be inputs as well."""
        return self._node("Constant", value=numpy_helper.from_array(value))

    def score(self, group: Sequence[int]) -> str:
        """Name of the tensor with the score of one class."""
        parts = [self._one(k) for k in group]
        if len(parts) == 1:
            return parts[0]
        if self.sums:
            return self._node("Sum", *parts)
        largest = self._node("Max", *parts)
        if not self._logits:
            return largest
        powers = [self._node("Exp", self._node("Sub", part, largest)) for part in parts]
        return self._node("Add", self._node("Log", self._node("Sum", *powers)), largest)

    def _one(self, k: int) -> str:
        return self._node("Gather", self._source.name, self._constant(np.array([k], np.int64)), axis=self._axis)

    def finish(self, scores: Sequence[str], *, normalised: bool) -> None:
        """Join the scores to the output of the graph."""
        if self.sums:
            dtype = self._source.dtype or np.dtype(np.float32)
            if normalised:
                least = self._constant(np.array(np.finfo(dtype).tiny, dtype))
                total = self._node("Max", self._node("Sum", *scores) if len(scores) > 1 else scores[0], least)
                scores = [self._node("Div", score, total) for score in scores]
            low, high = (self._constant(np.array(limit, dtype)) for limit in (0, 1))  # rounding may leave 1
            scores = [self._node("Max", self._node("Min", score, high), low) for score in scores]
        joined = self._node("Concat", *scores, axis=self._axis)
        self._graph.node.append(helper.make_node("Identity", [joined], [self.name], name=f"{PREFIX}all"))
        place = next(k for k, value in enumerate(self._graph.output) if value.name == self._source.name)
        output = self._graph.output[place]
        output.name = self.name
        output.type.tensor_type.shape.dim[self._axis].dim_value = len(scores)

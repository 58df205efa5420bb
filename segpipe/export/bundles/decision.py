"""How scores become labels: post-processing as activation, task and threshold of a contract."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segpipe.errors import ExportError
from segpipe.export.bundles.steps import Affine, CaseNormalization, Clip, Fixed, Pointwise, Step, refused
from segpipe.network.ending import Ending

Operation = Affine | Clip | Pointwise


@dataclass(frozen=True)
class PostProcessing:
    """Post-processing, sorted by who does it."""

    operations: tuple[Operation, ...]
    """On the raw output, inside the graph."""
    activation: str | None
    """``sigmoid`` or ``softmax``; None if post-processing has neither."""
    threshold: float | None
    """Of a last step that makes masks of the result."""


def sorted_steps(source: Path, steps: Sequence[Step]) -> PostProcessing:
    """Sort the steps of post-processing.

    Raises:
        ExportError: a step has no counterpart; the message names it.
    """
    operations: list[Operation] = []
    activation: str | None = None
    threshold: float | None = None
    for step in steps:
        what = step.what
        if threshold is not None:
            raise refused(source, step.name, "follows a threshold, and labels are final there")
        if isinstance(what, CaseNormalization):
            raise refused(source, step.name, "takes statistics of a whole output, which is never whole in a run by tiles")
        if isinstance(what, Pointwise) and what.kind == "binarize":
            threshold = _one_threshold(source, step.name, what)
        elif isinstance(what, Pointwise) and activation is None:
            activation = what.kind
        elif activation is None and not isinstance(what, Pointwise):
            operations.append(what.affine if isinstance(what, Fixed) else what)
        elif isinstance(what, Pointwise) or not _keeps_probabilities(what):
            raise refused(source, step.name, f"changes probabilities after {activation}")
    if activation == "softmax" and threshold is not None:  # a mask per class, of probabilities that compete
        return PostProcessing((*operations, Pointwise("softmax")), None, threshold)
    return PostProcessing(tuple(operations), activation, threshold)


def on_graph(decision: PostProcessing, raw: Ending, ending_with: Callable[[Sequence[Operation]], Ending]) -> PostProcessing:
    """The decision with what the end of the graph makes of it.

    A clip of probabilities to 0 to 1 changes nothing. A threshold of logits is subtracted inside the graph: it becomes 0,
    where sigmoid is 0.5.

    Args:
        decision: post-processing.
        raw: the end of the graph of the network alone.
        ending_with: the end of the graph with operations behind the network.
    """
    if raw.is_probability:
        decision = replace(decision, operations=tuple(o for o in decision.operations if not _keeps_probabilities(o)))
    if decision.activation or decision.threshold is None or ending_with(decision.operations).is_probability:
        return decision
    below = Affine((1.0,), (-decision.threshold,))
    return PostProcessing((*decision.operations, below), "sigmoid", 0.5)


def _keeps_probabilities(operation: Operation | Fixed) -> bool:
    return isinstance(operation, Clip) and operation.low <= 0 and operation.high >= 1


def _one_threshold(source: Path, name: str, what: Pointwise) -> float:
    if len(set(what.threshold)) > 1:
        raise refused(
            source, name, f"has a threshold per channel ({', '.join(map(str, what.threshold))}), a contract has one"
        )
    return what.threshold[0]


def decision_keys(
    source: Path, decision: PostProcessing, scores: int, ending: Ending, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Activation, task and threshold of the contract.

    Args:
        source: the package, for messages.
        decision: its post-processing.
        scores: channels of the output.
        ending: the end of the graph, with the operations inside it.
        given: keys of the user, which take precedence.

    Raises:
        ExportError: description and graph do not say what the output means.
    """
    keys = _by_activation(decision, scores) or _by_graph(decision, scores, ending)
    keys |= {key: given[key] for key in ("activation", "task", "threshold") if key in given}
    missing = [key for key in ("activation", "task") if key not in keys]
    if missing:
        raise ExportError(
            f"{source} does not say that its {scores} output channels are scores of classes: post-processing has no "
            "sigmoid, "
            f"softmax or binarize, and {ending}; if they are, add {' and '.join(f'{key} = ...' for key in missing)} by "
            "--contract, a TOML file of keys that take precedence"
        )
    if not 0 < keys.get("threshold", 0.5) < 1:
        raise ExportError(f"{source}: the threshold must lie between 0 and 1 for probabilities, got {keys['threshold']:g}")
    return keys


def _by_activation(decision: PostProcessing, scores: int) -> dict[str, Any]:
    task = "binary" if scores == 1 else "multilabel" if decision.activation == "sigmoid" else "multiclass"
    if decision.activation is None or (decision.activation == "softmax" and scores == 1):
        return {}
    threshold = {} if decision.threshold is None else {"threshold": decision.threshold}
    return {"activation": decision.activation, "task": task, **threshold}


def _by_graph(decision: PostProcessing, scores: int, ending: Ending) -> dict[str, Any]:
    """By the last operator, where it gives probabilities."""
    if not ending.is_probability:
        return {}
    threshold = {} if decision.threshold is None else {"threshold": decision.threshold}
    if ending.operator.endswith("Softmax") and scores > 1 and not threshold:
        return {"activation": "none", "task": "multiclass"}
    known = scores == 1 or bool(threshold) or ending.operator.endswith("Sigmoid")
    task = {"task": "binary" if scores == 1 else "multilabel"} if known else {}
    return {"activation": "none", **task, **threshold}


def class_tables(names: Sequence[str], scores: int, task: str) -> list[dict[str, Any]]:
    """Tables of the classes, by name where each output channel has one of its own."""
    if task == "binary":
        return [{"id": 0, "name": "background"}, {"id": 1, "name": _distinct(names, 1)[0]}]
    return [{"id": k, "name": name} for k, name in enumerate(_distinct(names, scores))]


def _distinct(names: Sequence[str], count: int) -> list[str]:
    plain = [" ".join(str(name).split()) for name in names]
    usable = len(plain) == count == len(set(plain)) and all(plain) and not {"nodata"} & set(plain)
    if count == 1:
        return [plain[0]] if usable and plain[0] != "background" else ["foreground"]
    return plain if usable else [f"class {k}" for k in range(count)]

"""Find the output of a network that holds the class scores: by the user's choice, by convention, or the only one."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from segpipe.errors import ExportError
from segpipe.export.families import foreign_errors
from segpipe.messages.printable import dims
from segpipe.network.shapes import margin_by_size

CONVENTIONS = ("out", "logits", "scores", "sem_seg", "pred")
"""Keys under which libraries return scores together with auxiliary outputs: ``out`` in torchvision, ``logits`` in
transformers, ``sem_seg`` in detectron2."""

DEEPEST = 4
"""Levels of nested lists and dictionaries that are searched."""

Outputs = dict[str, Tensor]
"""Tensors by path: ``""`` for a single one, else keys and positions from 0 joined by dots, as in ``0.logits``."""


def outputs_of(output: Any) -> Outputs:
    """All tensors in the output of a network, in order.

    >>> list(outputs_of({"out": torch.zeros(1), "aux": [torch.zeros(1), torch.zeros(2)]}))
    ['out', 'aux.0', 'aux.1']
    """
    return dict(_tensors(output, ()))


def _tensors(output: Any, place: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(output, Tensor):
        yield ".".join(place), output
    elif len(place) < DEEPEST:
        for key, part in _parts(output):
            yield from _tensors(part, (*place, str(key)))


def _parts(output: Any) -> Iterator[tuple[Any, Any]]:
    """Yield keys and values of any container that networks return."""
    if isinstance(output, Mapping):
        yield from output.items()
    elif isinstance(output, tuple) and hasattr(output, "_fields"):
        yield from zip(output._fields, output, strict=True)
    elif isinstance(output, Sequence) and not isinstance(output, str | bytes):
        yield from enumerate(output)
    elif dataclasses.is_dataclass(output):
        yield from ((field.name, getattr(output, field.name)) for field in dataclasses.fields(output))
    elif isinstance(output, SimpleNamespace):
        yield from vars(output).items()


def find_scores(
    network: nn.Module, shape: tuple[int, ...], classes: int, asked: str | None = None
) -> tuple[str, tuple[str, ...]]:
    """Run one image, find the output with the scores, and check that they fit the contract.

    Args:
        network: torch network in evaluation mode.
        shape: shape of the image, ``(1, channels, rows, cols)``.
        classes: scores per pixel.
        asked: the output named by the user.

    Returns:
        Path of the scores, and descriptions of the other outputs.

    Raises:
        ExportError: the network does not run at this size, gives another number of scores, has several candidates, or gives
            scores of a size that would be stretched.
    """
    outputs = _run(network, shape)
    name = _asked(outputs, asked) if asked is not None else _chosen(outputs, shape, classes)
    check_shape(tuple(outputs[name].shape), shape, classes, outputs)
    return name, tuple(_shown(k, v) for k, v in outputs.items() if k != name)


def _run(network: nn.Module, shape: tuple[int, ...]) -> Outputs:
    with foreign_errors(f"the network does not run on {dims(shape)}"), torch.inference_mode():
        given = network(torch.zeros(shape))
    if outputs := outputs_of(given):
        return outputs
    raise ExportError(
        "the network must give scores, as a tensor, or in a list, tuple, dict or dataclass, "
        f"got {type(given).__name__}: wrap it in a module that does"
    )


def _asked(outputs: Outputs, name: str) -> str:
    if name in outputs and name:
        return name
    if "" in outputs:
        raise ExportError(f"--score is for networks of several outputs, got {name} for a network of one: leave it out")
    raise ExportError(f"--score must name one of the network's outputs, got {name}: it has {_listed(outputs)}")


def _chosen(outputs: Outputs, shape: tuple[int, ...], classes: int) -> str:
    """Choose by the names of conventions first, then by the shape of the scores, if only one matches."""
    if len(outputs) == 1:
        return next(iter(outputs))
    meant = _by_convention(outputs) or list(outputs)
    fit = [name for name in meant if _may_be_scores(tuple(outputs[name].shape), shape, classes)]
    if len(fit) == 1:
        return fit[0]
    if fit:
        raise ExportError(
            f"the network gives {len(fit)} outputs that could be its scores, {_listed({k: outputs[k] for k in fit})}: "
            f"say which by --score, as in --score {fit[-1]}"
        )
    raise ExportError(
        f"the network must give {classes} scores per pixel, as the classes say, got outputs {_listed(outputs)}: "
        "correct --classes, task or the head's size, or name an output by --score"
    )


def _by_convention(outputs: Outputs) -> list[str]:
    """Outputs with a conventional name, from the top level that has any."""
    named = [name for name in outputs if name.rpartition(".")[2] in CONVENTIONS]
    level = min((name.count(".") for name in named), default=0)
    return [name for name in named if name.count(".") == level]


def _may_be_scores(found: tuple[int, ...], shape: tuple[int, ...], classes: int) -> bool:
    """Whether an output may be scores, by their count; with three axes by their size as well, as tokens have these, too."""
    if len(found) == 4:
        return found[:2] == (shape[0], classes)
    return len(found) == 3 and classes == 1 and found[0] == shape[0] and not _is_stretched(found[-2:], shape[-2:])


def check_shape(found: tuple[int, ...], shape: tuple[int, ...], classes: int, outputs: Outputs) -> None:
    """Check the number of scores, and that they need not be stretched to the image's size."""
    if len(found) not in (3, 4) or found[0] != shape[0] or (found[1] if len(found) == 4 else 1) != classes:
        others = f" of outputs {_listed(outputs)}" if len(outputs) > 1 else ""
        raise ExportError(
            f"the network must give {classes} scores per pixel, as the classes say, got output {dims(found)}{others}: "
            f"correct --classes, task or the head's size{', or name another by --score' if others else ''}"
        )
    if not _may_be_middle(found[-2:], shape[-2:]):
        check_not_stretched(found[-2:], shape[-2:])


def check_not_stretched(found: Sequence[int], image: Sequence[int]) -> None:
    """Check that scores of the whole image need not be stretched to its size."""
    if _is_stretched(found, image):
        raise ExportError(
            f"scores must have the image's size, an integer fraction of it, or as much less on both sides, got "
            f"{dims(found)} for {dims(image)}: "
            "take a tile that is a multiple of the network's stride, or pad inside the network, so that sizes are kept"
        )


def _is_stretched(found: Sequence[int], image: Sequence[int]) -> bool:
    factors = {size / part if part else 0.5 for size, part in zip(image, found, strict=True)}
    return len(factors) > 1 or not factors.pop().is_integer()


def _may_be_middle(found: Sequence[int], image: Sequence[int]) -> bool:
    """Whether scores may be those of the middle of the image, as valid convolutions give them."""
    margin = margin_by_size(image, found)
    return margin is not None and min(margin) > 0 and any(a % b for a, b in zip(image, found, strict=True))


def _listed(outputs: Outputs) -> str:
    return ", ".join(_shown(name, tensor) for name, tensor in outputs.items())


def _shown(name: str, tensor: Tensor) -> str:
    return f"{name} ({dims(tuple(tensor.shape))})"

"""Build networks by name: one file per library.

A family's module takes images ``(batch, channels, rows, cols)`` and gives class scores in its library's own form.
"""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segpipe.errors import ExportError
from segpipe.process.extras import install

State = dict[str, Tensor]


@dataclass(frozen=True)
class Network:
    """A trained network in evaluation mode, and what its own files say about it."""

    module: nn.Module
    architecture: str
    known: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the contract that came with the weights."""
    notes: tuple[str, ...] = ()
    traced: bool = False
    """Whether it is a TorchScript program, which can only be exported by tracing."""
    scores: str = ""
    """The output that holds the scores, as `segpipe.export.outputs` names it; empty if there is only one."""
    margin: tuple[int, ...] | None = None
    """Pixels on each side of the image without scores; None: scores cover all of it."""


@dataclass(frozen=True)
class Wanted:
    """The network as the user describes it."""

    channels: int
    scores: int
    encoder: str | None
    options: Mapping[str, Any]
    state: State
    """The checkpoint, whose keys decide about optional parts."""


def need(name: str) -> Any:
    """Import a library of the export extra."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ExportError(f"exporting this needs {error.name}, which is not installed: {install('export')}") from None


def look_in_working_folder() -> None:
    """Let imports find the user's own code in the folder that segpipe was called in."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def in_a_line(error: BaseException) -> str:
    """The first lines of an error joined into one; for TorchScript the last line, after pages of its own source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = lines[-1:] if "TorchScript" in str(error) else lines[:3]
    return f"{type(error).__name__}: {' '.join(lines).removeprefix(f'{type(error).__name__}: ')[:600]}"


@contextmanager
def foreign_errors(what: str) -> Iterator[None]:
    """Turn any error of a library or a network into an ``ExportError`` that begins with ``what``."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"{what}: {in_a_line(error)}") from error


def build(arch: str, wanted: Wanted) -> nn.Module:
    """Build the architecture ``library:name`` with fresh weights."""
    library, _, name = arch.partition(":")
    if library not in _FAMILIES:
        raise ExportError(f"--arch must be one of {', '.join(_FAMILIES)}, such as smp:Unet, got {arch!r}: name one of them")
    family = importlib.import_module(f"segpipe.export.families.{_FAMILIES[library]}")
    make: Callable[[str, Wanted], nn.Module] = family.build
    with foreign_errors(f"{arch} cannot be built as asked"):
        return make(name or library, wanted)


_FAMILIES = {
    "torchvision": "vision",
    "smp": "smp",
    "transformers": "hub",
    "bisenetv2": "own",
    "unet": "own",
}


def with_channels(module: nn.Module, channels: int) -> nn.Module:
    """Replace the first convolution by one with ``channels`` inputs; the checkpoint fills its weights later."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d):
            if layer.in_channels != channels:
                parent, _, leaf = name.rpartition(".")
                setattr(module.get_submodule(parent), leaf, _like(layer, channels))
            return module
    raise ExportError("the network has no convolution whose channels could be changed")


def _like(layer: nn.Conv2d, channels: int) -> nn.Conv2d:
    sizes = {key: getattr(layer, key) for key in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
    return nn.Conv2d(channels, layer.out_channels, bias=layer.bias is not None, dtype=torch.float32, **sizes)

"""What a description says of its model, whichever standard it follows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from segpipe.export.bundles.steps import Affine, Clip, Pointwise, Step


@dataclass(frozen=True)
class Architecture:
    """The code that builds a network around its weights."""

    factory: str
    """``package.module:name``, or ``:name`` for one of ``file``."""
    options: Mapping[str, Any]
    file: Path | None = None
    """A file of Python that the package brings."""


@dataclass(frozen=True)
class WeightsFile:
    """The file with the network."""

    form: Literal["onnx", "torchscript", "state"]
    path: Path
    architecture: Architecture | None = None
    """For ``state``, which holds tensors alone."""


@dataclass(frozen=True)
class Example:
    """A test input of the package, and the output that its makers got after post-processing."""

    given: Path
    wanted: Path
    relative: float = 1e-3
    absolute: float = 1e-3
    mismatched: float = 1e-4
    """Share of values that may differ by more."""
    flipped: bool = False
    """Whether the arrays have their spatial axes in the order x, y."""


@dataclass(frozen=True)
class Described:
    """A model by its description."""

    keys: Mapping[str, Any]
    """Keys of the contract, but for those of the decision."""
    own_weights: Callable[[], WeightsFile]
    """Finds the package's weights."""
    own_architecture: Callable[[], Architecture | None]
    """Finds the code that builds the network around a state."""
    before: tuple[Affine | Clip | Pointwise, ...]
    """What the graph must do before the network."""
    after: tuple[Step, ...]
    """What becomes of the network's output."""
    scores: int
    """Channels of that output."""
    tensors: tuple[str | int, str | int]
    """Input and output: by name where the file has it, else by position."""
    class_names: Sequence[str] = ()
    named: tuple[str, ...] = ()
    """Names of all steps of the description, which ``--without`` may name."""
    reversed_axes: bool = False
    """Whether the network has its spatial axes in the order x, y, z, and the contract's has rows first."""
    example: Example | None = None
    notes: tuple[str, ...] = field(default=())

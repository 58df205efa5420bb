"""By how much a tile may be shifted without its scores changing: measured on the network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from segpipe.export.tiles import noise

Score = Callable[[NDArray[np.float32]], NDArray[np.float32]]

EXACT = 1e-4
"""Difference, relative to the spread of the scores, below which two are the same but for rounding."""

CLEAR = 4.0
"""By how much shifts at the stride must differ less than all smaller ones to be told from them."""

EQUIVARIANT = 1e-2
"""Difference below which scores are said not to depend on where a tile starts."""

LONGEST = 64


@dataclass(frozen=True)
class Stride:
    """The measured stride, in pixels on both axes, and how much scores still change under a shift by it."""

    align: int
    equivariant: bool
    error: float
    """Root mean square change of the scores in the middle of a tile, over their standard deviation."""


def measure_stride(score: Score, channels: int, tile: tuple[int, int], fallback: int, seed: int = 0) -> Stride:
    """Shift noise under a network, and see by how many pixels its scores do not mind.

    The stride is the smallest divisor of the tile at which scores in the middle of the tile move with the image; where
    attention or global pooling lets them change at every shift, it is ``fallback``, the output stride.

    Args:
        score: images ``(batch, channels, rows, cols)`` to scores.
        channels: of the image.
        tile: rows and columns.
        fallback: what is told where nothing can be measured.
        seed: of the noise.
    """
    shifts = [s for s in range(1, min(LONGEST, min(tile) // 4) + 1) if all(t % s == 0 for t in tile)]
    canvas = noise((channels, *(t + max(shifts) for t in tile)), seed)
    errors = {s: _change(score, canvas, tile, s) for s in shifts}
    align = _smallest(errors) or fallback
    reach = _reach(score, channels, tile, align, seed)
    return Stride(align, reach < EQUIVARIANT and errors.get(align, 1.0) < EQUIVARIANT, max(reach, errors.get(align, 1.0)))


def _smallest(errors: dict[int, float]) -> int | None:
    """The smallest shift that is as good as the best, and clearly better than all before it."""
    best = min(errors.values())
    for shift, error in errors.items():
        before = [e for s, e in errors.items() if s < shift]
        if error <= EXACT or (error <= 2 * best and (not before or min(before) > CLEAR * error) and shift > 1):
            return shift
    return None


def _change(score: Score, canvas: NDArray[np.float32], tile: tuple[int, int], shift: int) -> float:
    """Of scores in the middle of a tile when it starts ``shift`` pixels further on both axes."""
    rows, cols = tile
    here = score(canvas[None, :, :rows, :cols])[0]
    there = score(canvas[None, :, shift : shift + rows, shift : shift + cols])[0]
    middle = tuple(slice(shift + (t - shift) * 3 // 8, shift + (t - shift) * 5 // 8) for t in tile)
    moved = tuple(slice(m.start - shift, m.stop - shift) for m in middle)
    return _relative(here[(slice(None), *middle)], there[(slice(None), *moved)])


def _reach(score: Score, channels: int, tile: tuple[int, int], align: int, seed: int) -> float:
    """How much the middle of a tile changes when what lies behind its borders does, as it would under a long shift."""
    here = noise((channels, *tile), seed)
    there = here.copy()
    rim = [max(align, t // 16) for t in tile]
    for axis, width in enumerate(rim, 1):
        for side in (slice(None, width), slice(-width, None)):
            there[(slice(None),) * axis + (side,)] += 3
    middle = (slice(None), *(slice(t * 3 // 8, t * 5 // 8) for t in tile))
    return _relative(score(here[None])[0][middle], score(there[None])[0][middle])


def _relative(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    spread = float(a.std(axis=(1, 2)).mean())
    return float(np.sqrt(np.square(a - b).mean()) / spread) if spread > 0 else 0.0


def output_stride(network: nn.Module, example: NDArray[np.float32], otherwise: int = 32) -> int:
    """The image's size over that of the smallest map that a strided layer makes; ``otherwise`` where none can be seen."""
    sizes: list[int] = []

    def note(layer: nn.Module, inputs: Any, output: Any) -> None:
        del layer, inputs
        if isinstance(output, torch.Tensor) and output.ndim == 4 and min(output.shape[-2:]) > 1:
            sizes.append(output.shape[-1])

    strided = [layer for layer in _leaves(network) if _stride(layer) > 1]
    hooks = [layer.register_forward_hook(note) for layer in strided]
    with torch.inference_mode():
        network(torch.from_numpy(example))
    for hook in hooks:
        hook.remove()
    return round(example.shape[-1] / min(sizes)) if sizes else otherwise


def _leaves(network: nn.Module) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d)]


def _stride(layer: nn.Module) -> int:
    stride = layer.stride
    return int(stride[0] if isinstance(stride, tuple) else stride)  # type: ignore[arg-type]

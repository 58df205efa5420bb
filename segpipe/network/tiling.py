"""Tile, overlap and align of a model: from the settings, its contract and its graph."""

from pathlib import Path

import onnx

from segpipe.contract import DEFAULT_ALIGN, Contract
from segpipe.errors import ContractError, SettingsError
from segpipe.geometry.windows import Tiling
from segpipe.messages.printable import dims
from segpipe.network.graph_stride import graph_stride, likely_align
from segpipe.network.scores_needed import resolve_blend
from segpipe.network.signature import TensorSpec
from segpipe.network.template import IMAGE_TILE, VOLUME_TILE
from segpipe.settings import Settings


def resolve_tiling(settings: Settings, contract: Contract, image: TensorSpec, proto: onnx.ModelProto, path: Path) -> Tiling:
    """Tile, overlap and align per axis from flags, the contract, and the model's fixed sizes, in that order."""
    ndim = contract.ndim
    fixed = contract.layout.spatial(image.shape)
    asked = _spread(settings.tile, ndim, "tile") or contract.axes("tile", ndim)
    if asked is None and None in fixed:
        raise ContractError(
            f"{path} takes tiles of any size, so the contract must name one: add tile = "
            f"{[VOLUME_TILE if contract.layout.is_volume else IMAGE_TILE] * ndim}, or give --tile"
        )
    tile = asked or tuple(n for n in fixed if n is not None)
    if any(f is not None and f != t for f, t in zip(fixed, tile, strict=True)):
        raise ContractError(
            f"the tile must be the model's, got {dims(tile)} and {path} takes {dims([f or 0 for f in fixed])}: "
            f"give --tile {','.join(str(f or t) for f, t in zip(fixed, tile, strict=True))}"
        )
    whole, margin = None not in fixed, contract.axes("margin", ndim) or (0,) * ndim
    scored = tuple(t - 2 * m for t, m in zip(tile, margin, strict=True))
    if min(scored) < 1:
        raise ContractError(
            f"the tile must be larger than twice the margin, got tile {dims(tile)} and margin {dims(margin)}: take a larger "
            "--tile, or correct margin in the contract"
        )
    align = contract.axes("align", ndim) or (_align(proto, tile, margin) if whole else DEFAULT_ALIGN,) * ndim
    if any(margin):
        _check_phase(tile, contract, align, path)
    # neighbours then see a quarter of each other's pixels
    default = tuple(max(0, t // 4 - 2 * m) for t, m in zip(tile, margin, strict=True))
    overlap = _spread(settings.overlap, ndim, "overlap") or contract.axes("overlap", ndim) or default
    return Tiling(scored, overlap, align, resolve_blend(settings, contract), whole, margin)


def _check_phase(tile: tuple[int, ...], contract: Contract, align: tuple[int, ...], path: Path) -> None:
    """Check that a tile of valid convolutions is one that they divide as they divide the contract's.

    Raises:
        SettingsError: another tile was asked for; the message has the nearest that fits.
    """
    own = contract.axes("tile", contract.ndim)
    if own is None or all((t - o) % a == 0 for t, o, a in zip(tile, own, align, strict=True)):
        return
    near = [o + round((t - o) / a) * a for t, o, a in zip(tile, own, align, strict=True)]
    raise SettingsError(
        f"with a margin, the tile must differ from the contract's by multiples of align, got tile {dims(tile)} for {path} "
        f"with tile {dims(own)} and align {dims(align)}: take --tile {','.join(map(str, near))}"
    )


def _align(proto: onnx.ModelProto, tile: tuple[int, ...], margin: tuple[int, ...]) -> int:
    """Where windows of a fixed tile start, if the contract does not say so: at multiples of 32, if that divides the tile.

    With a margin, the tile need not be a multiple: the stride of the layers is taken, where they show it.
    """
    if any(margin):
        return graph_stride(proto) or DEFAULT_ALIGN
    return DEFAULT_ALIGN if not any(n % DEFAULT_ALIGN for n in tile) else likely_align(graph_stride(proto), tile, fixed=True)


def _spread(value: tuple[int, ...] | None, ndim: int, key: str) -> tuple[int, ...] | None:
    if value is None or len(value) == ndim:
        return value
    if len(value) == 1:
        return value * ndim
    raise SettingsError(f"{key} must have one number or {ndim}, one per axis, got {','.join(map(str, value))}")

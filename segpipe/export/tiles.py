"""Tiles for calibration and comparison: from real scenes if there are any, else noise."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.errors import InputError
from segpipe.formats.case import Case, CaseSelection
from segpipe.formats.case_scaling import scaling_of
from segpipe.formats.cases import find_cases
from segpipe.formats.channels import channels_of
from segpipe.formats.registry import environment
from segpipe.network.scaling import of_input
from segpipe.network.spec import ModelSpec
from segpipe.overrides import Overrides
from segpipe.pipeline.findings import warn_of_findings
from segpipe.pipeline.opening import on_network_grid, open_checked
from segpipe.pipeline.spacing import resampling_note
from segpipe.pipeline.tiles import read_tile

LOG = logging.getLogger("segpipe")

Tiles = list[NDArray[np.float32]]
"""Scaled tiles as the network takes them, each of shape ``(channels, *tile)``."""

Samples = list[tuple[NDArray[np.float32], NDArray[np.bool_] | None]]
"""Tiles, each with its mask of invalid pixels, shape ``tile``; None if all its pixels are valid."""


def noise(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Noise with both coarse and fine detail, mean 0 and deviation 1 per channel: a sum of blocks of 1 to 64 pixels.

    Args:
        shape: ``(channels, *spatial)``.
        seed: of the random generator.
    """
    rng, space = np.random.default_rng(seed), tuple(range(1, len(shape)))
    total = np.zeros(shape, np.float32)
    for block in (1, 2, 4, 8, 16, 32, 64):
        blocks = rng.normal(size=(shape[0], *(-(-n // block) for n in shape[1:]))).astype(np.float32)
        for axis in space:
            blocks = np.repeat(blocks, block, axis)
        total += blocks[tuple(map(slice, shape))]
    spread = total.std(axis=space, keepdims=True)
    return np.asarray((total - total.mean(axis=space, keepdims=True)) / np.where(spread > 0, spread, 1), np.float32)


def random_tiles(spec: ModelSpec, count: int, seed: int) -> Tiles:
    """Seeded noise in the network's input shape."""
    shape = spec.batch_shape[1:]
    return [noise(shape, seed + i) for i in range(count)]


def scene_samples(scenes: Sequence[str], spec: ModelSpec, overrides: Overrides, count: int) -> Samples:
    """Up to ``count`` tiles from the windows of a run, spread evenly over scenes and windows.

    Args:
        scenes: as ``--input`` of a run.
        spec: model whose contract scales the tiles.
        overrides: as in a run.
        count: largest number of tiles.

    Raises:
        SourceError: a scene cannot be read, or does not fit the contract.
        InputError: they have no valid pixels.
    """
    host = replace(spec, contract=spec.contract.model_copy(update={"scaling": "host"}), input_dtype="float32")
    cases = find_cases(scenes, CaseSelection(channels=channels_of(spec.contract, None)))
    share = -(-count // len(cases))
    tiles: Samples = []
    with environment():
        for case in cases:
            tiles += islice(_spread(case, host, overrides, share), share)
    if not tiles:
        raise InputError(f"{', '.join(scenes)} must hold valid pixels to take tiles from, and all are nodata")
    return tiles[:count]


def _spread(
    case: Case, spec: ModelSpec, overrides: Overrides, count: int
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_] | None]]:
    """Yield tiles of a case with valid pixels: first about ``count`` far apart, then those in between."""
    source, info = open_checked(case, spec, overrides)
    with closing(source):
        warn_of_findings(case, source, spec.contract)
        if info.resampled:
            (note,) = resampling_note(source.grid, spec.contract)
            LOG.warning("warning: %s: %s", case.name, note)
        scaling = of_input(scaling_of(source, spec.contract, info.box), spec.contract)
        seen = on_network_grid(source, info, spec, scaling)
        windows = list(info.cover)
        step = max(1, len(windows) // count)
        for k in range(step):
            for index in windows[k::step]:
                pixels, invalid = read_tile(seen, info.cover, index, scaling)
                if pixels is not None:
                    shape = spec.batch_shape[1:]
                    lost = None if invalid is None else invalid.reshape(shape[1:])[spec.tiling.middle]
                    yield pixels.reshape(shape), lost


def raw_tiles(tiles: Tiles, contract: Contract, dtype: str) -> list[NDArray[np.generic]]:
    """Stored pixels that scale to these tiles, rounded to the type."""
    limits, slices = np.iinfo(dtype), 2 * contract.neighbours + 1

    def column(values: list[float]) -> NDArray[Any]:
        return np.array(values * slices).reshape(-1, *[1] * contract.ndim)

    gain, bias = column(contract.column("scale")), column(contract.column("offset"))
    if contract.fixed:
        mean, std = map(column, contract.fixed)
        tiles = [tile * std + mean for tile in tiles]
    return [np.clip(np.rint((tile - bias) / gain), limits.min, limits.max).astype(dtype) for tile in tiles]

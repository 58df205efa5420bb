"""Read a case as nnU-Net's predictor does, all of it in memory: for comparison with nnU-Net, by ``--like nnunet``."""

import importlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.errors import InstallationError, SourceError
from segpipe.formats.cropping import outside_scores
from segpipe.formats.resampled import ReadWindow, Resampled
from segpipe.formats.source import Begun, Source
from segpipe.geometry.nnunet_grids import NnunetGrids, PlacedAxis, resized_shape, thick_axis
from segpipe.geometry.windows import Window
from segpipe.network.scaling import Scaling
from segpipe.process.extras import install

Volume = NDArray[np.float32]

SMALLEST_STD = 1e-8
"""nnU-Net's floor of a standard deviation, and of a maximum."""


class NnunetCase(Resampled):
    """A case on the network's grid as nnU-Net prepares it: cropped, scaled, resampled by cubic splines, padded with zeros.

    Args:
        source: the opened case.
        grids: its two grids, by ``grids_of``.
        contract: of a model that ``segpipe export nnunet`` made.
    """

    def __init__(self, source: Source, grids: NnunetGrids, contract: Contract) -> None:
        super().__init__(source, grids)
        self.dtype = np.dtype(np.float32)
        self._opened, self._grids, self._contract = source, grids, contract

    @property
    def scaling(self) -> Scaling:
        """Identity: pixels are scaled already."""
        count = self._contract.channel_count
        return Scaling(np.ones(count), np.zeros(count))

    @cached_property
    def _prepared(self) -> Volume:
        return prepared(*_stored(self._opened, self._contract), self._opened.grid.spacing, self._grids, self._contract)

    def take(self, window: Window, box: Window | None = None, threads: int | None = None) -> Callable[[], ReadWindow]:
        del box, threads
        pixels = self._prepared[(slice(None), *window.slices)]
        return lambda: ReadWindow(pixels, None, None)

    def begin(self, window: Window, threads: int | None = None) -> Begun:
        pixels = self.take(window, threads=threads)().pixels
        return lambda: (pixels, None)

    def empty(self, window: Window) -> bool:
        del window
        return False


def grids_of(path: str, source: Source, contract: Contract) -> NnunetGrids:
    """The two grids of a case; all of it is read to find the box of its non-zero voxels.

    Raises:
        SourceError: it is no volume of valid voxels, or all voxels are 0.
    """
    grid = source.grid
    if len(grid.shape) != 3 or grid.spacing is None:
        raise SourceError(f"{path}: --like nnunet is for volumes, got an image: leave it out")
    try:
        pixels, _ = _stored(source, contract)
    except ValueError as error:
        raise SourceError(f"{path}: {error}") from None
    occupied = [np.flatnonzero((pixels != 0).any(axis=tuple(k for k in range(4) if k != axis))) for axis in (1, 2, 3)]
    if not len(occupied[0]):
        raise SourceError(f"{path}: --like nnunet crops to non-zero voxels, and all are 0: leave it out")
    crop = [(int(found[0]), int(found[-1]) + 1) for found in occupied]
    patch = contract.axes("tile", contract.ndim) or ()
    wanted = (*grid.spacing[: 3 - contract.ndim], *(contract.spacing or grid.spacing[3 - contract.ndim :]))
    sizes = resized_shape([b - a for a, b in crop], grid.spacing, wanted)
    settings = contract.provenance["nnunet"]["resampling_fn_probabilities_kwargs"]
    cut = sizes != tuple(b - a for a, b in crop)
    thick = thick_axis(wanted, grid.spacing, settings.get("force_separate_z")) if cut else None
    least = (0,) * (3 - len(patch)) + patch
    placed = tuple(
        PlacedAxis(a, b, size, (short := max(0, most - size)) // 2, short - short // 2, nearest=axis == thick)
        for axis, ((a, b), size, most) in enumerate(zip(crop, sizes, least, strict=True))
    )
    factors = tuple((b - a) / size for (a, b), size in zip(crop, sizes, strict=True))
    return NnunetGrids(grid.shape, factors, outside_scores(contract), placed)


def _stored(source: Source, contract: Contract) -> tuple[Volume, NDArray[np.bool_]]:
    """All voxels in physical values, and the mask of those where any channel is not 0.

    Raises:
        ValueError: a voxel is invalid.
    """
    stored, invalid = source.read(Window.whole(source.grid.shape))
    if invalid is not None:
        raise ValueError("--like nnunet needs voxels that are all valid, and some are nodata or NaN: leave it out")
    tags = source.tags() if contract.pixel == "physical" else None
    pixels = stored.astype(np.float32)
    if tags is not None:
        scale, offset = (one.reshape(-1, 1, 1, 1) for one in tags)
        pixels = (stored * scale + offset).astype(np.float32)
    return pixels, (pixels != 0).any(axis=0)


def prepared(pixels: Volume, nonzero: NDArray[np.bool_], spacing: Any, grids: NnunetGrids, contract: Contract) -> Volume:
    """The network's input, shape ``(channels, *grids.shape)``.

    Args:
        pixels: physical values, shape ``(channels, *own)``.
        nonzero: where any channel is not 0.
        spacing: of the case.
        grids: both grids.
        contract: gives the scaling and, in ``provenance``, the order of the splines.
    """
    inside = _ndimage().binary_fill_holes(nonzero)[grids.crop] if any(contract.over_nonzero) else None
    cropped = np.ascontiguousarray(pixels[(slice(None), *grids.crop)])
    scaled = np.stack([_scaled(channel, number, inside, contract) for number, channel in enumerate(cropped)])
    sizes = tuple(one.resized for one in grids.placed)
    if scaled.shape[1:] != sizes:
        settings = contract.provenance["nnunet"]["resampling_fn_data_kwargs"]
        wanted = (*spacing[: 3 - contract.ndim], *(contract.spacing or spacing[3 - contract.ndim :]))
        thick = thick_axis(spacing, wanted, settings.get("force_separate_z"))
        scaled = np.stack([_resized(channel, sizes, thick, settings) for channel in scaled])
    return np.pad(scaled, ((0, 0), *((one.below, one.above) for one in grids.placed)))


def _scaled(channel: Volume, number: int, inside: NDArray[np.bool_] | None, contract: Contract) -> Volume:
    """One channel, scaled by its own statistics or those of the contract."""
    kind = contract.normalizations[number]
    if contract.limits is not None:
        channel = np.clip(channel, np.float32(contract.limits[0][number]), np.float32(contract.limits[1][number]))
    if kind == "fixed" and contract.fixed is not None:
        return (channel - np.float32(contract.fixed[0][number])) / np.float32(contract.fixed[1][number])
    if kind == "minmax":
        channel = channel - channel.min()
        return channel / max(float(channel.max()), SMALLEST_STD)
    if kind == "none":
        return channel
    inside = inside if contract.over_nonzero[number] else None
    counted = channel if inside is None else channel[inside]
    standard = (channel - counted.mean()) / max(float(counted.std()), SMALLEST_STD)
    return standard if inside is None else np.where(inside, standard, channel)


def _resized(channel: Volume, sizes: tuple[int, ...], thick: int | None, settings: Any) -> Volume:
    """Resample one channel to a shape; the axis of thick slices by itself, after all others."""
    values, order = channel.astype(np.float64), int(settings.get("order", 3))
    if thick is None:
        return _zoomed(values, sizes, order).astype(np.float32)
    flat = tuple(size for axis, size in enumerate(sizes) if axis != thick)
    planes = np.stack([_zoomed(plane, flat, order) for plane in np.moveaxis(values, thick, 0)])
    if len(planes) != sizes[thick]:
        planes = _along_first(planes, sizes[thick], int(settings.get("order_z", 0)))
    return np.moveaxis(planes, 0, thick).astype(np.float32)


def _zoomed(values: NDArray[np.float64], sizes: tuple[int, ...], order: int) -> NDArray[np.float64]:
    """Splines with half-pixel centres, limited to the values that occur, as scikit-image's ``resize`` computes them."""
    factors = [new / old for new, old in zip(sizes, values.shape, strict=True)]
    zoomed = _ndimage().zoom(values, factors, order=order, mode="nearest", grid_mode=True)
    return np.asarray(np.clip(zoomed, values.min(), values.max()) if order > 1 else zoomed)


def _along_first(planes: NDArray[np.float64], size: int, order: int) -> NDArray[np.float64]:
    places = (np.arange(size) + 0.5) * len(planes) / size - 0.5
    if order == 0:
        return np.asarray(planes[np.clip(np.floor(places + 0.5).astype(int), 0, len(planes) - 1)])
    grid = np.meshgrid(places, *map(np.arange, planes.shape[1:]), indexing="ij")
    return np.asarray(_ndimage().map_coordinates(planes, grid, order=order, mode="nearest"))


def _ndimage() -> Any:
    try:
        return importlib.import_module("scipy.ndimage")
    except ModuleNotFoundError:
        raise InstallationError(f"--like nnunet needs scipy, which is not installed: {install('evaluate')}") from None

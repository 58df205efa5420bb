"""Read a volume from one file, whatever its header looks like."""

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.errors import SourceError
from segpipe.formats.source import Begun, Invalid, Pixels
from segpipe.formats.volume.checks import box_near, check_local, check_overrides, declared_nodata, order_notes
from segpipe.formats.volume.file import Volume, source_errors
from segpipe.formats.volume.slabs import MASK_SLAB, SLAB, Slabs, slab_width
from segpipe.formats.volume.turning import network_grid
from segpipe.formats.volume.unpacked_files import close, unpacked
from segpipe.formats.volume.voxels import Voxels
from segpipe.geometry.voxel_grid import VoxelGrid
from segpipe.geometry.windows import Window
from segpipe.overrides import AS_STORED as NO_OVERRIDES
from segpipe.overrides import Overrides

NORMALISING = frozenset({"zscore", "minmax"})
"""Normalisations that cancel a positive slope and an intercept."""

INSIDE, PHYSICAL_INSTEAD = 'scaling = "graph"', 'scaling = "host", normalize = "none" and pixel = "physical"'


class VolumeSource(ABC):
    """A volume in the model's orientation; a packed file is unpacked when its first voxel is read."""

    separable = True

    how_to_place: str
    """Message: why a file without directions cannot be turned, and the mend."""

    def __init__(self, path: str, contract: Contract, overrides: Overrides = NO_OVERRIDES) -> None:
        check_local(path, "a volume must be a file")
        self._volume, self.template = self._read(path, contract.channel_count)
        check_overrides(path, overrides)
        if self._volume.count != contract.channel_count:
            raise SourceError(
                f"{path} has one channel, and the model takes {contract.channel_count}{_in_brackets(contract)}: give one "
                "file per channel, named NAME_0000, NAME_0001 and so on, or say which is which with --channels"
            )
        _check_values(self._volume, contract)
        self.grid = _oriented(path, self._volume, contract, self.how_to_place)
        self.dtype: np.dtype[Any] = self._volume.stored.newbyteorder("=")
        self.files: tuple[str, ...] = tuple(dict.fromkeys((path, self._volume.path)))
        self.scene: Mapping[str, Mapping[str, str]] = {}
        self.notes = (
            *self._volume.notes,
            *_channel_notes(self._volume, contract),
            *order_notes(self._volume.grid, contract),
        )
        self._nodata = declared_nodata(path, self.dtype, overrides.nodata)
        self._voxels: list[Voxels | Slabs] = []
        self._opening = threading.Lock()

    @abstractmethod
    def _read(self, path: str, several: int) -> tuple[Volume, object]:
        """The header of a file, and ``template``."""

    @property
    def unpacked(self) -> int:
        """Bytes of the unpacked file."""
        return self._volume.end if self._volume.packed else 0

    @property
    def block(self) -> int:
        """0: only the requested voxels are read."""
        return 0

    def memory(self, shape: tuple[int, ...]) -> int:
        """Bytes of the slabs, those of mask and confidence included.

        Without slabs, nothing is kept in this process, and the operating system caches the file.
        """
        del shape
        volume, width = self._volume, self._slab_width
        kept = width * math.prod(volume.shape[:2]) * volume.stored.itemsize * volume.count
        return kept + 2 * MASK_SLAB if width else 0

    @property
    def _slab_width(self) -> int:
        """Columns of a slab, for a network whose first axis is the file's fastest one; else 0: no slabs."""
        volume = self._volume
        return slab_width(volume.shape, volume.stored.itemsize * volume.count, SLAB) if self.grid.turned.order[0] == 2 else 0

    def empty(self, window: Window) -> bool:
        """False: a volume does not say which voxels are valid before they are read."""
        del window
        return False

    def begin(self, window: Window, threads: int | None = None) -> Begun:
        del threads  # reading uses one thread
        stored = self.grid.turned.window_back(window, self.grid.shape)
        with source_errors(self._volume.path):
            voxels = [channel.read(stored) for channel in self._opened()]
        return lambda: self._ended(voxels)

    def read(self, window: Window) -> tuple[Pixels, Invalid | None]:
        return self.begin(window)()

    def _ended(self, stored: list[NDArray[Any]]) -> tuple[Pixels, Invalid | None]:
        turned = [np.ascontiguousarray(self.grid.turned.array(channel)) for channel in stored]
        pixels = turned[0][None] if len(turned) == 1 else np.stack(turned)
        return pixels, self._invalid(pixels)

    def _invalid(self, pixels: Pixels) -> Invalid | None:
        """Where any channel is invalid."""
        invalid = None if pixels.dtype.kind != "f" else ~np.isfinite(pixels)
        if self._nodata is not None:
            invalid = (pixels == self._nodata) | (False if invalid is None else invalid)
        return np.asarray(invalid.any(axis=0)) if invalid is not None and invalid.any() else None

    def _opened(self) -> list[Voxels | Slabs]:
        with self._opening:
            if not self._voxels:
                volume, file = self._volume, unpacked(self._volume)
                starts = range(volume.offset, volume.end, volume.volume_bytes)
                channels = [Voxels(file, volume.shape, volume.stored, start) for start in starts]
                width, backwards = self._slab_width, self.grid.turned.flipped[0]
                self._voxels = [Slabs(channel, width, backwards=backwards) if width else channel for channel in channels]
            return self._voxels

    def near(self, place: tuple[float, ...], most: int) -> Window:
        return box_near(self.grid.shape, place, most)

    def tags(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        slope, intercept = self._volume.scale
        count = self._volume.count
        return None if self._volume.scale == (1.0, 0.0) else (np.full(count, slope), np.full(count, intercept))

    def close(self) -> None:
        with self._opening:
            if self._voxels:
                close(self._voxels[0].file)
                self._voxels = []


def _in_brackets(contract: Contract) -> str:
    names = contract.channel_names
    return "" if names is None else f" ({', '.join(names)})"


def _channel_notes(volume: Volume, contract: Contract) -> list[str]:
    """A note on a file of several volumes."""
    if volume.count == 1:
        return []
    return [f"the {volume.count} volumes of the file are the model's channels{_in_brackets(contract)}, in this order"]


def _check_values(volume: Volume, contract: Contract) -> None:
    """Refuse a contract that ignores slope and intercept: NIfTI readers apply them, so they were applied in training."""
    inside = contract.scaling == "graph"  # such a graph gets the stored voxels, whatever ``normalize`` is
    own = set(contract.normalizations) <= NORMALISING and contract.limits is None
    # a pixel that is stored as 0 is one of value 0 only without an intercept
    undone = not inside and own and volume.scale[0] > 0 and (not contract.at_zero or volume.scale[1] == 0)
    if volume.scale == (1.0, 0.0) or contract.pixel == "physical" or undone:
        return
    slope, intercept = volume.scale
    without, instead = (INSIDE, PHYSICAL_INSTEAD) if inside else ('pixel = "stored"', 'pixel = "physical"')
    raise SourceError(
        f"{volume.path}: its values are stored * {slope:g} + {intercept:g} (scl_slope, scl_inter), and the contract's "
        f"{without} leaves that out: set {instead} in the contract"
    )


def _oriented(path: str, volume: Volume, contract: Contract, how: str) -> VoxelGrid:
    letters = contract.orientation
    if letters is not None and not volume.placed:
        raise SourceError(f'{path} must say how it lies, for the contract has orientation = "{letters}", and {how}')
    return network_grid(volume.grid, contract)

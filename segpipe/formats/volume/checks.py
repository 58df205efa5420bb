"""Checks and notes that are the same for volumes of all formats."""

import math
from typing import Any

import numpy as np

from segpipe.contract import Contract
from segpipe.errors import SourceError
from segpipe.formats.nodata import checked_nodata
from segpipe.geometry.voxel_grid import VoxelGrid
from segpipe.geometry.windows import Window
from segpipe.overrides import Nodata, Overrides
from segpipe.storage.existence import is_file
from segpipe.storage.files import reading_errors
from segpipe.storage.paths import is_remote


def check_local(path: str, kind: str) -> None:
    """Check that a path is a file of this machine.

    Args:
        path: the path of a case.
        kind: how the message begins, such as ``a volume must be a file``.

    Raises:
        SourceError: it is not.
    """
    with reading_errors(path, SourceError):
        here = not is_remote(path) and is_file(path)
    if not here:
        raise SourceError(f"{kind} of this machine, got {path}: copy it here first")


def check_overrides(path: str, overrides: Overrides) -> None:
    """Check that no flag says what a volume cannot have.

    Raises:
        SourceError: one does.
    """
    if overrides.crs is not None:
        raise SourceError(f"{path} is a volume, which has no CRS: leave out --crs, or label rasters in a run of their own")
    if overrides.bands not in (None, (1,)):
        raise SourceError(f"{path} is a volume of one band, and --bands names others: leave it out")


def order_notes(grid: VoxelGrid, contract: Contract) -> list[str]:
    """A note on the order of axes that the network sees, if the contract has no orientation."""
    if contract.orientation is not None or not contract.layout.is_volume or contract.is_joined:
        return []
    if contract.axis_order is not None:
        return [f"the contract names no orientation: axes {contract.axis_order} of those stored, {grid.directions}"]
    return [f"the contract names no orientation: the network gets the axes as they are stored, {grid.directions}"]


def declared_nodata(path: str, dtype: np.dtype[Any], nodata: Nodata | None) -> Any:
    """The value that the user declares as nodata; None if there is none, or NaN, which is invalid anyway.

    Raises:
        SourceError: voxels of this type cannot hold it.
    """
    if nodata is None:
        return None
    try:
        value = checked_nodata(nodata, dtype)
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from None
    return None if value is None or math.isnan(value) else np.array(value).astype(dtype)


def box_near(shape: tuple[int, ...], place: tuple[float, ...], most: int) -> Window:
    """A box of ``most`` voxels a side or less, which begins at a place given as a share of each axis, or before it.

    >>> box_near((10, 100), (0.5, 0.99), 20)
    Window(start=(0, 80), stop=(10, 100))
    """
    sides = [min(most, n) for n in shape]
    starts = tuple(max(0, min(int(share * n), n - side)) for share, n, side in zip(place, shape, sides, strict=True))
    return Window(starts, tuple(start + side for start, side in zip(starts, sides, strict=True)))

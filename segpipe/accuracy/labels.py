"""Masks of a run and references of its cases, of any format, window by window on the masks' own grids."""

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import any_contract
from segpipe.errors import SourceError
from segpipe.formats.case import Case
from segpipe.formats.raster.aligned import open_aligned
from segpipe.formats.registry import FORMATS, OpenMask, format_of, open_case, read_mask
from segpipe.geometry.grid import Grid
from segpipe.geometry.voxel_grid import VoxelGrid, furthest_apart
from segpipe.geometry.windows import Window
from segpipe.overrides import AS_STORED
from segpipe.results.masks import stored_mask
from segpipe.results.schema import Record
from segpipe.storage import Store

ROWS = 512
"""Most rows of an image, or planes of a volume, that are read at once."""
PIXELS = 2**22
"""Pixels that are read at once; at least a row of blocks, or a plane."""
APART = 0.1
"""Largest distance between corners of volumes on one grid, as a share of the shortest side of a voxel."""

ROUNDED = 1e-3
"""Largest difference from an integer that rounding of a 32-bit slope can cause."""


class ReferenceLabels(Protocol):
    """True labels on the grid of a mask."""

    @property
    def moved(self) -> bool:
        """Whether pixels were resampled."""
        ...

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Labels of a window, and where they are valid; None: everywhere."""
        ...


@dataclass(frozen=True)
class ArrayMask:
    """Labels in memory, as a mask that is open."""

    array: NDArray[Any]
    """Shape ``(bands, *grid)``."""
    grid: Grid

    @property
    def bands(self) -> int:
        return len(self.array)

    def read(self, window: Window, band: int = 0) -> NDArray[Any]:
        part: NDArray[Any] = self.array[band][window.slices]
        return part


@dataclass(frozen=True)
class ArrayReference:
    """True labels in memory."""

    array: NDArray[Any]
    invalid: NDArray[np.bool_] | None = None
    """Mask of the pixels that were NaN; None: there are none."""
    moved: bool = False

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[Any] | None]:
        return self.array[window.slices], None if self.invalid is None else ~self.invalid[window.slices]


@contextmanager
def open_run_mask(store: Store, record: Record) -> Iterator[OpenMask]:
    """Open the finished mask of a case, to be read window by window.

    Raises:
        OutputError: it is not there, or cannot be read.
    """
    family = FORMATS[record.input.format]
    name = stored_mask(store, record)
    if family.open_mask is None:
        yield ArrayMask(*read_mask(record.input.format, store, name))
        return
    with store.local(name) as local, family.open_mask(local) as mask:
        yield mask


@contextmanager
def open_reference(path: Path, grid: Grid) -> Iterator[ReferenceLabels]:
    """True labels on the grid of a mask.

    Raises:
        SourceError: they cannot be read, or do not lie on that grid.
    """
    if not isinstance(grid, VoxelGrid):
        with open_aligned(path, grid) as found:
            yield found
        return
    if FORMATS[format_of(path.name)].element != "voxel":
        raise SourceError(f"{path} must be a volume, as the mask is")
    yield _volume(path, grid)


def _volume(path: Path, grid: VoxelGrid) -> ArrayReference:
    """A reference volume on the grid of a mask, with the slope and intercept of its file applied."""
    case = Case(path.name, str(path), format_of(path.name))
    with closing(open_case(case, any_contract(1, pixel="physical"), AS_STORED)) as source:
        own, tags = source.grid, source.tags()
        assert isinstance(own, VoxelGrid)
        (array,), invalid = source.read(Window.whole(own.shape))
    if invalid is not None:
        array, invalid = np.where(invalid, 0, array), turned_onto(invalid, own, grid, path)
    if tags is not None:
        array = array * tags[0] + tags[1]
        whole = np.rint(array)
        array = whole if np.abs(array - whole).max() < ROUNDED else array
    return ArrayReference(turned_onto(array, own, grid, path), invalid)


def turned_onto(array: NDArray[Any], own: VoxelGrid, grid: VoxelGrid, path: Path) -> NDArray[Any]:
    """A volume with its axes in the order and direction of another grid, on which its voxels lie.

    Raises:
        SourceError: they lie elsewhere.
    """
    matrix = np.linalg.inv(own.affine) @ grid.affine  # from an index of the mask to one of the reference
    order = np.abs(matrix[:3, :3]).argmax(axis=0)
    signs = np.sign(matrix[order, range(3)])
    if sorted(order) == [0, 1, 2]:
        flipped = array.transpose(*order)[tuple(slice(None, None, int(sign)) for sign in signs)]
        meant = np.zeros((4, 4))
        meant[order, range(3)], meant[3, 3] = signs, 1
        meant[order, 3] = np.where(signs < 0, np.array(array.shape)[order] - 1, 0)
        far = furthest_apart(own.affine @ meant, grid.affine, grid.shape)
        if flipped.shape == grid.shape and far <= APART * min(grid.spacing):
            return flipped
    raise SourceError(
        f"{path} must lie on the grid of the mask, {' x '.join(map(str, grid.shape))} voxels, and has "
        f"{' x '.join(map(str, own.shape))} voxels or another place: resample it onto the case first, with nearest neighbour"
    )


def windows(shape: tuple[int, ...]) -> Iterator[Window]:
    """Strips of an image, from left to right if it is wide; planes of a volume."""
    sides = (ROWS, max(PIXELS // ROWS, 1)) if len(shape) == 2 else (1, *shape[1:])
    return Window.whole(shape).blocks(sides)


def rows_at_once(shape: tuple[int, ...]) -> int:
    """Rows, or planes, of full width that are read at once."""
    return min(ROWS, max(1, PIXELS // math.prod(shape[1:])))

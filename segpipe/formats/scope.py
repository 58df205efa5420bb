"""The area of interest of a case: which pixels get labels. The network also sees those around them."""

from copy import copy

import numpy as np

from segpipe.errors import OutsideError, SourceError
from segpipe.formats.case import Case
from segpipe.formats.source import Invalid
from segpipe.geometry.grid import Grid
from segpipe.geometry.ground import Ground
from segpipe.geometry.raster_grid import RasterGrid, location_of
from segpipe.geometry.scanlines import Scanlines
from segpipe.geometry.windows import Window
from segpipe.vectors.area import Area, inside


class Scope:
    """The pixels of a case that get labels: those whose centre lies in the area of interest.

    Args:
        lines: the area on the case's own grid.
    """

    def __init__(self, lines: Scanlines) -> None:
        # each keeps the crossings of its last rows: windows are read in one thread, and boxes are finished in another
        self._windows, self._boxes = copy(lines), copy(lines)

    @property
    def bounds(self) -> Window:
        """The smallest window with all pixels that get labels."""
        shape = self._windows.shape
        return self._windows.bounds or Window((0,) * len(shape), (0,) * len(shape))

    def excludes(self, window: Window) -> bool:
        """Whether no pixel of a window gets a label."""
        return not self._windows.covered(window).any()

    def excluded(self, box: Window) -> Invalid | None:
        """Mask of the pixels of a finished box that get no label; None if all get one."""
        covered = self._boxes.covered(box)
        return None if covered.all() else np.logical_not(covered)


def scope_of(area: Area | None, grid: Grid, case: Case) -> Scope | None:
    """The scope of a case; None if the run has no area of interest.

    Raises:
        SourceError: as of ``lines_of``.
    """
    return None if area is None else Scope(lines_of(area, grid, case))


def bounds_of(area: Area, grid: Grid, case: Case) -> Window:
    """The smallest window of a case with all its pixels inside an area.

    Raises:
        OutsideError: no pixel lies inside.
        SourceError: as of ``lines_of``.
    """
    bounds = lines_of(area, grid, case).bounds
    if bounds is None:
        raise OutsideError(f"{case.path} has no pixel inside {area.path}")
    return bounds


def lines_of(area: Area, grid: Grid, case: Case) -> Scanlines:
    """The pixels of a case inside an area.

    Raises:
        SourceError: the case has no place on the Earth, or its projection cannot represent the area there.
    """
    found = inside(area, _ground_of(grid, case), grid.shape)
    if found.lost:
        raise SourceError(
            f"{case.path}: the polygons of {area.path} must exist in the CRS of the case, {grid}, and "
            f"{found.lost} do not: cut them to the scene"
        )
    return found.lines


def _ground_of(grid: Grid, case: Case) -> Ground:
    reason = "volumes have none"
    if isinstance(grid, RasterGrid):
        place = location_of(grid)
        if place.ground is not None:
            return place.ground
        reason = place.reason
    raise SourceError(f"{case.path}: --aoi needs cases with a place on the Earth, and {reason}: run it without --aoi")

"""Class sizes in polygons over one mask."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Float
from segpipe.formats.registry import OpenMask
from segpipe.geometry.cells import Cells
from segpipe.geometry.raster_grid import ground_of
from segpipe.results.overlap.finished import Classes, are_independent
from segpipe.results.overlap.shared import Shared
from segpipe.results.zones.polygons import Zones
from segpipe.vectors.placing import PlacedPolygons, place

if TYPE_CHECKING:
    from segpipe.results.zones.sums import MeasuredMask


@dataclass(frozen=True, eq=False)
class CaseZones:
    """Sizes in m² for the zones that touch a case."""

    index: NDArray[np.intp]
    """Indices of the zones, from 0, sorted and unique."""
    classes: Float
    """Size of each class, shape ``(zones, classes)``."""
    seen: Float
    unseen: Float
    pixels: Float
    """Mask pixels that the zone covers and that count here, seen or not; partly covered pixels count as fractions."""
    within: Float
    """Share of the zone's area that lies on the mask's grid and counts here."""
    lost: NDArray[np.intp]
    """Zones that the projection of the grid cannot represent."""

    def merged(self) -> "CaseZones":
        """The same with the pieces of each zone added up."""
        index, row = np.unique(self.index, return_inverse=True)

        def total(values: Float) -> Float:
            sums = np.zeros((len(index), *values.shape[1:]))
            np.add.at(sums, row, values)
            return sums

        classes, seen, unseen, pixels, within = map(total, (self.classes, self.seen, self.unseen, self.pixels, self.within))
        return CaseZones(
            index=index, classes=classes, seen=seen, unseen=unseen, pixels=pixels, within=within, lost=self.lost
        )


def measured(
    mask: OpenMask,
    classes: Classes,
    nodata: int | None,
    zones: Zones,
    shared: Callable[[], Shared | None] = lambda: None,
) -> CaseZones:
    """Sizes in the zones over an open mask.

    Args:
        mask: one band, or one band per class for a model with independent classes.
        classes: classes of the mask.
        nodata: label of pixels that were not seen; None: all were seen.
        zones: the polygons.
        shared: opens the ground that this mask shares with others; called if a polygon lies on it.

    Raises:
        NoGroundError: the mask has no position on the Earth.
        ForeignLabelError: it holds a label that is not a class.
        OutputError: it cannot be read.
    """
    from segpipe.results.zones.sums import MeasuredMask

    ground, shape = ground_of(mask.grid), mask.grid.shape
    placed = place(zones.shapes, zones.crs, ground, shape)
    elsewhere = shared() if len(placed.shapes) else None
    ids = [0, 1] if are_independent(mask, classes) else [number for number, _ in classes]
    cells = Cells.of(ground, shape, mask.bands * (len(ids) + 1))
    labels = ids if nodata is None else [*ids, nodata]
    return _summed(placed, MeasuredMask(mask, cells, labels, nodata, elsewhere), classes)


def _summed(placed: PlacedPolygons, layer: "MeasuredMask", classes: Classes) -> CaseZones:
    import shapely

    from segpipe.results.zones.sums import measure

    bands = [measure(placed.shapes, layer, band) for band in range(layer.mask.bands)]
    last = len(layer.labels)  # the column of what counts in another mask
    count = last if layer.nodata is None else last - 1
    own = bands[0].sizes[:, :count]
    sizes = np.stack([band.sizes[:, 1] for band in bands], axis=1) if are_independent(layer.mask, classes) else own
    unseen = bands[0].sizes[:, count:last].sum(axis=1)
    pixels = bands[0].pixels[:, :last].sum(axis=1)
    within = placed.share * _divided(pixels, shapely.area(placed.shapes))
    return CaseZones(
        index=placed.index,
        classes=sizes,
        seen=own.sum(axis=1),
        unseen=unseen,
        pixels=pixels,
        within=within,
        lost=placed.lost,
    ).merged()


def _divided(part: Float, whole: Float) -> Float:
    return np.asarray(np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0))

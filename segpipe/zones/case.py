"""What lies in each polygon over one mask; kept beside the masks, so that no later run does it again."""

import hashlib
import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import OutputError
from segpipe.formats.registry import FORMATS, OpenMask
from segpipe.geometry.cells import Cells
from segpipe.geometry.grid import Grid
from segpipe.geometry.ground import Ground
from segpipe.geometry.raster_grid import RasterGrid, place_of
from segpipe.results.records import record_name
from segpipe.results.schema import Record
from segpipe.storage import Store
from segpipe.zones.placing import Placed, place
from segpipe.zones.polygons import Zones

if TYPE_CHECKING:
    from segpipe.formats.cases import Case

FOLDER = ".zones"
"""Of the output, hidden: a file per case."""

FORM = 1
"""Of these files; those of another are made again."""

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CaseZones:
    """What lies in the zones that touch a case; sizes are in m²."""

    index: NDArray[np.intp]
    """Which zones, from 0, in order; each once."""
    classes: Float
    """Size of each class, shape ``(zones, classes)``."""
    seen: Float
    unseen: Float
    pixels: Float
    """Pixels of the mask that the zone covers, in part as fractions, seen or not."""
    within: Float
    """Share of the zone's area that lies on the mask's grid."""
    lost: NDArray[np.intp]
    """Zones that the projection of the grid cannot hold."""

    def merged(self) -> "CaseZones":
        """The same with the pieces of each zone added up."""
        index, row = np.unique(self.index, return_inverse=True)

        def total(values: Float) -> Float:
            sums = np.zeros((len(index), *values.shape[1:]))
            np.add.at(sums, row, values)
            return sums

        classes, seen, unseen, pixels, within = map(total, (self.classes, self.seen, self.unseen, self.pixels, self.within))
        return CaseZones(index, classes, seen, unseen, pixels, within, self.lost)


Classes = tuple[tuple[int, str], ...]
"""Id and name of each class, in the order of ``areas.csv``."""


def classes_of(record: Record) -> Classes:
    return tuple((row["class_id"], row["class_name"]) for row in record.areas if row["class_id"] is not None)


def ground_of(grid: Grid) -> Ground:
    """The ground of a mask.

    Raises:
        NoGroundError: it has none.
    """
    if not isinstance(grid, RasterGrid):
        raise NoGroundError("volumes lie nowhere on the Earth")
    place = place_of(grid)
    if place.ground is None:
        raise NoGroundError(place.reason)
    return place.ground


class NoGroundError(Exception):
    """Why a case has no place on the Earth, where zones could be."""


def zones_of_case(output: Store, record: Record, zones: Zones) -> CaseZones:
    """What lies in the zones over a finished case: from its file, or measured anew.

    Raises:
        NoGroundError: the case lies nowhere on the Earth.
        OutputError: its mask cannot be read.
    """
    name, key = _name(record.case), _key(output, record, zones)
    if (kept := _kept(output, name, key)) is not None:
        return kept
    found = _measured(output, record, zones)
    output.write(name, _packed(found, key), flush=False)
    return found


def _name(case: str) -> str:
    """Flat and with a digest: names of cases may be long, and hold folders."""
    return f"{FOLDER}/{hashlib.sha256(case.encode(errors='surrogateescape')).hexdigest()[:32]}.npz"


def _key(output: Store, record: Record, zones: Zones) -> str:
    """Changes with the zones, and whenever the case is done again."""
    path = output.path(record_name(_case(record.case)))
    try:
        data = output.read(record_name(_case(record.case)))
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror or error}") from error
    return f"{FORM} {zones.digest} {hashlib.sha256(data).hexdigest()}"


def _case(name: str) -> "Case":
    from segpipe.formats.cases import Case

    return Case(name, name)


def _kept(output: Store, name: str, key: str) -> CaseZones | None:
    """What an earlier run has found with the same zones; None if it has not, or if its file is damaged."""
    damaged = suppress(OSError, ValueError, KeyError, EOFError, BadZipFile)
    with damaged, np.load(io.BytesIO(output.read(name)), allow_pickle=False) as stored:
        if str(stored["key"]) == key:
            return CaseZones(**{field.name: stored[field.name] for field in fields(CaseZones)})
    return None


def _packed(found: CaseZones, key: str) -> bytes:
    data = io.BytesIO()
    np.savez(data, key=np.array(key), **{field.name: getattr(found, field.name) for field in fields(found)})
    return data.getvalue()


def _measured(output: Store, record: Record, zones: Zones) -> CaseZones:
    family = FORMATS[record.input.format]
    name = next((name for name in record.outputs if name in {f"{record.case}{kind}" for kind in family.outputs}), None)
    if family.open_mask is None:
        raise NoGroundError("volumes lie nowhere on the Earth")
    if name is None or (size := output.size(name)) is None:
        raise OutputError(f"{output.path(record.case)} must have a mask, and has none: run again with the same output")
    if size < ((record.sizes or {}).get(name) or 0) or output.is_blank(name):
        raise _damaged(output.path(name))
    with output.local(name) as path, family.open_mask(Path(path)) as mask:
        if mask.grid.shape != record.input.shape:
            raise _damaged(output.path(name))
        return measured(mask, classes_of(record), record.nodata, zones, output.path(name))


def _damaged(path: str) -> OutputError:
    return OutputError(f"{path} is damaged, it is not the mask of its record: run again with the same output")


def measured(mask: OpenMask, classes: Classes, nodata: int | None, zones: Zones, path: str) -> CaseZones:
    """What lies in the zones over an open mask.

    Args:
        mask: of one band, or of one for each class of a model with independent classes.
        classes: of the mask.
        nodata: the label of pixels that were not seen; None: all were.
        zones: the polygons.
        path: what the user calls the mask.

    Raises:
        NoGroundError: the mask lies nowhere on the Earth.
        OutputError: it cannot be read, or holds labels that are no class.
    """
    from segpipe.zones.coverage import ForeignLabelError

    placed = place(zones.shapes, zones.crs, ground_of(mask.grid), mask.grid.shape)
    try:
        return _summed(placed, mask, classes, nodata)
    except ForeignLabelError as error:
        raise OutputError(f"{path} must hold the labels of its classes, got {error}: run again with --overwrite") from None


def _summed(placed: Placed, mask: OpenMask, classes: Classes, nodata: int | None) -> CaseZones:
    from segpipe.zones.coverage import Amounts, areas_within, measure

    independent = mask.bands > 1 or len(classes) == 1
    ids = [0, 1] if independent else [number for number, _ in classes]
    cells = Cells.of(mask.grid.measure, mask.grid.shape, mask.bands * (len(ids) + 1))
    labels = ids if nodata is None else [*ids, nodata]
    bands: Sequence[Amounts] = [measure(placed.shapes, mask, cells, labels, band) for band in range(mask.bands)]
    own = bands[0].sizes[:, : len(ids)]
    sizes = np.stack([band.sizes[:, 1] for band in bands], axis=1) if independent else own
    within = _quotient(areas_within(placed.shapes, mask.grid.shape), placed)
    unseen = bands[0].sizes[:, len(ids) :].sum(axis=1)
    pixels = bands[0].all_pixels
    return CaseZones(placed.index, sizes, own.sum(axis=1), unseen, pixels, within, placed.lost).merged()


def _quotient(within: Float, placed: Placed) -> Float:
    import shapely

    whole = shapely.area(placed.shapes)
    return np.asarray(np.divide(within * placed.share, whole, out=np.zeros(len(whole)), where=whole > 0))

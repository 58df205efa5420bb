"""Labels of one image or volume."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.geometry.grid import BareGrid, Grid
from segpipe.messages.printable import and_more, dims
from segpipe.results.schema import Record

if TYPE_CHECKING:
    from xarray import DataArray


@dataclass(frozen=True, eq=False)
class Labels:
    """The class of each pixel or voxel."""

    array: NDArray[Any]
    """Class ids, shape ``(rows, cols)`` or ``(planes, rows, cols)``, uint8 or uint16. Independent classes (multilabel)
    have one layer each, shape ``(classes, rows, cols)``: 1 where the class is, else 0."""
    nodata: int
    """Value of pixels that are not valid: 255 for uint8, 65535 for uint16."""
    classes: dict[int, str]
    """Name of each class by id, in the order of the layers."""
    confidence: NDArray[np.uint8] | None = None
    """Probability of each label, same shape: 0 to 254 for 0 to 1, and 255 where a pixel is not valid; None if not
    asked for."""
    grid: Grid = field(default=BareGrid(()), repr=False)
    """Where the pixels lie; for an array in memory, only its shape."""
    layered: bool = False
    """Whether the first axis holds independent classes."""

    @classmethod
    def of_bands(cls, bands: NDArray[Any], likely: NDArray[Any] | None, about: "LabelMetadata") -> Self:
        """Labels from bands ``(bands, *grid)`` of a mask."""
        layered = len(bands) > 1
        array, confidence = bands if layered else bands[0], likely if layered or likely is None else likely[0]
        return cls(
            array=array,
            nodata=about.nodata,
            classes=dict(about.classes),
            confidence=confidence,
            grid=about.grid,
            layered=layered,
        )

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Where pixels are valid, shape ``(rows, cols)`` or ``(planes, rows, cols)``."""
        first = self.array[0] if self.layered else self.array
        return np.asarray(first != self.nodata)

    def to_xarray(self) -> "DataArray":
        """The labels as a DataArray, with coordinates of the pixels' centres and the CRS where they are known.

        - A raster has ``y`` and ``x`` in its CRS, and ``spatial_ref`` as rioxarray and CF have it.
        - A volume whose axes are those of the body has ``z``, ``y`` and ``x`` in mm (right, anterior and superior); one that
          is oblique has indices ``k``, ``j``, ``i``, and ``affine`` as an attribute, from these indices and 1 to x, y, z.
        - An array that was in memory has no coordinates.

        Independent classes have a dimension ``class`` with their names. The attributes hold ``_FillValue``, ``flag_values``
        and ``flag_meanings``.

        Raises:
            InstallationError: xarray is not installed; the message has the command that installs it.
        """
        from segpipe.api.coordinates import data_array

        return data_array(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.array, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        names = and_more([f"{key}: {name}" for key, name in self.classes.items()], 8)
        size = dims(self.array.shape)
        return f"Labels of {size}, {self.array.dtype}, nodata {self.nodata}; {names}"


@dataclass(frozen=True)
class LabelMetadata:
    """Meaning and position of labels."""

    nodata: int
    classes: Mapping[int, str]
    grid: Grid

    @classmethod
    def of_contract(cls, contract: Contract, nodata: int, grid: Grid) -> Self:
        """Of labels that a model has just given."""
        return cls(nodata, {one.id: one.name for one in contract.mask_classes}, grid)

    @classmethod
    def of_record(cls, record: Record, dtype: np.dtype[Any], grid: Grid) -> Self:
        """Read them from the record of a case, whose tables name the classes."""
        nodata = int(np.iinfo(dtype).max) if record.nodata is None else record.nodata
        named = {row["class_id"]: row["class_name"] for row in record.areas if row["class_id"] is not None}
        return cls(nodata, named, grid)

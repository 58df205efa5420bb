"""Whether the elements of a case have the size that the model was trained on."""

from collections.abc import Sequence

from segpipe.contract import Contract
from segpipe.errors import SourceError
from segpipe.geometry.grid import METRES, Grid

RASTER = "pixel", " on the ground", "resample the file with gdalwarp -tr"
VOLUME = "voxel", "", "resample the volume"


def check_spacing(path: str, grid: Grid, contract: Contract) -> list[str]:
    """The spacing of a case must be the one that its model was trained on; a note where that cannot be told.

    A contract of fewer axes than the case's is one of planes: its numbers are those of the last axes.

    Raises:
        SourceError: it is another one.
    """
    wanted, found = wanted_spacing(contract, grid), grid.spacing
    if wanted is None:
        return []
    what, ground, mend = RASTER if len(grid.shape) == 2 else VOLUME
    if found is None:
        told = _in_words(wanted if len(set(wanted)) > 1 else wanted[:1], grid.unit)
        return [f"{what} size not checked against the model's {told}: {grid.spacing_unknown}"]
    found = found[-len(wanted) :]
    if all(abs(f / w - 1) <= contract.spacing_tolerance for f, w in zip(found, wanted, strict=True)):
        return []
    raise SourceError(
        f"{path}: {what}s must be {_in_words(wanted, grid.unit)} within {contract.spacing_tolerance:.0%}, as the model was "
        f"trained, got {_in_words(found, grid.unit)}{ground}: {mend}"
    )


def _in_words(sizes: Sequence[float], unit: str) -> str:
    return f"{' x '.join(f'{n:,.0f}' if n >= 1000 else f'{n:.4g}' for n in sizes)} {unit}"


def wanted_spacing(contract: Contract, grid: Grid) -> tuple[float, ...] | None:
    """The contract's spacing in the unit of a grid."""
    if contract.spacing is None:
        return None
    factor = METRES[contract.spacing_unit] / METRES[grid.unit]
    return tuple(value * factor for value in contract.spacing)

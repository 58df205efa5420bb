"""Compare the pixel or voxel size of a case with the size that the model was trained on."""

from collections.abc import Sequence

from segpipe.contract import Contract
from segpipe.contract.keys import IMAGE_TOLERANCE, VOLUME_TOLERANCE
from segpipe.errors import SourceError
from segpipe.geometry.grid import METRES, Grid
from segpipe.geometry.regridding import Regridding

RASTER = "pixel", " on the ground", "give --resample to segpipe run or tune, or resample the file with gdalwarp -tr"
VOLUME = "voxel", "", "resample the volume"

WHOLE = 0.01
"""Relative difference within which a ratio of spacings is rounded to a whole number, or to 1 over a whole number: pixels of
20 m on a map are 19.99 m on the ground."""

COARSEST = 64
"""Largest ratio to the model's pixel size for resampling: a larger pixel would become thousands without more information."""


def check_spacing(path: str, grid: Grid, contract: Contract) -> list[str]:
    """Check that a case has the contract's spacing; return a note if its spacing is unknown.

    If the contract has fewer axes than the case, its numbers refer to the last axes.

    Raises:
        SourceError: the spacing differs.
    """
    if (wanted := wanted_spacing(contract, grid)) is None:
        return []  # avoids a useless query of PROJ for the pixel size
    found = grid.spacing
    what, ground, mend = RASTER if len(grid.shape) == 2 else VOLUME
    if found is None:
        named = _in_words(contract.spacing or (), contract.spacing_unit)
        return [f"{what} size not checked against the model's {named}: {grid.spacing_unknown}"]
    found = found[-len(wanted) :]
    if _is_near(found, wanted, tolerance_of(grid, contract)):
        return []
    raise SourceError(
        f"{path}: {what}s must be {_in_words(wanted, grid.unit)} within {tolerance_of(grid, contract):.0%}, as the model "
        f"was trained, got {_in_words(found, grid.unit)}{ground}: {mend}"
    )


def _is_near(found: Sequence[float], wanted: Sequence[float], tolerance: float) -> bool:
    return all(abs(f / w - 1) <= tolerance for f, w in zip(found, wanted, strict=True))


def tolerance_of(grid: Grid, contract: Contract) -> float:
    """Relative tolerance of the spacing; slices of a volume have that of volumes, unless the contract has its own."""
    named = contract.spacing_tolerance
    return VOLUME_TOLERANCE if len(grid.shape) > 2 and named == IMAGE_TOLERANCE and contract.ndim == 2 else named


def regridding_of(path: str, grid: Grid, contract: Contract, *, resample: bool) -> Regridding | None:
    """Both grids of a case that must be resampled, else None; images are resampled only if ``resample`` is True.

    Planes of a volume keep their distance if the contract has the spacing of images.

    Raises:
        SourceError: pixels are far too large for the model.
    """
    image = len(grid.shape) == 2
    if (image and not resample) or (wanted := wanted_spacing(contract, grid)) is None or (found := grid.spacing) is None:
        return None
    planes = len(found) - len(wanted)
    if planes < 0 or _is_near(found[planes:], wanted, tolerance_of(grid, contract)):
        return None  # a model of volumes takes no image, whatever its spacing
    factors = [w / f for f, w in zip(found[planes:], wanted, strict=True)]
    if min(factors) * COARSEST < 1:
        what, ground, _ = RASTER if image else VOLUME
        raise SourceError(
            f"{path}: {what}s must be at most {COARSEST} times as large as the model's {_in_words(wanted, grid.unit)}, got "
            f"{_in_words(found[planes:], grid.unit)}{ground}: take a model of such {what}s, or correct the place of the file"
        )
    return Regridding(grid.shape, (1.0,) * planes + tuple(map(whole_ratio, factors) if image else factors))


def whole_ratio(ratio: float) -> float:
    """
    >>> whole_ratio(2.003), whole_ratio(0.4998), whole_ratio(1.9)
    (2.0, 0.5, 1.9)
    """
    whole = max(1, round(ratio)) if ratio > 1 else 1 / max(1, round(1 / ratio))
    return float(whole) if abs(whole / ratio - 1) <= WHOLE else ratio


def resampling_note(grid: Grid, contract: Contract) -> list[str]:
    """The record's note on a case that is resampled."""
    wanted, found = wanted_spacing(contract, grid), grid.spacing
    assert wanted is not None
    assert found is not None
    what, _, _ = RASTER if len(grid.shape) == 2 else VOLUME
    return [f"{what}s of {_in_words(found, grid.unit)} are resampled to the model's {_in_words(wanted, grid.unit)}"]


def _in_words(sizes: Sequence[float], unit: str) -> str:
    return f"{' x '.join(f'{n:,.0f}' if n >= 1000 else f'{n:.4g}' for n in sizes)} {unit}"


def wanted_spacing(contract: Contract, grid: Grid) -> tuple[float, ...] | None:
    """The contract's spacing in the unit of a grid."""
    if contract.spacing is None:
        return None
    factor = METRES[contract.spacing_unit] / METRES[grid.unit]
    return tuple(value * factor for value in contract.spacing)

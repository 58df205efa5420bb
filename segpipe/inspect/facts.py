"""Facts about a model, a raster or a volume, as JSON-compatible values."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from segpipe.messages.printable import printable_json
from segpipe.messages.url_secrets import cleaned


@dataclass(frozen=True)
class TensorFacts:
    """Input or output of a graph; a free size is given by its name in the file, or ``?``."""

    name: str
    dtype: str
    shape: list[int | str]


@dataclass(frozen=True)
class Parameters:
    """Weights stored in the file, counted as stored, after any folding or sharing by the exporter."""

    count: int
    bytes: int
    types: dict[str, int]
    """Number of elements by type."""


@dataclass(frozen=True)
class Flops:
    """Two per multiply-add of convolutions and matrix products, for one tile; bias additions are not counted."""

    total: int
    shape: list[int]
    """Input shape that the numbers are for, batch 1."""
    operators: dict[str, int]
    not_counted: list[str]
    """Other multiplying operators of the graph, which the total does not include."""


@dataclass(frozen=True)
class ModelFacts:
    """A model file and its contract, and whether they fit."""

    kind: Literal["model"]
    file: str
    bytes: int
    """Including external data."""
    producer: str
    ir: int
    opset: dict[str, int]
    operators: dict[str, int]
    """Number of nodes by type, subgraphs included."""
    inputs: list[TensorFacts]
    outputs: list[TensorFacts]
    parameters: Parameters
    metadata: list[str]
    """Keys of the file's own metadata."""
    flops: Flops | None
    """None where the tile is unknown, or sizes depend on more than the tile."""
    contract_origin: str | None
    contract: dict[str, Any] | None
    tiling: dict[str, list[int]] | None
    """Tile, overlap and align in force."""
    sha256: str | None
    """Hash of model and contract, as in the records of a run."""
    error: str | None
    """Reason for which ``segpipe run`` would refuse it."""


@dataclass(frozen=True)
class BandFacts:
    """One band of a raster, counted from 1."""

    index: int
    dtype: str
    description: str | None
    color: str
    nodata: float | None
    mask: list[str]
    """GDAL's mask flags: the source of validity."""
    scale: float
    offset: float
    block: list[int]


@dataclass(frozen=True)
class Needs:
    """Contract keys of a model that would take this raster; alpha bands are not channels."""

    channels: int
    names: list[str] | None
    spacing: list[float] | None
    """Height and width of a pixel on the ground in m, to three digits."""


@dataclass(frozen=True)
class Valid:
    """Share of valid pixels, from a decimated read."""

    share: float
    """Of the pixels in the area of interest, if there is one."""
    pixels: int
    """Number of pixels that were read."""
    inside: float | None = None
    """Share of these in the area of interest; None without one."""


@dataclass(frozen=True)
class Fit:
    """How a model fits a raster."""

    model: str
    contract_origin: str
    bands: list[dict[str, Any]]
    """``channel`` and ``band`` for each channel of the model, in order."""
    spacing: list[float] | None
    """The contract's spacing in m."""
    tile: list[int]
    grid: list[int]
    """Windows per axis."""
    windows: int
    empty_windows: int | None
    """Windows without a valid pixel in the area of interest, which are never inferred; None where it would take long."""
    memory_mb: float
    """Expected memory of one worker on the CPU."""


@dataclass(frozen=True)
class RasterFacts:
    """A raster, the requirements for a model, and how a model fits it."""

    kind: Literal["raster"]
    file: str
    driver: str
    files: list[str]
    shape: list[int]
    """Rows and columns."""
    compression: str | None
    overviews: list[int]
    crs: str | None
    """An authority's code, or WKT."""
    crs_name: str | None
    transform: list[float] | None
    """Coefficients a, b, c, d, e, f from column and row to the CRS."""
    control_points: int
    rpcs: bool
    pixel_size: list[float] | None
    """Height and width of a pixel in m, on the Earth or another body; None if the file does not define it."""
    bands: list[BandFacts]
    subdatasets: list[str]
    needs: Needs
    valid: Valid | None
    """None if pixels were not sampled."""
    fit: Fit | None
    notes: list[str]
    error: str | None
    """Reason for which ``segpipe run`` would refuse it."""


@dataclass(frozen=True)
class VoxelValues:
    """The valid voxels of a volume, with slope and intercept applied."""

    share: float
    """Share of valid voxels."""
    voxels: int
    """Number of voxels that were read; all voxels of the volume unless it is very large."""
    min: float | None
    """Smallest valid value; None if there is no valid voxel."""
    max: float | None
    mean: float | None
    std: float | None


@dataclass(frozen=True)
class VolumeNeeds:
    """Keys of a contract for a model that takes this volume as it is; axes slowest first, as the file stores them."""

    channels: int
    layout: str
    spacing: list[float] | None
    """Voxel size in mm, to four digits."""
    orientation: str | None
    pixel: str
    """``physical`` if the file has a slope or an intercept, else ``stored``."""


@dataclass(frozen=True)
class VolumeFit:
    """How a model fits a volume; axes in the order of the network's input."""

    model: str
    contract_origin: str
    orientation: str | None
    """Directions of the network's axes."""
    wanted_spacing: list[float] | None
    """The contract's spacing in mm, of the last axes if it has fewer than the volume."""
    resampled: bool
    shape: list[int]
    """Voxels per axis of the network's grid, after resampling."""
    tile: list[int]
    grid: list[int]
    """Windows per axis."""
    windows: int
    memory_mb: float
    """Expected memory of one worker on the CPU."""


@dataclass(frozen=True)
class VolumeFacts:
    """A volume, the requirements for a model, and how a model fits it."""

    kind: Literal["volume"]
    file: str
    format: str
    files: list[str]
    shape: list[int]
    """Voxels per axis, slowest first, as the file stores them."""
    spacing: list[float] | None
    """Distance between neighbours along each axis, in ``unit``."""
    unit: str
    orientation: str | None
    """Side of the body towards which each index increases, in the order of ``shape``."""
    affine: list[list[float]] | None
    """From an index of these axes to x, y, z."""
    dtype: str
    slope: float
    intercept: float
    values: VoxelValues | None
    """None if the voxels cannot be read."""
    needs: VolumeNeeds
    fit: VolumeFit | None
    notes: list[str]
    error: str | None
    """Reason for which ``segpipe run`` would refuse it."""


Facts = ModelFacts | RasterFacts | VolumeFacts


def as_json(facts: Facts) -> str:
    """Facts as one JSON object; values without a JSON number, such as a nodata of NaN, become strings."""
    text = json.dumps(cleaned(plain(asdict(facts))), indent=2, ensure_ascii=False, allow_nan=False)
    return printable_json(text)


def plain(value: Any) -> Any:
    """Convert a value to JSON-compatible types."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    known = value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))
    return value if known else str(value)

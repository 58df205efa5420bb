"""What is known of a model, a raster or a volume, as values that JSON can take."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from segpipe.messages.printable import printable_json
from segpipe.messages.redact import cleaned


@dataclass(frozen=True)
class Tensor:
    """An input or output of a graph; a free size goes by its name in the file, ``?`` where it has none."""

    name: str
    dtype: str
    shape: list[int | str]


@dataclass(frozen=True)
class Parameters:
    """Numbers that the file stores as weights. What an exporter has folded or shared is counted as it is stored."""

    count: int
    bytes: int
    types: dict[str, int]
    """How many of each type."""


@dataclass(frozen=True)
class Flops:
    """Two per multiply-add of convolutions and matrix products, for one tile; the additions of biases are left out."""

    total: int
    shape: list[int]
    """Of the input that it is for, batch 1."""
    operators: dict[str, int]
    not_counted: list[str]
    """Operators of the graph that multiply, too, and are not in the total."""


@dataclass(frozen=True)
class ModelFacts:
    """A model file, its contract, and whether they fit."""

    kind: Literal["model"]
    file: str
    bytes: int
    """External data included."""
    producer: str
    ir: int
    opset: dict[str, int]
    operators: dict[str, int]
    """How many nodes of each, subgraphs included."""
    inputs: list[Tensor]
    outputs: list[Tensor]
    parameters: Parameters
    metadata: list[str]
    """Keys of the file's own metadata."""
    flops: Flops | None
    """None where the tile is not known, or sizes depend on more than it."""
    contract_origin: str | None
    contract: dict[str, Any] | None
    tiling: dict[str, list[int]] | None
    """Tile, overlap and align in force."""
    sha256: str | None
    """Of model and contract, as the records of a run have it."""
    error: str | None
    """Why ``segpipe run`` would refuse it."""


@dataclass(frozen=True)
class Band:
    """One band of a raster, counted from 1."""

    index: int
    dtype: str
    description: str | None
    color: str
    nodata: float | None
    mask: list[str]
    """GDAL's mask flags: where validity comes from."""
    scale: float
    offset: float
    block: list[int]


@dataclass(frozen=True)
class Needs:
    """What a model's contract would say for this raster; alpha bands are no channels."""

    channels: int
    names: list[str] | None
    spacing: list[float] | None
    """Height and width of a pixel on the ground in m, to three digits."""


@dataclass(frozen=True)
class Valid:
    """Share of valid pixels, from a decimated read."""

    share: float
    pixels: int
    """Read, of those that the raster has."""


@dataclass(frozen=True)
class Fit:
    """A raster under a model."""

    model: str
    contract_origin: str
    bands: list[dict[str, Any]]
    """``channel`` and ``band`` for each channel of the model, in its order."""
    spacing: list[float] | None
    """The contract's, in m."""
    tile: list[int]
    grid: list[int]
    """Windows per axis."""
    windows: int
    empty_windows: int | None
    """Without a valid pixel, so never inferred; None where counting them would take long."""
    memory_mb: float
    """Expected of one worker on the CPU."""


@dataclass(frozen=True)
class RasterFacts:
    """A raster, what it would need, and how a model fits it."""

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
    """From column and row to the CRS: a, b, c, d, e, f."""
    control_points: int
    rpcs: bool
    pixel_size: list[float] | None
    """Height and width of a pixel in m, on the Earth or another body; None if the file does not define it."""
    bands: list[Band]
    subdatasets: list[str]
    needs: Needs
    valid: Valid | None
    """None where it was not sampled."""
    fit: Fit | None
    notes: list[str]
    error: str | None
    """Why ``segpipe run`` would refuse it."""


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
    """A volume under a model; axes in the order of the network's input."""

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
    """A volume, what it would need, and how a model fits it."""

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
    """Why ``segpipe run`` would refuse it."""


Facts = ModelFacts | RasterFacts | VolumeFacts


def as_json(facts: Facts) -> str:
    """One JSON object. What JSON has no number for, as a nodata of NaN, is a string."""
    text = json.dumps(cleaned(plain(asdict(facts))), indent=2, ensure_ascii=False, allow_nan=False)
    return printable_json(text)


def plain(value: Any) -> Any:
    """The same in what JSON can take."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    known = value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))
    return value if known else str(value)

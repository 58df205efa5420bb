"""What a scene of many files holds: its bands, and what its metadata say of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class BandFile:
    """A band of a scene, in a file of its own."""

    name: str
    """As the product calls it: ``B04``, ``SR_B4``."""
    path: str
    """For GDAL."""
    others: tuple[str, ...] = ()
    """Further names under which a contract may ask for it: ``red``."""
    scale: float | None = None
    """Factor of physical values by the product's metadata; None: the tags of the file decide."""
    offset: float = 0.0
    """Added after ``scale``."""
    nodata: float | None = None
    """Value of pixels without data where the file declares none."""
    classes: bool = False
    """Whether it holds classes or flags, which are never interpolated."""
    note: str | None = None
    """For the record of a run that reads it."""
    number: int = 1
    """Of the band in its file."""


@dataclass(frozen=True, slots=True)
class Product:
    """A scene of many files."""

    bands: tuple[BandFile, ...]
    """In the product's order, each name once."""
    metadata: tuple[str, ...] = ()
    """Files besides the bands whose content changes how pixels are read."""
    scene: Mapping[str, str] = field(default_factory=dict)
    """When, where and by what it was taken."""
    notes: tuple[str, ...] = ()
    """For the record, whatever the contract says."""
    stored_notes: tuple[str, ...] = ()
    """For the record of a run that takes pixels as stored."""
    unscaled: str | None = None
    """Why there are no physical values; None if there are."""
    own_tags: bool = False
    """Whether files without scale and offset tags hold physical values."""
    parts: bool = False
    """Whether a file may hold several bands."""

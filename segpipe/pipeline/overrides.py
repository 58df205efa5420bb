"""What the user states about the input files, where their own metadata is missing or wrong."""

from dataclasses import dataclass
from typing import Literal

Nodata = int | float | Literal["none"]


@dataclass(frozen=True, slots=True)
class Overrides:
    """Statements that beat a file's own metadata; None: as the file says. They apply to every case of a run."""

    bands: tuple[int, ...] | None = None
    """1-based bands in the order of the contract's channels."""
    nodata: Nodata | None = None
    """The nodata value of every used band; ``none``: no value stands for nodata."""
    ignore_alpha: bool = False
    """Bands that are tagged alpha are none: they make no pixel invalid."""


AS_STORED = Overrides()
"""Files are read as their own metadata says."""

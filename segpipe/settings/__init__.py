"""Settings of a run, from flags and the configuration file, validated once."""

from segpipe.settings.loading import load_settings
from segpipe.settings.settings import Settings
from segpipe.settings.values import (
    LONGEST_WAIT,
    MOST_MEMORY,
    MOST_THREADS,
    MOST_WORKERS,
    BlendOn,
    CaseNames,
    Like,
    Overlap,
    Tile,
)

__all__ = [
    "LONGEST_WAIT",
    "MOST_MEMORY",
    "MOST_THREADS",
    "MOST_WORKERS",
    "BlendOn",
    "CaseNames",
    "Like",
    "Overlap",
    "Settings",
    "Tile",
    "load_settings",
]

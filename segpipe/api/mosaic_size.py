"""The size of a mosaic before its pixels are read, and whether it fits on the disk."""

import math
from collections.abc import Iterator

from segpipe.formats.registry import FORMATS
from segpipe.formats.sink import OVERVIEWS
from segpipe.jobs.disk import MASK_SHARE, free_at
from segpipe.pipeline.memory import in_words
from segpipe.results.overlap.mosaic import Forecast
from segpipe.storage import Store
from segpipe.storage.folder import Folder

TABLE = 12 / 512**2
"""Bytes per pixel of the tables of block offsets and sizes, which list blocks without data, too."""
LARGE = 2**30
"""Pixels from which on a mosaic is large: the command states its size, because it takes a while."""
SCATTERED = 0.01
"""A large mosaic of which masks cover a smaller share than this was probably not intended."""


def size_lines(forecast: Forecast, path: str) -> Iterator[str]:
    """Describe the size of a large mosaic in one line."""
    if (pixels := math.prod(forecast.shape)) > LARGE:
        rows, cols = forecast.shape
        likely, most = (_file_bytes(forecast, share) for share in (MASK_SHARE, 1.0))
        yield (
            f"{path}: {rows:,} x {cols:,} px, {pixels / 1e6:,.0f} Mpx, "
            f"masks on {_percent(forecast.covered_share)} of it at most; "
            f"the file likely has {in_words(likely)}, at most {in_words(most)}"
        )


def size_warnings(forecast: Forecast, target: Store, format_name: str) -> Iterator[str]:
    """Warn of a mosaic of masks that lie far apart, and of a disk that is likely too small."""
    if math.prod(forecast.shape) > LARGE and forecast.covered_share < SCATTERED:
        yield (
            f"masks lie far apart, on {_percent(forecast.covered_share)} of the mosaic at most: for fewer pixels give "
            "a coarser --resolution; for a map of a region, run again with its cases and the same --output, and join those"
        )
    folder = target.disk()
    likely, free = _disk_bytes(forecast, format_name, MASK_SHARE), free_at(folder).bytes
    if free is not None and likely > free:
        flag = "--output" if isinstance(target, Folder) else "TMPDIR"
        most = _disk_bytes(forecast, format_name, 1.0)
        yield (
            f"the mosaic likely takes {in_words(likely)} in {folder} while it is made, at most {in_words(most)}, and "
            f"{in_words(free)} are free: free {in_words(likely - free)}, or name another {flag}"
        )


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= SCATTERED else f"{share * 100:.1g}%"


def _tables(forecast: Forecast) -> float:
    return math.prod(forecast.shape) * TABLE * OVERVIEWS


def _file_bytes(forecast: Forecast, share: float) -> float:
    return forecast.covered * forecast.bytes_per_pixel * share * OVERVIEWS + _tables(forecast)


def _disk_bytes(forecast: Forecast, format_name: str, share: float) -> float:
    """Bytes of the draft and of the file."""
    full = forecast.covered * forecast.bytes_per_pixel
    return FORMATS[format_name].drafts(forecast.covered, full, full * share) + 2 * _tables(forecast)

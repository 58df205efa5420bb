"""Maps of change: a cloud-optimised GeoTIFF per case, with a code for each pair of classes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from segpipe import __version__
from segpipe.accuracy.pairing import Pairing, Positions
from segpipe.errors import InputError, OutputError
from segpipe.formats.format import OpenMask
from segpipe.formats.raster.mask import RasterMask
from segpipe.formats.raster.sink import RasterSink, is_own_raster, raster_sink
from segpipe.formats.style import PALE, Color, Style, palette
from segpipe.geometry.windows import Window
from segpipe.storage import Store

SUFFIX = ".change.tif"

MOST_BYTE, MOST_SHORT = 255, 65_535


def codes(classes: Pairing) -> dict[tuple[int, int], int]:
    """Code of each change from one class to another, from 1: all changes from the first class, then from the next."""
    return {pair: code for code, pair in enumerate(permutations(range(len(classes.ids)), 2), 1)}


def check_codes(classes: Pairing) -> None:
    """Check that a map has enough values.

    Raises:
        InputError: there are too many classes.
    """
    if len(codes(classes)) >= MOST_SHORT:
        raise InputError(
            f"a map of change must have at most 256 classes, and these runs have {len(classes.ids)}: omit --output"
        )


def nodata_of(classes: Pairing) -> int:
    """Value of pixels that are unseen in one of the runs: 255, or 65535 where codes do not fit below 255."""
    return MOST_BYTE if len(codes(classes)) < MOST_BYTE else MOST_SHORT


def change_style(classes: Pairing, colors: dict[int, Color]) -> Style:
    """Names and colours of the codes: each has the colour of the class that it changed to.

    Args:
        classes: the classes of both runs.
        colors: colour of each class by its position.
    """
    names = {0: "unchanged"} | {
        code: f"{classes.names[one]} to {classes.names[two]}" for (one, two), code in codes(classes).items()
    }
    legend = {0: PALE} | {code: colors[two] for (_, two), code in codes(classes).items()}
    nodata = nodata_of(classes)
    return Style(
        "uint8" if nodata == MOST_BYTE else "uint16",
        nodata,
        ["change"],
        colors={**legend, nodata: (0, 0, 0, 0)} if nodata == MOST_BYTE else None,
        names=names,
        legend=legend,
        tags={"SEGPIPE": __version__} | {f"CHANGE_{code}": name for code, name in names.items()},
    )


@dataclass(frozen=True, eq=False)
class ChangeMap:
    """A map of change that is being written."""

    _sink: RasterSink
    _lookup: Positions
    """Value of each pair of positions, shape ``(first, second)``."""

    @classmethod
    @contextmanager
    def writing(cls, output: Store, case: str, mask: OpenMask, classes: Pairing) -> Iterator["ChangeMap | None"]:
        """Begin the map of a case, and remove what is unfinished; None for a volume.

        Raises:
            OutputError: it would replace a file that segpipe did not write.
        """
        if not isinstance(mask, RasterMask):
            yield None
            return
        name = case + SUFFIX
        if output.has(name) and not is_own_raster(output, name):
            raise OutputError(
                f"{output.path(name)} was not written by segpipe, and would be replaced: move it away, or name another "
                "--output"
            )
        own = mask.colors
        colors = {k: own.get(one, palette(k)) for k, one in enumerate(classes.ids)}
        sink = raster_sink(output, name, mask.grid, change_style(classes, colors))
        try:
            yield cls(sink, _lookup(classes))
        finally:
            sink.discard()

    def write(self, window: Window, one: Positions, two: Positions) -> None:
        """Write a window, given the positions of its classes in both runs."""
        values = self._lookup[one, two]
        self._sink.write(window, values.astype(self._sink.dtype)[None])

    def finish(self) -> str:
        """Complete the file, and return its name."""
        return self._sink.finish()[0]


def _lookup(classes: Pairing) -> Positions:
    side = classes.unseen + 1
    found = np.full((side, side), nodata_of(classes), np.int64)
    np.fill_diagonal(found[:-1, :-1], 0)
    for (one, two), code in codes(classes).items():
        found[one, two] = code
    return found

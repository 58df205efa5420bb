"""Facts that require the pixels of a raster: the share of valid pixels, and the windows without any."""

import math
from contextlib import closing
from dataclasses import replace

import numpy as np
from rasterio.io import DatasetReader

from segpipe.contract import Contract
from segpipe.errors import SourceError
from segpipe.formats.case import RASTER, Case
from segpipe.formats.raster.kinds import explained
from segpipe.formats.raster.source import RasterSource
from segpipe.formats.restricted import restricted
from segpipe.formats.scenes.source import SceneSource
from segpipe.formats.scope import Scope, scope_of
from segpipe.formats.source import Source
from segpipe.geometry.reflection import reflected
from segpipe.geometry.windows import Cover, Window
from segpipe.inspect.facts import Valid
from segpipe.overrides import Overrides

CHEAP_PIXELS = 2**24
"""Largest raster that is read window by window: about a second."""

SAMPLES, FEW_SAMPLES = 1024, 16
"""Longest side of the decimated read; the smaller one is for a large file without overviews, where each sample decodes a
block (measured: 1,024 blocks of 512 px, 4 bands of uint16 noise, 20 s). 256 samples give a share to within 3 %."""


def source_of(case: Case, contract: Contract, overrides: Overrides) -> RasterSource:
    """Open a raster or a scene of many files."""
    return RasterSource(case.path, contract, overrides) if case.format == RASTER else SceneSource(case, contract, overrides)


def valid_share(case: Case, dataset: DatasetReader, contract: Contract, overrides: Overrides) -> Valid | None:
    """Share of valid pixels, from GDAL's reduced view of the file, so that the validity rules of a run apply.

    Raises:
        SourceError: as of a run.
    """
    source_of(case, contract, overrides).close()
    if case.format == RASTER and ("?" in dataset.name or "://" in dataset.name):  # vrt:// cannot quote these characters
        return None
    cheap = math.prod(dataset.shape) <= CHEAP_PIXELS or dataset.overviews(1)
    rows, cols = (min(n, SAMPLES if cheap else FEW_SAMPLES) for n in dataset.shape)
    if case.format != RASTER:
        return _share(SceneSource(case, contract, overrides, (rows, cols)), case, contract, overrides)
    view = f"vrt://{dataset.name}?outsize={cols},{rows}"
    with explained(case.path):
        try:
            return _share(RasterSource(view, contract, overrides), case, contract, overrides)
        except SourceError as error:
            raise SourceError(str(error).replace(view, dataset.name)) from None


def _share(view: RasterSource, case: Case, contract: Contract, overrides: Overrides) -> Valid | None:
    """The share of valid pixels in the area of interest, on the grid of a reduced view, which is closed.

    None if the area is too small for the view.
    """
    with closing(view):
        seen = restricted(view, case, contract, replace(overrides, aoi=None))
        scope = scope_of(overrides.aoi, view.grid, case)
        whole = Window.whole(view.grid.shape)
        _, invalid = seen.read(whole)
        valid = np.ones(whole.shape, bool) if invalid is None else ~invalid
        outside = None if scope is None else scope.excluded(whole)
    if scope is None:
        return Valid(float(valid.mean()), whole.size)
    inside = np.ones(whole.shape, bool) if outside is None else ~outside
    return Valid(float(valid[inside].mean()), whole.size, float(inside.mean())) if inside.any() else None


def empty_windows(source: Source, cover: Cover, scope: Scope | None = None) -> int | None:
    """Number of windows that are never inferred; None where counting would take long."""
    if math.prod(cover.shape) > CHEAP_PIXELS:
        return None
    windows = (reflected(cover.window(index), cover.shape)[0] for index in cover)
    return sum((scope is not None and scope.excludes(window)) or _is_empty(source, window) for window in windows)


def _is_empty(source: Source, window: Window) -> bool:
    _, invalid = source.read(window)
    return invalid is not None and bool(invalid.all())

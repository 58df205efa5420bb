"""How a model fits a raster."""

from collections.abc import Sequence

from segpipe.contract import Contract
from segpipe.formats.case import Case, SceneFiles
from segpipe.formats.raster.source import RasterSource
from segpipe.formats.restricted import restricted
from segpipe.formats.scope import scope_of
from segpipe.geometry.grid import METRES
from segpipe.inspect.facts import Fit
from segpipe.inspect.pixels import empty_windows
from segpipe.jobs.plan import Plan, PlannedCase
from segpipe.jobs.worker_pool import memory_mb
from segpipe.pipeline.opening import cover_of, row_of
from segpipe.process.machine import processors
from segpipe.results.run import Run


def fit_of(own: Case, source: RasterSource, run: Run) -> Fit:
    """Bands, windows and memory of a run of the model on the raster.

    Raises:
        SourceError, OutsideError: the raster does not fit the model, has no mask, or lies outside the area of interest.
    """
    spec, contract = run.model, run.model.contract
    cover = cover_of(own, source.grid.shape, spec)
    seen, scope = restricted(source, own, contract, run.overrides), scope_of(run.aoi, source.grid, own)
    case = PlannedCase(own, cover.shape, len(cover), block_bytes=source.memory(row_of(cover, cover.whole)))
    plan = Plan(workers=1, calls=processors(), small=(case,))
    spacing = contract.spacing and [n * METRES[contract.spacing_unit] for n in contract.spacing]
    return Fit(
        model=spec.title,
        contract_origin=spec.contract_origin,
        bands=[{"channel": c, "band": b} for c, b in zip(_channel_names(contract), _numbers(own, source), strict=True)],
        spacing=spacing,
        tile=list(spec.tiling.input),
        grid=list(cover.counts),
        windows=len(cover),
        empty_windows=empty_windows(seen, cover, scope),
        memory_mb=round(memory_mb(plan, run), 1),
    )


def _numbers(own: Case, source: RasterSource) -> Sequence[int]:
    """Numbers of the bands that are shown; files that a pattern groups are shown as the channels of the model."""
    grouped = isinstance(own.index, SceneFiles) and own.index.kind in ("bands", "parts")
    return range(1, len(source.numbers) + 1) if grouped else source.numbers


def _channel_names(contract: Contract) -> tuple[str, ...]:
    return contract.channel_names or tuple(f"channel {i}" for i in range(1, contract.channel_count + 1))

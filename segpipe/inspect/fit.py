"""How a model fits a raster."""

from segpipe.contract import Contract
from segpipe.formats.case import Case
from segpipe.formats.raster.source import RasterSource
from segpipe.geometry.grid import METRES
from segpipe.inspect.facts import Fit
from segpipe.inspect.pixels import empty_windows
from segpipe.jobs.plan import Plan, PlannedCase, memory_mb
from segpipe.network.spec import ModelSpec
from segpipe.pipeline.opening import cover_of, row_of
from segpipe.process.machine import processors
from segpipe.results.records import Run
from segpipe.settings import Settings


def laid(file: str, source: RasterSource, spec: ModelSpec, settings: Settings) -> Fit:
    """Bands, windows and memory of a run of the model on the raster."""
    cover, contract = cover_of(Case("", file), source.grid.shape, spec), spec.contract
    case = PlannedCase(Case("", file), cover.shape, len(cover), block_bytes=source.memory(row_of(cover, cover.whole)))
    plan = Plan((case,), (), (), (), (), workers=1, calls=processors())
    spacing = contract.spacing and [n * METRES[contract.spacing_unit] for n in contract.spacing]
    return Fit(
        model=spec.title,
        contract_origin=spec.contract_origin,
        bands=[{"channel": c, "band": b} for c, b in zip(_channel_names(contract), source.numbers, strict=True)],
        spacing=spacing,
        tile=list(spec.tiling.input),
        grid=list(cover.counts),
        windows=len(cover),
        empty_windows=empty_windows(source, cover),
        memory_mb=round(memory_mb(plan, Run(spec, settings)), 1),
    )


def _channel_names(contract: Contract) -> tuple[str, ...]:
    return contract.channel_names or tuple(f"channel {i}" for i in range(1, contract.channel_count + 1))

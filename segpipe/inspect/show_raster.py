"""Print a raster, its bands, and how a model fits it."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from segpipe.inspect.facts import BandFacts, Fit, RasterFacts, Valid
from segpipe.inspect.section import Row, by, section
from segpipe.messages.console import cells

BAND_ROWS = 16
"""Most bands with a line each; beyond that, neighbours that differ only in their names share a line."""


def print_raster(console: Console, facts: RasterFacts) -> None:
    """Print the file, its bands, the requirements for a model, and how one fits."""
    section(console, f"raster {facts.file}", _raster_rows(facts))
    if facts.bands:
        console.print(_bands_table(facts.bands))
        console.print()
    section(console, "what a model for it would need", _need_rows(facts))
    if facts.fit:
        fit = facts.fit
        section(console, f"under {fit.model}, contract from {fit.contract_origin}", _fit_rows(fit, facts))


def _raster_rows(facts: RasterFacts) -> Iterator[Row]:
    blocks = {tuple(band.block) for band in facts.bands}
    overviews = f"overviews {', '.join(map(str, facts.overviews))}" if facts.overviews else "no overviews"
    stored = [facts.driver, facts.compression or "uncompressed", *(f"blocks of {by(b)}" for b in sorted(blocks)), overviews]
    yield "format", ", ".join(stored)
    yield "size", f"{by(facts.shape)} px (rows x columns)"
    if facts.subdatasets:
        yield "images", str(len(facts.subdatasets))
    yield "CRS", _crs_words(facts)
    if facts.transform:
        yield "transform", _transform_words(facts.transform)
    yield "pixel size", _ground_words(facts.pixel_size)
    yield from (("source", file) for file in facts.files if file != facts.file)
    yield from () if facts.fit else (("note", note) for note in facts.notes)


def _metres(size: Sequence[float]) -> str:
    """Format height and width in metres."""
    return " x ".join(f"{n:,.0f}" if n >= 1000 else f"{n:.4g}" for n in size) + " m"


def _ground_words(size: Sequence[float] | None) -> str:
    return "not known" if size is None else f"{_metres(size)} on the ground"


def _crs_words(facts: RasterFacts) -> str:
    code = facts.crs if facts.crs and not facts.crs.lstrip().endswith("]") else None
    name = "without a name, WKT with --json" if facts.crs_name in {"unnamed", "unknown"} else facts.crs_name
    named = ", ".join(word for word in (code, name) if word) or facts.crs or "none"
    points = f"{facts.control_points} control points" if facts.control_points else ""
    return "; ".join(word for word in (named, points, "RPCs" * facts.rpcs) if word)


def _transform_words(transform: Sequence[float]) -> str:
    a, b, c, d, e, f = (f"{n:.10g}" for n in transform)
    if (b, d) == ("0", "0"):
        return f"corner ({c}, {f}), pixel ({a}, {e})"
    return f"x = {c} + {a} col + {b} row, y = {f} + {d} col + {e} row"


def _bands_table(bands: Sequence[BandFacts]) -> Table:
    """Table of bands, without columns that are empty for all bands."""
    groups = [[band] for band in bands] if len(bands) <= BAND_ROWS else _alike(bands)
    rows = [_band_cells(group) for group in groups]
    shown = [key for key in rows[0] if any(row[key] for row in rows)]
    table = Table(*shown, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*cells(row[key] for key in shown))
    return table


def _alike(bands: Sequence[BandFacts]) -> list[list[BandFacts]]:
    groups: list[list[BandFacts]] = []
    for band in bands:
        if groups and _kind(groups[-1][0]) == _kind(band):
            groups[-1].append(band)
        else:
            groups.append([band])
    return groups


def _kind(band: BandFacts) -> tuple[Any, ...]:
    return band.dtype, band.color, str(band.nodata), band.mask, band.scale, band.offset


def _band_cells(group: Sequence[BandFacts]) -> dict[str, str]:
    first, last = group[0], group[-1]
    names = [band.description or "" for band in group]
    return {
        "band": str(first.index) if first is last else f"{first.index} to {last.index}",
        "name": ", ".join(names if len(names) < 4 else [*names[:2], "...", names[-1]]) if any(names) else "",
        "type": first.dtype,
        "colour": first.color.replace("undefined", ""),
        "nodata": "" if first.nodata is None else f"{first.nodata:.10g}",
        "validity": ", ".join(_MASKS.get(flag, flag) for flag in first.mask),
        "scale": f"{first.scale:g}" * (first.scale != 1),
        "offset": f"{first.offset:g}" * (first.offset != 0),
    }


_MASKS = {"all_valid": "all valid", "per_dataset": "mask of all bands"}


def _need_rows(facts: RasterFacts) -> Iterator[Row]:
    """Requirements as lines of a contract, and the share of valid pixels."""
    needs = facts.needs
    if needs.names and needs.channels > BAND_ROWS:
        yield "channels", f"channels = {needs.channels}, or the list of their names, which --json gives"
    else:
        yield "channels", f"channels = {json.dumps(needs.names or needs.channels, ensure_ascii=False)}"
    if needs.spacing:
        yield "spacing", f"spacing = {json.dumps(needs.spacing)}"
    if facts.valid and facts.valid.inside is not None:
        yield "area of interest", f"{facts.valid.inside:.1%} of the pixels"
    if facts.valid:
        yield "valid pixels", _valid_words(facts.valid, facts.shape[0] * facts.shape[1])


def _valid_words(valid: Valid, pixels: int) -> str:
    share = "" if valid.inside is None else " of those inside"
    if valid.pixels == pixels:
        return f"{valid.share:.1%}{share}, all pixels read"
    return f"about {valid.share:.0%}{share}, sampled: {valid.pixels:,} of {pixels:,} pixels read"


def _fit_rows(fit: Fit, facts: RasterFacts) -> Iterator[Row]:
    described = {b.index: f"band {b.index}" + f" ({b.description})" * bool(b.description) for b in facts.bands}
    pairs = [(pair["channel"], described[pair["band"]]) for pair in fit.bands]
    yield from pairs if len(pairs) <= BAND_ROWS else [("bands", ", ".join(f"{channel}: {band}" for channel, band in pairs))]
    if fit.spacing:
        yield "pixel size", f"{_metres(fit.spacing)} wanted, {_ground_words(facts.pixel_size)}"
    empty = "" if fit.empty_windows is None else f"; {fit.empty_windows} without a valid pixel"
    yield "windows", f"{fit.windows} ({by(fit.grid)}) of {by(fit.tile)} px{empty}"
    yield "memory", f"about {fit.memory_mb:,.0f} MB for a worker on the CPU"
    yield from (("note", note) for note in facts.notes)

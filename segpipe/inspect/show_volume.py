"""Print a volume, the requirements for a model, and how one fits."""

import json
import math
from collections.abc import Iterator, Sequence

from rich.console import Console

from segpipe.inspect.facts import VolumeFacts, VolumeFit, VoxelValues
from segpipe.inspect.section import Row, by, section


def print_volume(console: Console, facts: VolumeFacts) -> None:
    """Print the file, the requirements for a model, and how one fits."""
    section(console, f"volume {facts.file}", _volume_rows(facts))
    section(console, "what a model for it would need", _need_rows(facts))
    if facts.fit:
        fit = facts.fit
        section(console, f"under {fit.model}, contract from {fit.contract_origin}", _fit_rows(fit, facts))


def _volume_rows(facts: VolumeFacts) -> Iterator[Row]:
    yield "format", facts.format
    yield "size", f"{by(facts.shape)} voxels, slowest axis first"
    yield "voxel size", "not known" if facts.spacing is None else f"{_sizes(facts.spacing)} {facts.unit}"
    if facts.orientation:
        fastest_first = facts.orientation[::-1]
        yield "orientation", f"{facts.orientation}, slowest axis first; {fastest_first} in nibabel and ITK-SNAP"
    yield "type", facts.dtype + _scale_words(facts)
    if facts.values:
        yield from _value_rows(facts.values, math.prod(facts.shape))
    yield from (("source", file) for file in facts.files if file != facts.file)
    yield from () if facts.fit else (("note", note) for note in facts.notes)


def _sizes(sizes: Sequence[float]) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)


def _scale_words(facts: VolumeFacts) -> str:
    if (facts.slope, facts.intercept) == (1.0, 0.0):
        return ""
    return f", value = stored * {facts.slope:g} {'-' if facts.intercept < 0 else '+'} {abs(facts.intercept):g}"


def _value_rows(values: VoxelValues, voxels: int) -> Iterator[Row]:
    if values.min is not None:
        yield "values", f"{values.min:,.6g} to {values.max:,.6g}, mean {values.mean:,.6g}, deviation {values.std:,.6g}"
    read = "all voxels read" if values.voxels == voxels else f"{values.voxels:,} of {voxels:,} voxels read"
    yield "valid voxels", f"{values.share:.1%}, {read}"


def _need_rows(facts: VolumeFacts) -> Iterator[Row]:
    """Requirements as lines of a contract."""
    needs = facts.needs
    yield "channels", f"channels = {needs.channels}"
    yield "layout", f'layout = "{needs.layout}"'
    if needs.spacing:
        yield "spacing", f"spacing = {json.dumps(needs.spacing)}"
    if needs.orientation:
        yield "orientation", f'orientation = "{needs.orientation}"'
    yield "pixel", f'pixel = "{needs.pixel}"'


def _fit_rows(fit: VolumeFit, facts: VolumeFacts) -> Iterator[Row]:
    if fit.orientation:
        yield "orientation", f"{fit.orientation}, as the network sees it"
    if fit.wanted_spacing:
        yield "voxel size", f"{_sizes(fit.wanted_spacing)} mm wanted{_resampling_words(fit)}"
    yield "windows", f"{fit.windows} ({by(fit.grid)}) of {by(fit.tile)} voxels"
    yield "memory", f"about {fit.memory_mb:,.0f} MB for a worker on the CPU"
    yield from (("note", note) for note in facts.notes)


def _resampling_words(fit: VolumeFit) -> str:
    return f"; resampled to {by(fit.shape)} voxels" if fit.resampled else ""

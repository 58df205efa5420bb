"""Facts about a volume of any format, and how a model fits it."""

import math
import os
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.contract import any_contract
from segpipe.errors import InputError, SourceError
from segpipe.formats.case import Case
from segpipe.formats.cases import find_input
from segpipe.formats.registry import FORMATS, environment, format_at, open_case
from segpipe.formats.source import Source
from segpipe.geometry.grid import METRES
from segpipe.geometry.windows import Window
from segpipe.inspect.checks import noting, spec_of
from segpipe.inspect.facts import VolumeFacts, VolumeFit, VolumeNeeds, VoxelValues
from segpipe.jobs.plan import Plan, as_planned
from segpipe.jobs.worker_pool import memory_mb
from segpipe.network.spec import ModelSpec
from segpipe.pipeline.findings import findings_of, refuse_far
from segpipe.pipeline.opening import CaseInfo, open_checked
from segpipe.process.machine import processors
from segpipe.results.run import Run
from segpipe.settings import Settings
from segpipe.storage.existence import exists, is_folder

READ_AT_ONCE = 2**22
"""Voxels per read, if a plane has no more."""

MOST_READ = 2**30
"""Most voxels that are read for their values: some seconds. Of a larger volume, equidistant planes are read."""


SERIES = re.compile(r"[\d.]+(-.*)?")
"""Matches the last part of the path of a case that shares a folder or a file with others: its UID, and which volume."""


def named_case(path: str) -> Case | None:
    """The case that a run calls by a path that is no file: one of several series in a folder, or volumes in a file."""
    place, name = os.path.split(path)
    if not place or not SERIES.fullmatch(name) or exists(path) or not exists(place):
        return None
    return next((case for case in find_input([place]).cases if case.path == path), None)


def case_at(file: str) -> Case:
    """The case of a file, the only one of a folder, such as a DICOM series, or one of several by its path.

    Raises:
        InputError: the folder has no case, or several, or none that is a volume.
    """
    if (case := named_case(file)) is not None:
        return case
    if not is_folder(file):
        return Case(Path(file).stem, file, format_at(file))
    found = find_input([file])
    for failure in found.refused:
        raise InputError(failure.error)
    if len(found.cases) > 1:
        raise InputError(
            f"inspect takes one case, and the folder {file} has {len(found.cases)}: name one, such as {found.cases[0].path}"
        )
    (case,) = found.cases
    if FORMATS[case.format].element != "voxel":
        raise InputError(
            f"inspect takes a folder only if it is a volume, such as a DICOM series: name the file, {case.path}"
        )
    return case


def inspect_volume(file: str, settings: Settings, *, alone: bool) -> VolumeFacts:
    """Gather the facts of a volume and, unless it is alone, how the models of the settings fit it.

    Raises:
        SourceError, ModelError: the header cannot be read; the model is not an ONNX file.
    """
    errors: list[str] = []
    with environment():
        case = case_at(file)
        spec = None if alone else spec_of(settings, errors)
        count = 1 if spec is None else spec.contract.channel_count
        source, channels = _opened(case, count, settings)
        with closing(source):
            seen = _facts(case, source, channels)
            fit, notes = (None, list(source.notes)) if spec is None else _fit(case, settings, spec, errors)
            values = None
            with noting(errors, file):
                values = values_of(source, seen.slope, seen.intercept)
    return replace(seen, values=values, fit=fit, notes=notes, error=next(iter(errors), None))


def _opened(case: Case, channels: int, settings: Settings) -> tuple[Source, int]:
    """The volume with the channels of a model, as of a file of four axes, else with one; and the number of its channels."""
    any_of = partial(any_contract, pixel="physical")
    if channels > 1 and FORMATS[case.format].per_channel:
        try:
            return open_case(case, any_of(channels), settings.overrides), channels
        except SourceError:
            pass  # whatever is wrong with it as one channel is said
    return open_case(case, any_of(1), settings.overrides), 1


def _facts(case: Case, source: Source, channels: int) -> VolumeFacts:
    """Facts from the header; ``values``, ``fit``, ``notes`` and ``error`` are filled in later."""
    grid, place = source.grid, source.grid.as_json()
    slope, intercept = (1.0, 0.0) if (tags := source.tags()) is None else (float(tags[0][0]), float(tags[1][0]))
    spacing = None if grid.spacing is None else list(grid.spacing)
    scaled = (slope, intercept) != (1.0, 0.0)
    return VolumeFacts(
        kind="volume",
        file=case.path,
        format=case.format,
        files=list(source.files),
        shape=list(grid.shape),
        spacing=spacing,
        unit=grid.unit,
        orientation=place.get("orientation"),
        affine=place.get("affine"),
        dtype=str(source.dtype),
        slope=slope,
        intercept=intercept,
        values=None,
        needs=VolumeNeeds(
            channels=channels,
            layout="NCDHW",
            spacing=spacing and [float(f"{size * METRES[grid.unit] / METRES['mm']:.4g}") for size in spacing],
            orientation=place.get("orientation"),
            pixel="physical" if scaled else "stored",
        ),
        fit=None,
        notes=[],
        error=None,
    )


def _fit(case: Case, settings: Settings, spec: ModelSpec, errors: list[str]) -> tuple[VolumeFit | None, list[str]]:
    """How a model fits a volume, and the notes of a run; errors of a run are added to ``errors``."""
    fit: VolumeFit | None = None
    notes: list[str] = []
    with noting(errors, case.path):
        source, info = open_checked(case, spec, settings.overrides)
        with closing(source):
            fit, notes = _fitted(case, info, spec, settings), list(info.notes)
            found = findings_of(source, spec.contract)
        notes += [finding.text for finding in found if not finding.far]
        refuse_far(case, found, allow=False)
    return fit, notes


def _fitted(case: Case, info: CaseInfo, spec: ModelSpec, settings: Settings) -> VolumeFit:
    contract, cover = spec.contract, info.cover
    plan = Plan(workers=1, calls=processors(), small=(as_planned(case, info),))
    factor = METRES[contract.spacing_unit] / METRES["mm"]
    return VolumeFit(
        model=spec.title,
        contract_origin=spec.contract_origin,
        orientation=info.grid.as_json().get("orientation"),
        wanted_spacing=contract.spacing and [size * factor for size in contract.spacing],
        resampled=info.resampled,
        shape=list(cover.shape),
        tile=list(cover.tiling.input),
        grid=list(cover.counts),
        windows=len(cover),
        memory_mb=round(memory_mb(plan, Run(spec, settings)), 1),
    )


def values_of(source: Source, slope: float, intercept: float) -> VoxelValues:
    """Range, mean and deviation of the valid voxels, of all channels together, plane by plane.

    Raises:
        SourceError: the voxels cannot be read.
    """
    count, seen, read = 0, 0, 0
    lowest, highest, total, squares, about = math.inf, -math.inf, 0.0, 0.0, 0.0
    for box in _boxes(source.grid.shape):
        pixels, invalid = source.read(box)
        chosen = pixels if invalid is None else pixels[:, ~invalid]
        valid: NDArray[np.float64] = chosen.astype(np.float64).ravel()
        read += math.prod(box.shape)
        if not valid.size:
            continue
        seen += valid.size // len(pixels)
        about = about if count else float(valid.mean())  # sums of squares around the mean stay accurate
        count += valid.size
        lowest, highest = min(lowest, float(valid.min())), max(highest, float(valid.max()))
        total += float((valid - about).sum())
        squares += float(((valid - about) ** 2).sum())
    if not count:
        return VoxelValues(share=0.0, voxels=read, min=None, max=None, mean=None, std=None)
    ends = (lowest * slope + intercept, highest * slope + intercept)
    deviation = math.sqrt(max(0.0, squares / count - (total / count) ** 2))
    return VoxelValues(
        share=seen / read,
        voxels=read,
        min=min(ends),
        max=max(ends),
        mean=(about + total / count) * slope + intercept,
        std=deviation * abs(slope),
    )


def _boxes(shape: tuple[int, ...]) -> Iterator[Window]:
    """Yield boxes of at most about ``READ_AT_ONCE`` voxels, in whole planes if these are smaller, else in whole rows; for a
    volume of more than ``MOST_READ`` voxels, of equidistant planes, and of equidistant rows in planes that are as large."""
    plane, row = math.prod(shape[1:]), math.prod(shape[2:])
    step = -(-math.prod(shape) // MOST_READ)
    depth = max(1, READ_AT_ONCE // plane) if step == 1 else 1
    rows = shape[1] if plane <= READ_AT_ONCE else max(1, READ_AT_ONCE // row)
    apart = rows * -(-plane // MOST_READ)
    for start in range(0, shape[0], max(step, depth)):
        for low in range(0, shape[1], apart):
            ends = min(start + depth, shape[0]), min(low + rows, shape[1])
            yield Window((start, low, *(0,) * (len(shape) - 2)), (*ends, *shape[2:]))

"""Facts about a raster by GDAL and segpipe, and how a model fits it."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

from pyproj import CRS
from pyproj.exceptions import CRSError
from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader

from segpipe.contract import any_contract
from segpipe.errors import InputError, SourceError
from segpipe.formats.case import Case
from segpipe.formats.cases import find_cases
from segpipe.formats.raster.confine import confined
from segpipe.formats.raster.dataset_files import files_of, own_files
from segpipe.formats.raster.gdal import gdal_errors, open_raster, stays_here
from segpipe.formats.raster.kinds import explained
from segpipe.formats.raster.sidecars import check_opened
from segpipe.formats.scenes.reading import product_of
from segpipe.formats.scenes.search import name_of, scene_at
from segpipe.formats.scenes.source import SceneSource
from segpipe.formats.scope import bounds_of
from segpipe.geometry.raster_grid import RasterGrid, crs_notes, location_of, read_grid
from segpipe.inspect.checks import noting, spec_of
from segpipe.inspect.facts import BandFacts, Fit, Needs, RasterFacts
from segpipe.inspect.fit import fit_of
from segpipe.inspect.pixels import source_of, valid_share
from segpipe.jobs.prepare import area_of
from segpipe.messages.printable import first_few
from segpipe.network.read import read_spec
from segpipe.pipeline.findings import findings_of, refuse_far
from segpipe.pipeline.opening import open_checked
from segpipe.results.run import Run
from segpipe.settings import Settings
from segpipe.storage.paths import is_remote


def inspect_raster(file: str, settings: Settings, *, alone: bool) -> RasterFacts:
    """Gather the facts of a raster and, unless it is alone, how the models of the settings fit it.

    Raises:
        SourceError, ModelError: the raster cannot be opened; the model is not an ONNX file.
    """
    remote = settings.allow_remote_sources
    with explained(file), gdal_errors(SourceError, f"{file} cannot be opened"):
        dataset = open_raster(file, remote=remote)
    with closing(dataset), confined(stays_here(file, remote=remote)):
        if not is_remote(file) and dataset.driver != "VRT":
            with gdal_errors(SourceError, f"{file} cannot be opened"):
                check_opened(file, dataset, files_of(dataset), lambda: open_raster(file))
        return _inspected(Case(Path(file).stem, file), dataset, own_files(dataset), settings, alone=alone)


def inspect_scene(path: str, settings: Settings, *, alone: bool) -> RasterFacts:
    """As ``inspect_raster``, for a folder or an archive that holds a scene of many files: its bands on the finest grid.

    Raises:
        SourceError, ModelError: the product is damaged or incomplete; the model is not an ONNX file.
    """
    case = scene_at(name_of(path), path)
    bands = product_of(case).bands
    with closing(SceneSource(case, any_contract(len(bands)), replace(settings.overrides, bands=None))) as source:
        return _inspected(case, source.dataset, [path, *source.files], settings, alone=alone)


def inspect_grouped(inputs: str, settings: Settings) -> RasterFacts:
    """As ``inspect_raster``, for the files that ``--bands-from`` groups into one case: the bands of the model's channels.

    Raises:
        InputError: they are no case, or several.
        SettingsError, SourceError, ContractError, ModelError: the files, or the model, cannot be opened.
    """
    spec = read_spec(settings)
    cases = find_cases((inputs,), Run(spec, settings).choice)
    if len(cases) != 1:
        few = first_few(case.name for case in cases)
        raise InputError(
            f"inspect takes one case, and --bands-from makes {len(cases)} of {inputs}, {few}: "
            "name the files of one by a glob, such as 'scenes/a_*'"
        )
    with closing(SceneSource(cases[0], spec.contract, settings.overrides)) as source:
        return _inspected(cases[0], source.dataset, list(source.files), settings, alone=False)


def _inspected(case: Case, dataset: DatasetReader, files: list[str], settings: Settings, *, alone: bool) -> RasterFacts:
    errors: list[str] = []
    with gdal_errors(SourceError, f"{case.path} cannot be read"):  # first: rasterio raises errors of pixels again later
        seen = replace(_raster_facts(dataset, read_grid(dataset, settings.crs)), file=case.path, files=files)
        place_notes = _place_notes(dataset, settings.crs)
    spec = None if alone else spec_of(settings, errors)  # before pixels are read: see ModelSpec.network_mb
    area, warnings = area_of(settings)
    overrides = replace(settings.overrides, aoi=area)
    if area is not None:
        with noting(errors, case.path):
            bounds_of(area, read_grid(dataset, settings.crs), case)
    fit, notes = (None, place_notes) if spec is None else _fit(case, Run(spec, settings, area), errors)
    contract = spec.contract if spec and fit else any_contract(len(settings.bands or ()) or seen.needs.channels)
    valid = None
    if spec is None:
        with noting(errors, case.path), closing(source_of(case, contract, settings.overrides)) as source:
            notes = list(dict.fromkeys([*notes, *source.notes]))
    with noting(errors, case.path):
        valid = valid_share(case, dataset, contract, overrides)
    return replace(seen, valid=valid, fit=fit, notes=[*notes, *warnings], error=next(iter(errors), None))


def _fit(case: Case, run: Run, errors: list[str]) -> tuple[Fit | None, list[str]]:
    """How a model fits a raster, and the notes of a run; errors are added to ``errors``."""
    fit, notes, spec = None, [], run.model
    with noting(errors, case.path), closing(source_of(case, spec.contract, run.overrides)) as source:
        fit = fit_of(case, source, run)
    with noting(errors, case.path):
        opened, info = open_checked(case, spec, run.overrides)
        notes = list(info.notes)
        with closing(opened):
            found = findings_of(opened, spec.contract)
        notes += [finding.text for finding in found if not finding.far]
        refuse_far(case, found, allow=False)
    return fit, notes


def colours(dataset: DatasetReader) -> list[int]:
    """Bands that are not alpha, counted from 1."""
    return [i for i, c in enumerate(dataset.colorinterp, 1) if c is not ColorInterp.alpha]


def _raster_facts(dataset: DatasetReader, grid: RasterGrid) -> RasterFacts:
    """Facts from the header; those that need pixels or a model are filled in later."""
    size = _pixel_size(grid)
    return RasterFacts(
        kind="raster",
        file=dataset.name,
        driver=dataset.driver,
        files=own_files(dataset),
        shape=list(dataset.shape),
        compression=dataset.compression and dataset.compression.value,
        overviews=list(dataset.overviews(1)) if dataset.count else [],
        crs=str(grid) if grid.crs else None,
        crs_name=_crs_name(grid),
        transform=None if grid.transform is None else list(grid.transform)[:6],
        control_points=len(grid.gcps),
        rpcs=grid.rpcs is not None,
        pixel_size=size,
        bands=[_band(dataset, index) for index in dataset.indexes],
        subdatasets=list(dataset.subdatasets),
        needs=_needs(dataset, size),
        valid=None,
        fit=None,
        notes=[],
        error=None,
    )


def _place_notes(dataset: DatasetReader, crs: str | None) -> list[str]:
    grid = read_grid(dataset, crs)
    return [*crs_notes(dataset, grid, crs), *location_of(grid).notes]


def _pixel_size(grid: RasterGrid) -> list[float] | None:
    size = grid.spacing
    return None if size is None else list(size)


def _crs_name(grid: RasterGrid) -> str | None:
    try:
        return None if grid.crs is None else str(CRS.from_user_input(grid.crs).name)
    except CRSError:
        return None


def _band(dataset: DatasetReader, index: int) -> BandFacts:
    i = index - 1
    return BandFacts(
        index=index,
        dtype=dataset.dtypes[i],
        description=dataset.descriptions[i] or None,
        color=dataset.colorinterp[i].name,
        nodata=dataset.nodatavals[i],
        mask=[flag.name for flag in dataset.mask_flag_enums[i]],
        scale=dataset.scales[i],
        offset=dataset.offsets[i],
        block=list(dataset.block_shapes[i]),
    )


def _needs(dataset: DatasetReader, size: list[float] | None) -> Needs:
    bands = colours(dataset)
    names = [name for band in bands if (name := dataset.descriptions[band - 1])]
    spacing = None if size is None else [float(f"{metres:.3g}") for metres in size]
    return Needs(len(bands), names if bands and len(names) == len(bands) else None, spacing)

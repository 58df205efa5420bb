"""Check and plan a run; nothing is inferred or written."""

import logging
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from segpipe.errors import InputError, OutputError, SettingsError
from segpipe.formats.case import Case
from segpipe.formats.cases import Found, find_input
from segpipe.formats.redaction import names_of
from segpipe.formats.registry import FORMATS, by_suffix, split_suffix
from segpipe.formats.search import searched_root
from segpipe.jobs.cluster import cluster_workers
from segpipe.jobs.orders import LoadAhead
from segpipe.jobs.plan import Plan
from segpipe.jobs.planning import make_plan
from segpipe.jobs.redaction import hide_plan
from segpipe.jobs.trace import check_trace
from segpipe.jobs.worker_pool import WorkerPool
from segpipe.jobs.worker_process import tell_spare
from segpipe.messages.printable import printable
from segpipe.messages.redaction import redact_also, without_names
from segpipe.messages.url_secrets import is_redacted
from segpipe.network.joined_spec import spec_of_run
from segpipe.network.spec import ModelSpec
from segpipe.pipeline.agreement import compare_engine
from segpipe.pipeline.memory import most_memory, refuse_large_tile
from segpipe.pipeline.model_check import try_out
from segpipe.process.environment import clean_environment
from segpipe.process.machine import processors
from segpipe.results.name_conflicts import storable, without_reserved
from segpipe.results.run import Run
from segpipe.results.zones.polygons import Zones
from segpipe.results.zones.stage import ZonesTask, check_place, read_and_check
from segpipe.settings import Settings
from segpipe.storage import Store
from segpipe.storage.ownership import AUDIT_WINDOWS, LESIONS, TABLES, refuse_foreign
from segpipe.storage.retry import persistently
from segpipe.timing.spans import begin, span
from segpipe.vectors.area import Area, read_area
from segpipe.vectors.file import Selection

LOG = logging.getLogger("segpipe")


@dataclass(frozen=True)
class Prepared:
    """A run that has passed every check that needs no inference."""

    run: Run
    cases: Sequence[Case]
    plan: Plan
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Number of input files that were not taken, by suffix."""
    problems: Sequence[str] = ()
    """Folders of the input that could not be read."""
    command: Sequence[str] = field(default_factory=lambda: ["segpipe", *sys.argv[1:]])
    """Words of the command that continues the run."""
    zones: Zones | None = None
    """Polygons in which classes are summed up."""
    spent: float = 0.0
    """Seconds that the runs of the models of a list took before this one."""


def prepare(
    settings: Settings, *, open_all: bool = False, age: float = 0.0, only: Collection[str] | None = None
) -> Prepared:
    """Check settings, model, contract, inputs and output, and plan; nothing is inferred or written.

    Storage faults are retried.

    Args:
        settings: settings of the run.
        open_all: open every case, however many there are.
        age: seconds since the start of a process that serves this run alone; included in the profile.
        only: names of the cases to take; None: all.

    Raises:
        SegpipeError: the run cannot start; a bad case is a failure in the plan instead.
    """
    clean_environment()
    begin(bool(settings.profile), age)
    with span("model"):
        spec = persistently(partial(spec_of_run, settings), settings.retries)
        model = spec if spec.listed else _tried(spec, settings)
    with span("plan"):
        pool = cluster_workers(settings)
        if pool is not None and pool.memory is not None and settings.memory is None:
            settings = settings.model_copy(update={"memory": pool.memory / 1e9})
        return persistently(partial(_planned, model, settings, pool, open_all=open_all, only=only), settings.retries)


def _planned(
    model: ModelSpec, settings: Settings, pool: WorkerPool | None, *, open_all: bool, only: Collection[str] | None
) -> Prepared:
    area, warnings = area_of(settings)
    for text in warnings:
        LOG.warning("%s", printable(text))
    run = Run(model, settings, area)
    taken = _taken(run, only)
    _check_output(run, taken.cases)
    _check_label_map(run, taken.cases)
    zones = _zones(run, taken.cases)
    _warn_of_report(run, taken.cases)
    plan = make_plan(taken.cases, run, processors(), pool, open_all=open_all)
    plan = hide_plan(replace(plan, failed=(*taken.refused, *plan.failed)))
    if len(plan) and not model.listed:
        run = replace(run, model=compare_engine(model, taken.cases, settings.overrides))
    return Prepared(run, taken.all, plan, taken.left_out, [*map(without_names, taken.problems)], zones=zones)


def _taken(run: Run, only: Collection[str] | None) -> Found:
    """The cases of a run; of those with the names in ``only``, unless it is None.

    Raises:
        InputError: an input does not exist, contains no case, or is a URL without its token.
    """
    for cut in filter(is_redacted, run.settings.input):
        raise InputError(f"a URL must be whole, and its token was cut from {cut}: give it with tonight's")
    found = find_input(run.settings.input, run.choice)
    if run.settings.case_name != "path":
        redact_also(names_of(found.all, run.settings.input))
    found = without_reserved(storable(found, run.output), run)
    return found if only is None else found.named(only)


def _tried(spec: ModelSpec, settings: Settings) -> ModelSpec:
    """A model after its trial.

    Raises:
        ModelError, DeviceError: it does not fit into memory, or does not run.
    """
    refuse_large_tile(spec, most_memory(settings))
    tell_spare(LoadAhead(spec))
    return try_out(spec, keep=True)


def area_of(settings: Settings) -> tuple[Area | None, list[str]]:
    """The area of interest, None if there is none, and a warning for each kind of problem of its polygons.

    Raises:
        ZonesError: the file of polygons cannot be used.
    """
    if settings.aoi is None:
        return None, []
    area, warnings = read_area(Selection(settings.aoi, settings.aoi_layer, flag="--aoi"))
    return area, [f"{area.path}: {text}" for text in warnings]


def _check_label_map(run: Run, cases: Sequence[Case]) -> None:
    """Refuse label maps of overlapping classes before inference begins.

    Raises:
        SettingsError: a series has classes that do not exclude each other, and its SEG would be a label map.
    """
    several = run.model.contract.task == "multilabel"
    if several and run.settings.seg == "labelmap" and any(FORMATS[case.format].derives for case in cases):
        raise SettingsError(
            'a SEG of the type LABELMAP has one class per voxel, and the contract says task = "multilabel": '
            "leave out --seg labelmap"
        )


def _warn_of_report(run: Run, cases: Sequence[Case]) -> None:
    """Warn if a report is requested and no case can have one."""
    if run.settings.report is not None and cases and not any(FORMATS[case.format].derives for case in cases):
        LOG.warning(
            "warning: --report %s writes nothing here: it is for DICOM series, and no case is one", run.settings.report
        )


def _zones(run: Run, cases: Sequence[Case]) -> Zones | None:
    """The polygons of ``--zones``, checked against the output and the first cases."""
    if (task := ZonesTask.of(run.settings)) is None:
        return None
    zones = read_and_check(task, run.output)
    check_place(zones, cases, run.model.contract, run.overrides)
    return zones


def _check_output(run: Run, cases: Sequence[Case]) -> None:
    """Check that the output is writable, and that it holds nothing that the run would replace but does not own."""
    output = run.output
    _check_place(output, run.settings.input, cases)
    output.check()
    tables = [
        *TABLES,
        *([LESIONS] if run.lesions is not None else []),
        *([AUDIT_WINDOWS] if run.settings.audit is not None else []),
    ]
    for name in tables:
        refuse_foreign(output, name)
    check_trace(run, cases)


def _check_place(output: Store, inputs: Sequence[str], cases: Sequence[Case]) -> None:
    """Check that no later run takes the output for input, and that no mask replaces an input."""
    for text in inputs:
        root = searched_root(text)
        if root is not None and output.is_inside(root):
            raise OutputError(
                f"the output must not lie inside the input, where the next run would take masks for scenes, "
                f"got {output} in {text}: name another folder with --output"
            )
    known = by_suffix()
    taken = output.beside(((case.path, case.name) for case in cases), lambda path: split_suffix(path, known)[0])
    if taken is not None:
        raise OutputError(f"the mask of {taken} would lie on or beside it: name another folder with --output")

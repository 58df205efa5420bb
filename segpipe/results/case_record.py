"""What the record of a case says, put together when its files are complete."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from segpipe import __version__
from segpipe.formats.case import Case
from segpipe.formats.identity import hidden, hidden_path
from segpipe.formats.registry import FORMATS
from segpipe.formats.scope import lines_of
from segpipe.formats.source import Scene
from segpipe.messages.redaction import without_names
from segpipe.network.spec import ModelSpec
from segpipe.pipeline.decision import Decision
from segpipe.pipeline.opening import CaseInfo
from segpipe.results.areas import amount_inside
from segpipe.results.case_statistics import CaseStatistics
from segpipe.results.device_kind import device_facts
from segpipe.results.lesions.components import MOST_LISTED
from segpipe.results.lesions.statistic import Lesions
from segpipe.results.run import Run
from segpipe.results.schema import Amount, Record, RecordedInput, RecordedModel, Values, brief
from segpipe.results.statistics import Row


@dataclass(frozen=True)
class WrittenFiles:
    """The files of a case, and how they came about."""

    outputs: Sequence[str]
    """Names of all files but the record."""
    sizes: Mapping[str, int | None]
    """Bytes of the masks, and of the files made of them, such as a SEG."""
    tables: Mapping[str, list[Row]]
    """Rows of each statistic, by its name."""
    inferred: int
    """Number of windows with a valid pixel; if the case was cut, some count twice."""
    seconds: float
    """Time of all jobs of the case."""
    batches: Collection[int]
    """Batch sizes of its parts; empty if it was not cut."""


def record_of(case: Case, info: CaseInfo, run: Run, statistics: CaseStatistics, made: WrittenFiles) -> Record:
    """The record of a case whose files are complete."""
    pixels, area = statistics.areas.valid()
    measure, lesions = info.grid.measure, statistics.lesions
    notes = (*info.notes, *info.warnings, *(() if pixels else ("no pixel is valid",)), *_not_listed(lesions))
    uids = FORMATS[case.format].uids
    return Record(
        case=case.name,
        segpipe=__version__,
        input=_input(case, info, run),
        model=recorded(run.model),
        settings=run.settings_of(case),
        confidence=run.settings.confidence,
        outputs=tuple(made.outputs),
        valid=Amount(pixels, area, measure.unit if measure else "px"),
        statistics=dict(made.tables),
        verified=run.settings.verify_input,
        device=_device(run, made.batches),
        windows=len(info.cover),
        inferred=made.inferred,
        seconds=round(made.seconds, 3),
        sizes=dict(made.sizes),
        nodata=Decision(run.model.contract, run.model.blend_on).nodata,
        notes=tuple(map(without_names, notes)),
        lesions=None if lesions is None else {**lesions.rule.as_json(), "counts": lesions.counts()},
        uids=None if uids is None else uids(info.template, run.output, made.outputs),
        time=None if uids is None else datetime.now(UTC).isoformat(timespec="seconds"),
        aoi=_aoi(case, info, run),
    )


def recorded(model: ModelSpec) -> RecordedModel:
    """The model, or the models, in the form of a record."""
    each = [{"path": str(one.path), "sha256": one.sha256, "contract": one.contract_origin} for one in model.members]
    return RecordedModel(model.sha256, str(model.path), model.contract_origin, each if model.folds or model.listed else None)


def shown_scene(info: CaseInfo, run: Run) -> Scene:
    """Metadata of the input for its mask and its record; none if names are hidden, since any may name a patient."""
    return info.scene if run.settings.case_name == "path" else {}


def _input(case: Case, info: CaseInfo, run: Run) -> RecordedInput:
    files, place = info.files, info.place
    if run.settings.case_name != "path":
        files, place = [hidden(file) for file in files], hidden_path(place)
    return RecordedInput(
        place,
        info.grid.shape,
        tuple(files),
        format=case.format,
        grid=info.grid.as_json(),
        scene=brief(shown_scene(info, run)),
    )


def _device(run: Run, batches: Collection[int]) -> Values:
    """``device_facts``; if parts were inferred with different batch sizes, ``batch`` lists all of them."""
    kind, several = device_facts(run.model), sorted(batches)
    return kind | {"batch": several if len(several) > 1 else several[0]} if several and "batch" in kind else kind


def _aoi(case: Case, info: CaseInfo, run: Run) -> Values | None:
    """The area of interest, and how much of the case lies inside."""
    if run.aoi is None:
        return None
    amount = amount_inside(info.grid, lines_of(run.aoi, info.grid, case))
    return {"path": run.aoi.path, "sha256": run.aoi.digest, **asdict(amount)}


def _not_listed(lesions: Lesions | None) -> list[str]:
    """A note if the table of components is too long."""
    more = 0 if lesions is None else sum(row["not_listed"] for row in lesions.counts())
    most = f"the {MOST_LISTED:,} largest components"
    return [f"lesions.csv lists {most}, and {more:,} more are only counted: raise --min-size"] if more else []

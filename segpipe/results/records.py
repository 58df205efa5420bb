"""The model and settings of a run, and which cases are done by the records in its output."""

import errno
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from segpipe.cleaning.rule import Cleaning
from segpipe.errors import OutputError, SourceError, of_system
from segpipe.formats.banded import bands_from
from segpipe.formats.case import Case, CaseSelection
from segpipe.formats.channels import channels_of
from segpipe.formats.identity import FolderListings, Identity, hidden_path
from segpipe.formats.registry import FORMATS
from segpipe.formats.scene_masks import without_mask
from segpipe.formats.sink import Derived
from segpipe.messages.names import folded
from segpipe.messages.url_secrets import cleaned
from segpipe.network.spec import ModelSpec
from segpipe.overrides import Overrides
from segpipe.results.class_files import has_class_files, is_class_file
from segpipe.results.lesion_rule import LesionRule, rule_of
from segpipe.results.schema import LaterSchemaError, Record, RecordedModel, Values, parse_record
from segpipe.results.targets import past_targets, record_name, style_name
from segpipe.settings import Settings
from segpipe.storage import Store
from segpipe.storage.documents import DocumentError
from segpipe.storage.files import reading_errors
from segpipe.storage.ownership import is_own_record
from segpipe.storage.paths import is_remote
from segpipe.storage.places import store_at
from segpipe.storage.retry import is_passing, persistently
from segpipe.vectors.area import Area

LOG = logging.getLogger("segpipe")


SEG = "binary"
"""``seg`` of records that do not say."""

RETRIES = 1
"""Retries of the question whether a case is done; all cases would wait for more where a file server is down."""

AREA_COLUMNS = ("case", "class_id", "class_name", "pixels", "area", "unit", "share")


@dataclass(frozen=True, slots=True)
class Run:
    """The model, settings and output folder of a run; picklable, and everything that a worker needs."""

    model: ModelSpec
    settings: Settings
    aoi: Area | None = None
    """The area of interest, which every process of the run knows."""

    @property
    def overrides(self) -> Overrides:
        """The user's statements about the input files, and which of their pixels count."""
        return replace(self.settings.overrides, aoi=self.aoi)

    @property
    def output(self) -> Store:
        """The store of masks, records and tables."""
        return store_at(self.settings.output)

    @property
    def choice(self) -> CaseSelection:
        """The rules of the settings and the model that select and name the cases of the input."""
        channels = channels_of(self.model.contract, self.settings.channels)
        bands = bands_from(self.settings.bands_from, self.model.contract)
        return CaseSelection(
            self.settings.series, self.settings.case_name, channels, bands, self.settings.overrides.validity
        )

    @property
    def styled(self) -> bool:
        """Whether styles are requested and masks have one band, which a style needs."""
        contract = self.model.contract
        return self.settings.style is not None and (contract.task != "multilabel" or len(contract.classes) == 1)

    def styles(self, case: Case) -> bool:
        """Whether a style is written beside the mask of a case."""
        return self.styled and FORMATS[case.format].style is not None

    @property
    def lesions(self) -> LesionRule | None:
        """Rule of the measured components; None if none are measured."""
        return rule_of(self.settings, self.model.contract)

    @property
    def cleaning(self) -> Cleaning | None:
        """How labels are cleaned before they are counted; None if they stay as they are."""
        return Cleaning.of(self.settings.majority, self.settings.sieve)

    @property
    def derived(self) -> Derived:
        """Files to derive from each mask, for formats that have them."""
        names = ", ".join(one.path.name for one in self.model.members)
        return Derived(self.settings.seg, self.settings.report is not None, names)

    @property
    def label_settings(self) -> Values:
        """The settings that change labels."""
        bands = self.settings.bands
        # records of versions without them still count as done
        later: Values = {"resample": True} if self.settings.resample else {}
        if self.settings.channels is not None:
            order = {name: k for k, name in enumerate(self.model.contract.channel_names or ())}
            each = sorted(self.settings.channels, key=lambda one: order.get(one[0], 0))  # as the flag orders them otherwise
            later |= {"channels": [list(one) for one in each]}
        if self.settings.bands_from is not None:
            later |= {"bands_from": self.settings.bands_from}
        if self.settings.band_resampling != "bilinear":
            later |= {"band_resampling": self.settings.band_resampling}
        if self.settings.tta != "none":
            later |= {"tta": self.settings.tta} | _flips(self.model)
        if self.settings.like is not None:
            later |= {"like": self.settings.like}
        if (cleaning := self.cleaning) is not None:
            later |= cleaning.as_json()
        if (validity := self.settings.overrides.validity) is not None:
            later |= {"validity": str(validity)}
        if self.aoi is not None:
            # masks of versions in which the network did not see what lies outside have other labels
            later |= {"aoi": self.aoi.digest, "aoi_sees_outside": True}
        return {
            **_network_settings(self.model),
            "bands": None if bands is None else list(bands),
            "nodata": self.settings.nodata,
            "ignore_alpha": self.settings.ignore_alpha,
            "crs": self.settings.crs,
            **later,
        }

    def settings_of(self, case: Case) -> Values:
        """The settings that change labels, or the files that the case's format makes of them."""
        settings, later = self.settings, dict[str, object]()
        if FORMATS[case.format].derives:
            later |= {"seg": settings.seg} if settings.seg != SEG else {}
            later |= {"report": True} if settings.report is not None else {}
        return self.label_settings | later


def _network_settings(model: ModelSpec) -> Values:
    """The settings that change the scores of a network, or of each network of a list."""
    if model.listed:
        return {"models": {one.name: _network_settings(one.spec) for one in model.listed}}
    return {
        "tile": list(model.tiling.input),
        "overlap": list(model.tiling.overlap),
        "align": list(model.tiling.align),
        "blend": model.tiling.blend,
        "blend_on": model.blend_on,
    }


def _flips(model: ModelSpec) -> Values:
    """The axes that flips reverse; those of a list are in the contracts of its models, and so in its hash."""
    return {} if model.listed else {"flips": list(model.contract.flip_axes)}


def recorded(model: ModelSpec) -> RecordedModel:
    """The model, or the models, in the form of a record."""
    each = [{"path": str(one.path), "sha256": one.sha256, "contract": one.contract_origin} for one in model.members]
    return RecordedModel(model.sha256, str(model.path), model.contract_origin, each if model.folds or model.listed else None)


def read_record(output: Store, case: Case) -> Record | None:
    """The record of a case; None if it is missing or damaged.

    Raises:
        OutputError: it may be there, and cannot be read now.
    """
    data = _data(output, case)
    return None if data is None else _parsed(data, case)


def finished_record(output: Store, case: Case) -> Record:
    """The record of a case that is done.

    Raises:
        OutputError: it is missing or damaged, or cannot be read now.
    """
    data = _data(output, case)
    record = None if data is None else _parsed(data, case)
    if record is None:
        path, defect = output.path(record_name(case)), "is missing" if data is None else _defect(data)
        # a file server shows what another machine has written when its cache expires: at the end of a run, this may pass
        cause = OSError(errno.ESTALE, os.strerror(errno.ESTALE)) if data is None else None
        raise OutputError(
            f"{path} must be the record of a case that is done, and {defect}: run again with the same output"
        ) from cause
    return record


def alike_case(output: Store, case: Case) -> str | None:
    """The case whose record is found under the name of this one's: a file system may take ``A`` and ``a`` for one name.

    Raises:
        OutputError: the record may be there, and cannot be read now.
    """
    data = None if is_remote(output.path(record_name(case))) else _data(output, case)
    try:
        name = case.name if data is None else parse_record(data).case
    except DocumentError:
        return None
    return name if name != case.name and folded(name) == folded(case.name) else None


def _data(output: Store, case: Case) -> bytes | None:
    """The bytes of the record; None if it is missing."""
    name = record_name(case)
    with reading_errors(output.path(name)):
        return output.read_if_there(name)


def _parsed(data: bytes, case: Case) -> Record | None:
    """The record in ``data``; None unless it is a complete record of this case that names only the case's outputs."""
    try:
        record = parse_record(data)
    except DocumentError:
        return None
    return record if record.case == case.name and _names_own_files(record, case) else None


def _names_own_files(record: Record, case: Case) -> bool:
    others = {name for name in record.outputs if not is_class_file(case, name)}
    return others <= {*past_targets(case)} and record.thumbnail in (None, *record.outputs)


def _read_or_warn(output: Store, case: Case, warn: Callable[[str], None]) -> Record | None:
    """The record of a case; None, with a warning, if it cannot be used."""
    try:
        data = _data(output, case)
    except OutputError as error:
        warn(f"warning: {error}: its case is done again")
        return None
    record = None if data is None else _parsed(data, case)
    if data is not None and record is None and is_own_record(data):
        warn(f"warning: {output.path(record_name(case))} {_defect(data)}: its case is done again")
    return record


def _defect(data: bytes) -> str:
    """Why a record cannot be used."""
    try:
        parse_record(data)
    except LaterSchemaError as error:
        return str(error)
    except DocumentError:
        pass
    return "is damaged"


def is_done(
    case: Case, run: Run, listings: FolderListings | None = None, warn: Callable[[str], None] = lambda _: None
) -> bool:
    """Whether the mask of a case exists and its record matches input, model and settings; False if that is unknown.

    Args:
        case: the case.
        run: the run with the model and the settings.
        listings: recent listings of folders, shared between cases.
        warn: called with a line for each mask or record that is damaged, or cannot be read at present.
    """
    return _done_record(case, run, listings or FolderListings(), warn) is not None


def done_pixels(case: Case, run: Run, listings: FolderListings | None = None) -> int | None:
    """Number of pixels of a case that is done; None if it is not done, or that is unknown."""
    record = _done_record(case, run, listings or FolderListings(), lambda _: None)
    return None if record is None else math.prod(record.input.shape)


def done_cases(cases: Iterable[Case], run: Run) -> list[Case]:
    """The cases that are done; a warning names each damaged mask or record.

    In a bucket, each check for a record is a request, so folders of the output without any record are skipped.
    """
    output, listings = run.output, FolderListings()

    @cache
    def has_records(folder: str) -> bool:
        try:
            return any(name.endswith(".json") for name in output.below(folder))
        except OSError:
            return True  # the next request may succeed

    there = (case for case in cases if has_records(case.name.rpartition("/")[0]))
    return [case for case in there if is_done(case, run, listings, LOG.warning)]


def _done_record(case: Case, run: Run, listings: FolderListings, warn: Callable[[str], None]) -> Record | None:
    """The record of a case that is done; None if it is not, or that stays unknown, with a warning after a fault."""
    try:
        return persistently(lambda: _done_record_now(case, run, listings, warn), RETRIES)
    except (OSError, SourceError) as error:
        if isinstance(error, OSError):
            warn(f"warning: {error.filename or case.path} cannot be read: {of_system(error)}: its case is done again")
        elif is_passing(error):
            warn(f"warning: {error}: its case is done again")
        return None


def _done_record_now(case: Case, run: Run, listings: FolderListings, warn: Callable[[str], None]) -> Record | None:
    record = _read_or_warn(run.output, case, warn)
    return record if record is not None and _is_done(record, case, run, listings, warn) else None


def _is_done(record: Record, case: Case, run: Run, listings: FolderListings, warn: Callable[[str], None]) -> bool:
    return (
        record.model.sha256 == run.model.sha256
        and _has_settings(record, case, run)
        and (record.confidence or not run.settings.confidence)
        and _has_lesions(record, run)
        and _has_audit(record, run)
        and (record.verified is True or not run.settings.verify_input)
        and (style_name(case) in record.outputs or not run.styles(case))
        and (not run.settings.per_class or has_class_files(case.name, record.outputs))
        and _is_same_input(record, case, listings, run.settings.overrides)
        and _are_whole(run.output, record, warn)
    )


def _has_settings(record: Record, case: Case, run: Run) -> bool:
    """Whether labels and what is made of them are as a run asks for; a report that it does not ask for may be there."""
    settings = dict(record.settings)
    seg, report = settings.pop("seg", SEG), settings.pop("report", False)
    made = seg == run.settings.seg and (report is True or run.settings.report is None)
    return settings == cleaned(run.label_settings) and (made or not FORMATS[case.format].derives)


def _has_lesions(record: Record, run: Run) -> bool:
    """Whether the components that the run asks for have been measured."""
    rule = run.lesions
    return rule is None or (record.lesions is not None and rule.as_json().items() <= record.lesions.items())


def _has_audit(record: Record, run: Run) -> bool:
    """Whether as many windows as the run asks for are listed, or all that the case has."""
    if run.settings.audit is None:
        return True
    rows = record.statistics.get("audit")
    return rows is not None and (not rows or len(rows) >= min(run.settings.audit, rows[0].get("windows", math.inf)))


def _is_same_input(record: Record, case: Case, listings: FolderListings, overrides: Overrides) -> bool:
    """Whether the files of a case are unchanged since its record was written."""
    there = listings.place(case.path)
    place = there if record.input.path == hidden_path(there) else record.input.path
    files: Sequence[Identity] | None = record.input.files
    if overrides.validity is not None:
        files = without_mask(record.input.files, case, overrides.validity, listings)
    return files is not None and FORMATS[case.format].is_same_input(place, files, case, listings, overrides.remote)


def _are_whole(output: Store, record: Record, warn: Callable[[str], None]) -> bool:
    """Whether all files of a case exist, none is empty, and its masks have the recorded length and do not begin with zeros.

    Other damage is not checked, since every run would then read all masks of a folder. A longer mask was edited, for example
    by adding overviews, and counts as whole.
    """
    lengths = record.sizes or {}
    for name in record.outputs:
        size, least = output.size(name), lengths.get(name)
        if size is None:
            return False
        if (damage := _damage(output, name, size, least)) is not None:
            warn(f"warning: {output.path(name)} is damaged: {damage}: its case is done again")
            return False
    return True


def _damage(output: Store, name: str, size: int, least: int | None) -> str | None:
    """What is wrong with a file of a case; only masks have a length that is known."""
    if least is None:
        return None if size else "it is empty"
    if size < least:
        return f"{size:,} of {least:,} bytes"
    return "it begins with zeros" if output.is_blank(name) else None


def mask_name(record: Record, kind: str = "") -> str | None:
    """Name of the mask of a case, or of its confidence with the kind ``CONFIDENCE``; None if the record lists none."""
    names = (f"{record.case}{kind}{suffix}" for suffix in FORMATS[record.input.format].outputs)
    return next((name for name in names if name in record.outputs), None)


def stored_mask(output: Store, record: Record) -> str:
    """Name of the mask of a case.

    Raises:
        OutputError: it is not there.
    """
    name = mask_name(record)
    if name is None or not output.has(name):
        raise OutputError(f"the mask of {record.case} must be in {output}, and is not: run again with the same output")
    return name


def records(output: Store, cases: Iterable[Case]) -> Iterator[Record]:
    """Records of cases that are done, in order, one at a time.

    Raises:
        OutputError: one is missing or damaged, or cannot be read now.
    """
    return (finished_record(output, case) for case in cases)

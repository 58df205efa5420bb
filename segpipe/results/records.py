"""What a run leaves beside its masks: a record per case and the table of areas; and what they say of work done before."""

import logging
import math
import platform
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnxruntime

from segpipe import __version__
from segpipe.errors import OutputError, SourceError
from segpipe.formats.cases import Case, Failure, Found
from segpipe.formats.identity import Beside
from segpipe.formats.registry import FORMATS, kinds
from segpipe.messages.redact import cleaned
from segpipe.network.device import gpu_facts, told
from segpipe.network.spec import ModelSpec
from segpipe.results.schema import LaterSchemaError, Record, Values, parse_record
from segpipe.settings import Settings
from segpipe.storage import Store
from segpipe.storage.documents import DocumentError
from segpipe.storage.files import output_errors
from segpipe.storage.ownership import is_own_record, is_own_style
from segpipe.storage.places import store_at

LOG = logging.getLogger("segpipe")

STYLE = ".qml"

AREA_COLUMNS = ("case", "class_id", "class_name", "pixels", "area", "unit", "share")


@dataclass(frozen=True, slots=True)
class Run:
    """One model and the settings of a run into one output folder; picklable, and all that a worker needs."""

    model: ModelSpec
    settings: Settings

    @property
    def output(self) -> Store:
        return store_at(self.settings.output)

    @property
    def styled(self) -> bool:
        """Whether a style lies beside each mask: one for a single band, so there is none of independent classes."""
        contract = self.model.contract
        return self.settings.style is not None and (contract.task != "multilabel" or len(contract.classes) == 1)

    @property
    def label_settings(self) -> Values:
        """The settings that change labels."""
        tiling, bands = self.model.tiling, self.settings.bands
        return {
            "tile": list(tiling.tile),
            "overlap": list(tiling.overlap),
            "align": list(tiling.align),
            "blend": tiling.blend,
            "blend_on": self.model.blend_on,
            "bands": None if bands is None else list(bands),
            "nodata": self.settings.nodata,
            "ignore_alpha": self.settings.ignore_alpha,
            "crs": self.settings.crs,
        }


def device_kind(model: ModelSpec) -> Values:
    """What the same bytes are promised for: equal on every machine where all of this is equal."""
    kind = {
        "device": model.device,
        "onnxruntime": str(onnxruntime.__version__),
        "processor": _processor(),
        "precision": model.input_dtype,
    }
    if model.device == "cpu":
        return kind
    # a GPU may take another kernel for another batch
    return kind | {"gpu": gpu_facts(), "options": told(model.options), "batch": model.batch}


@cache
def _processor() -> str:
    """Model and widest vector instructions of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    widest = next((f for f in ("avx512_vnni", "avx512f", "avx2", "avx") if f in flags), platform.machine())
    return f"{facts.get('model name', platform.machine())} {widest}"


def versions() -> Values:
    """Versions of Python, segpipe and the libraries that touch pixels."""
    names = ("onnxruntime-gpu", "onnxruntime", "torch", "onnx", "rasterio", "numpy", "pyproj", "dask", "distributed")
    return {"segpipe": __version__, "python": platform.python_version(), **{n: v for n in names if (v := _version(n))}}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def targets(case: Case) -> list[str]:
    """Every file that a case may write beside its record."""
    return [f"{case.name}{kind}" for kind in (*kinds([FORMATS[case.format]]), STYLE)]


def _past_targets(case: Case) -> list[str]:
    """Every file that a case of this name may have written in an earlier run, of whatever format it was then."""
    return [f"{case.name}{kind}" for kind in (*kinds(list(FORMATS.values())), STYLE)]


def style_name(case: Case) -> str:
    return case.name + STYLE


def record_name(case: Case) -> str:
    return f"{case.name}.json"


def read_record(output: Store, case: Case) -> Record | None:
    """The record of a case, or None where there is none that segpipe wrote."""
    data = _data(output, case)
    return None if data is None else _parsed(data, case)


def _data(output: Store, case: Case) -> bytes | None:
    """Of a record; None where there is none, or where it cannot be read."""
    try:
        return output.read(record_name(case))
    except OSError:
        return None


def _parsed(data: bytes, case: Case) -> Record | None:
    """None where it is not the whole record of this case: a name of its outputs that leads elsewhere is damage, too."""
    try:
        record = parse_record(data)
    except DocumentError:
        return None
    return record if record.case == case.name and _names_own_files(record, case) else None


def _names_own_files(record: Record, case: Case) -> bool:
    return {*record.outputs} <= {*_past_targets(case)} and record.thumbnail in (None, *record.outputs)


def _read_or_warn(output: Store, case: Case, warn: Callable[[str], None]) -> Record | None:
    """The record of a case; a warning names one that cannot be used."""
    data = _data(output, case)
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


def is_done(case: Case, run: Run, beside: Beside | None = None, warn: Callable[[str], None] = lambda _: None) -> bool:
    """Whether a case's mask exists and its record says that input, model and settings were these, as far as can be seen.

    Args:
        case: in question.
        run: that it would be done in.
        beside: what has been seen of folders for other cases a moment ago.
        warn: told of a mask or record that is damaged.
    """
    try:
        return _is_done(case, run, beside or Beside(), warn)
    except (OSError, SourceError):
        return False


def done_cases(cases: Iterable[Case], run: Run) -> list[Case]:
    """Those that are done; a warning names damaged masks and records.

    Where a folder of the output has no record, no case of it is looked for: a request each.
    """
    output, beside = run.output, Beside()

    @cache
    def has_records(folder: str) -> bool:
        try:
            return any(name.endswith(".json") for name in output.below(folder))
        except OSError:
            return True  # it may be only this time that it cannot be listed

    there = (case for case in cases if has_records(case.name.rpartition("/")[0]))
    return [case for case in there if is_done(case, run, beside, LOG.warning)]


def _is_done(case: Case, run: Run, beside: Beside, warn: Callable[[str], None]) -> bool:
    output = run.output
    record = _read_or_warn(output, case, warn)
    return (
        record is not None
        and record.model.sha256 == run.model.sha256
        and record.settings == cleaned(run.label_settings)
        and (record.confidence or not run.settings.confidence)
        and (record.verified is True or not run.settings.verify_input)
        and (style_name(case) in record.outputs or not run.styled)
        and _is_same_input(record, case, beside, remote=run.settings.allow_remote_sources)
        and _are_whole(output, record, warn)
    )


def _is_same_input(record: Record, case: Case, beside: Beside, *, remote: bool) -> bool:
    """Whether what would be read of a case now is what its record says was read then."""
    told = record.input
    return FORMATS[case.format].is_same_input(told.path, told.files, case.path, beside, remote)


def storable(found: Found, output: Store) -> tuple[list[Case], list[Failure]]:
    """Cases of which the output can hold a mask, and all of which there is none, whatever is in them."""
    kept, refused = list[Case](), list(found.refused)
    for case in found.cases:
        try:
            output.check_name(case.name)
            kept.append(case)
        except OutputError as error:
            refused.append(Failure(case, f"{error}: rename {case.path}"))
    return kept, refused


def _are_whole(output: Store, record: Record, warn: Callable[[str], None]) -> bool:
    """Whether all files of a case are there, and its rasters have their length and begin as rasters do.

    What else may have changed in them is not looked for, since that would read all masks of a folder in every run. A longer
    one has been edited, by overviews or statistics, and counts as whole.
    """
    lengths = record.sizes or {}
    for name in record.outputs:
        size, least = output.size(name), lengths.get(name)
        if size is None:
            return False
        if least is not None and (size < least or output.is_blank(name)):
            damage = f"{size:,} of {least:,} bytes" if size < least else "it begins with zeros"
            warn(f"warning: {output.path(name)} is damaged: {damage}: its case is done again")
            return False
    return True


def refuse_taken(case: Case, run: Run, sources: Collection[str]) -> None:
    """A mask must replace neither a source, by its absolute path, nor a file that segpipe did not write.

    Raises:
        OutputError: with the path.
    """
    output = run.output
    for name in (*targets(case), record_name(case)):
        if name == style_name(case) and not run.styled:
            continue  # it may be anybody's, and stays
        with output_errors(output.path(name)):
            there = output.has(name)
        if there and (output.is_among(name, sources) or _foreign(output, name, case)):
            raise OutputError(f"{output.path(name)} is an input or was not written by segpipe: name another --output")


def _foreign(output: Store, name: str, case: Case) -> bool:
    """Whether a file that stands where one of a case belongs is somebody else's."""
    record = read_record(output, case)
    if record is not None and name in (*record.outputs, record_name(case)) and name != style_name(case):
        return False
    with output_errors(output.path(name)):
        if name.endswith(".json"):
            return not is_own_record(output.read(name))
        if name.endswith(".qml"):
            return not is_own_style(output.read(name))
    return not FORMATS[case.format].owns(output, name)


def done_pixels(case: Case, run: Run, beside: Beside | None = None) -> int | None:
    """How many pixels a case has that is done; None where it is not."""
    if not is_done(case, run, beside):
        return None
    record = read_record(run.output, case)
    return None if record is None else math.prod(record.input.shape)


def records(output: Store, cases: Iterable[Case]) -> Iterator[Record]:
    """Records of cases, in order, one at a time."""
    for case in cases:
        record = read_record(output, case)
        if record is not None:
            yield record

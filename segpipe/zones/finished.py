"""Finished cases as zones need them, and what was found in each, which is kept so that no later run does it again."""

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import OutputError
from segpipe.formats.registry import FORMATS, OpenMask
from segpipe.results.schema import Record
from segpipe.storage import Store
from segpipe.zones.case import CaseZones, Classes, NoGroundError, classes_of, ground_of, measured
from segpipe.zones.overlap import Neighbour, extent
from segpipe.zones.polygons import Zones

FOLDER = ".zones"
"""Hidden folder of the output with a file per case."""

FORM = 2
"""Version of these files; files of another version are replaced."""

Float = NDArray[np.float64]
NAMES = tuple(field.name for field in fields(CaseZones))


@dataclass(frozen=True)
class Finished:
    """A case that has a mask."""

    case: str
    format: str
    mask: str | None
    """Name of the mask in the output."""
    size: int
    """Least number of its bytes."""
    shape: tuple[int, ...]
    classes: Classes
    nodata: int | None
    digest: str
    """Hash of the record; it changes whenever the case is processed again."""

    @classmethod
    def of(cls, output: Store, record: Record) -> "Finished":
        """Facts about a case from its record.

        Raises:
            OutputError: the record cannot be read again.
        """
        names = {f"{record.case}{suffix}" for suffix in FORMATS[record.input.format].outputs}
        mask = next((name for name in record.outputs if name in names), None)
        size = (record.sizes or {}).get(mask or "") or 0
        what = (record.case, record.input.format, mask, size, record.input.shape, classes_of(record), record.nodata)
        return cls(*what, _digest(output, record))

    @property
    def kept(self) -> str:
        """Name of the file of results, flat and with a digest: names of cases may be long, and hold folders."""
        return f"{FOLDER}/{hashlib.sha256(self.case.encode(errors='surrogateescape')).hexdigest()[:32]}.npz"


def _digest(output: Store, record: Record) -> str:
    name = f"{record.case}.json"
    try:
        return hashlib.sha256(output.read(name)).hexdigest()
    except OSError as error:
        raise OutputError(f"{output.path(name)} cannot be read: {error.strerror or error}") from error


@dataclass(frozen=True)
class Around:
    """The cases that may share ground with a case."""

    before: Sequence[Finished] = ()
    """Those that come before it in the order of names."""
    after: Sequence[Finished] = ()

    @property
    def digest(self) -> str:
        return "|".join(" ".join(case.digest for case in cases) for cases in (self.before, self.after))


def extent_of(output: Store, case: Finished) -> Float:
    """Where the grid of a case lies (``overlap.extent``): as an earlier run has found, or from its mask.

    Raises:
        NoGroundError: nowhere on the Earth.
        OutputError: the mask cannot be read.
    """
    kept = _load(output, case)
    if "extent" in kept:
        return np.asarray(kept["extent"], np.float64)
    with opened(output, case) as mask:
        return extent(ground_of(mask.grid), mask.grid.shape)


def zones_of_case(output: Store, case: Finished, zones: Zones, around: Around) -> CaseZones:
    """Sizes in the zones over a finished case: read from an earlier run, or measured.

    Raises:
        NoGroundError: the case has no position on the Earth.
        OutputError: a mask cannot be read, or holds labels that are no class.
    """
    key = hashlib.sha256(f"{zones.digest} {around.digest}".encode()).hexdigest()
    kept = _load(output, case)
    if str(kept.get("key")) == key and {*NAMES} <= {*kept}:
        return CaseZones(**{name: kept[name] for name in NAMES})
    with ExitStack() as stack:
        mask = stack.enter_context(opened(output, case))
        place = extent(ground_of(mask.grid), mask.grid.shape)
        found = _measured(output, case, mask, zones, around)
    values = {"key": np.array(key), "extent": place, **{name: getattr(found, name) for name in NAMES}}
    _keep(output, case, values)
    return found


def _measured(output: Store, case: Finished, mask: OpenMask, zones: Zones, around: Around) -> CaseZones:
    from segpipe.zones.coverage import ForeignLabelError

    with ExitStack() as stack:

        def neighbours() -> list[Neighbour]:
            each = [(True, other) for other in around.before] + [(False, other) for other in around.after]
            return [_neighbour(stack.enter_context(opened(output, other)), other, earlier) for earlier, other in each]

        try:
            return measured(mask, case.classes, case.nodata, zones, neighbours)
        except ForeignLabelError as error:
            path = output.path(case.mask or case.case)
            raise OutputError(
                f"{path} must hold the labels of its classes, got {error}: run again with --overwrite"
            ) from None


def _neighbour(mask: OpenMask, case: Finished, earlier: bool) -> Neighbour:
    return Neighbour(mask, ground_of(mask.grid), case.nodata, earlier)


@contextmanager
def opened(output: Store, case: Finished) -> Iterator[OpenMask]:
    """Open the mask of a case after a quick check against its record.

    Raises:
        NoGroundError: the case is a volume.
        OutputError: it is missing, damaged, or not that of the record.
    """
    family = FORMATS[case.format]
    if family.open_mask is None:
        raise NoGroundError("volumes lie nowhere on the Earth")
    if case.mask is None or (size := output.size(case.mask)) is None:
        raise OutputError(f"{output.path(case.case)} must have a mask, and has none: run again with the same output")
    path = output.path(case.mask)
    if size < case.size or output.is_blank(case.mask):
        raise _damaged(path)
    with output.local(case.mask) as local, family.open_mask(local) as mask:
        if mask.grid.shape != case.shape:
            raise _damaged(path)
        yield mask


def _damaged(path: str) -> OutputError:
    return OutputError(f"{path} is damaged, it is not the mask of its record: run again with the same output")


def _load(output: Store, case: Finished) -> Mapping[str, Any]:
    """Stored results of a case; empty if there are none, the file is damaged, or the case was processed again."""
    damaged = suppress(OSError, ValueError, KeyError, EOFError, BadZipFile)
    with damaged, np.load(io.BytesIO(output.read(case.kept)), allow_pickle=False) as stored:
        if str(stored["case"]) == _version(case):
            return {name: stored[name] for name in stored.files}
    return {}


def _keep(output: Store, case: Finished, values: Mapping[str, NDArray[Any]]) -> None:
    arrays: dict[str, Any] = {"case": np.array(_version(case)), **values}
    data = io.BytesIO()
    np.savez(data, **arrays)
    output.write(case.kept, data.getvalue(), flush=False)


def _version(case: Finished) -> str:
    return f"{FORM} {case.digest}"

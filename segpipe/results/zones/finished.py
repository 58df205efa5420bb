"""What was found in each finished case, which is kept so that no later run measures it again."""

import hashlib
import io
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import fields
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import OutputError
from segpipe.results.overlap.finished import CaseNeighbours, FinishedCase, opened, shared_with
from segpipe.results.zones.case import CaseZones, measured
from segpipe.results.zones.polygons import Zones
from segpipe.storage import Store

FOLDER = ".zones"
"""Hidden folder of the output with a file per case."""

FILE_VERSION = 4
"""Version of these files; files of another version are replaced."""

NAMES = tuple(field.name for field in fields(CaseZones))


def zones_of_case(output: Store, case: FinishedCase, zones: Zones, around: CaseNeighbours) -> CaseZones:
    """Sizes in the zones over a finished case: read from an earlier run, or measured.

    Raises:
        NoGroundError: the case has no position on the Earth.
        OutputError: a mask cannot be read, or holds labels that are no class.
    """
    key = hashlib.sha256(f"{zones.digest} {around.digest}".encode()).hexdigest()
    kept = _load(output, case)
    if str(kept.get("key")) == key and {*NAMES} <= {*kept}:
        return CaseZones(**{name: kept[name] for name in NAMES})
    found = _measured(output, case, zones, around)
    _keep(output, case, {"key": np.array(key), **{name: getattr(found, name) for name in NAMES}})
    return found


def _measured(output: Store, case: FinishedCase, zones: Zones, around: CaseNeighbours) -> CaseZones:
    from segpipe.results.zones.sums import ForeignLabelError

    with ExitStack() as stack:
        mask = stack.enter_context(opened(output, case))
        try:
            return measured(mask, case.classes, case.nodata, zones, lambda: shared_with(output, case, around, stack))
        except ForeignLabelError as error:
            path = output.path(case.mask or case.case)
            raise OutputError(
                f"{path} must hold the labels of its classes, got {error}: run again with --overwrite"
            ) from None


def _load(output: Store, case: FinishedCase) -> Mapping[str, Any]:
    """Stored results of a case; empty if there are none, the file is damaged, or the case was processed again."""
    damaged = suppress(OSError, ValueError, KeyError, EOFError, BadZipFile)
    with damaged, np.load(io.BytesIO(output.read(_name(case))), allow_pickle=False) as stored:
        if str(stored["case"]) == _version(case):
            return {name: stored[name] for name in stored.files}
    return {}


def _keep(output: Store, case: FinishedCase, values: Mapping[str, NDArray[Any]]) -> None:
    arrays: dict[str, Any] = {"case": np.array(_version(case)), **values}
    data = io.BytesIO()
    np.savez(data, **arrays)
    output.write(_name(case), data.getvalue(), flush=False)


def _name(case: FinishedCase) -> str:
    return case.hidden(FOLDER, ".npz")


def _version(case: FinishedCase) -> str:
    return f"{FILE_VERSION} {case.digest}"

"""The functions that the table of formats has for DICOM series; each imports its module when it is called."""

from collections.abc import Sequence
from typing import Any

from segpipe.contract import Contract
from segpipe.formats.case import Case, CaseSelection, FamilyCases
from segpipe.formats.identity import FolderListings, Identity
from segpipe.formats.sink import Derived, Sink, Space, Target
from segpipe.formats.source import Source
from segpipe.overrides import Overrides
from segpipe.storage import Store


def may_be(name: str) -> bool:
    """Whether a file may be DICOM by its name; its content decides."""
    from segpipe.formats.dicom import names

    return names.may_be(name)


def is_one(path: str) -> bool:
    """Whether a file has the letters DICM where DICOM files have them."""
    from segpipe.formats.dicom import names

    return names.is_one(path)


def find(files: Sequence[tuple[str, str]], choice: CaseSelection) -> FamilyCases:
    """The series among files ``(name, path)``, each a case."""
    from segpipe.formats.dicom.names import cases_of

    return cases_of(files, choice)


def open_case(case: Case, contract: Contract, overrides: Overrides) -> Source:
    """Open the series of a case. Raises ``SourceError``: it is no volume, or does not fit the contract."""
    from segpipe.formats.dicom.source import SeriesSource

    return SeriesSource(case, contract, overrides)


def sink(target: Target) -> Sink:
    """The sink of a NIfTI mask and of the DICOM files that ``Target.derived`` asks for."""
    from segpipe.formats.dicom.sink import series_sink

    return series_sink(target)


def is_own(output: Store, name: str) -> bool:
    """Whether a file of the output is a mask or a DICOM file that segpipe wrote."""
    from segpipe.formats.dicom.sink import is_own_file

    return is_own_file(output, name)


def is_same_input(place: str, files: Sequence[Identity], case: Case, listings: FolderListings, remote: bool) -> bool:
    """Whether a series has the same files, with the same identities, as in its record."""
    from segpipe.formats.dicom.source import is_same_series

    del remote
    return is_same_series(place, files, case, listings)


def files(case: Case) -> Sequence[str]:
    """The files of the slices of a series."""
    from segpipe.formats.dicom.source import files_of_series

    return files_of_series(case)


def derived_space(derived: Derived, classes: int, voxels: float) -> Space:
    """Disk space of the DICOM files that are derived from a mask of ``voxels`` voxels."""
    from segpipe.formats.dicom import space

    return space.derived_space(derived, classes, voxels)


def derived_memory(derived: Derived, classes: int, planes: int) -> float:
    """Bytes of memory while these are written."""
    from segpipe.formats.dicom import space

    return space.derived_memory(derived, classes, planes)


def uids(template: object, output: Store, names: Sequence[str]) -> dict[str, Any]:
    """UIDs of the series that was read, and of the DICOM files ``names`` that were written."""
    from segpipe.formats.dicom.uids import uids_of

    return uids_of(template, output, names)


def verify(files: Sequence[str]) -> list[str]:
    """One note for all files."""
    return [f"{len(files)} DICOM files are not verified: they have no checksums"]

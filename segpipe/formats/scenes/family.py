"""The functions that the table of formats has for scenes of many files; each imports its module when it is called."""

from collections.abc import Sequence

from segpipe.contract import Contract
from segpipe.formats.case import Case
from segpipe.formats.identity import FolderListings, Identity
from segpipe.formats.source import Source
from segpipe.overrides import Overrides


def open_case(case: Case, contract: Contract, overrides: Overrides) -> Source:
    """Open a product of a file per band. Raises ``SourceError``: a band is missing, or does not fit the contract."""
    from segpipe.formats.scenes.source import SceneSource

    return SceneSource(case, contract, overrides)


def is_same_input(place: str, files: Sequence[Identity], case: Case, listings: FolderListings, remote: bool) -> bool:
    """Whether a product has the same files as in its record."""
    from segpipe.formats.scenes.identity import is_same_scene

    return is_same_scene(place, files, case, listings, remote=remote)


def files(case: Case) -> Sequence[str]:
    """The files of a product that the search found."""
    from segpipe.formats.scenes.reading import files_found

    return files_found(case)


def verify(files: Sequence[str]) -> list[str]:
    """Compare files with the checksums of their products; a note for each file without one."""
    from segpipe.formats.scenes.verify import verify_products

    return verify_products(files)

"""The functions that the table of formats has for NIfTI volumes; each imports its module when it is called."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.formats.case import Case
from segpipe.formats.sink import Sink, Target
from segpipe.formats.source import Source
from segpipe.geometry.grid import Grid
from segpipe.overrides import Overrides
from segpipe.storage import Store


def open_case(case: Case, contract: Contract, overrides: Overrides) -> Source:
    """Open a volume. Raises ``SourceError``: it cannot be read, or does not fit the contract."""
    from segpipe.formats.nifti.source import NiftiSource

    return NiftiSource(case.path, contract, overrides)


def sink(target: Target) -> Sink:
    """The sink of a NIfTI mask."""
    from segpipe.formats.nifti.sink import NiftiSink

    return NiftiSink(target)


def is_own(output: Store, name: str) -> bool:
    """Whether a file of the output is a NIfTI mask that segpipe wrote."""
    from segpipe.formats.nifti.sink import is_own_volume

    return is_own_volume(output, name)


def read_mask(path: Path) -> tuple[NDArray[Any], Grid]:
    """Bands ``(bands, *grid)`` of a NIfTI mask, and the grid of its file."""
    from segpipe.formats.nifti import source

    return source.read_mask(path)


def verify(files: Sequence[str]) -> list[str]:
    """A note for each file that is not packed; the checksums of others are compared when they are read."""
    from segpipe.formats.volume.file import is_packed, source_errors

    notes = []
    for path in files:
        with source_errors(path):
            if not is_packed(path):
                notes.append(f"{path} is not verified: a file that is not packed has no checksum")
    return notes

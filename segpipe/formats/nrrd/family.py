"""The functions that the table of formats has for NRRD volumes; each imports its module when it is called."""

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
    from segpipe.formats.nrrd.source import NrrdSource

    return NrrdSource(case.path, contract, overrides)


def sink(target: Target) -> Sink:
    """The sink of an NRRD mask."""
    from segpipe.formats.nrrd.sink import NrrdSink

    return NrrdSink(target)


def is_own(output: Store, name: str) -> bool:
    """Whether a file of the output is an NRRD mask that segpipe wrote."""
    from segpipe.formats.nrrd.sink import is_own_nrrd

    return is_own_nrrd(output, name)


def read_mask(path: Path) -> tuple[NDArray[Any], Grid]:
    """Bands ``(bands, *grid)`` of an NRRD mask, and the grid of its file."""
    from segpipe.formats.nrrd import source

    return source.read_mask(path)


def verify(files: Sequence[str]) -> list[str]:
    """A note for each file that is not packed; the checksums of others are compared when they are read."""
    from segpipe.formats.nrrd.header import is_packed

    return [f"{path} is not verified: a file that is not packed has no checksum" for path in files if not is_packed(path)]

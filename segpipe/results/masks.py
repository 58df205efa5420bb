"""The masks that the record of a case names."""

from segpipe.errors import OutputError
from segpipe.formats.registry import FORMATS
from segpipe.results.schema import Record
from segpipe.storage import Store


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

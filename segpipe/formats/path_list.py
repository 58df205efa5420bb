"""Lists of inputs: text files with a path in each line, and CSV files with a column of paths."""

import csv
from collections.abc import Iterator
from pathlib import Path

from segpipe.errors import InputError, of_system
from segpipe.messages.printable import counted
from segpipe.storage.existence import is_file

LIST_SUFFIXES = frozenset({".txt", ".csv", ".lst"})
LIST_COLUMNS = ("path", "file", "input", "image")
UTF_16 = ("\udcff\udcfe", "\udcfe\udcff")
"""Its byte order marks, which are no UTF-8."""


def list_entries(path: str) -> list[str]:
    """The paths in a list, as they are written there.

    Raises:
        InputError: it cannot be read.
    """
    return [entry for _, entry in entries(Path(path))]


def entries(file: Path) -> Iterator[tuple[int, str]]:
    """Yield each path of a list as it is written there, with the number of its line.

    Raises:
        InputError: the list cannot be read, or a row is not CSV or has no path.
    """
    try:
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")  # file names may have undecodable bytes
    except OSError as error:
        raise InputError(f"the list cannot be read: {file}: {of_system(error)}") from None
    if text.startswith(UTF_16):
        raise InputError(f"the list must be in UTF-8, and {file} is in UTF-16, as PowerShell writes texts: save it as UTF-8")
    # names may begin with # or end with spaces: a line that names a file is a path
    named = [(n, line, _may_be_file(str(file.parent / line))) for n, line in enumerate(text.split("\n"), 1)]
    lines = [(n, line if there else line.strip()) for n, line, there in named if there or not _is_comment(line.strip())]
    if file.suffix.lower() != ".csv":
        yield from lines
        return
    separator = _separator(lines[0][1] if lines else "")
    rows = [(n, _cells(file, n, line, separator)) for n, line in lines]
    header = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    column = next((header.index(name) for name in LIST_COLUMNS if name in header), None)
    for n, row in rows if column is None else rows[1:]:
        if len(row) <= (column or 0):
            raise InputError(
                f"{file} line {n}: every row must have a path in column {column}, got {counted(len(row), 'column')}"
            )
        yield n, row[column or 0].strip()


def _may_be_file(path: str) -> bool:
    try:
        return is_file(path)
    except OSError:
        return True  # the search reports the error


def _separator(header: str) -> str:
    """The separator of a header with a known column: spreadsheets write semicolons where the decimal mark is a comma."""
    for separator in ",;\t":
        if {cell.strip(' "').lower() for cell in header.split(separator)} & set(LIST_COLUMNS):
            return separator
    return ","


def _cells(file: Path, line: int, text: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([text], delimiter=separator))
    except csv.Error as error:
        raise InputError(f"{file} line {line}: every row must be CSV: {error}") from None


def _is_comment(line: str) -> bool:
    return not line or line.startswith("#")

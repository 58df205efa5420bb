"""Read a confusion matrix of a sample from a CSV file: classes of the map in rows, of the reference in columns."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segpipe.accuracy.design import Matrix
from segpipe.errors import InputError, of_system, one_line

AREA, PIXELS = "area", "pixels"
MOST_BYTES = 2**22
LARGEST = 1e15
"""Number in a table; up to it, sums of whole numbers are exact."""

Row = Sequence[str]


def read_matrix(path: Path) -> Matrix:
    """The matrix of a file with a column per class of the reference, ``area`` or ``area_<unit>``, and maybe ``pixels``.

    Raises:
        InputError: it cannot be read, or is no such matrix.
    """
    rows = read_rows(path)
    head, body = [cell.strip() for cell in rows[0]], rows[1:]
    area = [k for k, name in enumerate(head) if k and (name.casefold() == AREA or name.casefold().startswith(f"{AREA}_"))]
    if len(area) != 1:
        raise InputError(
            f"{path} must have one column area, or area_ha, with the mapped area of each class, and has {len(area)}: "
            f"its columns are {', '.join(head)}"
        )
    pixels = [k for k, name in enumerate(head) if k and name.casefold() == PIXELS]
    classes = [k for k in range(1, len(head)) if k not in (*area, *pixels)]
    _check_names(path, [head[k] for k in classes], "columns")
    _check_names(path, [row[0].strip() for row in body], "rows")
    numbers = [[_number(path, head, row, k) for k in range(1, len(head))] for row in body]
    values = np.array(numbers, np.float64).reshape(len(body), len(head) - 1)
    counts = _whole(path, values[:, [k - 1 for k in classes]], "counts of units")
    sizes = _whole(path, values[:, pixels[0] - 1], "numbers of pixels") if pixels else None
    mapped, reference = tuple(row[0].strip() for row in body), tuple(head[k] for k in classes)
    matrix = Matrix(
        mapped=mapped,
        reference=reference,
        counts=counts,
        area=values[:, area[0] - 1],
        pixels=sizes,
        unit=head[area[0]][len(AREA) + 1 :],
    )
    _check_sizes(path, matrix)
    return matrix


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file, of equal length, the head first; empty lines are left out.

    Raises:
        InputError: it cannot be read, or has no rows, or some of another length than the head.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {of_system(error)}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be a CSV file in UTF-8: {one_line(error)}") from None
    if len(data) > MOST_BYTES:
        raise InputError(f"{path} must be a table of at most {MOST_BYTES / 1e6:.0f} MB")
    try:
        rows = [
            row
            for row in csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
            if any(cell.strip() for cell in row)
        ]
    except csv.Error as error:
        raise InputError(f"{path} must be a CSV file, and is not: {error}; close each quote in its own row") from None
    if len(rows) < 2 or len(rows[0]) < 2:
        raise InputError(f"{path} must be a CSV file with a head and rows, and has {len(rows)} rows")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(rows[0]):
            raise InputError(
                f"{path}: each row must have {len(rows[0])} cells, as the head, and row {number} has {len(row)}"
            )
    return list(rows)


def _delimiter(text: str) -> str:
    head = text.split("\n", 1)[0]
    return max(",;\t", key=head.count)


def _check_names(path: Path, names: Sequence[str], where: str) -> None:
    if not names or not all(names):
        raise InputError(f"{path}: {where} must be named after classes, got {', '.join(map(repr, names)) or 'none'}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{path}: {where} must have different names, and {twice[0]} is there twice")


def _number(path: Path, head: Row, row: Row, column: int) -> float:
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not 0 <= value <= LARGEST:
        where = f"row {row[0].strip()}, column {head[column]}"
        raise InputError(f"{path}: {where} must be a number of at least 0 and at most {LARGEST:g}, got {row[column]!r}")
    return value


def _whole(path: Path, values: np.ndarray, what: str) -> np.ndarray:
    if (values != np.floor(values)).any():
        raise InputError(f"{path}: {what} must be whole, got {values[values != np.floor(values)].flat[0]:g}")
    return values.astype(np.int64)


def _check_sizes(path: Path, matrix: Matrix) -> None:
    if not matrix.area.sum():
        raise InputError(f"{path}: mapped areas must not all be 0")
    if matrix.pixels is None:
        return
    for name, n, pixels in zip(matrix.mapped, matrix.counts.sum(axis=1), matrix.pixels, strict=True):
        if n > pixels:
            raise InputError(f"{path}: {name} has {n} units in the sample and {pixels} pixels: give all pixels of the class")

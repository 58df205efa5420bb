"""A sample in two tables: one row per point with its stratum and its class on the map, one row per stratum with its size."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segpipe.accuracy.design import STRATIFIED
from segpipe.accuracy.matrix import AREA, LARGEST, PIXELS, read_rows
from segpipe.accuracy.survey import OTHER, Survey
from segpipe.array_types import Float
from segpipe.errors import InputError

STRATUM, MAP = "stratum", "map"


def survey_of_tables(samples: Path, strata: Path, reference: str) -> Survey:
    """The points and strata of two CSV files.

    Args:
        samples: with the columns ``stratum``, ``map``, that of the reference, maybe ``area`` or ``area_<unit>`` of pixels.
        strata: with the columns ``stratum``, ``pixels`` and ``area``, or ``area_<unit>``.
        reference: the column with the labels.

    Raises:
        InputError: one of them cannot be read, or they do not belong together.
    """
    names, pixels, areas, measured = _strata(strata)
    head, *rows = read_rows(samples)
    mapped, labels = (_column(samples, head, rows, name) for name in (MAP, reference))
    stratum = np.array([_known(samples, name, names) for name in _column(samples, head, rows, STRATUM)])
    own = _measured(head)
    if own and own.casefold() not in (AREA, measured.casefold()):
        raise InputError(f"areas of {samples} and {strata} must have one unit, and their columns are {own} and {measured}")
    area = _numbers(samples, head, rows, own) if own else areas[stratum] / pixels[stratum]
    classes = list(dict.fromkeys([*(name for name in names if name in mapped), *mapped]))
    known = areas if classes == names else None
    at = np.array([classes.index(name) for name in mapped])
    method = STRATIFIED if known is not None and (at == stratum).all() else OTHER
    unit = measured[len(AREA) + 1 :]
    return Survey(
        strata=names,
        pixels=pixels.astype(np.int64),
        areas=areas,
        unit=unit,
        classes=classes,
        mapped_areas=known if method == STRATIFIED else None,
        stratum=stratum,
        mapped=at,
        area=area,
        labels=labels,
        ids=(),
        method=method,
    )


def _strata(path: Path) -> tuple[list[str], Float, Float, str]:
    """Names of the strata, their numbers of pixels and their areas, and the column of these."""
    head, *rows = read_rows(path)
    names = _column(path, head, rows, STRATUM)
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{path} must have each stratum once, and {twice[0]} is there twice")
    measured = _measured(head) or AREA
    pixels, areas = (_numbers(path, head, rows, name) for name in (PIXELS, measured))
    if (pixels != np.floor(pixels)).any():
        raise InputError(f"{path}: {PIXELS} must be whole numbers, got {pixels[pixels != np.floor(pixels)][0]:g}")
    return names, pixels, areas, measured


def _measured(head: Sequence[str]) -> str | None:
    """The column of areas; its unit may follow."""
    names = [name.strip() for name in head]
    return next((name for name in names if name.casefold() == AREA or name.casefold().startswith(f"{AREA}_")), None)


def _column(path: Path, head: Sequence[str], rows: Sequence[Sequence[str]], name: str) -> list[str]:
    names = [one.strip().casefold() for one in head]
    if name.strip().casefold() not in names:
        raise InputError(f"{path} must have the column {name}, and has {', '.join(one.strip() for one in head)}")
    at = names.index(name.strip().casefold())
    return [row[at].strip() for row in rows]


def _numbers(path: Path, head: Sequence[str], rows: Sequence[Sequence[str]], name: str) -> Float:
    texts = _column(path, head, rows, name)
    try:
        values = np.array([float(text) for text in texts])
    except ValueError:
        values = np.array([np.nan])
    if not ((values > 0) & (values <= LARGEST)).all():
        raise InputError(
            f"{path}: {name} must be a number above 0, at most {LARGEST:g}, in each row, got {', '.join(texts[:5])}"
        )
    return values


def _known(path: Path, name: str, names: Sequence[str]) -> int:
    if name not in names:
        raise InputError(f"{path}: each stratum must be one of the table of strata, {', '.join(names[:8])}, got {name!r}")
    return names.index(name)

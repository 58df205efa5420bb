"""``segpipe sample``, ``estimate``, ``evaluate`` and ``compare``: from flags to tasks and printed results."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from segpipe.accuracy.allocation import Allocation, allocate, needed_size
from segpipe.accuracy.design import design_of
from segpipe.accuracy.draw import draw
from segpipe.accuracy.estimate import Design, Level, estimate
from segpipe.accuracy.matrix import read_matrix
from segpipe.accuracy.overlaps import overlapping
from segpipe.accuracy.points import DRIVERS, REFERENCE, design_path, read_design, read_labels, write_sample
from segpipe.accuracy.population import Population, population_of
from segpipe.accuracy.show import as_json, print_estimates, print_table, write_estimates
from segpipe.accuracy.survey import design_of_survey, survey_of
from segpipe.accuracy.tables import survey_of_tables
from segpipe.array_types import Integers
from segpipe.errors import OutputError, SettingsError
from segpipe.jobs.last_run import missing_mask_warnings
from segpipe.messages.console import echo
from segpipe.messages.printable import counted, first_few
from segpipe.messages.steps import steps_shown
from segpipe.storage.existence import is_folder, is_taken

if TYPE_CHECKING:
    from segpipe.accuracy.evaluate import EvaluateTask

EXPECTED = 0.8
"""Expected user's accuracy of a class for which none is given."""


@dataclass(frozen=True, slots=True)
class EstimateData:
    """The data of an estimate: a matrix, or points with a column of labels and optionally a map."""

    matrix: Path | None = None
    map: str | None = None
    samples: Path | None = None
    strata: Path | None = None
    reference: str | None = None
    design: str | None = None

    @property
    def simple(self) -> bool:
        """Whether the points were drawn from the whole map, whatever strata it has."""
        return self.design == "simple"


def estimate_command(*, output: Path | None, json: bool, level: float | None, intervals: str | None, **source: Any) -> int:
    """Print estimates, and write them where ``output`` says so."""
    wanted = _level(level, intervals)
    found = estimate(_design(EstimateData(**source)), wanted)
    paths = write_estimates(found, output) if output else []
    if json:
        click.echo(as_json(found))
    else:
        print_estimates(found)
        _print_paths(paths)
    return 0


def _print_paths(paths: Sequence[Path]) -> None:
    for path in paths:
        echo(f"written: {path}")


def _design(source: EstimateData) -> Design:
    if (source.matrix is None) == (source.samples is None):
        raise SettingsError("give either --matrix, or --samples with the points that were labelled")
    if source.matrix is not None:
        if source.map or source.reference or source.strata:
            raise SettingsError("--matrix has all that is needed: leave --map, --strata and --reference out")
        return design_of(read_matrix(source.matrix), simple=source.simple)
    assert source.samples is not None
    if source.strata is not None:
        if source.map or source.simple:
            raise SettingsError("with --strata the samples have classes of the map: leave --map and --design simple out")
        return design_of_survey(survey_of_tables(source.samples, source.strata, source.reference or REFERENCE))
    labelled, drawn = read_labels(source.samples, source.reference or REFERENCE), read_design(source.samples)
    population = _population(source.map) if source.map else None
    return design_of_survey(survey_of(labelled, drawn, population, simple=source.simple))


def _population(place: str) -> Population:
    """The map of a run; logs a warning if cases have no mask."""
    population = population_of(place)
    for text in missing_mask_warnings(population.store):
        echo(f"warning: {text}", err=True)
    return population


def _level(level: float | None, intervals: str | None) -> Level:
    value = 0.95 if level is None else level
    if not 0.5 <= value < 1:
        raise SettingsError(f"--level must be at least 0.5 and below 1, got {value:g}")
    return Level(value, exact=intervals != "normal")


@dataclass(frozen=True, slots=True)
class Sizes:
    """The size of a sample, and its allocation to strata."""

    size: int | None
    standard_error: float | None
    expect: str | None
    allocation: Allocation | None
    minimum: int | None

    def __post_init__(self) -> None:
        if (self.size is None) == (self.standard_error is None):
            raise SettingsError("give either --size, or --standard-error of the overall accuracy, such as 0.01")
        if self.size is not None and self.size < 1:
            raise SettingsError(f"--size must be at least 1, got {self.size}")
        if self.standard_error is not None and not 0 < self.standard_error < 0.5:
            raise SettingsError(f"--standard-error must be above 0 and below 0.5, got {self.standard_error:g}")
        if self.expect is not None and self.standard_error is None:
            raise SettingsError("--expect is for --standard-error: with --size leave it out")


def sample_command(place: str, output: Path, *, seed: int | None, show_map: bool, overwrite: bool, **sizes: Any) -> int:
    """Draw a sample, and write its points and their design."""
    wanted = Sizes(**sizes)
    _check_target(output, overwrite=overwrite)
    population = _population(place)
    each = sizes_of(population, wanted)
    few = first_few(f"{a} and {b}" for a, b in overlapping(population))
    units = draw(population, each, seed or 0)
    write_sample(output, population, units, seed or 0, show=show_map)
    pixels = population.pixels.sum(axis=0)
    rows = [
        [name, f"{p:,}", f"{p / pixels.sum():.2%}", f"{n:,}"]
        for name, p, n in zip(population.classes, pixels, each, strict=True)
    ]
    print_table(("stratum", "pixels", "share", "points"), rows)
    points, design = counted(len(units), "point"), design_path(output)
    echo(f"\n{points} in {output}; their design in {design}, which an interpreter must not see")
    if few:
        echo(f"warning: cases share ground, which the sample and its estimates count once for each: {few}", err=True)
    return 0


def _check_target(output: Path, *, overwrite: bool) -> None:
    if output.suffix.lower() not in DRIVERS:
        raise SettingsError(f"--output must end with {' or '.join(DRIVERS)}, got {output.name}")
    if not is_folder(output.absolute().parent):
        raise OutputError(f"--output must lie in a folder that exists, got {output}: make {output.absolute().parent} first")
    there = [path for path in (output, design_path(output)) if is_taken(path)]
    if there and not overwrite:
        what = "may have labels" if there[0] == output else "is the design of a sample"
        raise OutputError(f"{there[0]} exists already, and {what}: name another file, or give --overwrite")


def sizes_of(population: Population, wanted: Sizes) -> Integers:
    """Points in each class of a map."""
    pixels = population.pixels.sum(axis=0)
    held = pixels > 0
    size = wanted.size or _needed(population, wanted)
    each = np.zeros(len(pixels), np.int64)
    each[held] = allocate(size, pixels[held], wanted.allocation or "rare", 50 if wanted.minimum is None else wanted.minimum)
    return each


def _needed(population: Population, wanted: Sizes) -> int:
    pixels = population.pixels.sum(axis=0)
    expected = expectations(wanted.expect, population.classes)
    assert wanted.standard_error is not None
    return needed_size(list(pixels / pixels.sum()), expected, wanted.standard_error)


def expectations(text: str | None, classes: tuple[str, ...]) -> list[float]:
    """User's accuracy that is expected of each class.

    >>> expectations("0.9,forest=0.7", ("forest", "water"))
    [0.7, 0.9]
    """
    other, named = EXPECTED, dict[str, float]()
    for part in (text or "").split(",") if text else ():
        name, equals, value = part.rpartition("=")
        try:
            accuracy = float(value)
        except ValueError:
            accuracy = -1.0
        if not 0 <= accuracy <= 1 or (equals and name.strip() not in classes):
            raise SettingsError(
                f"--expect must be an accuracy from 0 to 1, or class=accuracy, got {part!r}: classes: {', '.join(classes)}"
            )
        if equals:
            named[name.strip()] = accuracy
        else:
            other = accuracy
    return [named.get(name, other) for name in classes]


def evaluate_command(*, output: Path | None, json: bool, **flags: Any) -> int:
    """Print an evaluation, and write it where ``output`` says so; 1 if a case failed."""
    from segpipe.accuracy import show_evaluation
    from segpipe.accuracy.evaluate import evaluate

    with steps_shown():
        found = evaluate(_task(**flags))
    paths = show_evaluation.write_evaluation(found, output) if output else []
    if json:
        click.echo(show_evaluation.as_json(found))
    else:
        show_evaluation.print_evaluation(found)
        _print_paths(paths)
    return 1 if found.failed else 0


def _task(*, labels: str, reference: Path, **more: Any) -> "EvaluateTask":
    from segpipe.accuracy.evaluate import EvaluateTask

    if more["boundary"] is not None and not 0 < more["boundary"] < 1e9:
        raise SettingsError(f"--boundary must be a distance above 0 and below 1e9, got {more['boundary']:g}")
    given = {name: value for name, value in more.items() if value is not None}
    return EvaluateTask(labels, reference, **given)


def compare_command(*, first: str, second: str, output: Path | None, map_classes: Path | None, json: bool) -> int:
    """Print a comparison of two runs, and write it where ``output`` says so; 1 if a case failed."""
    from segpipe.accuracy import show_changes
    from segpipe.accuracy.compare import CompareTask, compare

    with steps_shown():
        found = compare(CompareTask(first, second, output, map_classes))
    paths = show_changes.write_changes(found, output) if output else []
    if json:
        click.echo(show_changes.as_json(found))
    else:
        show_changes.print_changes(found)
        _print_paths(paths)
    return 1 if found.failed else 0

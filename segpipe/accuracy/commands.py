"""``segpipe estimate``: what its flags mean."""

from pathlib import Path
from typing import Any

import click

from segpipe.accuracy.design import design_of
from segpipe.accuracy.estimate import Level
from segpipe.accuracy.estimate import estimate as estimated
from segpipe.accuracy.matrix import read_matrix
from segpipe.accuracy.show import as_json, print_estimates, write_estimates
from segpipe.errors import SettingsError
from segpipe.messages.console import echo


def estimate(matrix: Path, design: str | None, *, output: Path | None, json: bool, **intervals: Any) -> int:
    """Print estimates, and write them where ``output`` says so."""
    found = estimated(design_of(read_matrix(matrix), simple=design == "simple"), _level(**intervals))
    paths = write_estimates(found, output) if output else []
    if json:
        click.echo(as_json(found))
    else:
        print_estimates(found)
        for path in paths:
            echo(f"written: {path}")
    return 0


def _level(level: float | None, intervals: str | None) -> Level:
    value = 0.95 if level is None else level
    if not 0.5 <= value < 1:
        raise SettingsError(f"--level must be at least 0.5 and below 1, got {value:g}")
    return Level(value, exact=intervals != "normal")

"""``segpipe estimate``: areas and accuracy of a map from a sample of it."""

from typing import Any

import click

from segpipe.commands.edge import guarded
from segpipe.commands.options import INPUT, JSON, OUTPUT, PATH, SAMPLE
from segpipe.terminal.option_groups import GroupedCommand


@click.command(cls=GroupedCommand)
@INPUT("--matrix", type=PATH, help="CSV file: map classes in rows, reference in columns, mapped area.")
@INPUT("--samples", type=PATH, help="Labelled points: GeoPackage, GeoJSON, ..., or CSV with the numbers of the points.")
@INPUT("--reference", help="Column of the points with the labels [reference].")
@INPUT("--strata", type=PATH, help="CSV file with stratum, pixels and area, for samples in a CSV file with stratum and map.")
@INPUT("--map", help="Output folder of the run whose map is assessed [that of the sample].")
@SAMPLE("--design", type=click.Choice(["stratified", "simple"]), help="How the sample was drawn [stratified].")
@SAMPLE("--level", type=float, help="Confidence level of the intervals [0.95].")
@SAMPLE("--intervals", type=click.Choice(["auto", "normal"]), help="Exact intervals for few units, or none [auto].")
@OUTPUT("--output", "-o", type=PATH, help="Folder for estimate.csv and estimate.json [none are written].")
@JSON
@guarded()
def estimate(json: bool, **flags: Any) -> int:
    """Estimate areas, overall, user's and producer's accuracy of a map from a sample that somebody has labelled.

    Counting pixels of a map is biased; these areas are not, and have standard errors and confidence intervals.
    """
    from segpipe.accuracy.commands import estimate_command

    return estimate_command(json=json, **flags)

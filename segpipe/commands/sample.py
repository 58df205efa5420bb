"""``segpipe sample``: points drawn from a map, to be labelled."""

from typing import Any

import click

from segpipe.commands.edge import guarded
from segpipe.commands.options import OUTPUT, PATH, SAMPLE
from segpipe.terminal.option_groups import GroupedCommand


@click.command(cls=GroupedCommand)
@click.argument("run_output", metavar="OUTPUT")
@SAMPLE("--size", type=int, help="Number of points.")
@SAMPLE("--standard-error", type=float, help="Of the overall accuracy, to be reached, such as 0.01; instead of --size.")
@SAMPLE("--expect", help="User's accuracy that is expected: 0.85, or 0.9,forest=0.7 [0.8].")
@SAMPLE(
    "--allocation",
    type=click.Choice(["rare", "proportional", "equal"]),
    help="A minimum for rare classes and the rest by pixels, all by pixels, or equal numbers [rare].",
)
@SAMPLE("--minimum", type=click.IntRange(min=0), help="Least number of points in each class, for rare [50].")
@SAMPLE("--seed", type=click.IntRange(min=0), help="Of the draw: the same seed draws the same points [0].")
@OUTPUT("--output", "-o", type=PATH, required=True, help="The file of points: .gpkg or .geojson.")
@OUTPUT("--show-map", is_flag=True, help="Give the points the class of the map and their weight; labels are not blind then.")
@OUTPUT("--overwrite", is_flag=True, help="Replace points that are there, with their labels.")
@guarded(writes=True)
def sample(run_output: str, **flags: Any) -> int:
    """Draw a stratified random sample of the map in OUTPUT, the folder of a run, as points to be labelled.

    The points say nothing of the map. A file beside them, for segpipe estimate, has strata, classes and weights.
    """
    from segpipe.accuracy.commands import sample_command

    return sample_command(run_output, **flags)

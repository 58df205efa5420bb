"""``segpipe polygons``: the masks of a run as polygons."""

from typing import Any

import click

from segpipe.choices import RULES
from segpipe.commands.edge import guarded
from segpipe.commands.options import OUTPUT, PATH
from segpipe.terminal.log_lines import log_to_stderr
from segpipe.terminal.option_groups import GroupedCommand


@click.command(cls=GroupedCommand)
@click.argument("run_output", metavar="OUTPUT", default="segpipe-out")
@OUTPUT("--output", "-o", type=PATH, required=True, help="The file to write: .parquet, .gpkg, .fgb or .geojson.")
@OUTPUT("--crs", help="CRS of the file [that of the masks; GeoJSON has longitudes and latitudes].")
@OUTPUT("--classes", help="Classes to take, by name or id, such as water,3 [all].")
@OUTPUT("--min-area", help="Smallest polygon, such as 0.5ha, 400m2 or 9px; smaller ones are left out and counted [all].")
@OUTPUT("--simplify", type=float, help="Move borders by about this many metres at most; neighbours keep theirs in common.")
@OUTPUT("--connectivity", type=click.Choice(["4", "8"]), help="Whether pixels that touch at a corner belong together [4].")
@OUTPUT("--overlap-rule", type=click.Choice(RULES), help="Case that has the polygons of shared ground [each its own].")
@guarded(writes=True)
def polygons(run_output: str, **flags: Any) -> int:
    """Write the masks in OUTPUT, the folder of a run, as polygons along pixel edges, with holes, class and area.

    The areas of the polygons of a class add up to its area in areas.csv; with --overlap-rule, to the total of the run.
    """
    from segpipe.polygons.commands import polygons as command

    log_to_stderr()
    return command(run_output, **flags)

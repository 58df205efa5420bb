"""``segpipe zones``: classes in polygons, over the masks of a run."""

from pathlib import Path
from typing import Any

import click

from segpipe.choices import RULES
from segpipe.commands.edge import guarded
from segpipe.commands.options import INPUT, OUTPUT, PATH
from segpipe.messages.console import echo
from segpipe.messages.printable import printable
from segpipe.messages.steps import steps_shown
from segpipe.terminal.log_lines import log_to_stderr
from segpipe.terminal.option_groups import GroupedCommand


@click.command(cls=GroupedCommand)
@click.argument("output", default="segpipe-out")
@INPUT("--zones", type=PATH, required=True, help="Vector file with polygons: GeoPackage, GeoJSON, Shapefile, Parquet, ...")
@INPUT("--zone-id", help="Column with the names of the polygons [their number in the file].")
@INPUT("--zones-layer", help="Layer of the file with polygons, if it has several.")
@OUTPUT("--zones-out", type=PATH, help="Also write the polygons with these columns: .gpkg, .parquet, .geojson or .fgb.")
@OUTPUT(
    "--overlap-rule", type=click.Choice(RULES), default="first", help="Case that counts where several share ground [first]."
)
@guarded(writes=True)
def zones(output: str, zones: Path, zones_out: Path | None, **flags: Any) -> int:
    """Write zones.csv into OUTPUT, the folder of a run: the area of each class in each polygon.

    A polygon over several cases is one row. Ground that cases share counts once.
    """
    from segpipe.api.zones import measure_zones
    from segpipe.results.zones.stage import ZonesTask
    from segpipe.vectors.file import Selection

    log_to_stderr()
    task = ZonesTask(Selection(zones, flags["zones_layer"], flags["zone_id"]), zones_out, flags["overlap_rule"])
    with steps_shown():
        lines = measure_zones(output, task)
    for line in lines:
        echo(printable(line))
    return 0

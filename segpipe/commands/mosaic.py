"""``segpipe mosaic``: the masks of a run as one map."""

import click

from segpipe.choices import RULES, OverlapRule
from segpipe.commands.edge import guarded
from segpipe.commands.options import OUTPUT
from segpipe.messages.console import echo
from segpipe.messages.printable import printable
from segpipe.messages.steps import steps_shown
from segpipe.terminal.log_lines import log_to_stderr
from segpipe.terminal.option_groups import GroupedCommand


@click.command(cls=GroupedCommand)
@click.argument("run_output", metavar="OUTPUT", default="segpipe-out")
@OUTPUT("--output", "-o", required=True, help="The map: a .tif file, or s3://bucket/name.tif.")
@OUTPUT(
    "--overlap-rule", type=click.Choice(RULES), default="first", help="Case that counts where several share ground [first]."
)
@OUTPUT("--crs", help="CRS of the map if masks are in several: a code such as EPSG:32633, or WKT [theirs].")
@OUTPUT("--resolution", type=click.FloatRange(min=0, min_open=True), help="Pixel size in the unit of the CRS [theirs].")
@guarded(writes=True)
def mosaic(run_output: str, output: str, overlap_rule: OverlapRule, crs: str | None, resolution: float | None) -> int:
    """Join the masks in OUTPUT, the folder of a run, to one map (COG), with an index of the masks beside it.

    Where cases share ground, one counts, as in the totals of the run. Areas are in areas.csv and run.json.
    """
    from segpipe.api.mosaic import MosaicTask, make_mosaic
    from segpipe.api.mosaic_size import size_lines
    from segpipe.results.overlap.mosaic import Forecast
    from segpipe.results.overlap.mosaic_grid import GridRequest

    log_to_stderr()
    task = MosaicTask(output, overlap_rule, GridRequest(crs, resolution))

    def planned(forecast: Forecast) -> None:
        for line in size_lines(forecast, output):
            echo(printable(line), err=True)

    with steps_shown():
        lines = make_mosaic(run_output, task, planned)
    for line in lines:
        echo(printable(line))
    return 0

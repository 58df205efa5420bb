"""``segpipe evaluate``: the masks of a run against reference masks."""

from typing import Any

import click

from segpipe.commands.edge import guarded
from segpipe.commands.options import INPUT, JSON, OUTPUT, PATH, SAMPLE
from segpipe.terminal.option_groups import GroupedCommand


@click.command(cls=GroupedCommand)
@INPUT("--labels", required=True, help="Output folder of the run.")
@INPUT(
    "--reference",
    type=PATH,
    required=True,
    help="Folder with a reference per case, the one of the only case, polygons, or annotations.",
)
@INPUT("--column", help="Column with the class of each polygon, if the reference is a vector file.")
@INPUT("--map-classes", type=PATH, help="TOML file that says which values of references are which classes [the same].")
@INPUT("--ignore", type=int, multiple=True, help="Value of references whose pixels do not count; repeatable.")
@SAMPLE("--boundary", type=float, help="Also score boundaries, within this distance: m, of volumes mm, of pictures pixels.")
@SAMPLE("--bootstrap", "draws", type=click.IntRange(min=0), help="Draws of the cases for intervals [1000].")
@SAMPLE("--seed", type=click.IntRange(min=0), help="Of these draws [0].")
@OUTPUT("--output", "-o", type=PATH, help="Folder for evaluation.json, .csv and .svg [none are written].")
@JSON
@guarded()
def evaluate(json: bool, **flags: Any) -> int:
    """Compare the masks of a run with reference masks on any grid: rasters, pictures or volumes with the names of the cases.

    Exits with 1 if a case could not be compared.
    """
    from segpipe.accuracy.commands import evaluate_command

    return evaluate_command(json=json, **flags)

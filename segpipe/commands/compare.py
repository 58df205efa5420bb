"""``segpipe compare``: what changed between two runs."""

from typing import Any

import click

from segpipe.commands.edge import guarded
from segpipe.commands.options import INPUT, JSON, OUTPUT, PATH
from segpipe.terminal.option_groups import GroupedCommand


@click.command(cls=GroupedCommand)
@click.argument("first", metavar="OUTPUT-A")
@click.argument("second", metavar="OUTPUT-B")
@INPUT("--map-classes", type=PATH, help="TOML file that says which classes of B are which of A [those of equal names].")
@OUTPUT("--output", "-o", type=PATH, help="Folder for change.csv, compare.json and maps of change [none are written].")
@JSON
@guarded(writes=True)
def compare(json: bool, **flags: Any) -> int:
    """Compare the masks of two runs, of two models or dates, case by case: areas that changed, and agreement.

    Exits with 1 if a case could not be compared.
    """
    from segpipe.accuracy.commands import compare_command

    return compare_command(json=json, **flags)

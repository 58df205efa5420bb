"""``segpipe cases``: which case is which path."""

from pathlib import Path
from typing import Any

import click

from segpipe.commands.edge import SOME_FAILED, guarded
from segpipe.commands.options import CONFIG, CONTRACT, INPUT, MODEL, PATH
from segpipe.messages.console import echo
from segpipe.terminal.option_groups import GroupedCommand


@click.command(cls=GroupedCommand)
@click.argument("codes", nargs=-1, metavar="[HASH]...")
@INPUT("--input", "-i", multiple=True, required=True, help="Input of the run, as in segpipe run; repeatable.")
@INPUT("--channels", help="Files of each channel, as in segpipe run; needs --model.")
@INPUT("--bands-from", help="Files of each band, as in segpipe run; needs --model.")
@INPUT("--series", help="DICOM series to take, as in segpipe run [all].")
@INPUT("--case-name", type=click.Choice(["path", "uid", "number"]), help="What masks are named after [path].")
@MODEL("--model", "-m", type=PATH, multiple=True, help="The ONNX model, if it takes several files per case.")
@CONTRACT
@CONFIG
@guarded()
def cases(codes: tuple[str, ...], config: Path | None, **flags: Any) -> int:
    """Print the name and the path of each case of the inputs or, for each HASH of a message or a record, its paths.

    With --case-name number or uid, runs write and print hashes in place of paths. Nothing is written. Exits with 1 if a hash
    belongs to no path of these inputs.
    """
    from segpipe.jobs.lookup import named_cases, paths_of

    lines, missing = paths_of(config, flags, codes) if codes else named_cases(config, flags)
    for line in lines:
        echo(line)
    for text in missing:
        echo(f"error: {text}", err=True)
    return SOME_FAILED if missing else 0

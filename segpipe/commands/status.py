"""``segpipe status``: how far runs into a folder have come."""

import click

from segpipe.commands.edge import SOME_FAILED, guarded


@click.command()
@click.argument("output", default="segpipe-out")
@click.option("--input", "-i", "inputs", multiple=True, help="Input of the run, if --case-name hid it; repeatable.")
@click.option("--json", is_flag=True, help="Print one JSON object.")
@guarded()
def status(output: str, inputs: tuple[str, ...], json: bool) -> int:
    """Show what is done, failed and missing in OUTPUT, the folder of a run, and the command that continues.

    Exits with 1 if a case failed or is missing, or the last run died.
    """
    from segpipe.jobs.status import read_status
    from segpipe.terminal.state import print_status

    found = read_status(output, inputs)
    print_status(found, json)
    return SOME_FAILED if found.failed or found.missing or found.problems or found.state == "died" else 0

"""How far a run has come, for ``segpipe status``."""

import json
from dataclasses import asdict

import click

from segpipe.jobs.status import Status
from segpipe.messages.printable import printable_json
from segpipe.messages.redaction import HIDDEN
from segpipe.messages.url_secrets import cleaned
from segpipe.terminal.progress import say

LISTED = 20
"""Maximum number of missing cases that are named."""


def print_status(status: Status, as_json: bool) -> None:
    """Print how far a run has come, in a few lines or as JSON."""
    if as_json:
        click.echo(printable_json(json.dumps(cleaned(asdict(status)), ensure_ascii=False, allow_nan=False)))
        return
    running = f", written by {status.running} now" if status.running else ""
    running += f", last sign of life {status.last_sign}" if status.running and status.last_sign else ""
    speed = status.megapixels_per_second
    rate = f", {speed:.1f} M{status.element}/s in the last run" if speed else ""
    outside = f", {len(status.outside)} outside the area of interest" if status.outside else ""
    say(f"{status.output}{running}")
    if status.state == "died":
        who, when = status.died or "it", status.last_sign or "at a time that is not known"
        say(f"its last run died: {who} gave its last sign of life {when}")
    say(f"{status.done} done, {len(status.failed)} failed, {len(status.missing)} missing{outside}{rate}")
    for problem in status.problems:
        say(f"problem  {problem}")
    for failure in status.failed:
        say(f"failed   {failure['case']}: {failure['error']}")
    for name in status.missing[:LISTED]:
        parts = f"  {status.parts[name]} parts done" if status.parts.get(name) else ""
        say(f"missing  {name}{parts}")
    if len(status.missing) > LISTED:
        say(f"missing  and {len(status.missing) - LISTED} more")
    if status.missing or status.failed or status.state == "died":
        hint = " (with the inputs in place of their hashes)" * bool(HIDDEN.search(status.command))
        say(f"to go on: {status.command}{hint}")

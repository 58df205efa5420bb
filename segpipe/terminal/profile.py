"""Where the time of a run went, for ``--profile``."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from segpipe.jobs.summary import Summary
from segpipe.messages.console import console, echo
from segpipe.timing.report import Profile

if TYPE_CHECKING:  # runs outside terminals need no rich
    from rich.table import Table

UNSERVED = 0.1
"""A note appears if the model's calls spend more than this share of their time without a processor."""

MOST = 4
"""Maximum number of stages named beside the model."""


def print_profile(summary: Summary) -> None:
    """Print the shares of the wall time on stderr: as a table in a terminal, as lines elsewhere."""
    profile = summary.profile
    if profile is None:
        return
    if sys.stderr.isatty():
        console(stderr=True).print(profile_table(profile))
    else:
        for row in _profile_rows(profile):
            echo("profile  " + "  ".join(row), err=True)
    for line in profile_lines(profile):
        echo(line, err=True)
    if summary.trace is not None:
        echo(f"open {summary.trace} in ui.perfetto.dev or chrome://tracing", err=True)


def profile_table(profile: Profile) -> "Table":
    """Seconds per stage: wall time, whose shares add up to 1, and the work of all threads."""
    from rich.table import Column, Table

    columns = (Column(name, justify="right") for name in ("wall s", "share", "all threads s", "on a core s"))
    table = Table("stage", *columns, title=f"where {profile.seconds:.1f} s went")
    for row in _profile_rows(profile):
        table.add_row(*row)
    return table


def _profile_rows(profile: Profile) -> Iterator[tuple[str, ...]]:
    for name, total in profile.stages.items():
        work = (f"{total.busy:.2f}", f"{total.core:.2f}") if name not in ("idle", "other") else ("", "")
        yield name, f"{total.wall:.2f}", f"{total.wall / profile.seconds:.1%}", *work


def profile_lines(profile: Profile) -> list[str]:
    """The limiting stage, how close the run came to it, and the stages that took the rest."""
    rest = {name: total.wall for name, total in profile.stages.items() if name != "infer"}
    most = sorted(rest, key=lambda name: -rest[name])[:MOST]
    beside = ", ".join(f"{name} {rest[name]:.2f} s" for name in most if rest[name] >= profile.seconds / 200)
    lines = [
        f"limit: the model alone needs {profile.limit:.2f} s of {profile.seconds:.2f} s, {profile.reached:.0%}; "
        f"without start and end {profile.limit / profile.working:.0%}" + f"; beside it most: {beside}" * bool(beside)
    ]
    if profile.unserved > UNSERVED:
        lines.append(
            f"note: calls of the model were without a processor for {profile.unserved:.0%} of their time: "
            "other programs, or this run's own threads, had it"
        )
    if profile.dropped:
        lines.append(f"note: the trace is full, its last {profile.dropped:,} spans are left out; the table counts them")
    return lines

"""Options in named groups, so that ``--help`` of a command with many flags can be read."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

LAST = "More"
"""The group that contains ``--help``."""


class GroupedOption(click.Option):
    """An option that ``--help`` shows below the name of its group."""

    def __init__(self, *args: Any, group: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose ``--help`` has one section per group, in the order in which the groups first appear."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections, each with its flags and help texts."""
        for name, rows in self.sections(ctx).items():
            with formatter.section(name):
                formatter.write_dl(rows)

    def sections(self, ctx: click.Context) -> dict[str, list[tuple[str, str]]]:
        """Flags and help texts by group; the last group is ``More``."""
        found: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if row is not None:
                found.setdefault(getattr(parameter, "group", LAST), []).append(row)
        last = found.pop(LAST, [])
        return {**found, LAST: last} if last else found


def group(name: str) -> Callable[..., Callable[[Decorated], Decorated]]:
    """``click.option`` for the options of one group."""

    def option(*names: str, **attributes: Any) -> Callable[[Decorated], Decorated]:
        return click.option(*names, cls=GroupedOption, group=name, **attributes)

    return option

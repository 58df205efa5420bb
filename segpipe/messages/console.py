"""How lines and tables reach a terminal: what comes from files is neither markup nor a command to it."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from segpipe.messages.printable import printable, printable_lines

if TYPE_CHECKING:  # rich takes a fifth of a second, which --help does not need
    from rich.console import Console
    from rich.text import Text


def echo(lines: str = "", *, err: bool = False) -> None:
    """Lines on stdout or stderr."""
    click.echo(printable_lines(lines), err=err)


def console(*, stderr: bool = False) -> "Console":
    """A terminal for tables, in whose texts nothing is markup."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def words(text: str, **style: Any) -> "Text":
    """A line of one."""
    from rich.text import Text

    return Text(printable(text), **style)


def cells(texts: Iterable[str]) -> "list[Text]":
    """A row of a table."""
    return list(map(words, texts))

"""How lines and tables reach a terminal: what comes from files is neither markup nor a command to it."""

from collections.abc import Iterable
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from segpipe.pipeline.printable import printable, printable_lines


def echo(lines: str = "", *, err: bool = False) -> None:
    """Lines on stdout or stderr."""
    click.echo(printable_lines(lines), err=err)


def console(*, stderr: bool = False) -> Console:
    """A terminal for tables, in whose texts nothing is markup."""
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def words(text: str, **style: Any) -> Text:
    """A line of one."""
    return Text(printable(text), **style)


def cells(texts: Iterable[str]) -> list[Text]:
    """A row of a table."""
    return list(map(words, texts))

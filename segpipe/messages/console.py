"""Print lines and tables to a terminal: text from files is neither markup nor a control sequence."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from segpipe.messages.printable import printable, printable_lines

if TYPE_CHECKING:  # importing rich takes 0.2 s, which --help does not need
    from rich.console import Console
    from rich.text import Text


def echo(lines: str = "", *, err: bool = False) -> None:
    """Print lines to stdout or stderr."""
    click.echo(printable_lines(lines), err=err)


def console(*, stderr: bool = False) -> "Console":
    """A console for tables that interprets no markup."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def words(text: str, **style: Any) -> "Text":
    """Escaped text as a rich ``Text``."""
    from rich.text import Text

    return Text(printable(text), **style)


def cells(texts: Iterable[str]) -> "list[Text]":
    """A row of a table."""
    return list(map(words, texts))

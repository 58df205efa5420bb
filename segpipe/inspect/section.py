"""Print rows of text under a heading in a terminal."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from segpipe.messages.console import cells, words

Row = tuple[str, str]


def section(console: Console, title: str, rows: Iterable[Row]) -> None:
    """Print a bold title over rows of two columns; nothing if there are no rows."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for row in rows:
        grid.add_row(*cells(row))
    if grid.row_count:
        console.print(words(title, style="bold"))
        console.print(grid)
        console.print()


def by(numbers: Iterable[float]) -> str:
    """Format sizes as ``256 x 256``."""
    return " x ".join(f"{n:.10g}" for n in numbers)

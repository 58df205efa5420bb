"""Areas of each class over all cases of a run, as people read them."""

from typing import TYPE_CHECKING

from segpipe.messages.console import cells
from segpipe.results.totals import Totals

if TYPE_CHECKING:  # runs outside terminals print no table
    from rich.table import Table


def areas_table(totals: Totals, rule: str) -> "Table":
    """Pixels, area and share of each class over all cases; a caption says what does not count, or counts once."""
    from rich.table import Column, Table

    columns = (Column(name, justify="right") for name in ("pixels", totals.unit.heading, "share"))
    table = Table("class", *columns)
    for name, one in totals.classes.items():
        area = totals.unit.text(one.area) if totals.measured or one.area else "-"
        share = totals.share(name)
        table.add_row(*cells([name, f"{one.pixels:,}", area, "" if share is None else f"{share:.1%}"]))
    table.caption = "\n".join(_notes(totals, rule)) or None
    return table


def _notes(totals: Totals, rule: str) -> list[str]:
    notes = [] if totals.measured else [f"some cases have no area in {totals.unit.heading}: they count in pixels only"]
    return [*notes, said] if (said := doubled_line(totals, rule)) else notes


def doubled_line(totals: Totals, rule: str) -> str | None:
    """What several cases saw and the totals have once; None if that is nothing."""
    if not totals.doubled.pixels:
        return None
    return f"{totals.amount(totals.doubled)} that several cases share are left out of these totals (--overlap-rule {rule})"

"""``segpipe polygons``: from flags to a task."""

from pathlib import Path
from typing import Any

from segpipe.messages.console import echo
from segpipe.messages.printable import counted, printable
from segpipe.messages.steps import steps_shown
from segpipe.polygons.rule import Minimum
from segpipe.polygons.task import PolygonsTask, WrittenPolygons, write_polygons
from segpipe.process.environment import clean_environment


def polygons(
    place: str,
    output: Path,
    *,
    min_area: str | None,
    connectivity: str | None,
    **flags: Any,
) -> int:
    """Write the polygons of a run, and print how many there are."""
    clean_environment()
    minimum = None if min_area is None else Minimum.of(min_area)
    task = PolygonsTask(place, output, minimum=minimum, corners_connect=connectivity == "8", **flags)
    with steps_shown():
        written = write_polygons(task)
    for line in _lines(task, written):
        echo(printable(line))
    return 0


def _lines(task: PolygonsTask, written: WrittenPolygons) -> list[str]:
    lines = [f"{counted(written.polygons, 'polygon')} of {counted(written.cases, 'case')}: {task.path}"]
    if task.minimum is not None:
        lines.append(
            f"{written.left.number:,} smaller than {task.minimum} left out, {counted(written.left.pixels, 'pixel')}"
        )
    return lines

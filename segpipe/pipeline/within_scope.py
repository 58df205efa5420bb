"""Remove labels outside the area of interest from finished boxes; scores inside are as without an area of interest."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from segpipe.formats.source import Invalid
from segpipe.network.arrays import HOST, Arrays
from segpipe.pipeline.blend import FinishedBox


def within_scope(boxes: Iterable[FinishedBox], arrays: Arrays = HOST) -> Iterator[FinishedBox]:
    """Yield boxes of the case's own grid, in which pixels outside the scope of the case are invalid."""
    for box in boxes:
        scope = box.info.scope
        yield box if scope is None or box.sums is None else _without(box, scope.excluded(box.window), arrays)
        del box  # a volume's scores may be a gigabyte: they are gone before the next arrive


def _without(box: FinishedBox, excluded: Invalid | None, arrays: Arrays) -> FinishedBox:
    if excluded is None:
        return box
    if excluded.all():
        return replace(box, sums=None, invalid=None, differ=None)
    mask = arrays.put(excluded)
    return replace(box, invalid=mask if box.invalid is None else box.invalid | mask)

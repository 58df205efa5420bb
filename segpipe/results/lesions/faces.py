"""Open faces of boxes, whose other side has not been seen: there later boxes join components of earlier ones."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Integers

Numbers = NDArray[np.int32]
Pairs = list[tuple[int, int]]
AXES = 3


@dataclass(frozen=True, eq=False, slots=True)
class Face:
    """The outermost plane of a box, with its labelled voxels only."""

    axis: int
    high: bool
    """Whether it is the plane with the largest index along its axis."""
    unseen: int
    """Number of voxels next to it, diagonal ones included, that no box has contained yet."""
    place: NDArray[np.int32]
    """Flat index of each labelled voxel in ``(layers, *plane)``."""
    number: Numbers
    """Component of each labelled voxel."""


@dataclass(eq=False)
class OpenBox:
    """A box with its open faces."""

    start: tuple[int, ...]
    stop: tuple[int, ...]
    faces: dict[tuple[int, bool], Face] = field(default_factory=dict)


class OpenFaces:
    """The open faces of all boxes of a volume.

    Two touching voxels of different boxes are separated along some axis, so both lie on facing planes of their boxes. A
    face is kept as long as a voxel on its other side has not been seen.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._boxes: list[OpenBox] = []
        self._layers = 1
        self._ends = np.zeros((0, 2, AXES), np.int64)

    def add(self, start: tuple[int, ...], numbers: Numbers, kinds: Integers) -> Pairs:
        """Add a box of components ``(layers, *box)``, -1 where there is none; return the pairs that are joined."""
        self._layers = len(numbers)
        box = OpenBox(start, tuple(a + n for a, n in zip(start, numbers.shape[1:], strict=True)))
        for axis, high in product(range(AXES), (False, True)):
            if region := self._beyond(box, axis, high=high):
                plane = numbers.take(-1 if high else 0, axis=axis + 1).ravel()
                place = np.flatnonzero(plane >= 0)
                box.faces[axis, high] = Face(axis, high, _volume(*region), place.astype(np.int32), plane[place])
        pairs = self._meet(box, self._near(box), kinds)
        self._boxes.append(box)
        self._tidy()
        return pairs

    def merge(self, state: Mapping[str, NDArray[Any]], base: int, kinds: Integers) -> Pairs:
        """Add the open faces of a part, whose numbers are offset by ``base`` here; return the pairs that are joined."""
        self._layers = int(state["layers"])
        coming = list(_boxes(state, base))
        pairs = [pair for box in coming for pair in self._meet(box, self._near(box), kinds)]
        self._boxes += coming
        self._tidy()
        return pairs

    def numbers(self) -> Integers:
        """Every component that a later box may join."""
        each = [face.number for box in self._boxes for face in box.faces.values()]
        return np.unique(np.concatenate([np.zeros(0, np.int32), *each])).astype(np.int64)

    def renumber(self, moved: Integers) -> None:
        """Give components their new numbers."""
        for box in self._boxes:
            box.faces = {key: replace(face, number=moved[face.number].astype(np.int32)) for key, face in box.faces.items()}

    @property
    def state(self) -> dict[str, NDArray[Any]]:
        faces = [(k, face) for k, box in enumerate(self._boxes) for face in box.faces.values()]
        facts = [(k, face.axis, face.high, face.unseen, len(face.place)) for k, face in faces]
        return {
            "layers": np.array(self._layers),
            "boxes": np.array([(box.start, box.stop) for box in self._boxes], np.int64).reshape(-1, 2, AXES),
            "facts": np.array(facts, np.int64).reshape(-1, 5),
            "place": np.concatenate([np.zeros(0, np.int32), *(face.place for _, face in faces)]),
            "number": np.concatenate([np.zeros(0, np.int32), *(face.number for _, face in faces)]),
        }

    def _beyond(self, box: OpenBox, axis: int, *, high: bool) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """The voxels on the other side of a face, diagonal ones included; None at the border of the volume."""
        at = box.stop[axis] if high else box.start[axis] - 1
        if not 0 <= at < self._shape[axis]:
            return None
        low = [max(0, a - 1) for a in box.start]
        far = [min(n, b + 1) for n, b in zip(self._shape, box.stop, strict=True)]
        low[axis], far[axis] = at, at + 1
        return tuple(low), tuple(far)

    def _near(self, box: OpenBox) -> list[OpenBox]:
        if len(self._ends) != len(self._boxes):
            self._ends = np.array([(one.start, one.stop) for one in self._boxes], np.int64).reshape(-1, 2, AXES)
        near = ((self._ends[:, 0] <= box.stop) & (self._ends[:, 1] >= box.start)).all(axis=1)
        return [self._boxes[k] for k in np.flatnonzero(near)]

    def _meet(self, box: OpenBox, others: list[OpenBox], kinds: Integers) -> Pairs:
        pairs: Pairs = []
        for other in others:
            pairs += self._joined(box, other, kinds)
        for other in others:
            self._see(other, box)
            self._see(box, other)
        return pairs

    def _see(self, box: OpenBox, other: OpenBox) -> None:
        """Note that the voxels of another box have been seen."""
        for key, face in box.faces.items():
            region = self._beyond(box, face.axis, high=face.high)
            assert region is not None
            low, far = tuple(map(max, region[0], other.start)), tuple(map(min, region[1], other.stop))
            if all(a < b for a, b in zip(low, far, strict=True)):
                box.faces[key] = replace(face, unseen=face.unseen - _volume(low, far))

    def _tidy(self) -> None:
        """Drop the faces whose other side has been seen, and boxes without open faces."""
        for box in self._boxes:
            if any(not face.unseen for face in box.faces.values()):
                box.faces = {key: face for key, face in box.faces.items() if face.unseen}
        self._boxes = [box for box in self._boxes if box.faces]
        self._ends = np.zeros((0, 2, AXES), np.int64)

    def _joined(self, box: OpenBox, other: OpenBox, kinds: Integers) -> Pairs:
        """Components of two boxes that touch each other."""
        for axis, high in product(range(AXES), (False, True)):
            if (box.stop[axis] == other.start[axis]) if high else (other.stop[axis] == box.start[axis]):
                mine, theirs = box.faces.get((axis, high)), other.faces.get((axis, not high))
                if mine is None or theirs is None or not len(mine.place) or not len(theirs.place):
                    return []
                across = [k for k in range(AXES) if k != axis]
                return _touching(self._plane(box, mine, across), self._plane(other, theirs, across), kinds)
        return []

    def _plane(self, box: OpenBox, face: Face, across: list[int]) -> "Plane":
        start, stop = (tuple(end[k] for k in across) for end in (box.start, box.stop))
        values = np.full((self._layers, *(b - a for a, b in zip(start, stop, strict=True))), -1, np.int32)
        values.ravel()[face.place] = face.number
        return Plane(start, stop, values)


@dataclass(frozen=True, eq=False, slots=True)
class Plane:
    """All voxels of a face, ``(layers, *plane)``."""

    start: tuple[int, ...]
    stop: tuple[int, ...]
    values: Numbers

    def cut(self, low: tuple[int, ...], far: tuple[int, ...]) -> Numbers:
        """Values of the part from ``low`` to ``far``, ``(layers, *part)``."""
        inside = (slice(a - s, b - s) for a, b, s in zip(low, far, self.start, strict=True))
        return self.values[(slice(None), *inside)]


def _touching(one: Plane, other: Plane, kinds: Integers) -> Pairs:
    """Pairs of components of one class whose voxels on facing planes touch, straight or diagonally."""
    found = [np.zeros((0, 2), np.int32)]
    for shift in product((-1, 0, 1), repeat=2):
        low = tuple(max(a, b - d) for a, b, d in zip(one.start, other.start, shift, strict=True))
        far = tuple(min(a, b - d) for a, b, d in zip(one.stop, other.stop, shift, strict=True))
        if any(a >= b for a, b in zip(low, far, strict=True)):
            continue
        there = [tuple(a + d for a, d in zip(ends, shift, strict=True)) for ends in (low, far)]
        pairs = np.stack([one.cut(low, far), other.cut(there[0], there[1])], axis=-1).reshape(-1, 2)
        found.append(pairs[(pairs >= 0).all(axis=1)])
    pairs = np.unique(np.concatenate(found), axis=0)
    return [(int(a), int(b)) for a, b in pairs[kinds[pairs[:, 0]] == kinds[pairs[:, 1]]]]


def _volume(low: tuple[int, ...], far: tuple[int, ...]) -> int:
    return int(np.prod([b - a for a, b in zip(low, far, strict=True)]))


def _boxes(state: Mapping[str, NDArray[Any]], base: int) -> Iterator[OpenBox]:
    boxes = [OpenBox(tuple(start), tuple(stop)) for start, stop in state["boxes"].tolist()]
    begin = 0
    for k, axis, high, unseen, count in state["facts"].tolist():
        own = slice(begin, begin + count)
        face = Face(axis, bool(high), unseen, state["place"][own], state["number"][own] + np.int32(base))
        boxes[k].faces[axis, bool(high)] = face
        begin += count
    return iter(boxes)

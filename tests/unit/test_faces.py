"""Open faces: they are kept until the other side has been seen, and no longer."""

from itertools import product

import numpy as np
import pytest

from segpipe.results.lesions.faces import OpenFaces

SHAPE = (6, 8, 10)
BOXES = [(a, b, c) for a in (0, 3) for b in (0, 4) for c in (0, 5)]


def full(number: int) -> np.ndarray:
    return np.full((1, 3, 4, 5), number, np.int32)


@pytest.mark.parametrize("seed", range(5))
def test_all_neighbours_meet_once_and_nothing_stays_open(seed):
    order = np.random.default_rng(seed).permutation(len(BOXES)).tolist()
    faces, pairs = OpenFaces(SHAPE), []
    kinds = np.zeros(len(BOXES), np.int64)
    for k in order:
        pairs += faces.add(BOXES[k], full(k), kinds)
    assert sorted(tuple(sorted(pair)) for pair in pairs) == [(a, b) for a, b in product(range(8), repeat=2) if a < b]
    assert not faces.numbers().size
    assert len(faces.state["boxes"]) == 0


def test_a_face_is_open_until_its_other_side_has_been_seen_diagonally_too():
    faces, kinds = OpenFaces((1, 9, 9)), np.zeros(9, np.int64)
    each = [(0, 3 * k, 3 * j) for k in range(3) for j in range(3)]
    for k in (4, 0, 1, 2, 3, 5, 6):
        faces.add(each[k], np.full((1, 1, 3, 3), k, np.int32), kinds)
    assert 4 in faces.numbers()  # the box below it, and the one beside that, are to come
    faces.add(each[7], np.full((1, 1, 3, 3), 7, np.int32), kinds)
    assert 4 in faces.numbers()
    faces.add(each[8], np.full((1, 1, 3, 3), 8, np.int32), kinds)
    assert not faces.numbers().size


def test_other_classes_are_not_joined():
    faces, kinds = OpenFaces((1, 1, 4)), np.array([1, 2])
    assert faces.add((0, 0, 0), np.zeros((1, 1, 1, 2), np.int32), kinds) == []
    assert faces.add((0, 0, 2), np.ones((1, 1, 1, 2), np.int32), kinds) == []


def test_the_open_faces_of_a_part_go_on_in_the_join_with_numbers_of_their_own():
    kinds = np.zeros(8, np.int64)
    parts = [OpenFaces(SHAPE), OpenFaces(SHAPE)]
    for k, part in zip((0, 1), parts, strict=True):
        part.add(BOXES[k], full(0), kinds)
    whole = OpenFaces(SHAPE)
    assert whole.merge(parts[0].state, 0, kinds) == []
    assert whole.merge(parts[1].state, 1, kinds) == [(1, 0)]
    assert whole.numbers().tolist() == [0, 1]

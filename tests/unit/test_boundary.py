"""Boundary scores against brute force, a published example, and cases by hand."""

from itertools import product

import numpy as np
import pytest

from segpipe.accuracy.boundary import Compared, boundary_scores


def scored(reference, mapped, spacing, tolerance, *, classes=3, step=100):
    def read(window):
        part = tuple(map(slice, window.start, window.stop))
        return reference[part], mapped[part]

    return boundary_scores(Compared(read, reference.shape, spacing, classes, step), tolerance)


def brute_corners(labels, k):
    found = []
    for place in product(*(range(size - 1) for size in labels.shape)):
        around = [labels[tuple(np.add(place, step))] for step in product((0, 1), repeat=labels.ndim)]
        inside = [one == k for one in around]
        if min(around) >= 0 and any(inside) and not all(inside):
            found.append(place)
    return np.array(found, float).reshape(-1, labels.ndim)


def brute(reference, mapped, spacing, tolerance, k):
    """Every distance between two corners, and between two pixels."""
    a, b = (brute_corners(one, k) * spacing for one in (reference, mapped))
    near = []
    for labels in (reference, mapped):
        others = np.argwhere((labels != k) & (labels >= 0)) * np.array(spacing)
        own = np.zeros(labels.shape, bool)
        for place in np.argwhere(labels == k):
            away = np.linalg.norm(others - place * np.array(spacing), axis=1)
            own[tuple(place)] = len(away) > 0 and away.min() <= tolerance + 1e-9
        near.append(own)
    iou = (near[0] & near[1]).sum() / (near[0] | near[1]).sum() if (near[0] | near[1]).any() else None
    if not len(a) or not len(b):
        none = None if not len(a) and not len(b) else 0.0
        return none, none, iou, None
    apart = np.linalg.norm(a[:, None] - b[None], axis=2)
    to, back = apart.min(axis=1), apart.min(axis=0)
    recall, precision = ((one <= tolerance + 1e-9).mean() for one in (to, back))
    f1 = 2 * recall * precision / (recall + precision) if recall + precision else 0.0
    dice = ((to <= tolerance + 1e-9).sum() + (back <= tolerance + 1e-9).sum()) / (len(to) + len(back))
    return f1, dice, iou, max(np.percentile(to, 95), np.percentile(back, 95))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("step", [3, 100])
@pytest.mark.parametrize(("shape", "spacing"), [((14, 17), (2.0, 1.0)), ((6, 7, 8), (3.0, 1.0, 1.5))], ids=["2-D", "3-D"])
def test_scores_equal_brute_force(seed, step, shape, spacing):
    draw = np.random.default_rng(seed)
    reference = np.kron(draw.integers(0, 2 + seed % 2, [-(-n // 4) for n in shape]), np.ones([4] * len(shape), int))
    reference = reference[tuple(map(slice, shape))].astype(np.int64)
    mapped = np.roll(reference, 1, axis=-1)
    mapped[draw.random(shape) < 0.05] = 1
    for one in (reference, mapped):
        one[draw.random(shape) < 0.02] = -1
    for k, own in enumerate(scored(reference, mapped, spacing, 2.5, step=step)):
        wanted = brute(reference, mapped, spacing, 2.5, k)
        assert (own.f1, own.surface_dice, own.iou, own.hd95) == pytest.approx(wanted), k


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_slice_of_a_volume_is_an_image(axis):
    draw = np.random.default_rng(axis)
    reference, mapped = draw.integers(-1, 3, (2, 9, 8))
    spacing = np.insert([2.0, 1.5], axis, 5.0)
    one, other = (np.expand_dims(labels, axis) for labels in (reference, mapped))
    assert scored(one, other, spacing, 2.5, step=3) == scored(reference, mapped, (2.0, 1.5), 2.5)
    assert scored(one, other, spacing, 2.5)[1].f1 == pytest.approx(brute(reference, mapped, (2.0, 1.5), 2.5, 1)[0])


def test_two_pixels_that_are_two_apart():
    """The example of google-deepmind/surface-distance: 95 % distance 2 mm, surface Dice 0.5 at 1 mm."""
    reference, mapped = np.zeros((128, 128), np.int64), np.zeros((128, 128), np.int64)
    reference[50, 70] = mapped[50, 72] = 1
    own = scored(reference, mapped, (2.0, 1.0), 1.0, classes=2)[1]
    assert (own.hd95, own.surface_dice) == (2.0, 0.5)


def test_equal_masks_are_perfect():
    labels = np.kron(np.arange(9).reshape(3, 3) % 3, np.ones((5, 5), np.int64))
    for own in scored(labels, labels.copy(), (10.0, 10.0), 10.0):
        assert (own.f1, own.surface_dice, own.iou, own.hd95) == (1.0, 1.0, 1.0, 0.0)


def test_a_missed_class_has_a_score_of_0_and_no_distance():
    reference, mapped = np.zeros((9, 9), np.int64), np.zeros((9, 9), np.int64)
    reference[3:6, 3:6] = 1
    own = scored(reference, mapped, (1.0, 1.0), 1.0)[1]
    assert (own.f1, own.surface_dice, own.iou, own.hd95) == (0.0, 0.0, 0.0, None)
    neither = scored(reference, mapped, (1.0, 1.0), 1.0)[2]
    assert (neither.f1, neither.surface_dice, neither.iou, neither.hd95) == (None, None, None, None)


def test_the_edge_of_a_case_is_no_boundary():
    labels = np.zeros((5, 5), np.int64)
    labels[:2] = 1
    own = scored(labels, labels.copy(), (1.0, 1.0), 1.0)[1]
    assert (own.intersection, own.union) == (5, 5)  # the row beside the other class, not that at the edge

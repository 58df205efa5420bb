"""Scores against scikit-learn and torchmetrics, on random pairs with ignored pixels, absent classes and empty cases."""

import tracemalloc

import numpy as np
import pytest
import torch
from later import Later

from segpipe.accuracy.confusion import ClassMap, Confusion, PairCounts, confusion_of
from segpipe.accuracy.scores import QUANTITIES, SUMMARIES, Margins, bootstrap, scores
from segpipe.errors import SourceError

metrics, oracle = Later("sklearn.metrics"), Later("torchmetrics.functional.classification")

IGNORED = 255


def pair(seed, classes, *, absent=(), empty=False, dtype=np.uint8):
    draw = np.random.default_rng(seed)
    there = [k for k in range(classes) if k not in absent]
    reference = draw.choice(there, (40, 31)).astype(dtype)
    labels = np.where(draw.random(reference.shape) < 0.6, reference, draw.choice(there, reference.shape)).astype(np.uint8)
    reference[draw.random(reference.shape) < 0.1] = IGNORED
    if empty:
        reference[:] = IGNORED
    return reference, labels


def matrix_of(reference, labels, classes, ignored=(IGNORED,)):
    counts = PairCounts()
    for top in range(0, len(reference), 7):  # in strips, as a file is read
        counts.add(reference[top : top + 7], labels[top : top + 7])
    return confusion_of(counts, ClassMap(tuple(range(classes)), tuple("abcdefgh"[:classes]), {}, frozenset(ignored)))


CASES = [
    pytest.param({"seed": 0, "classes": 3}, id="three classes"),
    pytest.param({"seed": 1, "classes": 6}, id="six classes"),
    pytest.param({"seed": 2, "classes": 5, "absent": (2, 4)}, id="absent classes"),
    pytest.param({"seed": 3, "classes": 2}, id="two classes"),
    pytest.param({"seed": 4, "classes": 4, "dtype": np.uint16}, id="16 bits"),
    pytest.param({"seed": 5, "classes": 4, "dtype": np.float32}, id="floating point"),
]


@pytest.mark.parametrize("given", CASES)
def test_scores_are_those_of_scikit_learn(given):
    reference, labels = pair(**given)
    classes = range(given["classes"])
    found, valid = matrix_of(reference, labels, len(classes)), reference != IGNORED
    y, z = reference[valid].astype(int), labels[valid]
    own = scores(Margins.of(found.matrix))
    np.testing.assert_array_equal(found.matrix, metrics.confusion_matrix(y, z, labels=classes))
    assert found.ignored == np.count_nonzero(~valid)
    for name, function in (
        ("iou", metrics.jaccard_score),
        ("dice", metrics.f1_score),
        ("precision", metrics.precision_score),
        ("recall", metrics.recall_score),
    ):
        wanted = function(y, z, labels=classes, average=None, zero_division=0)
        np.testing.assert_allclose(np.nan_to_num(getattr(own, name)), wanted, atol=1e-12)
    assert own.overall_accuracy == pytest.approx(metrics.accuracy_score(y, z))
    assert own.kappa == pytest.approx(metrics.cohen_kappa_score(y, z))
    assert own.mean_accuracy == pytest.approx(metrics.balanced_accuracy_score(y, z))
    weighted = metrics.jaccard_score(y, z, labels=classes, average="weighted", zero_division=0)
    assert own.frequency_weighted_iou == pytest.approx(weighted)


@pytest.mark.parametrize("given", CASES)
def test_scores_are_those_of_torchmetrics(given):
    reference, labels = pair(**given)
    classes = given["classes"]
    y, z = (torch.from_numpy(values.astype(np.int64)) for values in (reference, labels))
    own, common = (
        scores(Margins.of(matrix_of(reference, labels, classes).matrix)),
        {"num_classes": classes, "ignore_index": IGNORED},
    )
    matrix = oracle.multiclass_confusion_matrix(z, y, **common)
    np.testing.assert_array_equal(matrix_of(reference, labels, classes).matrix, matrix)
    assert own.mean_iou == pytest.approx(float(oracle.multiclass_jaccard_index(z, y, average="macro", **common)), abs=1e-6)
    assert own.mean_dice == pytest.approx(float(oracle.multiclass_f1_score(z, y, average="macro", **common)), abs=1e-6)
    assert own.kappa == pytest.approx(float(oracle.multiclass_cohen_kappa(z, y, **common)), abs=1e-6)
    each = oracle.multiclass_jaccard_index(z, y, average="none", **common)
    np.testing.assert_allclose(np.nan_to_num(own.iou), each, atol=1e-6)


def test_a_case_without_reference_has_no_scores():
    own = scores(Margins.of(matrix_of(*pair(0, 3, empty=True), 3).matrix))
    for name in (*QUANTITIES, *SUMMARIES):
        assert np.isnan(getattr(own, name)).all(), name


def test_three_by_three_by_hand():
    """Reference 0 0 1 / 0 1 1 / 2 2 2, map 0 1 1 / 0 1 2 / 2 2 0."""
    reference, labels = (
        np.array([[0, 0, 1], [0, 1, 1], [2, 2, 2]], np.uint8),
        np.array([[0, 1, 1], [0, 1, 2], [2, 2, 0]], np.uint8),
    )
    found = matrix_of(reference, labels, 3)
    assert found.matrix.tolist() == [[2, 1, 0], [0, 2, 1], [1, 0, 2]]
    own = scores(Margins.of(found.matrix))
    assert own.iou.tolist() == [0.5, 0.5, 0.5]
    assert own.dice == pytest.approx([2 / 3] * 3)
    assert own.overall_accuracy == own.mean_accuracy == pytest.approx(2 / 3)
    assert own.kappa == pytest.approx((2 / 3 - 1 / 3) / (2 / 3))


def test_a_class_only_on_the_map_has_an_iou_of_0_and_no_recall():
    own = scores(Margins.of(np.array([[5, 3], [0, 0]])))
    assert own.iou.tolist() == [5 / 8, 0.0]
    assert np.isnan(own.recall[1])
    assert own.mean_iou == 5 / 16
    assert own.mean_accuracy == 5 / 8


def test_pixels_without_label_do_not_count_and_are_told():
    reference, labels = np.array([[0, 1, 1]], np.uint8), np.array([[0, 1, 255]], np.uint8)
    found = matrix_of(reference, labels, 2)
    assert (found.matrix.tolist(), found.unseen) == ([[1, 0], [0, 1]], 1)
    counts = PairCounts()
    counts.add(reference, labels, np.array([[True, False, True]]))
    invalid = confusion_of(counts, ClassMap((0, 1), ("a", "b")))
    assert (invalid.matrix.tolist(), invalid.unseen, invalid.ignored) == ([[1, 0], [0, 0]], 1, 1)


def test_values_that_are_no_class_are_named():
    counts = PairCounts()
    counts.add(np.array([[0, 7, 7]], np.uint8), np.array([[0, 0, 0]], np.uint8))
    with pytest.raises(SourceError, match=r"values of a reference must be classes, 0, 1, and it has 7 \(2 pixels\)"):
        confusion_of(counts, ClassMap((0, 1), ("a", "b")))
    with pytest.raises(SourceError, match="must hold whole numbers"):
        counts.add(np.array([[0.5]]), np.array([[0]], np.uint8))


def test_confusions_add_up():
    one = Confusion(np.array([[1, 0], [2, 3]]), 4, 5)
    assert ((one + one).matrix.tolist(), (one + one).unseen, (one + one).ignored) == ([[2, 0], [4, 6]], 8, 10)


def test_bootstrap_draws_cases():
    """Against a loop over the same draws, and by the spread of a mean of cases."""
    draw = np.random.default_rng(1)
    matrices = np.stack([matrix_of(*pair(seed, 3), 3).matrix * int(draw.integers(1, 4)) for seed in range(12)])
    found = bootstrap(Margins.of(matrices), 300, 7, 0.9)
    times = np.random.default_rng(7).multinomial(12, np.full(12, 1 / 12), size=300)
    pooled = [scores(Margins.of(np.tensordot(row, matrices, axes=1))) for row in times]
    assert found["mean_iou"] == pytest.approx(np.quantile([float(one.mean_iou) for one in pooled], [0.05, 0.95]))
    assert found["iou"][:, 1] == pytest.approx(np.quantile([one.iou[1] for one in pooled], [0.05, 0.95]))
    assert found["iou"].shape == (2, 3)
    assert bootstrap(Margins.of(matrices), 300, 7, 0.9)["kappa"] == pytest.approx(found["kappa"])
    assert found["kappa"][0] < float(scores(Margins.of(matrices.sum(axis=0))).kappa) < found["kappa"][1]


def test_draws_are_exact():
    """Seven draws of 30 cases of 120 classes, against sums of integers one by one."""
    rng = np.random.default_rng(0)
    matrices, times = rng.integers(0, 2**38, (30, 120, 120)), rng.integers(0, 4, (7, 30))
    found = Margins.stacked([Margins.of(matrix) for matrix in matrices]).drawn(times)
    expected = [sum(int(n) * matrix for n, matrix in zip(draw, matrices, strict=True)) for draw in times]
    np.testing.assert_array_equal(found.hits, [np.diag(matrix) for matrix in expected])
    np.testing.assert_array_equal(found.support, [matrix.sum(axis=1) for matrix in expected])
    np.testing.assert_array_equal(found.mapped, [matrix.sum(axis=0) for matrix in expected])


def test_draws_of_many_cases_are_made_in_parts_of_bounded_memory(monkeypatch):
    margins = Margins.of(np.random.default_rng(0).integers(0, 9, (1_000, 3, 3)))
    whole = bootstrap(margins, 100, 7, 0.9)
    monkeypatch.setattr("segpipe.accuracy.scores.MOST_NUMBERS", 7_000)
    tracemalloc.start()
    try:
        found = bootstrap(margins, 100, 7, 0.9)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert all(np.array_equal(found[name], whole[name]) for name in whole)
    assert peak < 100 * 1_000 * 8 / 2

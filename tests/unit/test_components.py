"""Components of a volume in boxes, against cc3d and scikit-image on whole arrays, however it is cut; row_runs.py, too."""

from typing import Any

import cc3d
import numpy as np
import pytest
from skimage.measure import label, regionprops_table

from segpipe.errors import SourceError
from segpipe.results.lesions import components
from segpipe.results.lesions.components import Components, LabelLayer
from segpipe.results.lesions.outlines import places

KINDS = 3


def cut(rng: np.random.Generator, shape: tuple[int, ...], count: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Random boxes, in random order, that hold each voxel once: not only those of a grid."""
    boxes = [((0, 0, 0), shape)]
    for _ in range(4 * count):
        start, stop = boxes.pop(int(rng.integers(len(boxes))))
        axis = int(rng.integers(3))
        if len(boxes) + 1 >= count or stop[axis] - start[axis] < 2:
            boxes.append((start, stop))
            continue
        at = int(rng.integers(start[axis] + 1, stop[axis]))
        low, high = list(stop), list(start)
        low[axis] = high[axis] = at
        boxes += [(start, tuple(low)), (tuple(high), stop)]
    rng.shuffle(boxes)
    return [(tuple(a), tuple(b)) for a, b in boxes]


def scene(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 14, 3))
    kinds = ((rng.random(shape) < rng.uniform(0.1, 0.7)) * rng.integers(1, KINDS + 1, shape)).astype(np.uint16)
    pixels = rng.integers(-1000, 3000, (2, *shape)).astype(np.int16)
    if seed % 2:
        pixels = (rng.standard_normal((2, *shape)) * 10.0 ** rng.integers(-40, 30, (2, *shape))).astype(np.float32)
    return {"kinds": kinds, "confidence": rng.integers(0, 255, shape).astype(np.uint8), "pixels": pixels}


def counted(scene: dict[str, np.ndarray], groups: list[Any], **options: Any) -> Components:
    """Boxes of each group go through a part of their own, unless there is only one group."""
    shape = scene["kinds"].shape
    whole = Components(shape, KINDS, **options)
    for boxes in groups:
        part = whole if len(groups) == 1 else Components(shape, KINDS, **options)
        for start, stop in boxes:
            window = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
            layer = LabelLayer(scene["kinds"][window], scene["confidence"][window])
            part.add(start, [layer], lambda window=window: scene["pixels"][(slice(None), *window)])
        if part is not whole:
            whole.merge(part.state)
    return whole


def listed(found: Components) -> tuple[list[Any], ...]:
    """All that is known of the components, in the order of their first voxels."""
    table, owner, point = found.finished()
    if not table:
        return ([], [], [])
    order = np.lexsort((table["kind"], table["first"]))
    new = np.argsort(order)[owner]
    sort = np.lexsort((point, new))
    return (
        [{key: column[k].tolist() for key, column in table.items()} for k in order],
        new[sort].tolist(),
        point[sort].tolist(),
    )


@pytest.mark.parametrize("least", [1, 4])
@pytest.mark.parametrize("seed", range(12))
def test_nothing_depends_on_the_boxes_their_order_or_the_parts(seed, least):
    rng, made = np.random.default_rng(seed + 1000), scene(seed)
    shape = made["kinds"].shape
    whole = counted(made, [[((0, 0, 0), shape)]], least=least)
    for boxes, parts in ((3, 1), (12, 1), (12, 2), (25, 7)):
        all_boxes = cut(rng, shape, boxes)
        found = counted(made, [all_boxes[k::parts] for k in range(parts)], least=least)
        assert listed(found) == listed(whole)
        assert (found.left.small == whole.left.small).all()
        assert not found._faces._boxes  # nothing waits for boxes that never come


@pytest.mark.parametrize("seed", range(12))
def test_components_are_those_of_cc3d_and_scikit_image(seed):
    made = scene(seed)
    rng, kinds = np.random.default_rng(seed), made["kinds"]
    boxes = cut(rng, kinds.shape, 10)
    rows, owner, point = listed(counted(made, [boxes]))
    number, count = cc3d.connected_components(kinds, connectivity=26, return_N=True)
    assert len(rows) == count == int(label(kinds, background=0, connectivity=3).max())
    names = ("label", "area", "bbox", "centroid", "intensity_mean", "intensity_min", "intensity_max")
    pixels = np.moveaxis(made["pixels"].astype(np.float64), 0, -1)
    table = regionprops_table(number.astype(np.int64), pixels, properties=names)
    for row in rows:
        k = int(np.flatnonzero(table["label"] == number.ravel()[row["first"]])[0])
        assert row["voxels"] == table["area"][k]
        assert row["low"] + row["high"] == [table[f"bbox-{n}"][k] for n in range(6)]
        assert np.array(row["sums"]) / row["voxels"] == pytest.approx([table[f"centroid-{n}"][k] for n in range(3)])
        assert row["darkest"] == [table[f"intensity_min-{n}"][k] for n in range(2)]
        assert row["brightest"] == [table[f"intensity_max-{n}"][k] for n in range(2)]
        own = number == table["label"][k]
        means = [components.exact.mean(np.array(limbs), row["voxels"]) for limbs in row["intensity"]]
        scale = np.abs(pixels[own]).max(axis=0)
        assert np.array(means) / scale == pytest.approx(pixels[own].mean(axis=0) / scale, abs=1e-6)
        assert (row["confidence"], row["surest"]) == (made["confidence"][own].sum(), made["confidence"][own].max())
        assert row["kind"] == kinds[own].max() == kinds[own].min()
    where = places(np.array(point), kinds.shape)
    assert [rows[k]["first"] for k in owner] == [
        int(np.flatnonzero(number.ravel() == number[tuple(p)])[0]) for p in where
    ]  # each point of an outline lies in its component


def test_components_touch_across_corners_of_boxes():
    """Two voxels whose boxes share nothing but a corner; one of another class between them joins nothing."""
    kinds = np.zeros((4, 4, 4), np.uint16)
    kinds[1, 1, 1] = kinds[2, 2, 2] = 1
    kinds[1, 2, 1] = kinds[2, 1, 2] = 2
    made = {"kinds": kinds, "confidence": kinds.astype(np.uint8), "pixels": kinds[None].astype(np.int16)}
    boxes = [((a, b, c), (a + 2, b + 2, c + 2)) for a in (0, 2) for b in (0, 2) for c in (0, 2)]
    for order in (boxes, boxes[::-1]):
        rows, _, _ = listed(counted(made, [order]))
        assert [(row["kind"], row["voxels"]) for row in rows] == [(1, 2), (2, 2)]


def test_two_classes_may_overlap_in_two_layers():
    kinds = np.ones((1, 6, 6), np.uint16)
    found = Components((1, 6, 6), 2)
    for low in (0, 3):
        found.add((0, low, 0), [LabelLayer(kinds[:, :3]), LabelLayer(2 * kinds[:, :3])])
    assert sorted((row["kind"], row["voxels"]) for row in listed(found)[0]) == [(1, 36), (2, 36)]


@pytest.mark.parametrize("parts", [1, 3])
def test_of_too_many_components_the_largest_are_kept(monkeypatch, parts):
    monkeypatch.setattr(components, "MOST_LISTED", 20)
    monkeypatch.setattr(components, "PENDING_ROWS", 8)
    rng = np.random.default_rng(0)
    kinds = (rng.random((9, 30, 30)) < 0.06).astype(np.uint16)
    made = {"kinds": kinds, "confidence": kinds.astype(np.uint8), "pixels": kinds[None].astype(np.int16)}
    boxes = cut(rng, kinds.shape, 40)
    found = counted(made, [boxes[k::parts] for k in range(parts)])
    number, count = cc3d.connected_components(kinds, connectivity=26, return_N=True)
    sizes = np.bincount(number.ravel())[1:]
    rows = listed(found)[0]
    assert sorted(row["voxels"] for row in rows) == sorted(sizes)[-20:]
    assert found.left.excess[1].tolist() == [count - 20, int(sizes.sum() - np.sort(sizes)[-20:].sum())]
    first = {int(np.flatnonzero(number.ravel() == k)[0]): int(sizes[k - 1]) for k in range(1, count + 1)}
    assert {row["first"] for row in rows} == {*sorted(first, key=lambda at: (-first[at], at))[:20]}


@pytest.mark.parametrize("parts", [1, 4])
def test_names_lead_to_the_components_of_all_boxes(monkeypatch, parts):
    monkeypatch.setattr(components, "PENDING_ROWS", 8)
    made, rng = scene(4), np.random.default_rng(4)
    kinds = made["kinds"]
    boxes = cut(rng, kinds.shape, 20)
    whole, volume, begun = Components(kinds.shape, KINDS, least=2, named=True), np.zeros(kinds.shape, np.int64), []
    for k in range(parts):
        part = whole if parts == 1 else Components(kinds.shape, KINDS, least=2, named=True)
        for start, stop in boxes[k::parts]:
            window = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
            begun.append((k, window, part.add(start, [LabelLayer(kinds[window])])[0]))
        if part is not whole:
            whole.merge(part.state)
    rows, names = len(whole.finished()[0]["first"]), whole.names()
    names = names if parts > 1 else [np.concatenate(names)]
    for k, window, found in begun:
        volume[window] = np.append(names[k] + 1, 0)[found]
    number = cc3d.connected_components(kinds, connectivity=26)
    sizes = np.bincount(number.ravel())
    number[sizes[number] < 2] = 0
    pairs = np.unique(np.stack([number.ravel(), volume.ravel()]), axis=1)
    assert pairs.shape[1] == rows + 1  # one to one, and 0 to 0
    assert (pairs[:, 0] == 0).all()


def test_too_many_pieces_for_instances_are_an_error_that_names_min_size(monkeypatch):
    monkeypatch.setattr(components, "MOST_PIECES", 10)
    kinds = np.zeros((1, 9, 9), np.uint16)
    kinds[0, ::2, ::2] = 1
    with pytest.raises(SourceError, match=r"at most 10 pieces.*raise --min-size"):
        Components((1, 9, 9), 1, named=True).add((0, 0, 0), [LabelLayer(kinds)])
    named = Components((1, 9, 9), 1, least=2, named=True)
    assert (named.add((0, 0, 0), [LabelLayer(kinds)]) == -1).all()


def test_too_many_pieces_are_an_error_however_a_case_is_cut(monkeypatch):
    monkeypatch.setattr(components, "MOST_PIECES", 20)
    kinds = np.zeros((1, 9, 9), np.uint16)
    kinds[0, ::2, ::2] = 1  # 25 of them
    parts = [Components((1, 9, 9), 1, named=True) for _ in range(2)]
    for start, part in zip((0, 5), parts, strict=True):
        part.add((0, start, 0), [LabelLayer(np.ascontiguousarray(kinds[:, start : start + 5]))])
    with pytest.raises(SourceError, match=r"at most 20 pieces"):
        parts[0].merge(parts[1].state)


def test_what_is_kept_does_not_grow_with_the_volume():
    """Noise: a component per voxel of a pattern, of which only the faces of open boxes and the largest stay."""
    kinds = np.zeros((8, 64, 64), np.uint16)
    kinds[::2, ::2, ::2] = 1
    found = Components((800, 64, 64), 1, least=2)
    for k in range(100):
        found.add((8 * k, 0, 0), [LabelLayer(kinds)])
    assert len(found._pending.points) < 100
    assert len(found.finished()[1]) == 0
    assert found.left.small[1].tolist() == [100 * 4 * 32 * 32] * 2

"""Counting of ``segpipe evaluate`` against a NumPy confusion matrix in memory: processor seconds, and memory.

A mask of 10,980² pixels and 8 classes, as of a Sentinel-2 tile, a tenth without data, and a reference of which one patch in
ten differs. Each figure is that of a process of its own, from its start to its scores. NumPy's way reads both files whole,
leaves out what has no data, and counts pairs with ``bincount``, as papers' scripts do.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from children import Child, watched
from numpy.typing import NDArray

SCRATCH = Path(__file__).parent / "scratch" / "evaluate"
PIXEL, LEFT, TOP, CRS = 10.0, 300_000.0, 5_400_000.0, "EPSG:32633"
CLASSES, PATCH, NODATA = 8, 20, 255
MOST_RATIO, MOST_MB = 1.5, 1024


def make_pair(size: int) -> tuple[Path, Path]:
    """A mask and a reference, COGs as a run writes them."""
    import rasterio
    import rasterio.shutil
    from rasterio.io import MemoryFile
    from rasterio.transform import from_origin

    rng = np.random.default_rng(0)
    patches = rng.integers(0, CLASSES + 1, (-(-size // PATCH),) * 2, dtype=np.uint8)
    patches[patches == CLASSES] = NODATA
    other = np.where(rng.random(patches.shape) < 0.1, rng.integers(0, CLASSES, patches.shape), patches).astype(np.uint8)
    profile = {"driver": "GTiff", "width": size, "height": size, "count": 1, "dtype": "uint8", "nodata": NODATA}
    profile |= {"crs": CRS, "transform": from_origin(LEFT, TOP, PIXEL, PIXEL)}
    paths = SCRATCH / f"mask-{size}.tif", SCRATCH / f"reference-{size}.tif"
    for path, values in zip(paths, (patches, other), strict=True):
        labels = np.repeat(np.repeat(values, PATCH, 0), PATCH, 1)[:size, :size]
        with MemoryFile() as memory:
            with memory.open(**profile) as dataset:
                dataset.write(labels, 1)
            rasterio.shutil.copy(memory.name, path, driver="COG", COMPRESS="DEFLATE")
    return paths


def ours(mask: Path, reference: Path) -> NDArray[np.int64]:
    """What ``segpipe evaluate`` does with a case."""
    from segpipe.accuracy.confusion import ClassMap, PairCounts, confusion_of
    from segpipe.accuracy.labels import open_reference, windows
    from segpipe.formats.registry import FORMATS, RASTER

    classes = ClassMap(tuple(range(CLASSES)), tuple(f"class{k}" for k in range(CLASSES)))
    counts, open_mask = PairCounts(), FORMATS[RASTER].open_mask
    assert open_mask is not None
    with open_mask(mask) as labels, open_reference(reference, labels.grid) as truth:
        for window in windows(labels.grid.shape):
            values, valid = truth.read(window)
            counts.add(values, labels.read(window), valid)
    return confusion_of(counts, classes).matrix


def numpy(mask: Path, reference: Path) -> NDArray[np.int64]:
    import rasterio

    with rasterio.open(mask) as first, rasterio.open(reference) as second:
        labels, truth = first.read(1), second.read(1)
    known = (labels != NODATA) & (truth != NODATA)
    pairs = truth[known].astype(np.int64) * CLASSES + labels[known]
    return np.bincount(pairs, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


WAYS: dict[str, Callable[[Path, Path], NDArray[np.int64]]] = {"ours": ours, "numpy": numpy}


def show(matrix: NDArray[np.int64]) -> None:
    from segpipe.accuracy.scores import Margins, scores

    print(matrix.sum(), scores(Margins.of(matrix)))


def timed(way: str, pair: tuple[Path, Path], *, memory: bool = False) -> Child:
    return watched([sys.executable, __file__, "--way", way, *pair], every=0.05 if memory else None)


def compare(size: int, rounds: int) -> bool:
    """Print the table, and return whether all figures are within their limits; the ways take turns."""
    SCRATCH.mkdir(parents=True, exist_ok=True)
    pair = make_pair(size)
    found = [{way: timed(way, pair) for way in WAYS} for _ in range(rounds)]
    if len({child.printed for each in found for child in each.values()}) > 1:
        raise SystemExit("both ways must count the same")
    seconds = {way: min(each[way].busy for each in found) for way in WAYS}
    peak = {way: timed(way, pair, memory=True).peak_mb for way in WAYS}
    print(f"mask and reference of {size:,}² pixels, processor seconds of a process")
    for way, spent in seconds.items():
        print(f"  {way:6} {spent:6.2f} s, peak of {peak[way]:,.0f} MB")
    ratio = seconds["ours"] / seconds["numpy"]
    print(f"ratio {ratio:.2f} (at most {MOST_RATIO})")
    return ratio <= MOST_RATIO and peak["ours"] <= MOST_MB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--quick", action="store_true", help="1/16 of the pixels")
    chosen = parser.parse_args()
    if chosen.way:
        show(WAYS[chosen.way](*chosen.files))
        return
    raise SystemExit(0 if compare(2745 if chosen.quick else 10_980, 3) else 1)


if __name__ == "__main__":
    main()

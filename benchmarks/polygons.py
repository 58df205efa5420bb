"""Polygons of a mask against rasterio.features.shapes: processor seconds, and memory.

A mask of 10,980² pixels and 8 classes, as of a Sentinel-2 tile: patches of all sizes, of which one class holds almost half,
with edges that are rough, and one pixel in fifty of a wrong class. Each figure is that of a process of its own. Ours writes
the polygons with their areas into a file; rasterio's only makes them, one by one, from a mask in memory, and keeps none.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from children import Child, watched
from numpy.typing import NDArray

SCRATCH = Path(__file__).parent / "scratch" / "polygons"
PIXEL, LEFT, TOP, CRS = 10.0, 300_000.0, 5_400_000.0, "EPSG:32633"
SHARES = (0.45, 0.15, 0.1, 0.1, 0.07, 0.06, 0.04, 0.03)
PATCHES = ((400, 1.0), (60, 0.6), (12, 0.35), (4, 0.15))
"""Sizes of patches in pixels, and how much each decides."""
WRONG = 0.02
MOST_RATIO, MOST_MB = 1.5, 1024
SUFFIXES = (".parquet", ".gpkg", ".fgb", ".geojson")


def smooth(size: int, step: int, draw: np.random.Generator) -> NDArray[np.float32]:
    """Random values every ``step`` pixels, with linear interpolation between them."""
    values = draw.standard_normal((size // step + 2,) * 2).astype(np.float32)
    place = np.arange(size, dtype=np.float32) / step
    whole = place.astype(np.intp)
    part = place - whole
    rows = values[whole] * (1 - part)[:, None] + values[whole + 1] * part[:, None]
    return np.asarray(rows[:, whole] * (1 - part) + rows[:, whole + 1] * part)


def make_labels(size: int) -> NDArray[np.uint8]:
    draw = np.random.default_rng(0)
    field = np.zeros((size, size), np.float32)
    for step, weight in PATCHES:
        field += weight * smooth(size, step, draw)
    limits = np.quantile(field[::7, ::7], np.cumsum(SHARES)[:-1])
    labels = np.searchsorted(limits, field).astype(np.uint8)
    wrong = draw.random((size, size), dtype=np.float32) < WRONG
    labels[wrong] = draw.integers(0, len(SHARES), int(wrong.sum()), dtype=np.uint8)
    return labels


def make_mask(size: int) -> Path:
    """A COG as a run writes it."""
    import rasterio
    import rasterio.shutil
    from rasterio.io import MemoryFile
    from rasterio.transform import from_origin

    path = SCRATCH / f"mask-{size}.tif"
    if path.exists():
        return path
    profile = {"driver": "GTiff", "width": size, "height": size, "count": 1, "dtype": "uint8", "nodata": 255}
    profile |= {"crs": CRS, "transform": from_origin(LEFT, TOP, PIXEL, PIXEL)}
    with MemoryFile() as memory:
        with memory.open(**profile) as dataset:
            dataset.write(make_labels(size), 1)
        rasterio.shutil.copy(memory.name, path, driver="COG", COMPRESS="DEFLATE")
    return path


def ours(mask: Path, target: Path) -> None:
    """What ``segpipe polygons`` does with a mask."""
    from segpipe.formats.registry import FORMATS, RASTER
    from segpipe.geometry.raster_grid import RasterGrid, parse_crs
    from segpipe.polygons.case import CaseMask, Unwritten, features_of
    from segpipe.polygons.file import CaseRows, VectorFile, write
    from segpipe.polygons.placement import Placement
    from segpipe.polygons.rule import Rule
    from segpipe.vectors.file import LON_LAT

    classes, open_mask = tuple((k, f"class{k}") for k in range(len(SHARES))), FORMATS[RASTER].open_mask
    assert open_mask is not None
    with open_mask(mask) as opened:
        assert isinstance(opened.grid, RasterGrid)
        ground = opened.grid.measure
        assert ground is not None
        crs = parse_crs(LON_LAT) if target.suffix == ".geojson" else ground.reference.crs
        case = CaseMask(str(mask), opened, classes, 255, Placement(opened.grid.shape, ground, crs))

        def rows() -> Any:
            number = 1
            for features in features_of(case, Rule(), Unwritten()):
                yield CaseRows("tile", classes, number).table(features)
                number += len(features)
            print(f"{number - 1:,}")

        write(VectorFile(target, crs, multi=False), rows())


def rasterio(mask: Path, target: Path) -> None:
    import rasterio
    import rasterio.features

    del target
    with rasterio.open(mask) as dataset:
        labels = dataset.read(1)
        for _ in rasterio.features.shapes(labels, mask=labels != dataset.nodata, transform=dataset.transform):
            pass


WAYS = {"ours": ours, "rasterio": rasterio}


def timed(way: str, mask: Path, suffix: str, *, memory: bool) -> Child:
    return watched([sys.executable, __file__, "--way", way, mask, SCRATCH / f"f{suffix}"], every=0.2 if memory else None)


def compare(size: int) -> bool:
    """Print the table, and return whether all figures are within their limits."""
    SCRATCH.mkdir(parents=True, exist_ok=True)
    mask = make_mask(size)
    alone = timed("rasterio", mask, "", memory=True)
    print(f"mask of {size:,}² pixels, processor seconds of a process")
    print(f"  rasterio.features.shapes, no file  {alone.busy:6.1f} s, peak of {alone.peak_mb:,.0f} MB")
    found = dict[str, Child]()
    for suffix in SUFFIXES:
        child = found[suffix] = timed("ours", mask, suffix, memory=True)
        megabytes = (SCRATCH / f"f{suffix}").stat().st_size / 2**20
        ratio = child.busy / alone.busy
        print(
            f"  ours, {child.printed.strip()} polygons into {suffix:9} {child.busy:6.1f} s, {ratio:5.2f} times rasterio's, "
            f"peak of {child.peak_mb:,.0f} MB, file of {megabytes:,.0f} MB",
            flush=True,
        )
    return found[".parquet"].busy <= MOST_RATIO * alone.busy and max(child.peak_mb for child in found.values()) <= MOST_MB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--quick", action="store_true", help="a mask of 1/16 of the pixels")
    chosen = parser.parse_args()
    if chosen.way:
        WAYS[chosen.way](*chosen.files)
        return
    raise SystemExit(0 if compare(2745 if chosen.quick else 10_980) else 1)


if __name__ == "__main__":
    main()

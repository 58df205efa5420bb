"""Zones against exactextract alone and rasterstats: processor seconds, and memory with many fields.

A mask of 10,980² pixels and 8 classes, as of a Sentinel-2 tile, with 10,000 fields of 16 corners, and with 100,000. Each
figure is that of a process of its own, from its start to its table. exactextract alone gives the share of each class,
without areas, nodata or checks; rasterstats counts the pixels of each class whose centre is in the field.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from children import Child, watched
from numpy.typing import NDArray

SCRATCH = Path(__file__).parent / "scratch" / "zones"
PIXEL, LEFT, TOP, CRS = 10.0, 300_000.0, 5_400_000.0, "EPSG:32633"
CLASSES = 8
MOST_RATIO, LEAST_GAIN, MOST_MB = 1.3, 5.0, 1024


def make_mask(size: int) -> Path:
    """Patches of 20 x 20 pixels, a tenth without data; a COG as a run writes it."""
    import rasterio
    import rasterio.shutil
    from rasterio.io import MemoryFile
    from rasterio.transform import from_origin

    path = SCRATCH / f"mask-{size}.tif"
    if path.exists():
        return path
    rng = np.random.default_rng(0)
    patches = rng.integers(0, CLASSES + 1, (-(-size // 20),) * 2, dtype=np.uint8)
    patches[patches == CLASSES] = 255
    labels = np.repeat(np.repeat(patches, 20, 0), 20, 1)[:size, :size]
    profile = {"driver": "GTiff", "width": size, "height": size, "count": 1, "dtype": "uint8", "nodata": 255}
    profile |= {"crs": CRS, "transform": from_origin(LEFT, TOP, PIXEL, PIXEL)}
    with MemoryFile() as memory:
        with memory.open(**profile) as dataset:
            dataset.write(labels, 1)
        rasterio.shutil.copy(memory.name, path, driver="COG", COMPRESS="DEFLATE")
    return path


def corners(size: int, count: int) -> NDArray[np.float64]:
    """Fields beside one another, each crooked: ``(count, 16, 2)``."""
    rng = np.random.default_rng(1)
    side = int(np.ceil(np.sqrt(count)))
    step = size * PIXEL / side
    column, row = np.arange(count) % side, np.arange(count) // side
    angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    radius = step * (0.35 + 0.2 * rng.random((count, 16)))
    x = LEFT + (column[:, None] + 0.5) * step + radius * np.cos(angle)
    y = TOP - (row[:, None] + 0.5) * step + radius * np.sin(angle)
    return np.stack([x, y], -1)


def make_fields(size: int, count: int) -> Path:
    import geopandas
    import shapely

    path = SCRATCH / f"fields-{size}-{count}.gpkg"
    if not path.exists():
        shapes = shapely.make_valid(shapely.polygons(corners(size, count)))
        geopandas.GeoDataFrame({"plot": np.arange(count)}, geometry=shapes, crs=CRS).to_file(path)
    return path


def ours(mask: Path, fields: Path) -> None:
    """What ``segpipe zones`` does with a mask."""
    from segpipe.formats.registry import FORMATS, RASTER
    from segpipe.results.zones.case import measured
    from segpipe.results.zones.polygons import read_zones
    from segpipe.results.zones.table import ZoneTotals, write_zones
    from segpipe.storage.folder import Folder
    from segpipe.vectors.file import Selection

    zones, classes = read_zones(Selection(fields, None, "plot")), tuple((k, f"class{k}") for k in range(CLASSES))
    totals, open_mask = ZoneTotals.empty(zones, classes), FORMATS[RASTER].open_mask
    assert open_mask is not None
    with open_mask(mask) as opened:
        totals.add(measured(opened, classes, 255, zones))
    write_zones(Folder(SCRATCH), totals)


def alone(mask: Path, fields: Path) -> None:
    import geopandas
    from exactextract import exact_extract

    frame = geopandas.read_file(fields)
    options = {"strategy": "raster-sequential", "include_cols": ["plot"], "output": "pandas"}
    found = exact_extract(str(mask), frame, ["count", "unique", "frac"], **options)
    found.to_csv(SCRATCH / "alone.csv")


def rasterstats(mask: Path, fields: Path) -> None:
    import pandas
    from rasterstats import zonal_stats

    pandas.DataFrame(zonal_stats(str(fields), str(mask), categorical=True)).to_csv(SCRATCH / "rasterstats.csv")


WAYS: dict[str, Callable[[Path, Path], None]] = {"ours": ours, "alone": alone, "rasterstats": rasterstats}


def timed(way: str, mask: Path, fields: Path, *, memory: bool = False) -> Child:
    return watched([sys.executable, __file__, "--way", way, mask, fields], every=0.05 if memory else None)


def fastest(mask: Path, fields: Path, rounds: int) -> dict[str, float]:
    """Least processor seconds of each way; the ways take turns, so that others' work on the machine meets all of them."""
    found = [{way: timed(way, mask, fields).busy for way in WAYS} for _ in range(rounds)]
    return {way: min(each[way] for each in found) for way in WAYS}


def compare(size: int, few: int, many: int) -> bool:
    """Print the table, and return whether all figures are within their limits."""
    SCRATCH.mkdir(parents=True, exist_ok=True)
    mask, fields, crowd = make_mask(size), make_fields(size, few), make_fields(size, many)
    seconds = fastest(mask, fields, 3)
    peak = {count: timed("ours", mask, path, memory=True).peak_mb for count, path in ((few, fields), (many, crowd))}
    print(f"mask of {size:,}² pixels, {few:,} fields, processor seconds of a process")
    for way, spent in seconds.items():
        print(f"  {way:12} {spent:7.1f} s  {spent / seconds['alone']:6.2f} times exactextract alone")
    for count, megabytes in peak.items():
        print(f"  ours, {count:,} fields: peak of {megabytes:,.0f} MB")
    ratio, gain = seconds["ours"] / seconds["alone"], seconds["rasterstats"] / seconds["ours"]
    print(f"ratio {ratio:.2f} (at most {MOST_RATIO}), {gain:.1f} times as fast as rasterstats (at least {LEAST_GAIN})")
    return ratio <= MOST_RATIO and gain >= LEAST_GAIN and max(peak.values()) <= MOST_MB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--quick", action="store_true", help="a mask of 1/16 of the pixels and a tenth of the fields")
    chosen = parser.parse_args()
    if chosen.way:
        WAYS[chosen.way](*chosen.files)
        return
    within = compare(2745, 1_000, 10_000) if chosen.quick else compare(10_980, 10_000, 100_000)
    raise SystemExit(0 if within else 1)


if __name__ == "__main__":
    main()

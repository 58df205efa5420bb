"""Headers that claim more than any machine holds: cases that fail, in a line, and cost neither memory nor the others."""

import json
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import rasterio
from networks import contract, pixelwise, toml
from scenes import PATIENCE, SEGPIPE, Silent

from segpipe.errors import ModelError
from segpipe.geometry.reflection import reflected
from segpipe.geometry.starts import axis_starts
from segpipe.geometry.windows import Cover, Tiling
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import prepare
from segpipe.network.read import read_spec
from segpipe.pipeline.memory import least_bytes
from segpipe.settings import load_settings

MOST = 2**31 - 1
MEGABYTES = 900
"""A run that opens such files and does a small one may take: Python and its libraries are 200 to 350 of it."""

LONG, SHORT = 4, 3


def tiff(path: Path, width: int, height: int, bands: int = 3, tile: int = 0) -> None:
    """A TIFF of DEFLATE without pixels, of which its header is all."""
    shape = [(256, LONG, width), (257, LONG, height), (277, SHORT, bands), (284, SHORT, 1)]
    kind = [(258, SHORT, 8)] if bands == 1 else []
    blocks = [(322, LONG, tile), (323, LONG, tile), (324, LONG, 0), (325, LONG, 0)]
    strips = [(273, LONG, 0), (278, LONG, height), (279, LONG, 0)]
    entries = sorted([*shape, *kind, (259, SHORT, 8), (262, SHORT, 2 if bands == 3 else 1), *(blocks if tile else strips)])
    packed = b"".join(struct.pack("<HHII", tag, form, 1, value) for tag, form, value in entries)
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4))


def vrt(path: Path, width: int, height: int) -> None:
    bands = "".join(f'<VRTRasterBand dataType="Byte" band="{b}"/>' for b in (1, 2, 3))
    path.write_text(f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}">{bands}</VRTDataset>')


def jpeg2000(path: Path, width: int, height: int) -> None:
    """A small one whose boxes claim another size, of one tile."""
    small = path.parent.parent / "small.jp2"
    with rasterio.open(small, "w", driver="JP2OpenJPEG", width=64, height=64, count=3, dtype="uint8") as dataset:
        dataset.write(np.ones((3, 64, 64), np.uint8))
    data = bytearray(small.read_bytes())
    small.unlink()
    size, box = data.index(b"\xff\x51") + 6, data.index(b"ihdr") + 4
    data[size : size + 8] = data[size + 16 : size + 24] = struct.pack(">II", width, height)
    data[box : box + 8] = struct.pack(">II", height, width)
    path.write_bytes(data)


def png(path: Path, width: int, height: int) -> None:
    """Chunks without checksums: libpng looks at the size first."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + bytes(4))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """One good case among all that claims to be huge."""
    root = tmp_path_factory.mktemp("huge")
    (root / "in").mkdir()
    kind = {"driver": "GTiff", "width": 50, "height": 40, "count": 3, "dtype": "uint8"}
    with rasterio.open(root / "in" / "good.tif", "w", **kind) as dataset:
        dataset.write(np.full((3, 40, 50), 7, np.uint8))
    tiff(root / "in" / "square.tif", MOST, MOST)
    assert (root / "in" / "square.tif").stat().st_size < 140
    tiff(root / "in" / "row.tif", MOST, 1)
    tiff(root / "in" / "column.tif", 1, MOST)
    tiff(root / "in" / "block.tif", MOST, MOST, tile=2**31 - 16)
    tiff(root / "in" / "bands.tif", 100, 100, bands=65_535)
    vrt(root / "in" / "virtual.vrt", MOST, MOST)
    vrt(root / "in" / "virtual-row.vrt", MOST, 1)
    jpeg2000(root / "in" / "square.jp2.jp2", MOST, MOST)
    jpeg2000(root / "in" / "row.jp2.jp2", MOST, 1)
    png(root / "in" / "square.png.png", MOST, MOST)
    pixelwise(root / "m.onnx")
    return root


WATCHED = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dry", [True, False], ids=["dry run", "run"])
def test_what_claims_to_be_huge_fails_in_a_line_and_costs_little(dry, root):
    command = [*SEGPIPE, "run", "-i", "in", "-m", "m.onnx", "--device", "cpu", "--memory", "1", "--executor", "serial"]
    more = ["--dry-run"] if dry else []
    watched = [sys.executable, "-c", WATCHED, *command, *more]
    ended = subprocess.run(watched, cwd=root, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    names = {path.stem for path in (root / "in").iterdir()} - {"good"}
    if dry:
        problems = {line.split()[1].rstrip(":") for line in ended.stdout.splitlines() if line.startswith("problem ")}
        assert problems == names
        assert "case  good" in ended.stdout
        assert "square.tif: 2147483647 x 2147483647 pixels in blocks of" in ended.stdout
        assert "and a worker may use 1.0 GB: raise --memory, or check the file, whose header may be damaged" in ended.stdout
    else:
        summary = json.loads((root / "segpipe-out" / "run.json").read_text())
        assert summary["done"] == ["good"]
        assert {failure["case"] for failure in summary["failed"]} == names
        assert all(len(failure["error"]) < 1000 for failure in summary["failed"])
    assert int(ended.stdout.rpartition("peak")[2]) < MEGABYTES


def test_cases_that_nobody_has_looked_at_are_refused_by_their_job(root, monkeypatch, tmp_path):
    monkeypatch.setattr("segpipe.jobs.planning.MOST_OPENED", 1)
    flags = {"input": (str(root / "in"),), "model": root / "m.onnx", "output": tmp_path / "out", "memory": 1.0}
    summary = carry_out(prepare(load_settings(None, flags | {"executor": "serial", "device": "cpu"})), Silent())
    assert summary.done == ["good"]
    errors = {failure.case.name: failure.error for failure in summary.failed}
    assert "raise --memory, or check the file" in errors["square"]


@pytest.mark.parametrize(
    ("changes", "classes"), [({"tile": [10**9, 10**9], "overlap": [0, 0]}, 3), ({"tile": [4096, 4096]}, 1_000)]
)
def test_tiles_that_no_memory_holds_are_refused_before_the_trial(changes, classes, raster, tmp_path):
    raster("in/a.tif", np.ones((3, 40, 40), np.uint8))
    model = pixelwise(tmp_path / "m.onnx")
    (tmp_path / "c.toml").write_text(toml(contract(3, classes, **changes)))
    flags = {"input": (str(tmp_path / "in"),), "model": model, "contract": tmp_path / "c.toml", "memory": 1.0}
    with pytest.raises(ModelError, match=r"need at least .* of memory, and a worker may use 1\.0 GB: lower --tile or"):
        prepare(load_settings(None, flags | {"executor": "serial", "device": "cpu"}))


def test_windows_of_a_huge_axis_are_not_kept():
    starts = axis_starts(MOST, 64, 16, 1)
    assert len(starts) > 4 * 10**7
    assert (starts[0], starts[-1]) == (0, MOST - 64)
    assert starts[-3:] == tuple(starts[i] for i in range(len(starts) - 3, len(starts)))


@pytest.mark.parametrize("axis", [(1000, 64, 16, 4), (65, 64, 0, 32), (64, 64, 0, 32), (3001, 128, 100, 1)])
def test_the_most_that_neighbours_share_is_that_of_the_nearest(axis):
    size, tile, overlap, align = axis
    starts = list(axis_starts(*axis))
    shared = max((a + tile - b for a, b in pairwise(starts)), default=0)
    assert Cover((size,), Tiling((tile,), (overlap,), (align,), "gaussian")).shared == (shared,)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 100])
def test_windows_behind_a_border_mirror_it_as_numpy_does(size):
    tiling = Tiling((64,), (0,), (32,), "gaussian")
    cover = Cover((size,), tiling)
    for index in cover:
        window = cover.window(index)
        inside, (mirror,) = reflected(window, (size,))
        expected = np.pad(np.arange(size), (0, max(0, window.stop[0] - size)), mode="reflect")[
            window.start[0] : window.stop[0]
        ]
        np.testing.assert_array_equal(mirror + inside.start[0], expected)


def test_a_large_scene_needs_little_at_least(raster, tmp_path):
    """Scenes of 100,000² are done with less than a gigabyte (benchmarks/memory.py)."""
    path = raster("in/a.tif", np.ones((3, 40, 40), np.uint8))
    model = pixelwise(tmp_path / "m.onnx", tile=[512, 512], overlap=[128, 128])
    spec = read_spec(load_settings(None, {"input": (str(path),), "model": model, "device": "cpu"}))
    assert least_bytes(Cover((100_000, 100_000), spec.tiling), spec, 512 * 512) < 50e6

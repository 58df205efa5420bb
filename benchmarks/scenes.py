"""Scenes and U-Nets for the benchmarks: seeded, made once into benchmarks/scratch."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import rasterio
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rasterio.transform import from_origin
from rasterio.windows import Window

SCRATCH = Path(__file__).parent / "scratch"
CLASSES = 5
BANDS = 4
TILE, OVERLAP = 512, 128
NETWORKS = {"tiny": (2, 1), "0.1M": (8, 4), "2M": (16, 5)}
"""Width of the first level and number of levels."""


def scene(size: int, nodata_share: float = 0.0) -> Path:
    """A 4-band uint16 DEFLATE GeoTIFF of smooth fields with noise; its right part nodata, by whole columns."""
    path = SCRATCH / f"scene_{size}_{round(nodata_share * 100)}" / "scene.tif"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        profile = {"driver": "GTiff", "dtype": "uint16", "count": BANDS, "height": size, "width": size, "nodata": 0}
        tiles = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "predictor": 2}
        with rasterio.open(
            draft, "w", **profile, **tiles, crs="EPSG:32633", transform=from_origin(5e5, 5.4e6, 10, 10), bigtiff="if_safer"
        ) as dataset:
            for window, block in _blocks(size):
                columns = np.arange(window.col_off, window.col_off + window.width)
                block[:, :, columns >= size * (1 - nodata_share)] = 0
                dataset.write(block, window=window)
        draft.rename(path)
    return path


def wide(rows: int, cols: int) -> Path:
    """A tiled scene of few rows and many columns: blending and GDAL's cache must hold its full width."""
    path = SCRATCH / f"wide_{rows}_{cols}" / "scene.tif"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft, rng = path.with_suffix(".draft"), np.random.default_rng(0)
        profile = {"driver": "GTiff", "dtype": "uint16", "count": BANDS, "height": rows, "width": cols, "nodata": 0}
        tiles = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
        with rasterio.open(
            draft, "w", **profile, **tiles, crs="EPSG:32633", transform=from_origin(1e5, 5.4e6, 10, 10)
        ) as dataset:
            for col in range(0, cols, 512):
                width = min(512, cols - col)
                pixels = rng.integers(300, 4000, (BANDS, rows, width), dtype=np.uint16)
                dataset.write(pixels, window=Window(col, 0, width, rows))
        draft.rename(path)
    return path


def islands(size: int, count: int = 6, side: int = 1500) -> Path:
    """A sparse scene, nodata but for a few islands: the holes take no disk."""
    path = SCRATCH / f"islands_{size}" / "scene.tif"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft, rng = path.with_suffix(".draft"), np.random.default_rng(1)
        profile = {"driver": "GTiff", "dtype": "uint16", "count": BANDS, "height": size, "width": size, "nodata": 0}
        tiles = {
            "tiled": True,
            "blockxsize": 512,
            "blockysize": 512,
            "compress": "deflate",
            "sparse_ok": True,
            "bigtiff": "yes",
        }
        with rasterio.open(
            draft, "w", **profile, **tiles, crs="EPSG:32633", transform=from_origin(1e5, 9e6, 10, 10)
        ) as dataset:
            for row, col in rng.integers(0, size - side, (count, 2)):
                pixels = rng.integers(300, 4000, (BANDS, side, side), dtype=np.uint16)
                dataset.write(pixels, window=Window(col, row, side, side))
        draft.rename(path)
    return path


def _blocks(size: int) -> Iterator[tuple[Window, NDArray[np.uint16]]]:
    rng = np.random.default_rng(0)
    for row in range(0, size, 512):
        for col in range(0, size, 512):
            rows, cols = min(512, size - row), min(512, size - col)
            fields = np.kron(rng.integers(300, 4000, (BANDS, 16, 16)), np.ones((1, 32, 32), int))
            noise = rng.normal(0, 15, fields.shape).round()
            yield Window(col, row, cols, rows), (fields + noise).clip(1, 10_000).astype(np.uint16)[:, :rows, :cols]


def network(name: str, bands: int = BANDS) -> Path:
    """A U-Net with seeded random weights and its contract."""
    path = SCRATCH / (f"unet_{name}.onnx" if bands == BANDS else f"unet_{name}_{bands}.onnx")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(unet(*NETWORKS[name], bands), path)
    return path


def unet(width: int, levels: int, bands: int = BANDS) -> onnx.ModelProto:
    """Two 3x3 convolutions per level, max pooling down, nearest upsampling and concatenation up."""
    net = _Graph(bands)
    x, channels, skips = "image", bands, []
    for level in range(levels):
        out = width * 2**level
        x, channels = net.conv(net.conv(x, channels, out), out, out), out
        if level < levels - 1:
            skips.append((x, channels))
            x = net.node("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
    for skip, kept in reversed(skips):
        scales = net.weight(np.array([1, 1, 2, 2], np.float32))
        up = net.node(
            "Resize", [x, "", scales], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
        )
        x = net.conv(net.conv(net.node("Concat", [up, skip], axis=1), channels + kept, kept), kept, kept)
        channels = kept
    return net.model(net.conv(x, channels, CLASSES, size=1, relu=False), 2 ** (levels - 1))


class _Graph:
    def __init__(self, bands: int) -> None:
        self.bands = bands
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []

    def node(self, op: str, inputs: list[str], **attributes: object) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))  # type: ignore[arg-type]
        return name

    def weight(self, value: NDArray[np.float32]) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def conv(self, x: str, inside: int, outside: int, *, size: int = 3, relu: bool = True) -> str:
        gain = np.sqrt(2 / (inside * size * size))
        w = self.weight((self.rng.normal(size=(outside, inside, size, size)) * gain).astype(np.float32))
        b = self.weight(np.zeros(outside, np.float32))
        y = self.node("Conv", [x, w, b], pads=[size // 2] * 4)
        return self.node("Relu", [y]) if relu else y

    def model(self, last: str, stride: int) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [last], ["scores"]))
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", self.bands, "h", "w"])
        scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", CLASSES, "h", "w"])
        graph = helper.make_graph(self.nodes, "unet", [image], [scores], self.weights)
        model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
        helper.set_model_props(model, {"segpipe": json.dumps(contract_of(stride, self.bands))})
        return model


def contract_of(stride: int, bands: int) -> dict[str, object]:
    return {
        "version": 1,
        "channels": bands,
        "scale": 1e-4 if bands == BANDS else 1 / 255,
        "normalize": "fixed",
        "mean": 0.2,
        "std": 0.1,
        "tile": [TILE, TILE],
        "overlap": [OVERLAP, OVERLAP],
        "align": stride,
        "activation": "softmax",
        "classes": [{"id": i, "name": f"class {i}"} for i in range(CLASSES)],
    }

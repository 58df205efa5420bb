"""(d) MONAI's ``sliding_window_inference`` with torch, from file to file, with the weights of the ONNX file.

The network is the U-Net of benchmarks/scenes.py as a torch module, in channels_last unless told otherwise. Prints the
seconds from the opening of the scene to the mask's last name.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import rasterio
import torch
from monai.inferers import sliding_window_inference
from onnx import numpy_helper
from plain import NODATA, write
from torch import Tensor, nn
from torch.nn import functional

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


class UNet(nn.Module):
    """Two 3x3 convolutions per level, max pooling down, nearest upsampling and concatenation up."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        weights = {w.name: torch.from_numpy(numpy_helper.to_array(w).copy()) for w in model.graph.initializer}
        convolutions = [
            _convolution(*(weights[name] for name in n.input[1:])) for n in model.graph.node if n.op_type == "Conv"
        ]
        self.levels = 1 + sum(n.op_type == "MaxPool" for n in model.graph.node)
        self.pairs = nn.ModuleList(
            nn.Sequential(a, nn.ReLU(inplace=True), b, nn.ReLU(inplace=True))
            for a, b in zip(convolutions[:-1:2], convolutions[1:-1:2], strict=True)
        )
        self.head = convolutions[-1]

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level, pair in enumerate(self.pairs):
            if level < self.levels:
                x = pair(functional.max_pool2d(x, 2) if level else x)
                skips.append(x)
            else:
                skips.pop()
                x = pair(torch.cat([functional.interpolate(x, scale_factor=2, mode="nearest"), skips[-1]], dim=1))
        scores: Tensor = self.head(x)
        return scores


def _convolution(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    outside, inside, size, _ = weight.shape
    made = nn.Conv2d(inside, outside, size, padding=size // 2)
    made.weight, made.bias = nn.Parameter(weight), nn.Parameter(bias)
    return made


Predictor = Callable[[Tensor], Tensor]


def segment(net: Predictor, contract: dict[str, Any], scene: Path, mask: Path, batch: int) -> None:
    """One scene, from file to file, as MONAI's tutorials do it."""
    (tile, _), (overlap, _) = contract["tile"], contract["overlap"]
    with rasterio.open(scene) as dataset:
        pixels = dataset.read()
        invalid = (pixels == dataset.nodata).any(axis=0)
        mean, std = (np.reshape(contract[key], (-1, 1, 1)).astype(np.float32) for key in ("mean", "std"))
        x = (pixels * np.float32(contract["scale"]) - mean) / std
        x[:, invalid] = 0
        scores = sliding_window_inference(
            torch.from_numpy(x)[None],
            roi_size=(tile, tile),
            sw_batch_size=batch,
            predictor=net,
            overlap=overlap / tile,
            mode="gaussian",
            sigma_scale=0.125,
        )
        labels = scores[0].argmax(dim=0).to(torch.uint8).numpy()
        labels[invalid] = NODATA
        write(labels, dataset, mask)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "scene", "mask"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--layout", choices=LAYOUTS, default="channels_last")
    arguments = parser.parse_args()
    model = onnx.load(arguments.model)
    contract = json.loads({p.key: p.value for p in model.metadata_props}["segpipe"])
    layout = LAYOUTS[arguments.layout]
    net = UNet(model).eval().to(memory_format=layout)

    def predictor(tiles: Tensor) -> Tensor:
        scores: Tensor = net(tiles.contiguous(memory_format=layout))
        return scores

    with torch.inference_mode():
        started = time.perf_counter()
        segment(predictor, contract, arguments.scene, arguments.mask, arguments.batch)
        print(json.dumps({"seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main()

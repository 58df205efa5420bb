"""Networks for benchmarks/gpu.py, and how each is run. The large one is kept without its weights: they are random anyway."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from scenes import BANDS, CLASSES, SCRATCH, contract_of

ROOT = Path(__file__).parents[1]
SKELETON = ROOT / "benchmarks" / "unet_resnet34.skeleton.onnx"
SEEDED = 4096
"""Elements from which on a weight is left out of the skeleton."""

EXAMPLE = ROOT / "examples" / "crops.onnx"
STRIDE = 32


@dataclass(frozen=True)
class Setting:
    """One way to run one model."""

    model: str
    device: str
    batch: int
    tf32: bool = False
    nhwc: bool = False
    fp16: bool = False

    def __str__(self) -> str:
        words = [self.device, "fp16" if self.fp16 else "tf32" if self.tf32 else "fp32", *(["nhwc"] if self.nhwc else [])]
        return f"{self.model} {' '.join(words)} batch {self.batch}"

    @property
    def precision(self) -> str:
        return "fp16" if self.fp16 else "tf32" if self.tf32 else "fp32"


def skeleton(path: Path = SKELETON, tile: int = 512) -> None:
    """The graph of smp's U-Net with a ResNet-34, exported by segpipe; large weights, random anyway, become seeds."""
    import segmentation_models_pytorch as smp
    import torch

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        weights, classes, whole = (Path(folder) / name for name in ("unet.pt", "classes.toml", "unet.onnx"))
        net = smp.Unet("resnet34", encoder_weights=None, in_channels=BANDS, classes=CLASSES).eval()
        torch.save(net.state_dict(), weights)
        values = contract_of(STRIDE, BANDS)
        rows = [f'[[classes]]\nid = {i}\nname = "class {i}"\n' for i in range(CLASSES)]
        lines = [f"{key} = {json.dumps(values[key])}\n" for key in ("scale", "normalize", "mean", "std")]
        classes.write_text("".join([*lines, *rows]), encoding="utf-8")
        network = ["export", weights, "--arch", "smp:Unet", "--encoder", "resnet34"]
        names = ",".join(f"band {i}" for i in range(BANDS))
        more = ["--classes", classes, "--bands", names, "--tile", tile, "--output", whole]
        _segpipe([*map(str, [*network, *more])])
        onnx.save(_emptied(onnx.load(whole)), path)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def _segpipe(words: list[str]) -> None:
    """The command line, here: another process would import torch once more."""
    from segpipe.cli import main

    try:
        main(words, prog_name="segpipe")
    except SystemExit as ended:
        if ended.code:
            raise


def _emptied(proto: onnx.ModelProto) -> onnx.ModelProto:
    spreads = {}
    for tensor in proto.graph.initializer:
        if np.prod(tensor.dims) >= SEEDED and tensor.data_type == onnx.TensorProto.FLOAT:
            spreads[tensor.name] = float(numpy_helper.to_array(tensor).std())
            tensor.raw_data = b""
    entry = proto.metadata_props.add()
    entry.key, entry.value = "seeded", json.dumps(spreads)
    return proto


def resnet34() -> Path:
    """The U-Net with its weights: noise of the spread that they had."""
    path = SCRATCH / "unet_resnet34.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        proto = onnx.load(SKELETON)
        spreads = json.loads(next(p.value for p in proto.metadata_props if p.key == "seeded"))
        for number, tensor in enumerate(proto.graph.initializer):
            if tensor.name in spreads:
                noise = np.random.default_rng(number).standard_normal(tuple(tensor.dims), np.float32) * spreads[tensor.name]
                tensor.CopyFrom(numpy_helper.from_array(noise.astype(np.float32), tensor.name))
        _without(proto, "seeded")
        onnx.save(proto, path)
    return path


def _without(proto: onnx.ModelProto, key: str) -> None:
    kept = [p for p in proto.metadata_props if p.key != key]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)


MODELS: dict[str, Callable[[], Path]] = {"resnet34": resnet34, "example": lambda: EXAMPLE}


def file_of(setting: Setting) -> Path:
    """The model's file at the precision of a setting."""
    path = MODELS[setting.model]()
    if not setting.fp16:
        return path
    half = SCRATCH / f"{path.stem}.fp16.onnx"
    if not half.exists():
        from segpipe.export.precision import converted

        half.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(converted(onnx.load(path), "fp16", []), half)
    return half

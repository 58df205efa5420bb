"""Every family that ``segpipe export`` knows, small and with seeded random weights: exported at each precision, as a table.

    python benchmarks/families.py --output docs/export.md

The catalogue is also what ``tests/slow/test_families.py`` runs. Work files go to ``benchmarks/scratch/families``.
"""

import argparse
import json
import multiprocessing
import shutil
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segpipe.errors import SegpipeError
from segpipe.export.make import Traced, trace, write
from segpipe.export.settings import LARGEST_DIFFERENCE, LEAST_AGREEMENT, ExportSettings, export_settings
from segpipe.export.terms import IMAGENET

ROOT = Path(__file__).parents[1]
SCENES = ROOT / "examples" / "scenes"
SCRATCH = Path(__file__).parent / "scratch" / "families"
CLASSES = ("water", "forest", "built-up", "grassland", "cropland")
SIDE = 384
"""Rows and columns of each picture: all valid pixels of the scene that it is cut from."""
CORNERS = {"danube": (0, 80), "morava": (0, 96), "pirai": (0, 64)}
BRIGHTEST = 1600
"""Stored reflectance that becomes 255 in a picture."""
SHARP = 2.0
"""Deviation of what attention asks for."""
RESIDUAL = 0.25
"""Share of a bottleneck block: training begins them near 0 (Goyal et al. 2017), and a hundred at 1 amplify rounding.

On noise, LR-ASPP's inverted ones at 1 differ between float32 and float64 by 5e-3 of the largest score, which is 700.
"""

MULTISPECTRAL = """channels = ["B02", "B03", "B04", "B08"]
scale = 0.0001
normalize = "fixed"
mean = [0.0556, 0.0838, 0.0763, 0.2925]
std = [0.0168, 0.0222, 0.0301, 0.0864]
"""


@dataclass(frozen=True)
class Family:
    """One architecture, how it is made, and how its weights lie on the disk."""

    library: str
    name: str
    build: Callable[[], nn.Module]
    heads: tuple[str, ...]
    """Layers whose channels are centred, in the order of the work."""
    save: Callable[[nn.Module, Path], Path]
    """Write the weights into a folder, and name what ``segpipe export`` is given."""
    flags: Mapping[str, Any] = field(default_factory=dict)
    channels: int = 3
    tile: int = 128
    call: Callable[[nn.Module, Tensor], Any] = field(default=lambda network, images: network(images))
    queries: tuple[str, ...] = ()
    """Layers that give each query its mask and its class."""
    processor: str | None = None
    """The image processor that transformers has for it."""
    inputs: str = ""
    """Lines of the contract on what each argument of the network gets."""
    margin: int = 0
    """Pixels on each side of a tile without scores."""

    @property
    def id(self) -> str:
        """Of one word, for ``--only`` and for tests."""
        return f"{self.library} {self.name}".replace(" ", "-").replace(",", "")


@dataclass(frozen=True)
class Prepared:
    """A network in torch, and what ``segpipe export`` is given for it."""

    network: nn.Module
    flags: dict[str, Any]
    scenes: Path


def prepare(family: Family, folder: Path) -> Prepared:
    """Build the network, give it scores that depend on the image, and write its weights and class table."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    network = family.build()
    enliven(family, network, scaled(family))
    scenes = SCENES if family.channels == 4 else pictures(folder / "pictures")
    table = folder / "classes.toml"
    table.write_text(_table(family), encoding="utf-8")
    given = {"weights": family.save(network, folder), "output": folder / "model.onnx", "classes": str(table)}
    own = {key: _placed(value, folder) for key, value in family.flags.items()}
    return Prepared(network, {**given, "tile": str(family.tile), **own}, scenes)


def _placed(value: Any, folder: Path) -> Any:
    return value.replace("{folder}", str(folder)) if isinstance(value, str) else value


def _table(family: Family) -> str:
    return (MULTISPECTRAL if family.channels == 4 else "channels = 3\n") + family.inputs + _names()


def _names() -> str:
    return "".join(f'[[classes]]\nid = {i}\nname = "{name}"\n' for i, name in enumerate(CLASSES))


def arguments(flags: Mapping[str, Any]) -> list[str]:
    """The command line that means these flags."""
    words = [str(flags["weights"])]
    for name, value in flags.items():
        values = value if isinstance(value, tuple) else (value,)
        option = "--" + {"options": "option"}.get(name, name).replace("_", "-")
        words += [] if name == "weights" else [w for v in values for w in ([option] if v is True else [option, str(v)])]
    return words


def crops(channels: int) -> dict[str, NDArray[Any]]:
    """By scene: stored pixels ``(4, SIDE, SIDE)``, or 8-bit red, green and blue ``(3, SIDE, SIDE)``."""
    found = {}
    for name, (row, col) in CORNERS.items():
        with rasterio.open(SCENES / f"{name}.tif") as scene:
            pixels: NDArray[np.uint16] = scene.read()
            found[name] = pixels[:, row : row + SIDE, col : col + SIDE]
    return found if channels == 4 else {name: _eight_bit(crop[[2, 1, 0]]) for name, crop in found.items()}


def _eight_bit(pixels: NDArray[np.uint16]) -> NDArray[np.uint8]:
    return np.asarray(np.clip(pixels * (255 / BRIGHTEST), 0, 255), np.uint8)


def pictures(folder: Path) -> Path:
    """The scenes in true colour, as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in crops(3).items():
        size = {"count": 3, "height": SIDE, "width": SIDE, "dtype": "uint8"}
        with rasterio.open(folder / f"{name}.png", "w", driver="PNG", **size) as picture:
            picture.write(pixels)
    return folder


def tile_of(family: Family) -> NDArray[Any]:
    """One tile of stored pixels ``(channels, tile, tile)``."""
    return crops(family.channels)["morava"][:, : family.tile, : family.tile]


def scaled(family: Family, count: int = 9) -> Tensor:
    """Up to ``count`` tiles of all scenes, as the network takes them."""
    steps = range(0, SIDE - family.tile + 1, family.tile)
    sides = [(slice(r, r + family.tile), slice(c, c + family.tile)) for r in steps for c in steps]
    tiles = [crop[:, *side] for side in sides for crop in crops(family.channels).values()]
    gain, mean, std = _scaling(family)
    shifted = np.stack(tiles[:count]) * gain - np.reshape(mean, (-1, 1, 1))
    return torch.from_numpy((shifted / np.reshape(std, (-1, 1, 1))).astype(np.float32))


def _scaling(family: Family) -> tuple[float, Any, Any]:
    """Gain, mean and deviation of the contract, or of the image processor."""
    if family.channels == 4:
        contract = tomllib.loads(MULTISPECTRAL)
        return contract["scale"], contract["mean"], contract["std"]
    if family.processor is None:
        return 1 / 255, IMAGENET["mean"], IMAGENET["std"]
    processor = getattr(_transformers(), family.processor)()
    return 1 / 255, processor.image_mean, processor.image_std


def _transformers() -> Any:
    """The library, by way of the file that keeps it offline."""
    import segpipe.export.families.hub  # noqa: F401 - it keeps the library offline
    from segpipe.export.families import need

    return need("transformers")


def enliven(family: Family, network: nn.Module, images: Tensor) -> None:
    """Random weights whose labels are neither one class everywhere nor noise.

    Batch norm gets the statistics of the images, each convolution and linear layer unit variance (Mishkin and Matas 2016,
    "All you need is a good init"), and each channel of the heads, hence each class, median 0 and the same deviation.
    """
    network.eval()
    _fill(network)
    call = partial(family.call, network, images)
    with torch.no_grad():
        with _batch_statistics(network), _unit_variance(network):
            call()
        for head in family.heads:
            _centre(call, network.get_submodule(head))
        for layer in family.queries:
            _teach(call, network.get_submodule(layer))


def _fill(network: nn.Module) -> None:
    """Zeros would hide what comes behind them, and queries that are all alike tell nothing apart."""
    for weights in network.parameters():
        if weights.ndim > 1 and not weights.any():
            nn.init.normal_(weights, std=0.5)
    layer: Any
    for layer in network.modules():
        if isinstance(layer, nn.MultiheadAttention):
            layer.in_proj_weight.data[: layer.embed_dim] *= SHARP
        if isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight)
        if hasattr(layer, "bn3"):
            nn.init.constant_(layer.bn3.weight, RESIDUAL)
        if getattr(layer, "use_res_connect", False):
            nn.init.constant_(layer.block[-1][-1].weight, RESIDUAL)


@contextmanager
def _batch_statistics(network: nn.Module) -> Iterator[None]:
    layers = [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    yield
    for layer in layers:
        layer.eval()


@contextmanager
def _unit_variance(network: nn.Module) -> Iterator[None]:
    seen: set[nn.Module] = set()
    wanted = {layer: SHARP for name, layer in network.named_modules() if name.endswith((".q_proj", ".query"))}

    def scale(layer: Any, _: Any, output: Tensor) -> Tensor:
        bias = 0 if layer.bias is None else layer.bias.reshape(-1, *[1] * (0 if isinstance(layer, nn.Linear) else 2))
        gain = 1 if layer in seen else wanted.get(layer, 1) / (output - bias).std().clamp_min(1e-12)
        seen.add(layer)
        layer.weight.mul_(gain)
        return (output - bias) * gain + bias

    kinds = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
    hooks = [layer.register_forward_hook(scale) for layer in network.modules() if isinstance(layer, kinds)]
    yield
    for hook in hooks:
        hook.remove()


def _centre(call: Callable[[], Any], layer: Any) -> None:
    """Median 0 and deviation 1 per channel of what the layer gives."""
    _, output = _seen(call, layer)
    channels = (output if isinstance(layer, nn.Linear) else output.movedim(1, -1)).flatten(0, -2)
    median, spread = channels.median(0).values, channels.std(0)
    layer.weight.div_(spread.reshape(-1, *[1] * (layer.weight.ndim - 1)))
    layer.bias.copy_((layer.bias - median) / spread)


def _teach(call: Callable[[], Any], layer: Any) -> None:
    """By least squares over five images, each query gets a direction of its own, or a class, as trained ones have."""
    states, output = _seen(call, layer)
    states = states[:5]
    images, queries, width = states.shape
    aims = 0.5 * torch.randn(queries, output.shape[-1])
    if output.shape[-1] == len(CLASSES) + 1:
        aims = 4.0 * torch.eye(len(CLASSES) + 1)[torch.arange(queries) % len(CLASSES)]
    known = torch.cat([states.reshape(-1, width), torch.ones(images * queries, 1)], 1)
    found = torch.linalg.solve(known.T @ known + 0.1 * torch.eye(width + 1), known.T @ aims.repeat(images, 1))
    layer.weight.copy_(found[:-1].T)
    layer.bias.copy_(found[-1])


def _seen(call: Callable[[], Any], layer: nn.Module) -> tuple[Tensor, Tensor]:
    """What a layer takes and gives, the last time that it is called."""
    seen: list[tuple[Tensor, Tensor]] = []
    hook = layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    call()
    hook.remove()
    return seen[-1]


def state_dict(network: nn.Module, folder: Path) -> Path:
    """``torch.save(network.state_dict())``."""
    torch.save(network.state_dict(), folder / "weights.pt")
    return folder / "weights.pt"


def training_state(network: nn.Module, folder: Path) -> Path:
    """A checkpoint of training, as torchvision's reference scripts lay them out, saved through DataParallel."""
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({"model": state, "epoch": 29, "optimizer": {"param_groups": [{"lr": 0.01}]}}, folder / "last.pth")
    return folder / "last.pth"


def safetensors(network: nn.Module, folder: Path) -> Path:
    """The tensors alone."""
    from safetensors.torch import save_model

    save_model(network, str(folder / "weights.safetensors"))
    return folder / "weights.safetensors"


def lightning(network: nn.Module, folder: Path, *, attribute: str = "model") -> Path:
    """What ``Trainer.save_checkpoint`` writes for a module that keeps the network in an attribute."""
    state = {f"{attribute}.{key}": value for key, value in network.state_dict().items()}
    state["loss.weight"] = torch.ones(len(CLASSES))
    content = {"epoch": 3, "global_step": 400, "pytorch-lightning_version": "2.5.0", "state_dict": state, "loops": {}}
    torch.save({**content, "hyper_parameters": {"lr": 0.001, "encoder": "resnet18"}}, folder / "epoch=3.ckpt")
    return folder / "epoch=3.ckpt"


def pretrained(network: Any, folder: Path, *, processor: str, binary: bool = False) -> Path:
    """A folder by ``save_pretrained``, with its image processor; its weights as older versions wrote them if ``binary``."""
    network.save_pretrained(folder / "folder")
    getattr(_transformers(), processor)().save_pretrained(folder / "folder")
    if binary:
        (folder / "folder" / "model.safetensors").unlink()
        torch.save(network.state_dict(), folder / "folder" / "pytorch_model.bin")
    return folder / "folder"


def sized_as_trained(network: Any, folder: Path) -> Path:
    """EoMT's folder: its processor brings masks to the size of the images that the network was trained on."""
    edges = dict.fromkeys(("shortest_edge", "longest_edge"), network.config.image_size)
    network.save_pretrained(folder / "folder")
    _transformers().EomtImageProcessor(size=edges).save_pretrained(folder / "folder")
    return folder / "folder"


def as_on_the_hub(network: Any, folder: Path) -> Path:
    """A folder as those of smp-hub: by ``save_pretrained``, and beside it a transform of albumentations with the scaling."""
    network.save_pretrained(folder / "folder")
    scaling = tomllib.loads(MULTISPECTRAL)
    normalize = {"p": 1.0, "max_pixel_value": 1 / scaling["scale"], "normalization": "standard"}
    normalize |= {"__class_fullname__": "Normalize", "mean": scaling["mean"], "std": scaling["std"]}
    resize = {"__class_fullname__": "Resize", "p": 1.0, "height": 128, "width": 128, "interpolation": 1}
    steps = {"__class_fullname__": "Compose", "p": 1.0, "transforms": [resize, normalize]}
    text = json.dumps({"__version__": "1.4.14", "transform": steps})
    (folder / "folder" / "albumentations_config_eval.json").write_text(text, encoding="utf-8")
    channels = f"channels = {json.dumps(scaling['channels'])}\n"
    (folder / "names.toml").write_text(channels + _names(), encoding="utf-8")
    return folder / "folder"


def with_tokenizer(network: Any, folder: Path) -> Path:
    """OneFormer's folder, laid out as its authors' own: a tokenizer by vocabulary and merges beside the weights."""
    pretrained(network, folder, processor="OneFormerImageProcessor", binary=True)
    write_tokenizer(folder / "folder")
    return folder / "folder"


def config_apart(network: Any, folder: Path) -> Path:
    """The weights in one file, and ``config.json`` in a folder that ``--arch`` names."""
    network.config.save_pretrained(folder / "config")
    return safetensors(network, folder)


def traced(network: nn.Module, folder: Path) -> Path:
    """A TorchScript program by tracing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch leaves TorchScript behind, its files remain
        torch.jit.trace(network, torch.zeros(1, 4, 128, 128)).save(folder / "traced.pt")
    return folder / "traced.pt"


def scripted(network: nn.Module, folder: Path) -> Path:
    """A TorchScript program by compiling."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(network).save(folder / "scripted.pt")
    return folder / "scripted.pt"


def program(network: nn.Module, folder: Path) -> Path:
    """A ``torch.export`` program of free batch, rows and columns."""
    free = torch.export.Dim.DYNAMIC
    shapes = ({0: free, 2: free, 3: free},)
    torch.export.save(torch.export.export(network, (torch.zeros(2, 4, 128, 128),), dynamic_shapes=shapes), folder / "m.pt2")
    return folder / "m.pt2"


def vocabulary() -> dict[str, int]:
    """Byte pairs of CLIP's form that join the words of OneFormer's tasks."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in _merges())]
    return {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}


def write_tokenizer(folder: Path) -> None:
    """CLIP's tokenizer, in small."""
    (folder / "vocab.json").write_text(json.dumps(vocabulary()), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in _merges())]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _merges() -> list[tuple[str, str]]:
    words = ("the", "task", "is", "semantic", "instance", "panoptic")
    return list(dict.fromkeys(pair for word in words for pair in _pairs(word)))


def _pairs(word: str) -> Iterator[tuple[str, str]]:
    """Merges from the left that make one token of a word."""
    parts = [*word[:-1], f"{word[-1]}</w>"]
    while len(parts) > 1:
        yield parts[0], parts[1]
        parts = [parts[0] + parts[1], *parts[2:]]


class Ladder(nn.Module):
    """Somebody's own network, which a compiler of TorchScript understands, with scores at half the size."""

    def __init__(self, bands: int = 4, classes: int = len(CLASSES), width: int = 16) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(bands, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.coarse = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.SiLU())
        self.head = nn.Conv2d(2 * width, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Scores ``(batch, classes, rows / 2, cols / 2)``."""
        fine = self.fine(image)
        coarse = nn.functional.interpolate(self.coarse(fine), size=fine.shape[-2:], mode="bilinear")
        scores: Tensor = self.head(torch.cat([fine, coarse], 1))
        return scores


class Change(nn.Module):
    """Somebody's own network of two images, one before and one after, of two bands each."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(2, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Conv2d(2 * width, len(CLASSES), 1)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Scores ``(batch, classes, rows / 2, cols / 2)``."""
        one, two = self.encode(before), self.encode(after)
        scores: Tensor = self.head(torch.cat([one, one - two], 1))
        return scores


class Season(nn.Module):
    """Somebody's own network of two dates of two bands, ``(batch, bands, dates, rows, cols)``, and of a day."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.encode = nn.Conv3d(2, width, (2, 3, 3), padding=(0, 1, 1))
        self.day = nn.Linear(2, width)
        self.head = nn.Conv2d(width, len(CLASSES), 1)

    def forward(self, image: Tensor, day: Tensor) -> Tensor:
        """Scores ``(batch, classes, rows, cols)``."""
        scores: Tensor = self.head(torch.relu(self.encode(image)[:, :, 0] + self.day(day)[:, :, None, None]))
        return scores


DAY = [0.3, -0.6]


def _of_change(network: nn.Module, images: Tensor) -> Any:
    return network(images[:, :2], images[:, 2:])


def _of_season(network: nn.Module, images: Tensor) -> Any:
    return network(images.unflatten(1, (2, 2)).transpose(1, 2), torch.tensor([DAY]).expand(len(images), 2))


class Valid(nn.Module):
    """A U-Net of convolutions without padding, whose scores are those of the middle: 8 pixels less on each side."""

    def __init__(self, bands: int = 4, classes: int = len(CLASSES), width: int = 16) -> None:
        super().__init__()
        self.fine = self._pair(bands, width)
        self.coarse = nn.Sequential(nn.MaxPool2d(2), self._pair(width, width))
        self.both = self._pair(2 * width, width)
        self.head = nn.Conv2d(width, classes, 1)

    @staticmethod
    def _pair(inside: int, outside: int) -> nn.Module:
        first, second = nn.Conv2d(inside, outside, 3), nn.Conv2d(outside, outside, 3)
        return nn.Sequential(first, nn.BatchNorm2d(outside), nn.ReLU(), second, nn.BatchNorm2d(outside), nn.ReLU())

    def forward(self, image: Tensor) -> Tensor:
        """Scores ``(batch, classes, rows - 16, cols - 16)``."""
        fine = self.fine(image)
        coarse = nn.functional.interpolate(self.coarse(fine), scale_factor=2.0)
        scores: Tensor = self.head(self.both(torch.cat([fine[..., 4:-4, 4:-4], coarse], 1)))
        return scores


def valid(**options: Any) -> nn.Module:
    """The factory for ``--module families:valid``."""
    return Valid(**options)


def ladder(**options: Any) -> nn.Module:
    """The factory for ``--module families:ladder``."""
    return Ladder(**options)


def _vision(name: str, **options: Any) -> nn.Module:
    from torchvision.models import segmentation

    network: nn.Module = getattr(segmentation, name)(
        weights=None, weights_backbone=None, num_classes=len(CLASSES), **options
    )
    return network


def _smp(name: str, encoder: str, options: Mapping[str, Any]) -> nn.Module:
    import segmentation_models_pytorch

    make = getattr(segmentation_models_pytorch, name)
    network: nn.Module = make(encoder_name=encoder, encoder_weights=None, in_channels=4, classes=len(CLASSES), **options)
    return network


def _unet() -> nn.Module:
    from segpipe.export.unet import UNet

    return UNet(4, len(CLASSES), widths=(8, 16, 32))


def _bisenet() -> nn.Module:
    from segpipe.export.bisenetv2 import BiSeNetV2

    return BiSeNetV2(4, len(CLASSES))


def _hub(name: str, config: Callable[[Any], Any]) -> Any:
    library = _transformers()
    return getattr(library, name)(config(library))


COUNT = {"num_labels": len(CLASSES)}
STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
VIT = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128, "image_size": 128}
QUERIES = {"hidden_dim": 32, "num_queries": 10, "encoder_layers": 2, "decoder_layers": 3, "num_attention_heads": 4}
QUERIES |= {"dim_feedforward": 64, "encoder_feedforward_dim": 64}
TEXT = {"text_encoder_width": 32, "text_encoder_num_layers": 1, "text_encoder_proj_layers": 1, "is_training": False}


def _swin(t: Any) -> Any:
    return t.SwinConfig(image_size=128, embed_dim=24, depths=[1, 2, 1, 1], num_heads=[1, 2, 4, 8], window_size=4, **STAGES)


def _convnext(t: Any) -> Any:
    sizes = {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1]}
    return t.ConvNextConfig(**sizes, layer_scale_init_value=1.0, **STAGES)


def _segformer(t: Any) -> Any:
    return t.SegformerConfig(hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1], decoder_hidden_size=64, **COUNT)


def _upernet(backbone: Callable[[Any], Any], t: Any) -> Any:
    return t.UperNetConfig(backbone_config=backbone(t), hidden_size=32, use_auxiliary_head=False, **COUNT)


def _dpt(t: Any) -> Any:
    neck = {"neck_hidden_sizes": [16, 16, 32, 32], "fusion_hidden_size": 32, "backbone_out_indices": [0, 1, 2, 3]}
    return t.DPTConfig(**VIT, **neck, patch_size=16, readout_type="project", use_auxiliary_head=False, **COUNT)


def _beit(t: Any) -> Any:
    places = {"use_relative_position_bias": True, "use_absolute_position_embeddings": False, "layer_scale_init_value": 1.0}
    taken = {"out_indices": [1, 2, 3, 4], "pool_scales": [1, 2, 3, 6], "use_auxiliary_head": False}
    return t.BeitConfig(**VIT, **places, **taken, patch_size=16, **COUNT)


def _mask2former(t: Any) -> Any:
    return t.Mask2FormerConfig(backbone_config=_swin(t), feature_size=32, mask_feature_size=32, **QUERIES, **COUNT)


def _maskformer(t: Any) -> Any:
    layers = {"decoder_layers": 2, "encoder_layers": 1, "decoder_attention_heads": 4, "encoder_attention_heads": 4}
    decoder = t.DetrConfig(d_model=32, num_queries=10, decoder_ffn_dim=64, encoder_ffn_dim=64, **layers)
    sizes = {"fpn_feature_size": 32, "mask_feature_size": 32}
    return t.MaskFormerConfig(backbone_config=_swin(t), decoder_config=decoder, **sizes, **COUNT)


def _oneformer(t: Any) -> Any:
    return t.OneFormerConfig(backbone_config=_swin(t), conv_dim=32, mask_dim=32, **TEXT, **QUERIES, **COUNT)


EOMT = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 128, "patch_size": 16}
EOMT |= {"num_blocks": 2, "num_queries": 10, "num_upscale_blocks": 2}


def _eomt(t: Any) -> Any:
    return t.EomtConfig(**EOMT, mlp_ratio=2, **COUNT)


def _eomt_dinov3(t: Any) -> Any:
    return t.EomtDinov3Config(**EOMT, intermediate_size=128, **COUNT)


def _with_task(network: Any, images: Tensor) -> Any:
    """OneFormer is told its task, by tokens padded with 0."""
    words = ("<|startoftext|>", "the</w>", "task</w>", "is</w>", "semantic</w>", "<|endoftext|>")
    tokens = torch.zeros(len(images), network.config.task_seq_len, dtype=torch.long)
    tokens[:, : len(words)] = torch.tensor([vocabulary()[word] for word in words])
    return network(images, tokens)


def _of_smp(name: str, save: Callable[[nn.Module, Path], Path], encoder: str = "resnet18", **options: Any) -> Family:
    head = "segmentation_head.head.4" if name == "DPT" else "segmentation_head.0"
    words = tuple(f"{key}={json.dumps(value)}" for key, value in options.items())
    flags = {"arch": f"smp:{name}", "encoder": encoder, **({"options": words} if words else {})}
    tile = 256 if name == "PAN" else 128  # its total stride is 128
    return Family("smp", name, partial(_smp, name, encoder, options), (head,), save, flags, channels=4, tile=tile)


def _of_vision(name: str, save: Callable[[nn.Module, Path], Path], **options: Any) -> Family:
    heads = ("classifier.low_classifier", "classifier.high_classifier") if "lraspp" in name else ("classifier.4",)
    flags = {"arch": f"torchvision:{name}", "imagenet": True}
    return Family("torchvision", name, partial(_vision, name, **options), heads, save, flags)


def _of_hub(name: str, kind: str, config: Callable[[Any], Any], head: str, processor: str) -> Family:
    save = partial(pretrained, processor=processor)
    return Family("transformers", name, partial(_hub, kind, config), (head,), save, processor=processor)


def _of_ours(name: str, save: Callable[[nn.Module, Path], Path], **flags: Any) -> Family:
    return Family("own", name, Ladder, ("head",), save, flags, channels=4)


def _of_eomt(name: str, kind: str, config: Callable[[Any], Any]) -> Family:
    build = partial(_hub, f"{kind}ForUniversalSegmentation", config)
    queries = ("mask_head.fc3", "class_predictor")
    return Family("transformers", name, build, (), sized_as_trained, queries=queries, processor="EomtImageProcessor")


DECODE = "decode_head.classifier"
MASKS = "model.pixel_level_module.decoder.mask_projection"
PER_QUERY = "model.transformer_module.decoder"
FAMILIES = (
    _of_vision("fcn_resnet50", training_state, aux_loss=True),
    _of_vision("fcn_resnet101", state_dict),
    _of_vision("deeplabv3_resnet50", state_dict),
    _of_vision("deeplabv3_resnet101", safetensors),
    _of_vision("deeplabv3_mobilenet_v3_large", lightning),
    _of_vision("lraspp_mobilenet_v3_large", state_dict),
    _of_smp("Unet", lightning),
    _of_smp("UnetPlusPlus", safetensors),
    _of_smp("FPN", state_dict),
    _of_smp("PSPNet", state_dict),
    _of_smp("DeepLabV3", state_dict),
    _of_smp("DeepLabV3Plus", partial(lightning, attribute="net")),
    _of_smp("Linknet", state_dict),
    _of_smp("MAnet", safetensors),
    _of_smp("PAN", training_state),
    _of_smp("UPerNet", state_dict),
    _of_smp("Segformer", safetensors, encoder="mit_b0"),
    _of_smp("DPT", state_dict, encoder="tu-vit_tiny_patch16_224", dynamic_img_size=True),
    Family(
        "smp",
        "Unet, smp-hub",
        partial(_smp, "Unet", "resnet18", {}),
        ("segmentation_head.0",),
        as_on_the_hub,
        {"classes": "{folder}/names.toml"},
        channels=4,
    ),
    _of_hub("SegFormer", "SegformerForSemanticSegmentation", _segformer, DECODE, "SegformerImageProcessor"),
    Family(
        "transformers",
        "SegFormer, weights apart",
        partial(_hub, "SegformerForSemanticSegmentation", _segformer),
        (DECODE,),
        config_apart,
        {"arch": "transformers:{folder}/config", "imagenet": True},
        processor="SegformerImageProcessor",
    ),
    _of_hub(
        "UperNet, ConvNeXt",
        "UperNetForSemanticSegmentation",
        partial(_upernet, _convnext),
        DECODE,
        "SegformerImageProcessor",
    ),
    _of_hub("UperNet, Swin", "UperNetForSemanticSegmentation", partial(_upernet, _swin), DECODE, "SegformerImageProcessor"),
    _of_hub("DPT", "DPTForSemanticSegmentation", _dpt, "head.head.4", "DPTImageProcessor"),
    _of_hub("BEiT", "BeitForSemanticSegmentation", _beit, DECODE, "BeitImageProcessor"),
    Family(
        "transformers",
        "MaskFormer",
        partial(_hub, "MaskFormerForInstanceSegmentation", _maskformer),
        (MASKS,),
        partial(pretrained, processor="MaskFormerImageProcessor"),
        queries=("mask_embedder.2.0", "class_predictor"),
        processor="MaskFormerImageProcessor",
    ),
    Family(
        "transformers",
        "Mask2Former",
        partial(_hub, "Mask2FormerForUniversalSegmentation", _mask2former),
        (MASKS,),
        partial(pretrained, processor="Mask2FormerImageProcessor"),
        queries=(f"{PER_QUERY}.mask_predictor.mask_embedder.2.0", "class_predictor"),
        processor="Mask2FormerImageProcessor",
    ),
    Family(
        "transformers",
        "OneFormer",
        partial(_hub, "OneFormerForUniversalSegmentation", _oneformer),
        (MASKS,),
        with_tokenizer,
        call=_with_task,
        queries=(f"{PER_QUERY}.mask_embed.layers.2.0", f"{PER_QUERY}.class_embed"),
        processor="OneFormerImageProcessor",
    ),
    _of_eomt("EoMT", "Eomt", _eomt),
    _of_eomt("EoMT-DINOv3", "EomtDinov3", _eomt_dinov3),
    Family("segpipe", "bisenetv2", _bisenet, ("head.conv_out.1",), state_dict, {"arch": "bisenetv2"}, channels=4),
    Family("segpipe", "unet", _unet, ("head",), lightning, {"arch": "unet", "options": ("widths=[8, 16, 32]",)}, channels=4),
    _of_ours("module", safetensors, module="families:ladder", options=("width=16",)),
    Family(
        "own",
        "module without padding",
        Valid,
        ("head",),
        safetensors,
        {"module": "families:valid", "options": ("width=16",)},
        channels=4,
        margin=8,
    ),
    _of_ours("TorchScript, traced", traced),
    _of_ours("TorchScript, scripted", scripted),
    _of_ours("torch.export", program),
    Family(
        *("own", "module of two images", Change, ("head",), state_dict, {"module": "families:Change"}),
        channels=4,
        call=_of_change,
        inputs='inputs.before = { channels = "0:2" }\ninputs.after = { channels = ["B04", "B08"] }\n',
    ),
    Family(
        *("own", "module of two dates and a constant", Season, ("head",), state_dict, {"module": "families:Season"}),
        channels=4,
        call=_of_season,
        inputs=f'inputs.image = {{ channels = ":", axes = "NCTHW", dates = 2 }}\ninputs.day = {{ value = {DAY} }}\n',
    ),
)


def measure(name: str) -> dict[str, Any]:
    """One row of the table: export at each precision, whatever agreement comes out, in a folder of its own."""
    family = next(family for family in FAMILIES if family.id == name)
    folder = SCRATCH / name
    shutil.rmtree(folder, ignore_errors=True)
    sys.path.insert(0, str(Path(__file__).parent))  # for --module
    prepared = prepare(family, folder)
    row: dict[str, Any] = {"title": _title(family), "weights": _form(prepared.flags["weights"])}
    scenes = (str(prepared.scenes),)
    try:
        traced = trace(_settings(prepared, "fp32"))
    except SegpipeError as error:
        return {**row, "fp32": {"error": str(error)}, "fp16": {}, "int8": {}}
    row["fp32"] = _attempt(traced, _settings(prepared, "fp32", verify=scenes))
    row["fp16"] = _attempt(traced, _settings(prepared, "fp16", verify=scenes))
    row["int8"] = _attempt(traced, _settings(prepared, "int8", calibrate=scenes))
    return row


def _settings(prepared: Prepared, precision: str, **flags: Any) -> ExportSettings:
    unlimited = {"precision": precision, "min_agreement": 0, "max_difference": 1e9, "overwrite": True}
    return export_settings({**prepared.flags, **unlimited, **flags})


def _attempt(traced: Traced, settings: ExportSettings) -> dict[str, Any]:
    """Figures of an export without limits, or why there is none."""
    try:
        made = write(traced, settings)
    except SegpipeError as error:
        return {"error": str(error)}
    agreement = {"labels": made.agreement.equal_labels, "difference": made.agreement.max_difference}
    return {**agreement, "free": made.free_size, "align": made.stride.align, "equivariant": made.stride.equivariant}


def _title(family: Family) -> str:
    return f"{family.library} {family.name}"


def _form(weights: Path) -> str:
    return "folder" if weights.is_dir() else weights.suffix


def _allowed(figures: Mapping[str, Any], precision: Any) -> bool:
    most = LARGEST_DIFFERENCE[precision]
    enough = figures["labels"] >= LEAST_AGREEMENT[precision]
    return bool(enough and (most is None or figures["difference"] <= most))


def _agreement(figures: Mapping[str, Any], precision: str) -> str:
    """Share of equal labels, and that an export by the command line would be refused."""
    if "error" in figures:
        return "fails"
    share = f"{np.floor(figures['labels'] * 1e5) / 1e3:.3f} %"
    return share if _allowed(figures, precision) else f"{share}, refused"


def _line(row: Mapping[str, Any]) -> str:
    made = row["fp32"]
    cells = [row["title"], row["weights"]]
    if "error" in made:
        return f"| {' | '.join(cells)} | no: {made['error']} |" + " |" * 7
    cells += ["yes" if _allowed(made, "fp32") else "refused", _agreement(made, "fp32"), f"{made['difference']:.1e}"]
    cells += ["free" if made["free"] else "fixed", str(made["align"]), "yes" if made["equivariant"] else "no"]
    cells += [_agreement(row["fp16"], "fp16"), _agreement(row["int8"], "int8")]
    return f"| {' | '.join(cells)} |"


LIBRARIES = ("torch", "torchvision", "segmentation-models-pytorch", "transformers", "onnx", "onnxruntime")

PAGE = """---
hide: [toc]
---

# Export

`segpipe export` makes one ONNX file of a trained network: batch of any size, scores of the image's size, and inside it all
that `segpipe run` needs. The file gets its name only if ONNX Runtime gives the scores that torch gives.

<!-- not run: the weights are yours; docs/start/own-model.md has one that runs -->
```sh
segpipe export unet.pth --arch smp:Unet --encoder resnet34 --classes classes.toml \\
    --bands B04,B03,B02,B08 --tile 512 --output unet.onnx
```

The table shows every family at a small size, five classes, seeded random weights, on tiles of the bundled scenes or, for
networks of three channels, of pictures made from them. It is written by `python benchmarks/families.py --output
docs/export.md`, and each family is run through `segpipe run` against torch in `tests/slow/test_families.py`.
[Forms of ONNX files](forms.md) has the same for files that other programs wrote, such as labels from the graph, and
[described models](howto/described-models.md) for folders of bioimage.io and MONAI. For folders of nnU-Net 2, which
`segpipe export nnunet` reads, see [nnU-Net models](howto/nnunet.md).

- **weights**: what they came in; `folder` is one of `save_pretrained`.
- **exports**: `yes` if the fp32 file is within the limits: {labels} of labels equal, scores within {scores} of the largest.
- **equal labels**, **difference**: fp32 against torch on up to six tiles; the largest difference of a score, relative to the
  largest score.
- **size**: `free` if the graph is right at other rows and columns than the tile's, else `fixed`.
- **stride**, **equivariant**: what goes into the contract; `no` where scores depend on where a tile starts. Random weights
  see further than trained ones: here nearly all do.
- **fp16**, **int8**: labels equal to torch's; `refused` is below {fp16} and {int8}, so that no file would be written unless
  `--min-agreement` allowed it. int8 is calibrated on other tiles of the same scenes. Random networks are the worst case:
  their scores are close to each other everywhere. What trained weights lose, `benchmarks/precision.py` measures.

| family | weights | exports | equal labels | difference | size | stride | equivariant | fp16 | int8 |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def page(lines: Mapping[str, str]) -> str:
    """The whole document, for lines of the table by their family."""
    from machine import machine

    limits = {name: f"{share:.4%}".rstrip("0%").rstrip(".") + " %" for name, share in LEAST_AGREEMENT.items()}
    head = PAGE.format(labels=limits.pop("fp32"), scores=f"{LARGEST_DIFFERENCE['fp32']:g}", **limits)
    versions = ", ".join(f"{name} {version(name).split('+')[0]}" for name in LIBRARIES if name != "onnxruntime")
    ordered = [lines[_title(family)] for family in FAMILIES if _title(family) in lines]
    return "\n".join([head + "\n".join(ordered), "", f"{machine()}; {versions}. {datetime.now(UTC).date()}.", ""])


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="part of a family's name; repeatable")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--jobs", type=int, default=1, help="families measured at once")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the page has")
    options = parser.parse_args()
    lines = standing(options.output) if options.resume else {}
    wanted = [f for f in FAMILIES if not options.only or any(part.lower() in f.id.lower() for part in options.only)]
    names = [family.id for family in wanted if _title(family) not in lines]
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=6) as pool:
        for row in pool.imap_unordered(measure, names):
            lines[row["title"]] = _line(row)
            if options.output:  # what is there so far, whatever becomes of the rest
                options.output.write_text(page(lines), encoding="utf-8")
            print(_line(row), *_errors(row), flush=True)


def standing(document: Path) -> dict[str, str]:
    """Lines of the table in a document, by their family."""
    lines = document.read_text(encoding="utf-8").splitlines()
    return {title: line for line in lines if line.startswith("| ") and (title := line.split(" | ")[0][2:])}


def _errors(row: Mapping[str, Any]) -> list[str]:
    return [f"{key}: {row[key]['error']}" for key in ("fp32", "fp16", "int8") if "error" in row[key]]


if __name__ == "__main__":
    main()

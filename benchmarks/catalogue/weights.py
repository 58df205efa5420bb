"""Weights as people have them: states, checkpoints, folders, and programs."""

import json
import tomllib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from catalogue.family import CLASSES, MULTISPECTRAL, class_lines
from catalogue.hub import transformers_library
from catalogue.tokenizer import write_tokenizer


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
    getattr(transformers_library(), processor)().save_pretrained(folder / "folder")
    if binary:
        (folder / "folder" / "model.safetensors").unlink()
        torch.save(network.state_dict(), folder / "folder" / "pytorch_model.bin")
    return folder / "folder"


def sized_as_trained(network: Any, folder: Path) -> Path:
    """EoMT's folder: its processor brings masks to the size of the images that the network was trained on."""
    edges = dict.fromkeys(("shortest_edge", "longest_edge"), network.config.image_size)
    network.save_pretrained(folder / "folder")
    transformers_library().EomtImageProcessor(size=edges).save_pretrained(folder / "folder")
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
    (folder / "names.toml").write_text(channels + class_lines(), encoding="utf-8")
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

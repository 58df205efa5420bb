"""A network made ready: its weights and class table in a folder, and the command line for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from catalogue.family import MULTISPECTRAL, Family, class_lines
from catalogue.lively import enliven
from catalogue.pixels import SCENES, pictures, scaled


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
    return (MULTISPECTRAL if family.channels == 4 else "channels = 3\n") + family.inputs + class_lines()


def arguments(flags: Mapping[str, Any]) -> list[str]:
    """The command line that means these flags."""
    words = [str(flags["weights"])]
    for name, value in flags.items():
        values = value if isinstance(value, tuple) else (value,)
        option = "--" + {"options": "option"}.get(name, name).replace("_", "-")
        words += [] if name == "weights" else [w for v in values for w in ([option] if v is True else [option, str(v)])]
    return words

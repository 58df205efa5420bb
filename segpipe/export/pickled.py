"""Read the weights of a network that was pickled as a whole, ``torch.save(network, path)``, without running its code."""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segpipe.export.families import State
from segpipe.storage.existence import is_file

LIBRARIES = {"segmentation_models_pytorch": "--arch smp:{name} and --encoder", "torchvision": "--arch torchvision:NAME"}
"""How to name networks of libraries that ``--arch`` knows."""

DEEPEST = 6
"""Levels of dictionaries and lists in which a network is looked for."""


class Inert:
    """Stands for an object of the file: it keeps what was stored in it and has none of its class's code."""

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass


def read_inert(path: Path) -> Any:
    """The content of a checkpoint, with an `Inert` for every object of a class that torch does not allow; None if it fails.

    torch's reader for tensors alone finds each class by name in its list of allowed ones; here the list has a class of ours
    under each name of the file. So no module is imported, and no function of the file is called.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        ours: list[Any] = [(type(name, (Inert,), {}), name) for name in names]
        with torch.serialization.safe_globals(ours):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 - torch passes on whatever its readers raise; the file is refused as it would be without
        return None


def networks(content: Any, depth: int = 0) -> Iterator[Inert]:
    """Yield the outermost networks in a checkpoint."""
    if is_network(content):
        yield content
    elif depth < DEEPEST:
        inner = content.values() if isinstance(content, Mapping) else content if isinstance(content, list | tuple) else ()
        for part in inner:
            yield from networks(part, depth + 1)


def is_network(value: Any) -> bool:
    """Whether an object of the file was a ``torch.nn.Module``, by the dictionaries that every module has."""
    kinds = ("_modules", "_parameters", "_buffers")
    return isinstance(value, Inert) and all(isinstance(vars(value).get(kind), dict) for kind in kinds)


def state_of(network: Inert) -> State:
    """The tensors of a network by name, as its ``state_dict`` has them."""
    return dict(_tensors(network, "", ()))


def _tensors(network: Any, place: str, above: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
    own = vars(network)
    passing = own.get("_non_persistent_buffers_set") or ()
    for name, value in [*own["_parameters"].items(), *own["_buffers"].items()]:
        if isinstance(value, Tensor) and name not in passing:
            yield f"{place}{name}", value
    for name, inner in own["_modules"].items():
        if is_network(inner) and id(inner) not in above:  # a file may say that a network holds itself
            yield from _tensors(inner, f"{place}{name}.", (*above, id(network)))


def how_to_name(network: Inert) -> str:
    """The flag that names a network's class, and where its code is."""
    module, _, name = type(network).__name__.rpartition(".")
    top = module.partition(".")[0]
    if top in LIBRARIES:
        return f"name it by {LIBRARIES[top].format(name=name)}"
    if top == "__main__":
        return f"its class comes from a script: put it into a file such as mynet.py, and name it by --module mynet:{name}"
    return f"name it by --module {module}:{name} ({_where(module, top)})"


def _where(module: str, top: str) -> str:
    files = [Path(f"{module.replace('.', '/')}.py"), Path(module.replace(".", "/"), "__init__.py")]
    here = next((file for file in files if is_file(file)), None)
    if here:
        return f"{here} is in this folder"
    if find_spec(top) is not None:  # of a top-level name, which imports nothing
        return f"{top} is installed"
    return f"{files[0]} is not in this folder: go to the one that has it"

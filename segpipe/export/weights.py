"""Read checkpoints without running code from them, and fit them to a network key by key."""

import pickle
import struct
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from segpipe.errors import ExportError, one_line
from segpipe.export.families import State, look_in_working_folder, need
from segpipe.export.pickled import Inert, how_to_name, is_network, networks, read_inert, state_of
from segpipe.messages.printable import and_more
from segpipe.storage.existence import is_folder

Form = Literal["folder", "safetensors", "torchscript", "program", "pickle"]

SHOWN = 10

UNREADABLE = (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, EOFError)
"""Errors raised for a damaged directory of a zip archive, including names that are not text."""


def form_of(path: Path) -> Form:
    """Detect the kind of a file by its content."""
    if is_folder(path):
        return "folder"
    if not zipfile.is_zipfile(path):
        return "safetensors" if path.suffix == ".safetensors" or _begins_as_safetensors(path) else "pickle"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except UNREADABLE as error:
        raise ExportError(_DAMAGED.format(path, one_line(error))) from None
    if any(name.endswith("constants.pkl") for name in names) and any("/code/" in name for name in names):
        return "torchscript"
    programs = ("models/model.json", "serialized_exported_program.json")
    return "program" if path.suffix == ".pt2" or any(name.endswith(programs) for name in names) else "pickle"


def _begins_as_safetensors(path: Path) -> bool:
    """Whether a file begins like safetensors: eight bytes for the length of a header, which is JSON."""
    with path.open("rb") as stream:
        return stream.read(9)[8:] == b"{"


def read_checkpoint(path: Path, *, trust_pickle: bool, named: bool = False) -> State | nn.Module:
    """Read the tensors of a checkpoint by key; a whole module if a trusted pickle contains one.

    Args:
        path: the checkpoint.
        trust_pickle: load a file that can run code.
        named: whether the user names the network; then the weights of a network that was pickled as a whole are read
            without running code from the file.

    Raises:
        ExportError: it is damaged, contains more than tensors, or contains no state.
    """
    if form_of(path) == "safetensors":
        return _read_safetensors(path)
    content = _unpickle(path, trust_pickle, named)
    return content if isinstance(content, nn.Module) else _state_in(content, path)


def _read_safetensors(path: Path) -> State:
    try:
        state: State = need("safetensors.torch").load_file(path)
    except Exception as error:  # noqa: BLE001 - the library's errors have no common base
        raise ExportError(f"{path} cannot be read as safetensors: {one_line(error)}") from None
    return state


def _unpickle(path: Path, trust: bool, named: bool) -> Any:
    if trust:
        look_in_working_folder()  # for the class of a network
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols that torch does not write
            return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        if trust or not _begins_as_pickle(path):
            raise ExportError(_DAMAGED.format(path, torch_finding(error))) from None
        content = read_inert(path)
        network = next(networks(content), None)
        if network is not None and named:
            return content
        if network is not None and not type(network).__name__.startswith("torch."):
            raise ExportError(_WHOLE.format(path, type(network).__name__, how_to_name(network))) from None
        raise ExportError(
            f"{path} holds more than tensors, and loading that runs code from the file: save its state_dict() alone, "
            f"or give --trust-pickle if you know who made it ({torch_finding(error)})"
        ) from None
    except (ImportError, AttributeError) as error:
        raise ExportError(
            f"{path} needs the Python code that it was saved with, and it is not found: "
            f"name its folder in PYTHONPATH ({type(error).__name__}: {error})"
        ) from None
    except Exception as error:  # noqa: BLE001 - torch passes on whatever its readers raise
        raise ExportError(_DAMAGED.format(path, f"{type(error).__name__}: {torch_finding(error)}".rstrip(": "))) from None


_WHOLE = (
    "{} holds a whole network, {}, as torch.save(network, ...) writes it, and loading that runs code from the file: {}. "
    "Its weights are then read without running anything from the file. Or give --trust-pickle if you know who made it"
)
_DAMAGED = "{} must be a checkpoint of torch, and is none, or is damaged or truncated: {}"


def _begins_as_pickle(path: Path) -> bool:
    """Whether a file begins as torch has always saved: a zip archive, or earlier a pickle of protocol 2."""
    with path.open("rb") as stream:
        return stream.read(4)[:1] == b"\x80" or zipfile.is_zipfile(path)


def torch_finding(error: Exception) -> str:
    """What torch found in a file that it refused, without its advice to trust the file."""
    lines = [line.strip() for line in str(error).splitlines() if "unsupported" in line.lower() or "unable" in line.lower()]
    line = lines[0] if lines else str(error).split("\n", 1)[0]
    return line.removeprefix("WeightsUnpickler error: ").split(" was not an allowed global")[0]


def _state_in(content: Any, path: Path) -> State:
    """The state in a checkpoint; if there are several, such as an average, each with its path as a prefix."""
    found = dict(_states(content))
    if not found:
        held = shown(content) if isinstance(content, Mapping) else type(content).__name__
        raise ExportError(f"{path} must hold a state_dict, a dictionary of tensors by name; it has {held}")
    if len(found) == 1:
        return next(iter(found.values()))
    return {place + key: value for place, state in found.items() for key, value in state.items()}


def _states(content: Any, place: str = "") -> Iterator[tuple[str, State]]:
    """Yield paths and dictionaries of tensors by name, at any depth; those of optimisers have numbers for keys."""
    if isinstance(content, nn.Module):
        yield place, content.state_dict()
    elif isinstance(content, Inert) and is_network(content):
        yield place, state_of(content)
    elif isinstance(content, Mapping) and content and all(isinstance(key, str) for key in content):
        if all(isinstance(value, Tensor) for value in content.values()):
            yield place, dict(content)
        else:
            for key, value in content.items():
                yield from _states(value, f"{place}{key}.")


def shown(keys: Any) -> str:
    """List some keys, and the number of others."""
    return and_more(list(map(str, keys)), SHOWN)


def fit(module: nn.Module, state: State, *, prefix: str | None, replace_head: bool) -> tuple[str, ...]:
    """Load a checkpoint into a network; the keys of both must match.

    Args:
        module: network with fresh weights.
        state: the checkpoint.
        prefix: prefix of the network's keys; None: detect it.
        replace_head: keep fresh weights in layers whose number of classes differs.

    Returns:
        Notes for the user.

    Raises:
        ExportError: keys are missing or unexpected, shapes differ, or weights are not finite; all are listed.
    """
    prefix = _find_prefix(module, state) if prefix is None else _whole_prefix(prefix, state)
    mine = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not mine:
        raise ExportError(
            f"keys of the checkpoint must begin with --prefix, got {prefix} and {shown(state)}: correct --prefix"
        )
    others = [key for key in state if not key.startswith(prefix)]
    wanted = module.state_dict()
    differ = [key for key in mine if key in wanted and mine[key].shape != wanted[key].shape]
    _check_keys(mine, wanted, differ, replace_head)
    check_finite(mine)
    module.load_state_dict({key: value for key, value in mine.items() if key not in differ}, strict=False)
    notes = [f"keys taken from below {prefix!r}"] if prefix else []
    notes += [f"keys of the checkpoint that are not the network's, left out: {shown(others)}"] if others else []
    notes += [f"new untrained head: {_shapes(differ, mine, wanted)}"] if differ else []
    return tuple(notes)


def _whole_prefix(prefix: str, state: State) -> str:
    """The user's prefix, with its dot, below the path of its state in a checkpoint of several."""
    prefix = prefix if not prefix or prefix.endswith(".") else f"{prefix}."
    if any(key.startswith(prefix) for key in state):
        return prefix
    below = {key[: key.index(f".{prefix}") + 1] for key in state if f".{prefix}" in key}
    return below.pop() + prefix if len(below) == 1 else prefix


def _find_prefix(module: nn.Module, state: State) -> str:
    """The prefix under which most of the network's keys are found; Lightning, DataParallel and torch.compile add some."""
    wanted = module.state_dict().keys()
    counts = Counter(key[: -len(own)] for own in wanted for key in state if key.endswith(own))
    counts = Counter({p: n for p, n in counts.items() if not p or p.endswith(".")})
    if not counts:
        raise ExportError(
            "the checkpoint must hold the network's keys, and has none of them: "
            f"the network has {shown(wanted)}; the checkpoint has {shown(state)}: correct --arch"
        )
    best = max(counts.values())
    found = [p for p, n in counts.items() if n == best]
    if len(found) > 1 and "" not in found:
        raise ExportError(
            f"the checkpoint holds the network more than once, under {', '.join(found)}: say which by --prefix"
        )
    return "" if "" in found else found[0]


def _check_keys(mine: State, wanted: Mapping[str, Tensor], differ: list[str], replace_head: bool) -> None:
    # batch norm counts batches in training only, and old checkpoints lack that count
    missing = [key for key in wanted if key not in mine and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in mine if key not in wanted]
    parts = [f"{what}: {shown(keys)}" for what, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
    head = _are_head(differ, mine, wanted)
    if differ and not (replace_head and head):
        parts += [f"of another shape: {_shapes(differ, mine, wanted)}"]
    if parts:
        replaceable = differ and head and not (missing or unexpected)
        raise ExportError(
            f"the checkpoint must fit the network key by key; {'; '.join(parts)}: "
            "correct --arch, --encoder, --option, --bands or --classes to how it was trained"
            + (", or give --replace-head to start with a new, untrained head" if replaceable else "")
        )


def _are_head(differ: list[str], mine: State, wanted: Mapping[str, Tensor]) -> bool:
    """Whether shapes differ only in the number of classes: in the first axis of weights, by the same two numbers."""
    counts = {(mine[key].shape[:1], wanted[key].shape[:1]) for key in differ}
    alike = all(mine[key].ndim == wanted[key].ndim and mine[key].shape[1:] == wanted[key].shape[1:] for key in differ)
    return alike and len(counts) <= 1 and all(key.endswith(("weight", "bias")) for key in differ)


def _shapes(keys: list[str], mine: State, wanted: Mapping[str, Tensor]) -> str:
    return shown(f"{key} {tuple(mine[key].shape)} for {tuple(wanted[key].shape)}" for key in keys)


def check_finite(state: Mapping[str, Tensor], whose: str = "weights") -> None:
    """Check that weights have no NaN and no infinity.

    Raises:
        ExportError: some have; the message begins with ``whose``.
    """
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ExportError(
            f"{whose} must be finite, got NaN or infinity in {shown(broken)}: take a checkpoint from before that"
        )

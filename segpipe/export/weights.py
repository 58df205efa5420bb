"""Checkpoints: read without running what is in them, and fitted to a network key by key."""

import pickle
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from segpipe.export.families import State, need
from segpipe.pipeline.errors import ExportError

Form = Literal["folder", "safetensors", "torchscript", "program", "pickle"]

STATES = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
"""Where checkpoints keep their state, best first."""

SHOWN = 10


def form_of(path: Path) -> Form:
    """What kind of file this is, by its content."""
    if path.is_dir():
        return "folder"
    if path.suffix == ".safetensors":
        return "safetensors"
    if not zipfile.is_zipfile(path):
        return "pickle"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("constants.pkl") for name in names) and any("/code/" in name for name in names):
        return "torchscript"
    programs = ("models/model.json", "serialized_exported_program.json")
    return "program" if path.suffix == ".pt2" or any(name.endswith(programs) for name in names) else "pickle"


def read_checkpoint(path: Path, *, trust_pickle: bool) -> State | nn.Module:
    """The tensors of a checkpoint by key; a whole module where a trusted pickle holds one.

    Raises:
        ExportError: it is damaged, holds more than tensors, or no state can be found in it.
    """
    if form_of(path) == "safetensors":
        return _read_safetensors(path)
    content = _unpickle(path, trust_pickle)
    return content if isinstance(content, nn.Module) else _state_in(content, path)


def _read_safetensors(path: Path) -> State:
    try:
        state: State = need("safetensors.torch").load_file(path)
    except Exception as error:  # noqa: BLE001 - the library's errors share no base
        raise ExportError(f"{path} cannot be read as safetensors: {error}") from None
    return state


def _unpickle(path: Path, trust: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        if trust:
            raise ExportError(f"{path} is no checkpoint of torch, or is damaged: {error}") from None
        raise ExportError(
            f"{path} holds more than tensors, and loading that runs code from the file: save its state_dict() alone, "
            f"or give --trust-pickle if you know who made it ({_first_line(error)})"
        ) from None
    except Exception as error:  # noqa: BLE001 - torch raises what its readers raise
        raise ExportError(
            f"{path} cannot be read, and may be truncated: {type(error).__name__}: {_first_line(error)}"
        ) from None


def _first_line(error: Exception) -> str:
    """What torch found, without its advice to trust the file."""
    lines = [line.strip() for line in str(error).splitlines() if "Unsupported" in line or "Unable" in line]
    return lines[0] if lines else str(error).split("\n", 1)[0]


def _state_in(content: Any, path: Path) -> State:
    if not isinstance(content, Mapping):
        raise ExportError(f"{path} must hold a state_dict, got {type(content).__name__}")
    for candidate in (content, *(content[key] for key in STATES if key in content)):
        if isinstance(candidate, nn.Module):
            return candidate.state_dict()
        if isinstance(candidate, Mapping) and candidate and all(isinstance(v, Tensor) for v in candidate.values()):
            return dict(candidate)
    raise ExportError(f"{path} must hold a state_dict, at its top or under {', '.join(STATES)}; it has {shown(content)}")


def shown(keys: Any) -> str:
    """Some keys, and how many more there are."""
    keys = [str(key) for key in keys]
    return ", ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")


def fit(module: nn.Module, state: State, *, prefix: str | None, replace_head: bool) -> tuple[str, ...]:
    """Load a checkpoint into a network; every key of either must be one of the other.

    Args:
        module: with fresh weights.
        state: the checkpoint.
        prefix: what stands before the network's keys; found where None.
        replace_head: leave layers whose number of classes differs as they are.

    Returns:
        What a reader should know of it.

    Raises:
        ExportError: keys are missing or unexpected, shapes differ, or weights are not finite; all are listed.
    """
    prefix = _find_prefix(module, state) if prefix is None else prefix
    mine = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    others = [key for key in state if not key.startswith(prefix)]
    wanted = module.state_dict()
    differ = [key for key in mine if key in wanted and mine[key].shape != wanted[key].shape]
    _check_keys(mine, wanted, differ if not replace_head else _not_heads(differ, mine, wanted))
    _check_finite(mine)
    module.load_state_dict({key: value for key, value in mine.items() if key not in differ}, strict=False)
    notes = [f"keys taken from below {prefix!r}"] if prefix else []
    notes += [f"keys of the checkpoint that are not the network's, left out: {shown(others)}"] if others else []
    notes += [f"head begun anew, untrained: {_shapes(differ, mine, wanted)}"] if differ else []
    return tuple(notes)


def _find_prefix(module: nn.Module, state: State) -> str:
    """The one under which most of the network's keys are found; Lightning, DataParallel and torch.compile add some."""
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


def _check_keys(mine: State, wanted: Mapping[str, Tensor], differ: list[str]) -> None:
    # batch norm counts its batches in training only, and old checkpoints have no such count
    missing = [key for key in wanted if key not in mine and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in mine if key not in wanted]
    parts = [f"{what}: {shown(keys)}" for what, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
    parts += [f"of another shape: {_shapes(differ, mine, wanted)}"] if differ else []
    if parts:
        mend = ", or give --replace-head to begin the head anew, untrained" if differ and len(parts) == 1 else ""
        raise ExportError(
            f"the checkpoint must fit the network key by key; {'; '.join(parts)}: "
            f"correct --arch, --encoder, --option, --bands or --classes to how it was trained{mend}"
        )


def _not_heads(differ: list[str], mine: State, wanted: Mapping[str, Tensor]) -> list[str]:
    """Keys whose shapes differ in more than their first axis, the one that counts classes."""
    return [key for key in differ if mine[key].shape[1:] != wanted[key].shape[1:]]


def _shapes(keys: list[str], mine: State, wanted: Mapping[str, Tensor]) -> str:
    return shown(f"{key} {tuple(mine[key].shape)} for {tuple(wanted[key].shape)}" for key in keys)


def _check_finite(state: State) -> None:
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ExportError(
            f"weights must be finite, got NaN or infinity in {shown(broken)}: take a checkpoint from before that"
        )

"""Export the torch network of a described model, after building it around its weights."""

import importlib
import importlib.util
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from segpipe.contract import Contract
from segpipe.errors import DisagreementError, ExportError
from segpipe.export.bundles.described import Architecture, Described, WeightsFile
from segpipe.export.families import Network, foreign_errors, in_a_line
from segpipe.export.graph import Scorer, score, to_onnx
from segpipe.export.large import loadable
from segpipe.export.outputs import outputs_of
from segpipe.export.programs import opened
from segpipe.export.tiles import noise
from segpipe.export.weights import fit, form_of, read_checkpoint
from segpipe.messages.printable import dims
from segpipe.network.device import open_session

CLOSE = 1e-4
"""Largest difference of a score from torch's, relative to the largest score."""

KNOWN = ("monai.networks.nets",)
"""Modules whose classes build networks and do nothing else."""


def exported(described: Described, weights: WeightsFile, contract: Contract, *, trust: bool) -> onnx.ModelProto:
    """The graph at the contract's tile, from ``image`` to ``scores``, with a free batch.

    Raises:
        ExportError: the network cannot be built or exported, or the file may run code and is not trusted.
        DisagreementError: ONNX Runtime's scores are not torch's.
    """
    network = _opened(weights, trust)
    network.module.eval().float()
    tile = contract.axes("tile", contract.ndim) or ()
    space = tile[::-1] if described.reversed_axes else tile
    shape = (contract.channel_count, *space)
    network = Network(network.module, network.architecture, traced=network.traced, scores=_scores(network, shape, described))
    proto = to_onnx(network, shape, free_size=False)
    _compare(network, proto, shape)
    return proto


def _opened(weights: WeightsFile, trust: bool) -> Network:
    if weights.form == "torchscript":
        if form_of(weights.path) != "torchscript":
            raise ExportError(f"{weights.path.name} must be TorchScript, and is not: correct the description")
        return _script(weights.path, trust)
    architecture = weights.architecture
    if architecture is None:
        raise ExportError(f"{weights.path.name} holds weights alone, and the description names no architecture: add it")
    module = _built(architecture, trust)
    content = read_checkpoint(weights.path, trust_pickle=trust)
    if isinstance(content, nn.Module):
        content = content.state_dict()
    fit(module, content, prefix=None, replace_head=False)
    return Network(module, architecture.factory)


def _script(path: Path, trust: bool) -> Network:
    loading = foreign_errors(f"{path.name} cannot be loaded")
    with loading, warnings.catch_warnings(), opened(path, "torchscript", trust=trust) as stream:
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but still in use
        return Network(torch.jit.load(stream, map_location="cpu"), "TorchScript program", traced=True)  # type: ignore[no-untyped-call]


def _built(architecture: Architecture, trust: bool) -> nn.Module:
    """Build the network by the code that the description names.

    Raises:
        ExportError: the code is not trusted, is missing, or fails.
    """
    module, _, name = architecture.factory.partition(":")
    if not trust and (architecture.file is not None or module not in KNOWN):
        code = architecture.file.name if architecture.file else module
        raise ExportError(
            f"the network is built by {name} of {code}, and running it runs code that the description names: give "
            "--trust-pickle if you know who made it, or take weights that bring their network, as ONNX"
        )
    try:
        made = getattr(_module(architecture.file, module), name)(**architecture.options)
    except ModuleNotFoundError as error:
        raise ExportError(
            f"the network {name} needs {error.name}, which is not installed: pip install {error.name}"
        ) from None
    except Exception as error:  # third-party code
        raise ExportError(f"the network {name} cannot be built as described: {in_a_line(error)}") from error
    if not isinstance(made, nn.Module):
        raise ExportError(
            f"{architecture.factory} must give a torch.nn.Module, got {type(made).__name__}: correct the description"
        )
    return made


def _module(file: Path | None, name: str) -> Any:
    if file is None:
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(f"described_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"{file} is not a file of Python", name=str(file))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look their module up
    spec.loader.exec_module(module)
    return module


def _scores(network: Network, shape: tuple[int, ...], described: Described) -> str:
    """The output of the right shape.

    Raises:
        ExportError: there is none, or more than one.
    """
    with foreign_errors(f"the network does not run on {dims((1, *shape))}"), torch.inference_mode():
        outputs = outputs_of(network.module(torch.zeros(1, *shape)))
    wanted = (1, described.scores, *shape[1:])
    fit_names = [name for name, tensor in outputs.items() if tuple(tensor.shape) == wanted]
    asked = str(described.tensors[1])
    if asked in outputs:
        return asked
    if len(fit_names) == 1:
        return fit_names[0]
    found = ", ".join(f"{name or 'its output'} ({dims(tuple(tensor.shape))})" for name, tensor in outputs.items())
    raise ExportError(
        f"the network must give one output of {dims(wanted)}, as its description says, got {found}: "
        + ("name it by --contract, with output = ..." if fit_names else "correct the description, or tile by --contract")
    )


def _compare(network: Network, proto: onnx.ModelProto, shape: tuple[int, ...]) -> None:
    """Compare ONNX Runtime with torch on two tiles of noise at once: an export must not change scores or mix a batch.

    Raises:
        DisagreementError: they differ.
    """
    tiles = np.stack([noise(shape, seed) for seed in (1, 2)])
    scorer = Scorer(network.module, network.scores).eval()
    wanted = np.concatenate([score(scorer, tile[None]) for tile in tiles])
    with loadable(proto) as graph:
        (found,) = open_session(graph, arena="none").run(None, {"image": tiles})
    largest = float(np.abs(wanted).max()) or 1.0
    if found.shape != wanted.shape or not np.abs(found - wanted).max() <= CLOSE * largest:
        raise DisagreementError(
            f"scores must differ from torch's by {CLOSE:g} of the largest at most, got "
            f"{np.abs(found - wanted).max() / largest if found.shape == wanted.shape else np.inf:.3g}: no file was written"
        )

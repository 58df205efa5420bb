"""A trained network from whatever its weights came in."""

import hashlib
import importlib
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segpipe.export.families import Network, Wanted, build, need
from segpipe.export.settings import ExportSettings
from segpipe.export.terms import Terms
from segpipe.export.weights import fit, form_of, read_checkpoint
from segpipe.pipeline.errors import ExportError


def open_network(settings: ExportSettings, terms: Terms) -> Network:
    """Build the network, load its weights, and put it into evaluation mode.

    Raises:
        ExportError: it cannot be built, or its weights are not its own.
    """
    torch.manual_seed(settings.seed)  # a head begun anew is the same each time
    form = form_of(settings.weights)
    if form in ("torchscript", "program"):
        network = _program(settings, form)
    elif form == "folder" and not settings.module:
        from segpipe.export.families import hub

        network = hub.open_folder(
            settings.weights,
            classes=terms.scores if terms.classes else None,
            replace_head=settings.replace_head,
            trust_pickle=settings.trust_pickle,
            scaled="normalize" in terms.values,
        )
    else:
        network = _from_checkpoint(settings, terms)
    if not isinstance(network.module, torch.fx.GraphModule):  # a program's mode is fixed
        network.module.eval().float()  # some are saved in half precision
    return network


def _program(settings: ExportSettings, form: str) -> Network:
    given = [key for key in ("arch", "module", "encoder", "options", "prefix", "replace_head") if getattr(settings, key)]
    if given:
        flags = ", ".join(f"--{key.removesuffix('s').replace('_', '-')}" for key in given)
        raise ExportError(f"{settings.weights} is a program and brings its own architecture and weights: leave {flags} out")
    try:
        with warnings.catch_warnings(), settings.weights.open("rb") as stream:
            warnings.simplefilter("ignore")  # TorchScript is deprecated, and people have it
            if form == "torchscript":
                program = torch.jit.load(stream, map_location="cpu")  # type: ignore[no-untyped-call]
                return Network(program, "TorchScript program", traced=True)
            module = torch.export.load(stream).module()
    except Exception as error:  # noqa: BLE001 - torch raises what its readers raise
        raise ExportError(f"{settings.weights} cannot be loaded: {type(error).__name__}: {error}") from None
    return Network(module, "torch.export program")


def _from_checkpoint(settings: ExportSettings, terms: Terms) -> Network:
    content = read_checkpoint(settings.weights, trust_pickle=settings.trust_pickle)
    if isinstance(content, nn.Module):
        return Network(content, type(content).__name__, notes=("the network itself came from a trusted pickle",))
    if settings.module:
        module, architecture = _factory(settings.module, settings.options), settings.module
    elif settings.arch:
        wanted = Wanted(terms.channel_count, terms.scores, settings.encoder, settings.options, content)
        module, architecture = build(settings.arch, wanted), _named(settings)
    else:
        raise ExportError(
            f"{settings.weights} holds weights alone, so the network must be named: give --arch, as in smp:Unet, or --module"
        )
    notes = fit(module, content, prefix=settings.prefix, replace_head=settings.replace_head)
    return Network(module, architecture, notes=notes)


def _named(settings: ExportSettings) -> str:
    encoder = f", encoder {settings.encoder}" if settings.encoder else ""
    return f"{settings.arch}{encoder}"


def _factory(path: str, options: Any) -> nn.Module:
    """What ``package.module:factory`` gives, found from the working folder, too."""
    name, _, attribute = path.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        made = getattr(importlib.import_module(name), attribute)
        made = made if isinstance(made, nn.Module) else made(**options)
    except Exception as error:  # anybody's code
        raise ExportError(f"--module {path} cannot be built: {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise ExportError(f"--module {path} must give a torch.nn.Module, got {type(made).__name__}")
    return made


def weights_digest(path: Path) -> str:
    """SHA-256 of the weights: of the file, or of a folder's weight files in the order of their names."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".bin"))
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return hashlib.sha256(files[0].read_bytes()).hexdigest() if len(files) == 1 else digest.hexdigest()


def library_versions() -> str:
    """What built and exported it."""
    return f"torch {need('torch').__version__.split('+')[0]}"

"""Build a trained network from its weights, in any of their formats."""

import hashlib
import importlib
import inspect
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segpipe.errors import ExportError
from segpipe.export.families import Network, Wanted, build, foreign_errors, in_a_line, look_in_working_folder, need, smp
from segpipe.export.programs import opened
from segpipe.export.settings import ExportSettings
from segpipe.export.terms import Terms, check_named
from segpipe.export.weights import fit, form_of, read_checkpoint
from segpipe.storage.existence import is_file


def open_network(settings: ExportSettings, terms: Terms) -> Network:
    """Build the network, load its weights, and put it into evaluation mode.

    Raises:
        ExportError: it cannot be built, or the weights are not those of the network.
    """
    torch.manual_seed(settings.seed)  # reproducible weights for a new head
    form = form_of(settings.weights)
    if form in ("torchscript", "program"):
        network = _program(settings, form)
    elif form == "folder" and not settings.module:
        network = _folder(settings, terms)
    else:
        network = _from_checkpoint(settings, terms)
    if not isinstance(network.module, torch.fx.GraphModule):  # a program's mode is fixed
        network.module.eval().float()  # some are saved in half precision
    return network


def _folder(settings: ExportSettings, terms: Terms) -> Network:
    """Open a folder of ``save_pretrained``, by transformers or segmentation-models-pytorch."""
    _leave_out(settings, ("arch", "encoder", "options", "prefix"), "names its own architecture")
    classes = terms.scores if terms.classes else None
    scaled = "normalize" in terms.values
    if not smp.is_folder(settings.weights):
        smp.check_named(settings.weights)
        from segpipe.export.families import hub

        return hub.open_folder(
            settings.weights,
            classes=classes,
            replace_head=settings.replace_head,
            trust_pickle=settings.trust_pickle,
            scaled=scaled,
        )
    network, weights = smp.open_folder(settings.weights, classes, scaled=scaled)
    content = read_checkpoint(weights, trust_pickle=settings.trust_pickle)
    if isinstance(content, nn.Module):
        content = content.state_dict()
    notes = fit(network.module, content, prefix=None, replace_head=settings.replace_head)
    return replace(network, notes=(*network.notes, *notes))


def _leave_out(settings: ExportSettings, keys: tuple[str, ...], why: str) -> None:
    """Refuse settings for what the weights already contain."""
    given = [key for key in keys if getattr(settings, key)]
    if given:
        flags = ", ".join(f"--{key.removesuffix('s').replace('_', '-')}" for key in given)
        raise ExportError(f"{settings.weights} {why}: leave {flags} out")


def _program(settings: ExportSettings, form: str) -> Network:
    own = ("arch", "module", "encoder", "options", "prefix", "replace_head")
    _leave_out(settings, own, "is a program and brings its own architecture and weights")
    loading = foreign_errors(f"{settings.weights} cannot be loaded")
    with loading, warnings.catch_warnings(), opened(settings.weights, form, trust=settings.trust_pickle) as stream:
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but still in use
        if form == "torchscript":
            program = torch.jit.load(stream, map_location="cpu")  # type: ignore[no-untyped-call]
            return Network(program, "TorchScript program", traced=True)
        return Network(torch.export.load(stream).module(), "torch.export program")


def _from_checkpoint(settings: ExportSettings, terms: Terms) -> Network:
    named = bool(settings.arch or settings.module)
    if named:
        check_named(terms.values)
    content = read_checkpoint(settings.weights, trust_pickle=settings.trust_pickle, named=named)
    if isinstance(content, nn.Module) and not named:
        return Network(content, type(content).__name__, notes=("the network itself came from a trusted pickle",))
    if isinstance(content, nn.Module):  # the user's network takes precedence
        content = content.state_dict()
    check_named(terms.values, *(() if named else (_NO_ARCHITECTURE.format(settings.weights),)))
    given: dict[str, int] = {}
    if settings.module:
        module, given = _factory(settings.module, settings.options, terms)
        architecture = settings.module
    else:
        wanted = Wanted(terms.channel_count, terms.scores, settings.encoder, settings.options, content)
        module, architecture = build(str(settings.arch), wanted), _named(settings)
    try:
        notes = fit(module, content, prefix=settings.prefix, replace_head=settings.replace_head)
    except ExportError as error:
        raise ExportError(f"{error}{_overridden(given)}") from None
    return Network(module, architecture, notes=notes)


_NO_ARCHITECTURE = "{} holds weights alone, so the network must be named: give --arch, as in smp:Unet, or --module"


def _overridden(given: dict[str, int]) -> str:
    """Say which arguments a factory was given that the user did not write, and which may have another meaning to it."""
    said = ", ".join(f"{key}={value}" for key, value in given.items())
    return f"; --module was given {said} from --bands and --classes: another value comes by --option" if given else ""


def _named(settings: ExportSettings) -> str:
    encoder = f", encoder {settings.encoder}" if settings.encoder else ""
    return f"{settings.arch}{encoder}"


CHANNELS = ("in_channels", "channels", "in_chans", "num_channels", "n_channels", "input_channels")
CLASSES = ("num_classes", "classes", "n_classes", "out_channels", "num_labels", "n_class", "nclass")
"""Names of the arguments of factories for the channels and scores of their network."""


def _factory(path: str, options: dict[str, Any], terms: Terms) -> tuple[nn.Module, dict[str, int]]:
    """Build the network of ``package.module:factory``, also found in the working folder; return arguments from the terms."""
    name, _, attribute = path.partition(":")
    look_in_working_folder()
    given: dict[str, int] = {}
    try:
        made = getattr(importlib.import_module(name), attribute)
        if not isinstance(made, nn.Module):
            given = _sizes(made, options, terms)
            made = made(**given, **options)
    except Exception as error:  # third-party code
        raise ExportError(f"--module {path} cannot be built: {in_a_line(error)}{_overridden(given)}") from error
    if not isinstance(made, nn.Module):
        raise ExportError(f"--module {path} must give a torch.nn.Module, got {type(made).__name__}")
    return made, given


def _sizes(factory: Any, options: dict[str, Any], terms: Terms) -> dict[str, int]:
    """Channels and scores of the contract by the factory's names for them; the user's options take precedence."""
    try:
        takes = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # implemented in C
        return {}
    given = {}
    for names, key, size in ((CHANNELS, "channels", "channel_count"), (CLASSES, "classes", "scores")):
        mine = [name for name in names if name in takes]
        if mine and key in terms.values and not options.keys() & set(mine):
            given[mine[0]] = getattr(terms, size)
    return given


def weights_digest(path: Path) -> str:
    """SHA-256 of the weights: of the file, or of a folder's weight files in the order of their names."""
    files = [path] if is_file(path) else sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".bin"))
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            own = hashlib.file_digest(stream, "sha256")
        if len(files) == 1:
            return own.hexdigest()
        digest.update(own.digest())
    return digest.hexdigest()


def library_versions() -> str:
    """Version of the library that built and exported the network."""
    return f"torch {need('torch').__version__.split('+')[0]}"

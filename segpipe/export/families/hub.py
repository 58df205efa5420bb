"""Open networks of transformers from a local folder with ``config.json``; nothing is downloaded."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segpipe.errors import ExportError
from segpipe.export.families import Network, Wanted, foreign_errors, in_a_line, need
from segpipe.export.families.processor import read_processor
from segpipe.messages.printable import and_more
from segpipe.storage.existence import is_file

# set before the import: no network access, and no checks inside the graph, where they have no operator
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_DISABLE_TORCH_CHECK"] = "1"

SHOWN = 10
"""Most keys that a message names."""

TASK = "the task is semantic"
"""OneFormer's task prompt (Jain et al. 2023, section 3.1)."""


class Queries(nn.Module):
    """Combines class and mask queries into the probability of each class at each pixel.

    Sum over queries of p(class) * p(mask), with masks resized to the image first (Cheng et al. 2021, "Per-pixel
    classification is not all you need", section 3.4), divided by its sum over classes.
    """

    def __init__(self, network: nn.Module, tokens: Tensor | None) -> None:
        super().__init__()
        self.network = network
        if tokens is not None:
            self.register_buffer("tokens", tokens)

    def forward(self, image: Tensor) -> Tensor:
        """Probabilities ``(batch, classes, rows, cols)``."""
        found = self.network(image, *(tokens.expand(image.shape[0], -1) for tokens in self.buffers(recurse=False)))
        masks = nn.functional.interpolate(
            found.masks_queries_logits, size=image.shape[-2:], mode="bilinear", align_corners=False
        )
        classes = found.class_queries_logits.softmax(-1)[..., :-1]
        # p(mask) over that of the likeliest mask, in logarithms: the quotient is the same, and stays accurate for a pixel
        # that every query rejects, where sigmoids leave only ONNX Runtime's rounding (1e-7), or 0 in fp16
        likely = masks.clamp_max(0) - torch.log1p(torch.exp(-masks.abs()))
        scores = torch.einsum("bqc,bqhw->bchw", classes, torch.exp(likely - likely.amax(1, keepdim=True)))
        return scores / scores.sum(1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)


def build(name: str, wanted: Wanted) -> nn.Module:
    """Build the network described by the configuration in the folder ``name``, for weights from another file."""
    config = _config(Path(name))
    config.num_labels = wanted.scores
    network = _auto(config).from_config(config, attn_implementation="eager")
    return _combined(network, Path(name))


def open_folder(
    folder: Path, *, classes: int | None, replace_head: bool, trust_pickle: bool, scaled: bool = False
) -> Network:
    """Open a network and its weights from ``save_pretrained``, with the folder's scaling and classes.

    Args:
        folder: folder with ``config.json``.
        classes: number of classes given by the user; None: those of the folder.
        replace_head: use a fresh head if the number differs.
        trust_pickle: load weights that can run code.
        scaled: whether the user gives the scaling; then an unsupported processor is no error.
    """
    config = _config(folder)
    labels = int(config.num_labels)
    if classes not in (None, labels) and not replace_head:
        raise ExportError(
            f"{folder} has {labels} classes, and --classes names {classes}: correct --classes, "
            "or give --replace-head to start with a new, untrained head"
        )
    network, notes = _load(folder, config, classes if replace_head else None, trust_pickle)
    module = _combined(network, folder)
    channels = _channels(config)
    scaling, scaling_notes = _processed(folder, channels, scaled)
    known = {"channels": channels, **scaling, **(_classes(config, folder) if classes is None else {})}
    if isinstance(module, Queries):
        known["activation"] = "none"
    return Network(module, f"transformers {type(network).__name__}", known, (*notes, *scaling_notes))


def _library() -> Any:
    """Import transformers, without its progress bars and advice."""
    library = need("transformers")
    library.utils.logging.disable_progress_bar()
    library.utils.logging.set_verbosity_error()
    return library


def _config(folder: Path) -> Any:
    if not is_file(folder / "config.json"):
        raise ExportError(f"a transformers folder must hold config.json, got {folder}: name the folder of save_pretrained")
    try:
        return _library().AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ValueError as error:
        raise ExportError(f"{folder / 'config.json'} cannot be used: {in_a_line(error)}") from None


def _auto(config: Any) -> Any:
    """The library's class for per-pixel scores, or for queries."""
    library = _library()
    for auto in (library.AutoModelForSemanticSegmentation, library.AutoModelForUniversalSegmentation):
        if type(config) in auto._model_mapping:
            return auto
    raise ExportError(f"the network must be one for semantic or universal segmentation, got {config.model_type!r}")


def _load(folder: Path, config: Any, classes: int | None, trust_pickle: bool) -> tuple[nn.Module, tuple[str, ...]]:
    """Load the network with eager attention: the fused one leaves strides that the exporter does not support."""
    options = {} if classes is None else {"num_labels": classes, "ignore_mismatched_sizes": True}
    with foreign_errors(f"{folder} cannot be loaded"):
        network, report = _auto(config).from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            weights_only=not trust_pickle,
            output_loading_info=True,
            attn_implementation="eager",
            dtype=torch.float32,
            **options,
        )
    replaced = sorted(str(key[0] if isinstance(key, tuple) else key) for key in report["mismatched_keys"])
    lost = {what: sorted(set(report[f"{what}_keys"]) - set(replaced)) for what in ("missing", "unexpected")}
    if any(lost.values()) or (replaced and classes is None):
        raise ExportError(_keys_message(folder, lost, replaced if classes is None else []))
    return network, (f"new untrained head: {and_more(replaced, SHOWN)}",) if replaced else ()


def _keys_message(folder: Path, lost: Mapping[str, list[str]], mismatched: list[str]) -> str:
    parts = [f"{what}: {and_more(keys, SHOWN)}" for what, keys in (*lost.items(), ("of another shape", mismatched)) if keys]
    return f"the weights in {folder} must be those of its config.json, and they differ: {'; '.join(parts)}"


def _combined(network: nn.Module, folder: Path) -> nn.Module:
    config: Any = network.config
    masked = getattr(network, "attn_mask_probs", None)
    if isinstance(masked, Tensor):  # EoMT's switches for masking layers; the exporter cannot branch on tensors
        delattr(network, "attn_mask_probs")
        vars(network)["attn_mask_probs"] = masked.tolist()
    if type(config) in _library().AutoModelForSemanticSegmentation._model_mapping:
        return network
    return Queries(network, _tokens(folder, config) if config.model_type == "oneformer" else None)


def _tokens(folder: Path, config: Any) -> Tensor:
    """The task in the form of OneFormer's processor: token ids, padded with 0."""
    try:
        tokenizer = _library().AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ExportError(
            f"OneFormer needs its tokenizer to be told its task, and {folder} has none that loads: "
            f"save it there with processor.save_pretrained ({error})"
        ) from None
    text = tokenizer(TASK, padding="max_length", max_length=config.task_seq_len, truncation=True, return_tensors="pt")
    return text["input_ids"] * text["attention_mask"]  # type: ignore[no-any-return]


def _processed(folder: Path, channels: int, scaled: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Scaling by the image processor; an unsupported processor is ignored if the user gives the scaling."""
    try:
        return read_processor(folder, channels)
    except ExportError:
        if not scaled:
            raise
    return {}, ("the image processor cannot be followed, and was left out for the scaling that --classes gives",)


def _classes(config: Any, folder: Path) -> dict[str, Any]:
    names = {int(i): str(name) for i, name in config.id2label.items()}
    if sorted(names) != list(range(len(names))):
        raise ExportError(
            f"id2label in {folder / 'config.json'} must name outputs 0 to {len(names) - 1}, got "
            f"{and_more([str(i) for i in sorted(names)], SHOWN)}: correct it, or give --classes"
        )
    if any(name == f"LABEL_{i}" for i, name in names.items()):
        return {}
    return {"classes": [{"id": i, "name": name} for i, name in sorted(names.items())]}


def _channels(config: Any) -> int:
    found = (getattr(place, "num_channels", None) for place in (config, getattr(config, "backbone_config", None)))
    return next((int(count) for count in found if count), 3)

"""Contract keys in the metadata of models for QGIS's Deepness plugin."""

from collections.abc import Mapping
from typing import Any

from segpipe.errors import ContractError
from segpipe.storage.documents import MOST_BYTES, DocumentError, parse_json, shortened


def check_deepness_type(metadata: Mapping[str, str]) -> None:
    """Check that a model with a declared type is a segmentation model.

    Raises:
        ContractError: Deepness would interpret its output as something else.
    """
    kind = metadata.get("model_type", "Segmentor")
    kind = str(_as_json(kind) or kind)
    if kind.casefold() != "segmentor":
        raise ContractError(
            f'a mask needs a model of class scores, and its Deepness metadata says model_type = "{shortened(kind)}": '
            "where its output is class scores all the same, say so with --contract"
        )


def deepness_values(metadata: Mapping[str, str], channels: int | None, scores: int | None = None) -> dict[str, Any]:
    """Contract keys from the metadata of QGIS's Deepness plugin.

    Deepness divides pixels by 255, then standardises; its models return probabilities; ``resolution`` is in cm per pixel and
    ``tiles_overlap`` in per cent; a model with one score separates background from one class by ``seg_thresh``, which other
    models do not use. Without mean and std the scaling is unknown, so none is returned.
    """
    try:
        return _deepness_values(metadata, channels, scores)
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ContractError(f"the model's Deepness metadata cannot be read ({shortened(error)}): give --contract") from None


def _deepness_values(metadata: Mapping[str, str], channels: int | None, scores: int | None) -> dict[str, Any]:
    read = {key: value for key in _DEEPNESS_KEYS if (value := _as_json(metadata.get(key, ""))) is not None}
    values: dict[str, Any] = {}
    names = read.get("class_names", read.get("names"))
    names = names[0] if isinstance(names, list) and names else names  # of the first output, where there are several
    if isinstance(names, dict):
        first = 1 if scores == 1 and len(names) == 1 else 0  # the one name is not the background's
        values["classes"] = [{"id": int(i) + first, "name": str(name)} for i, name in names.items()]
    if scores == 1:
        values["task"] = "binary"
    if "standardization_mean" in read and "standardization_std" in read:
        values |= {"scale": 1 / 255, "normalize": "fixed", "activation": "none"}
        values |= {"mean": read["standardization_mean"], "std": read["standardization_std"]}
        values["channels"] = channels or len(values["mean"])
    if (tile := read.get("tile_size", read.get("tiles_size"))) is not None:
        values["tile"] = [tile]
        values["overlap"] = [round(tile * read.get("tiles_overlap", 0) / 100)]
    if "resolution" in read:
        values["spacing"] = [read["resolution"] / 100] * 2
    if "seg_thresh" in read and scores == 1:
        values["threshold"] = read["seg_thresh"]
    return values


_DEEPNESS_KEYS = {
    "class_names",
    "names",
    "resolution",
    "tile_size",
    "tiles_size",
    "tiles_overlap",
    "standardization_mean",
    "standardization_std",
    "seg_thresh",
}


def _as_json(text: str) -> Any:
    """Parse a JSON text; None if it is not JSON: another program may use a key of the same name."""
    try:
        return parse_json(text, most=MOST_BYTES)
    except DocumentError:
        return None

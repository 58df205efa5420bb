"""Metadata for QGIS's plugin Deepness, stored in an ONNX file's ``metadata_props``.

Follows the plugin's source at 0.6.5 (PUTvision/qgis-plugin-deepness, f450c63): ``processing/models/model_base.py``,
``processing/models/segmentor.py``, ``processing/map_processor/map_processor_segmentation.py``.
"""

import json
import math
from typing import Any

from segpipe.contract import Contract
from segpipe.geometry.layout import Layout

CENTIMETRES = {"m": 100.0, "mm": 0.1, "um": 1e-4}
NO_THRESHOLD = 0.01
"""Lower than the winning probability of fewer than 100 classes, and more than 0, which no contract allows."""


def deepness_metadata(contract: Contract, *, input_dtype: str = "float32") -> dict[str, str]:
    """Metadata as JSON text by key; empty for models that Deepness does not support.

    These are models of volumes, of overlapping classes, of several inputs, and those that give labels in place of scores.

    Without ``standardization_mean`` and ``standardization_std`` the plugin wrongly feeds ``pixel / 255``.

    Args:
        contract: contract of a model with one image input and one output of scores.
        input_dtype: input type of the graph; the plugin feeds float32 for any raster.
    """
    unlike = contract.inputs is not None or contract.gives_labels
    if contract.ndim != 2 or contract.task in ("multilabel", "regions") or unlike:
        return {}
    values: dict[str, Any] = {"model_type": "Segmentor", "class_names": _class_names(contract)}
    values |= _resolution(contract) | _tiles(contract)
    if input_dtype == "float32":
        values |= _standardization(contract)
    values["seg_thresh"] = _threshold(contract)
    return {key: json.dumps(value, allow_nan=False) for key, value in values.items()}


def standardisation(contract: Contract, unit: float = 1.0) -> tuple[list[float], list[float]]:
    """Mean and std per channel such that ``(pixel / unit - mean) / std`` equals the contract's scaling without its clip."""
    count = contract.channel_count
    mean, std = contract.fixed or ([0.0] * count, [1.0] * count)
    scale, offset = contract.column("scale"), contract.column("offset")
    means = [(m - o) / (s * unit) for m, o, s in zip(mean, offset, scale, strict=True)]
    return means, [d / (s * unit) for d, s in zip(std, scale, strict=True)]


def _class_names(contract: Contract) -> dict[int, str]:
    """Class names by output channel, without gaps, which the plugin refuses; one channel stands for classes 0 and 1."""
    if contract.task == "binary":
        return {c.id: c.name for c in contract.mask_classes}
    return {c.channel: c.name for c in sorted(contract.classes, key=lambda c: c.channel)}


def _resolution(contract: Contract) -> dict[str, Any]:
    """Centimetres per pixel; Deepness has one for both axes."""
    if contract.spacing is None or contract.spacing[0] != contract.spacing[1]:
        return {}
    return {"resolution": contract.spacing[0] * CENTIMETRES[contract.spacing_unit]}


def _tiles(contract: Contract) -> dict[str, Any]:
    """Side of a square tile in pixels, and overlap in whole per cent, rounded up; a quarter where the contract has none.

    The plugin counts the overlap of whole tiles, margins included.
    """
    tile, margin = contract.axes("tile", 2), contract.axes("margin", 2) or (0, 0)
    if tile is None or tile[0] != tile[1]:
        return {}
    shared = contract.axes("overlap", 2)
    overlap = max(n + 2 * m for n, m in zip(shared, margin, strict=True)) if shared else max(tile[0] // 4, 2 * max(margin))
    return {"tile_size": tile[0], "tiles_overlap": -(-100 * overlap // tile[0])}


def _standardization(contract: Contract) -> dict[str, Any]:
    """Mean and std of ``(pixel / 255 - mean) / std``; empty where the contract's scaling has another form."""
    if contract.layout is not Layout.NCHW:
        return {}
    count = contract.channel_count
    if contract.scaling == "graph":
        return {"standardization_mean": [0.0] * count, "standardization_std": [1 / 255] * count}
    if contract.is_measured or contract.pixel == "physical" or _cuts(contract):
        return {}
    mean, std = standardisation(contract, 255.0)
    return {"standardization_mean": mean, "standardization_std": std}


def _cuts(contract: Contract) -> bool:
    """Whether the clip has an effect: not if its limits are the scaled 0 and 255, the range of such a model's pixels."""
    if contract.limits is None:
        return False
    columns = zip(contract.column("scale"), contract.column("offset"), strict=True)
    ends = [sorted((offset, 255 * scale + offset)) for scale, offset in columns]
    limits = zip(*contract.limits, strict=True)
    return not all(
        math.isclose(e, c, rel_tol=1e-9, abs_tol=1e-9)
        for pair, limit in zip(ends, limits, strict=True)
        for e, c in zip(pair, limit, strict=True)
    )


def _threshold(contract: Contract) -> float:
    """Threshold of raw output; the plugin zeroes what is below it, then takes the largest channel, or whatever is not 0.

    Probabilities of many classes need none, so it stays below any winner's. For one channel of logits it is the logit of the
    contract's threshold; the plugin's own field goes from 0 to 1, which covers only probabilities from 0.5 to 0.73.
    """
    if contract.task == "multiclass":
        return NO_THRESHOLD if contract.activation == "none" and len(contract.classes) < 100 else 0.0
    p = contract.threshold
    return math.log(p / (1 - p)) if contract.activation == "sigmoid" else p

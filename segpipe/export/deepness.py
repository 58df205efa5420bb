"""The contract in the words of QGIS's plugin Deepness, for an ONNX file's ``metadata_props``.

After the plugin's source at 0.6.5 (PUTvision/qgis-plugin-deepness, f450c63): ``processing/models/model_base.py``,
``processing/models/segmentor.py``, ``processing/map_processor/map_processor_segmentation.py``.
"""

import json
import math
from typing import Any

from segpipe.contract import Contract
from segpipe.geometry.layout import Layout

CENTIMETRES = {"m": 100.0, "mm": 0.1, "um": 1e-4}
NO_THRESHOLD = 0.01
"""Below the winner's probability while there are fewer than 100 classes, and above the 0 that no contract takes."""


def deepness_metadata(contract: Contract, *, input_dtype: str = "float32") -> dict[str, str]:
    """JSON text by key; empty where Deepness has no such model: volumes, and classes that do not exclude each other.

    Without ``standardization_mean`` and ``standardization_std`` the plugin feeds ``pixel / 255``, which is then wrong.

    Args:
        contract: of a model with one image input and one output of scores.
        input_dtype: what the graph takes; the plugin feeds float32 whatever the raster holds.
    """
    if contract.ndim != 2 or contract.task == "multilabel":
        return {}
    values: dict[str, Any] = {"model_type": "Segmentor", "class_names": _class_names(contract)}
    values |= _resolution(contract) | _tiles(contract)
    if input_dtype == "float32":
        values |= _standardization(contract)
    values["seg_thresh"] = _threshold(contract)
    return {key: json.dumps(value, allow_nan=False) for key, value in values.items()}


def standardisation(contract: Contract, unit: float = 1.0) -> tuple[list[float], list[float]]:
    """Mean and std per channel with ``(pixel / unit - mean) / std`` equal to the contract's scaling, its clip aside."""
    count = contract.channel_count
    mean, std = contract.fixed or ([0.0] * count, [1.0] * count)
    scale, offset = contract.column("scale"), contract.column("offset")
    means = [(m - o) / (s * unit) for m, o, s in zip(mean, offset, scale, strict=True)]
    return means, [d / (s * unit) for d, s in zip(std, scale, strict=True)]


def _class_names(contract: Contract) -> dict[int, str]:
    """Name by output channel, without gaps, or the plugin refuses the file; one channel stands for classes 0 and 1."""
    if contract.task == "binary":
        return {c.id: c.name for c in contract.mask_classes}
    return {c.channel: c.name for c in sorted(contract.classes, key=lambda c: c.channel)}


def _resolution(contract: Contract) -> dict[str, Any]:
    """Centimetres per pixel; Deepness has one for both axes."""
    if contract.spacing is None or contract.spacing[0] != contract.spacing[1]:
        return {}
    return {"resolution": contract.spacing[0] * CENTIMETRES[contract.spacing_unit]}


def _tiles(contract: Contract) -> dict[str, Any]:
    """Square tile in pixels and overlap in whole per cent, rounded up; a quarter where the contract names none."""
    tile = contract.axes("tile", 2)
    if tile is None or tile[0] != tile[1]:
        return {}
    overlap = max(contract.axes("overlap", 2) or (tile[0] // 4,))
    return {"tile_size": tile[0], "tiles_overlap": -(-100 * overlap // tile[0])}


def _standardization(contract: Contract) -> dict[str, Any]:
    """Mean and std of ``(pixel / 255 - mean) / std``; nothing where the contract's scaling is not of that form."""
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
    """Whether clip matters: it does not where its limits are what 0 and 255 become, the pixels of such a model."""
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
    """What raw output must reach; the plugin sets what is below it to 0, then takes the largest channel, or what is not 0.

    Probabilities of many classes need none, so it stays below any winner's. One channel of logits has the logit of the
    contract's threshold; the plugin's own field goes from 0 to 1, so only probabilities from 0.5 to 0.73 can be said so.
    """
    if contract.task == "multiclass":
        return NO_THRESHOLD if contract.activation == "none" and len(contract.classes) < 100 else 0.0
    p = contract.threshold
    return math.log(p / (1 - p)) if contract.activation == "sigmoid" else p

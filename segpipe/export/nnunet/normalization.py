"""nnU-Net's normalisation schemes as the contract's scaling."""

from collections.abc import Mapping
from typing import Any

from segpipe.errors import ExportError
from segpipe.export.nnunet.plans import Configuration

SMALLEST_STD = 1e-8
"""nnU-Net's own floor of a standard deviation."""

NO_LIMIT = 1e30
"""Limit of a channel that is not clipped, beside others that are; float32 holds it."""

MEASURED = {"ZScoreNormalization": "zscore", "RescaleTo01Normalization": "minmax", "NoNormalization": "none"}


def scaling_terms(configuration: Configuration) -> dict[str, Any]:
    """The keys ``normalize``, ``mean``, ``std``, ``clip`` and ``statistics_over``.

    Raises:
        ExportError: a scheme is not nnU-Net's, or channels differ in what the contract has once for all.
    """
    channels = [_channel(configuration, number, scheme) for number, scheme in enumerate(configuration.schemes)]
    terms: dict[str, Any] = {"normalize": [one["normalize"] for one in channels], **_mask(configuration)}
    if "fixed" in terms["normalize"]:
        terms |= {"mean": [one.get("mean", 0.0) for one in channels], "std": [one.get("std", 1.0) for one in channels]}
    if any("clip" in one for one in channels):
        terms["clip"] = [one.get("clip", [-NO_LIMIT, NO_LIMIT]) for one in channels]
    return terms


def _channel(configuration: Configuration, number: int, scheme: str) -> dict[str, Any]:
    if scheme in MEASURED:
        return {"normalize": MEASURED[scheme]}
    if scheme == "RGBTo01Normalization":
        return {"normalize": "fixed", "mean": 0.0, "std": 255.0}
    if scheme == "CTNormalization":
        return _of_foreground(configuration.foreground, number)
    raise ExportError(
        f"the normalisation of channel {number} must be one of nnU-Net's own, got {scheme}, whose code is not in the "
        "folder: write a contract for what it does, and put it into an ONNX file with segpipe export attach"
    )


def _of_foreground(foreground: Mapping[str, Any], number: int) -> dict[str, Any]:
    try:
        own = foreground[str(number)]
        low, high = float(own["percentile_00_5"]), float(own["percentile_99_5"])
        mean, std = float(own["mean"]), max(float(own["std"]), SMALLEST_STD)
    except (KeyError, TypeError, ValueError):
        raise ExportError(
            f"plans.json must hold mean, std, percentile_00_5 and percentile_99_5 of the foreground in channel {number}, "
            "which CTNormalization uses, and does not: copy it again from the folder of the training"
        ) from None
    return {"normalize": "fixed", "mean": mean, "std": std, "clip": [low, high]}


def _mask(configuration: Configuration) -> dict[str, Any]:
    """``statistics_over``: a mask matters to z-score alone; the other schemes ignore it."""
    channels = zip(configuration.masked, configuration.schemes, strict=True)
    over = ["nonzero" if masked and scheme == "ZScoreNormalization" else "all" for masked, scheme in channels]
    if "nonzero" not in over:
        return {}
    return {"statistics_over": over[0] if len(set(over)) == 1 else over}

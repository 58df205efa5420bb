"""Describe an exported model for catalogues: a STAC Item with the Machine Learning Model extension.

Follows STAC 1.1.0 and stac-extensions/mlm 1.5.2.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import onnx

from segpipe.contract import Contract, SegmentationClass
from segpipe.export.deepness import standardisation
from segpipe.geometry.layout import Layout
from segpipe.network.signature import TensorSpec

STAC_VERSION = "1.1.0"
EXTENSIONS = (
    "https://stac-extensions.github.io/mlm/v1.5.2/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
    "https://stac-extensions.github.io/classification/v1.1.0/schema.json",
)
TASKS = ("semantic-segmentation",)
SHA256 = "1220"
"""Multihash prefix: SHA-256, 32 bytes."""

_AXES = {
    "NCHW": ["batch", "channel", "height", "width"],
    "NHWC": ["batch", "height", "width", "channel"],
    "NCDHW": ["batch", "channel", "depth", "height", "width"],
    "NDHWC": ["batch", "depth", "height", "width", "channel"],
}
_NOT_IN_MLM = {
    *("tile", "overlap", "align", "equivariant", "spacing", "spacing_unit", "spacing_tolerance", "orientation"),
    *("scaling", "pixel", "normalize", "activation", "task", "threshold", "provenance", "upsampling"),
}


def mlm_item(
    model: Path,
    contract: Contract,
    *,
    sha256: str,
    tensors: tuple[TensorSpec, TensorSpec],
) -> dict[str, Any]:
    """The item as JSON values, to be written to the folder of the model.

    A model has no place: its geometry is null, and its date is that of the provenance, else of the file.

    Args:
        model: the exported file, with its weights inside; `with_weights` adds those beside it.
        contract: the model's contract.
        sha256: hash of the file alone, in hex.
        tensors: the graph's image input and its output of scores.
    """
    bands: dict[str, Any] = {"bands": [{"name": n} for n in contract.channel_names]} if contract.channel_names else {}
    properties = _properties(model, contract) | _tensors(contract, *tensors) | bands
    properties["mlm:hyperparameters"] = _hyperparameters(contract)
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": list(EXTENSIONS),
        "id": properties["mlm:name"],
        "geometry": None,
        "properties": properties,
        "links": [],
        "assets": {"model": _asset(model, sha256) | bands},
    }


def _properties(model: Path, contract: Contract) -> dict[str, Any]:
    origin = contract.provenance
    values = {
        "datetime": _date(model, origin.get("date")),
        "mlm:name": _name(model.stem),
        "mlm:architecture": str(origin.get("architecture") or "unknown"),
        "mlm:tasks": list(TASKS),
        "mlm:framework": "ONNX",
    }
    if re.fullmatch(r"\d+\.\d+\.\d+", onnx.__version__):
        values["mlm:framework_version"] = onnx.__version__
    if type(origin.get("parameters")) is int:
        values["mlm:total_parameters"] = origin["parameters"]
    return values | _pretraining(origin)


def _name(text: str) -> str:
    """Name by MLM's rules: three characters or more, a letter first, a letter or digit last."""
    name = re.sub(r"[^a-zA-Z0-9_.-]+", "-", text).strip("-_.")
    return name if re.fullmatch(r"[a-zA-Z].{2,}", name) else f"model-{name}".strip("-")


def _date(model: Path, date: Any) -> str:
    """Date by RFC 3339 in UTC, assumed where no zone is given; the file's own date unless ``date`` is ISO 8601."""
    try:
        moment = datetime.fromisoformat(str(date))
    except ValueError:
        moment = datetime.fromtimestamp(model.stat().st_mtime, UTC)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _pretraining(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Pretraining as far as the provenance states it; a null source means trained from scratch."""
    pretrained, source = origin.get("pretrained"), origin.get("pretrained_source")
    if not isinstance(pretrained, bool):
        return {}
    if not pretrained:
        return {"mlm:pretrained": False, "mlm:pretrained_source": None}
    return {"mlm:pretrained": True} | ({"mlm:pretrained_source": str(source)} if source else {})


def _tensors(contract: Contract, image: TensorSpec, scores: TensorSpec) -> dict[str, Any]:
    named = list(contract.channel_names or [])
    given = {
        "name": image.name,
        "description": _description(contract),
        "bands": named,
        "input": _structure(contract.layout, image, "bands" if named else "channel"),
        "value_scaling": _value_scaling(contract),
        "resize_type": None,
    }
    made = {
        "name": scores.name,
        "tasks": list(TASKS),
        "bands": [],
        "result": _structure(contract.scores_layout, scores, "class"),
        "classification:classes": _classes(contract),
    }
    return {"mlm:input": [given], "mlm:output": [made]}


def _description(contract: Contract) -> str:
    if contract.scaling == "graph":
        return "pixels as they are stored: the model scales them itself"
    if contract.pixel == "physical":
        return "physical values: pixels after the scale and offset tags of their file, before value_scaling"
    return "pixels as they are stored, before value_scaling"


def _structure(layout: Layout, tensor: TensorSpec, channel: str) -> dict[str, Any]:
    """Shape, -1 for free sizes, and names of axes; an output may lack the class axis."""
    axes = [channel if axis == "channel" else axis for axis in _AXES[layout]]
    if len(tensor.shape) < len(axes):
        axes.remove(channel)
    return {
        "shape": [-1 if size is None else size for size in tensor.shape],
        "dim_order": axes,
        "data_type": "other" if tensor.dtype is None else tensor.dtype.name,
    }


def _value_scaling(contract: Contract) -> list[dict[str, Any]] | None:
    """One operation per channel, or one for all: MLM has no sequences, so the contract's steps are merged into one z-score.

    A clip between steps becomes an expression of gdal_calc, in which A is the channel.
    """
    if contract.scaling == "graph":
        return None
    if contract.is_measured:
        return [_case_scaling(contract)]
    steps = _clipped(contract) if contract.limits else _standardised(contract)
    alike = steps[:1] if all(step == steps[0] for step in steps) else steps
    return None if alike == [{"type": "z-score", "mean": 0.0, "stddev": 1.0}] else alike


def _standardised(contract: Contract) -> list[dict[str, Any]]:
    return [{"type": "z-score", "mean": m, "stddev": s} for m, s in zip(*standardisation(contract), strict=True)]


def _clipped(contract: Contract) -> list[dict[str, Any]]:
    assert contract.limits is not None
    columns = zip(contract.column("scale"), contract.column("offset"), *contract.limits, strict=True)
    expressions = [f"clip(A * {s} + {o}, {low}, {high})" for s, o, low, high in columns]
    if contract.fixed:
        last = zip(expressions, *contract.fixed, strict=True)
        expressions = [f"({x} - {m}) / {s}" for x, m, s in last]
    return [{"type": "processing", "format": "gdal-calc", "expression": x} for x in expressions]


def _case_scaling(contract: Contract) -> dict[str, Any]:
    """Scaling by the image's own statistics, which MLM's z-score and min-max cannot express: they need numbers."""
    kinds = " or ".join(dict.fromkeys(contract.normalizations))
    return {
        "type": "processing",
        "format": "segpipe",
        "expression": contract.model_dump(mode="json", include=_CASE_SCALING),
        "description": f"clip(pixel * scale + offset), then {kinds} per channel over the image's valid pixels",
    }


_CASE_SCALING = {"scale", "offset", "clip", "window", "clip_percentiles", "range_percentiles", "normalize"} | {
    *("statistics_over", "statistics_of", "epsilon"),
}


def _classes(contract: Contract) -> list[dict[str, Any]]:
    """Classes in the order of the output's channels; values are mask ids, and one channel stands for classes 0 and 1."""
    classes = contract.classes if contract.task == "regions" else contract.mask_classes
    if contract.task != "binary":
        classes = sorted(classes, key=lambda c: c.channel)
    return [_class(c) for c in classes]


def _class(c: SegmentationClass) -> dict[str, Any]:
    hint = {"color_hint": c.color.removeprefix("#").upper()} if c.color else {}
    return {"value": c.id, "name": c.name, "description": c.name, **hint}


def _hyperparameters(contract: Contract) -> dict[str, Any]:
    values = contract.model_dump(mode="json", include=_NOT_IN_MLM, exclude_none=True)
    return {key: value for key, value in values.items() if value != {}}


def _asset(model: Path, sha256: str) -> dict[str, Any]:
    return {
        **_file(model, sha256),
        "title": "ONNX model",
        "type": "application/octet-stream; framework=onnx; profile=onnx",
        "roles": ["mlm:model", "mlm:weights"],
        "mlm:artifact_type": "onnx",
    }


def with_weights(item: Mapping[str, Any], files: Mapping[Path, str]) -> dict[str, Any]:
    """The item of a model whose weights lie beside it, in files with these hashes in hex; unchanged if there are none."""
    if not files:
        return dict(item)
    assets = item["assets"]
    model = {**assets["model"], "roles": ["mlm:model"]}
    return {**item, "assets": {**assets, "model": model, **_weights(files)}}


def _weights(files: Mapping[Path, str]) -> dict[str, Any]:
    about = {"title": "weights of the ONNX model", "type": "application/octet-stream", "roles": ["mlm:weights"]}
    names = ["weights", *(f"weights-{k}" for k in range(2, len(files) + 1))]
    return {name: {**_file(*file), **about} for name, file in zip(names, files.items(), strict=False)}


def _file(path: Path, sha256: str) -> dict[str, Any]:
    return {
        "href": f"./{quote(path.name)}",
        "file:size": path.stat().st_size,
        "file:checksum": SHA256 + sha256.lower(),
    }

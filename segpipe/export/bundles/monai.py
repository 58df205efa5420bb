"""Read a MONAI bundle: ``configs/metadata.json`` and ``configs/inference.json`` or ``.yaml``.

Follows https://docs.monai.io, MONAI Bundle Specification, and monai 1.6.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segpipe.errors import ExportError
from segpipe.export.bundles.described import Architecture, Described, WeightsFile
from segpipe.export.bundles.monai_config import Config, Expression
from segpipe.export.bundles.monai_transforms import Preprocessing, finished, prepared, transforms_of
from segpipe.export.bundles.package import Package
from segpipe.export.bundles.steps import OWN, Pointwise, Step, scaled
from segpipe.storage.documents import shortened

NAMES = ("configs/inference.json", "configs/inference.yaml", "configs/inference.yml")
METADATA = "configs/metadata.json"
WEIGHTS = ("models/model.onnx", "models/model.ts", "models/model.pt")
OVERLAP = 0.25
"""Default of ``SlidingWindowInferer``."""


def read(package: Package, name: str, given: Mapping[str, Any], without: Sequence[str]) -> Described:
    """Read a MONAI bundle: its metadata, and the transforms and the inferer of its inference workflow.

    Args:
        package: the files of the bundle.
        name: the file of the inference workflow.
        given: keys of the user, which take precedence.
        without: names of transforms to leave out.

    Raises:
        ExportError: the model cannot be run as described; the message says why, and what to do.
    """
    source = package.source
    config = Config(source, package.document(name))
    image_key, image, pred = _formats(source, package.document(METADATA) if package.has(METADATA) else {})
    channels, scores = _count(source, image, "image"), _count(source, pred, "pred")
    before, names = transforms_of(source, config.get("preprocessing"), [image_key, "image"], without)
    ready = prepared(source, before, channels)
    after, more = transforms_of(source, config.get("postprocessing"), ["pred"], without)
    steps, decided = finished(source, after, ["pred"], scores)
    ndim, keys, notes = _tiling(source, config, image, ready, given)
    scaling = scaled(source, ready.steps, channels)
    flipped = ready.orientation is None
    return Described(
        keys={
            "version": 1,
            "channels": _names(image, channels),
            "layout": "NCDHW" if ndim == 3 else "NCHW",
            **scaling.keys,
            **keys,
            **_place(ready, ndim),
            "provenance": _provenance(package),
        },
        own_weights=lambda: _weights(package, config),
        own_architecture=lambda: _network(source, config),
        before=scaling.inside,
        after=tuple(_decided(steps, decided, scores)),
        scores=scores,
        tensors=(image_key, str(given.get("output", "pred"))),
        class_names=_class_names(pred),
        named=(*names, *more),
        reversed_axes=flipped,
        notes=(*ready.notes, *notes),
    )


def _formats(source: Path, metadata: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], Mapping[str, Any]]:
    """Key of the image, its format, and that of the scores."""
    formats = metadata.get("network_data_format")
    inputs, outputs = (formats.get(key) if isinstance(formats, Mapping) else None for key in ("inputs", "outputs"))
    if not isinstance(inputs, Mapping) or not isinstance(outputs, Mapping) or not inputs or not outputs:
        raise ExportError(f"{source} must say in {METADATA}, network_data_format, what the network takes and gives: add it")
    if len(inputs) > 1:
        raise ExportError(
            f"{source}: the network must take one image, got {', '.join(map(str, inputs))}: give each but the image "
            "its value "
            "inside an ONNX file, and attach a contract to it"
        )
    pred = outputs.get("pred", next(iter(outputs.values())))
    key, image = next(iter(inputs.items()))
    if not isinstance(image, Mapping) or not isinstance(pred, Mapping):
        raise ExportError(f"{source}: network_data_format of {METADATA} must hold tables of inputs and outputs: correct it")
    return str(key), image, pred


def _count(source: Path, described: Mapping[str, Any], what: str) -> int:
    count = described.get("num_channels")
    if type(count) is not int or count < 1:
        raise ExportError(f"{source}: {METADATA} must give num_channels of {what}, got {shortened(count)}: add it")
    return count


def _names(image: Mapping[str, Any], count: int) -> int | list[str]:
    names = _defined(image, count)
    return names if count > 1 and len(set(names)) == count else count


def _class_names(pred: Mapping[str, Any]) -> list[str]:
    return _defined(pred, len(pred.get("channel_def") or {}))


def _defined(described: Mapping[str, Any], count: int) -> list[str]:
    """Names of channels by number; none where one is missing."""
    names = described.get("channel_def")
    listed = [names.get(str(k), names.get(k)) for k in range(count)] if isinstance(names, Mapping) else [None]
    return [" ".join(str(name).split()) for name in listed] if all(listed) else []


def _tiling(
    source: Path, config: Config, image: Mapping[str, Any], ready: Preprocessing, given: Mapping[str, Any]
) -> tuple[int, dict[str, Any], list[str]]:
    """Number of the network's spatial axes, tile and overlap, and notes."""
    inferer = config.get("inferer")
    inferer = inferer if isinstance(inferer, Mapping) else {}
    kind = str(inferer.get("_target_", "SimpleInferer")).rpartition(".")[2]
    if kind not in ("SlidingWindowInferer", "SlidingWindowInfererAdapt", "SimpleInferer", "SliceInferer"):
        raise ExportError(f"{source}: the inferer {kind} has no counterpart in a run by tiles: {OWN}")
    sizes = inferer.get("roi_size", image.get("spatial_shape"))
    shape = image.get("spatial_shape")
    ndim = len(sizes) if isinstance(sizes, list) else len(shape) if isinstance(shape, list) else 3
    if kind == "SliceInferer" and (inferer.get("spatial_dim", 0) != 2 or ready.orientation is not None):
        raise ExportError(f"{source}: SliceInferer must cut volumes as stored along spatial_dim 2: {OWN}")
    tile = _tile(source, sizes, given, ndim)
    overlap = _overlap(source, inferer, tile) if kind != "SimpleInferer" else [0] * ndim
    if ready.orientation is None:
        tile, overlap = tile[::-1], overlap[::-1]
    keys: dict[str, Any] = {"tile": tile, "overlap": overlap}
    if ndim == 3:
        keys["align"] = [math.gcd(size, size - shared, 32) for size, shared in zip(tile, overlap, strict=True)]
    return ndim, keys, list(_inferer_notes(kind, inferer))


def _tile(source: Path, sizes: Any, given: Mapping[str, Any], ndim: int) -> list[int]:
    asked = given.get("tile")
    if isinstance(asked, int | list):
        tile = [asked] * ndim if isinstance(asked, int) else asked
        return list(tile)
    if isinstance(sizes, list) and all(type(size) is int and size > 0 for size in sizes):
        return list(sizes)
    raise ExportError(
        f"{source} must name the size of the windows, roi_size of its inferer, got {shortened(sizes)}: add tile = ... by "
        "--contract, a TOML file of keys that take precedence"
    )


def _overlap(source: Path, inferer: Mapping[str, Any], tile: Sequence[int]) -> list[int]:
    """Pixels that windows share, from their share of the window."""
    share = inferer.get("overlap", OVERLAP)
    shares = share if isinstance(share, list) else [share] * len(tile)
    if len(shares) != len(tile) or not all(type(one) in (int, float) and 0 <= one < 1 for one in shares):
        raise ExportError(
            f"{source}: overlap of the inferer must be from 0 to below 1, got {shortened(share)}: write it out"
        )
    return [int(size * one) for size, one in zip(tile, shares, strict=True)]


def _inferer_notes(kind: str, inferer: Mapping[str, Any]) -> Sequence[str]:
    if kind == "SimpleInferer":
        return ["SimpleInferer takes each case whole: a run takes it by tiles, see seams before you trust a smaller tile"]
    if inferer.get("mode", "constant") != "gaussian":
        return ["the inferer weights its windows equally: a run does so by --blend mean, and otherwise by a Gaussian"]
    return []


def _place(ready: Preprocessing, ndim: int) -> dict[str, Any]:
    """Orientation and spacing, in the order of the network's axes."""
    keys: dict[str, Any] = {"orientation": ready.orientation} if ready.orientation else {}
    if ready.spacing is not None and ndim == 3:
        keys["spacing"] = ready.spacing if ready.orientation else ready.spacing[::-1]
    return keys


def _decided(steps: Sequence[Step], decided: Sequence[str], scores: int) -> list[Step]:
    """Steps with the activation that a decision by the largest score stands for."""
    if not decided or scores == 1:
        return list(steps)
    kept = [step for step in steps if not isinstance(step.what, Pointwise)]  # the largest score is the largest probability
    return [*kept, Step("AsDiscrete", Pointwise("softmax"))]


def _weights(package: Package, config: Config) -> WeightsFile:
    for name in WEIGHTS:
        if package.has(name):
            form = {".onnx": "onnx", ".ts": "torchscript"}.get(Path(name).suffix, "state")
            network = _network(package.source, config) if form == "state" else None
            return WeightsFile(form, package.path(name), network)  # type: ignore[arg-type]
    raise ExportError(
        f"{package.source} must hold {', '.join(WEIGHTS[:-1])} or {WEIGHTS[-1]}, and holds none: download the "
        "weights into it "
        "(large_files.yml lists them), or name a file by --weights"
    )


def _network(source: Path, config: Config) -> Architecture:
    described = config.get("network_def")
    described = described if isinstance(described, Mapping) else config.get("network")
    if not isinstance(described, Mapping) or not isinstance(described.get("_target_"), str):
        raise ExportError(
            f"{source} must hold models/model.ts, or define its network in network_def, got {shortened(described)}: "
            "export the "
            "network by python -m monai.bundle ckpt_export"
        )
    code = {key: value for key, value in described.items() if isinstance(value, Expression)}
    if code:
        raise ExportError(
            f"{source}: the arguments of network_def must be written out, got code for {', '.join(code)}: export "
            "the network to "
            "models/model.ts by python -m monai.bundle ckpt_export"
        )
    module, _, name = described["_target_"].rpartition(".")
    options = {key: value for key, value in described.items() if not key.startswith("_")}
    return Architecture(f"{module or 'monai.networks.nets'}:{name}", options)


def _provenance(package: Package) -> dict[str, Any]:
    metadata = package.document(METADATA)
    found = {"description": f"MONAI bundle, monai {metadata.get('monai_version', 'unknown')}"}
    return found | {key: str(metadata[key]) for key in ("name", "version", "task") if metadata.get(key)}

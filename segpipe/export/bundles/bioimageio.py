"""Read a model description of bioimage.io, format 0.4 or 0.5 (``rdf.yaml``, ``bioimageio.yaml``).

Follows https://bioimage-io.github.io/spec-bioimage-io, bioimageio.spec.model v0_4 and v0_5.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segpipe.errors import ExportError
from segpipe.export.bundles.bioimageio_axes import Axis, Range, Tensor, tensors_of
from segpipe.export.bundles.bioimageio_steps import steps_of
from segpipe.export.bundles.described import Architecture, Described, Example, WeightsFile
from segpipe.export.bundles.package import Package
from segpipe.export.bundles.steps import scaled
from segpipe.geometry.layout import Layout
from segpipe.messages.printable import counted

NAMES = ("rdf.yaml", "bioimageio.yaml", "model.yaml", "rdf.yml")
LARGEST = {2: 512, 3: 128}
"""Largest tile along an axis for a model of free sizes, by number of spatial axes."""

_LETTERS = {"batch": "N", "channel": "C"}
_SPACE = {("y", "x"): "HW", ("z", "y", "x"): "DHW"}


def read(package: Package, name: str, given: Mapping[str, Any], without: Sequence[str]) -> Described:
    """Read the description of a model of bioimage.io (``rdf.yaml``).

    Args:
        package: the files of the model.
        name: the file of the description.
        given: keys of the user, which take precedence.
        without: names of steps to leave out.

    Raises:
        ExportError: the model cannot be run as described; the message says why, and what to do.
    """
    rdf = package.document(name)
    version = _version(package.source, rdf)
    inputs, outputs = (tensors_of(package.source, rdf, key, version) for key in ("inputs", "outputs"))
    image, scores, place = _image(package.source, inputs), *_chosen(package.source, outputs, given)
    layout, flipped = _layout(package.source, image)
    if (of_scores := _layout(package.source, scores)) != (layout, flipped):
        raise ExportError(
            f"{package.source}: input and output must have the same order of axes, got {layout} and {of_scores[0]}: "
            "transpose the output inside the network"
        )
    channels = _channels(package.source, image)
    before = scaled(package.source, steps_of(package.source, image, channels, without), channels)
    count = _channels(package.source, scores, channels)
    tile = _tile(image, given)
    return Described(
        keys={
            "version": 1,
            "channels": _names(image, channels),
            "layout": str(layout),
            **before.keys,
            **_tiling(package.source, image, scores, tile),
            "provenance": _provenance(rdf),
        },
        own_weights=lambda: _weights(package, rdf, version),
        own_architecture=lambda: _own_architecture(package, rdf, version),
        before=before.inside,
        after=tuple(steps_of(package.source, scores, count, without)),
        scores=count,
        tensors=(image.id, scores.id if len(outputs) > 1 else place),
        class_names=scores.channel.names,
        named=tuple(str(step.get("id", step.get("name"))) for step in (*image.steps, *scores.steps)),
        reversed_axes=flipped,
        example=_example(package, image, scores, flipped),
        notes=tuple(_notes(image)),
    )


def _version(source: Path, rdf: Mapping[str, Any]) -> str:
    version, kind = str(rdf.get("format_version", "")), rdf.get("type", "model")
    if kind != "model":
        raise ExportError(f"{source} must describe a model, got type: {kind}: name the folder of a model")
    if not version.startswith(("0.4.", "0.5.")):
        raise ExportError(
            f"{source} must have format_version 0.4 or 0.5, got {version or 'none'}: bring it up to date by "
            "bioimageio update-format"
        )
    return version[:3]


def _image(source: Path, inputs: Sequence[Tensor]) -> Tensor:
    needed = [tensor for tensor in inputs if not tensor.optional]
    if len(needed) != 1:
        raise ExportError(
            f"{source}: the model must take one image, got {counted(len(needed), 'input')} "
            f"({', '.join(t.id for t in needed)}): give each "
            "but the image its value inside an ONNX file, and attach a contract to it"
        )
    return needed[0]


def _chosen(source: Path, outputs: Sequence[Tensor], given: Mapping[str, Any]) -> tuple[Tensor, int]:
    names = [tensor.id for tensor in outputs]
    if len(outputs) == 1:
        return outputs[0], 0
    if given.get("output") in names:
        place = names.index(given["output"])
        return outputs[place], place
    raise ExportError(
        f"{source} has {len(outputs)} outputs, {', '.join(names)}: say which holds the scores by --contract, a TOML "
        "file with "
        f'output = "{names[0] if names else ""}"'
    )


def _layout(source: Path, tensor: Tensor) -> tuple[Layout, bool]:
    """The order of a tensor's axes, and whether the spatial ones are reversed.

    Raises:
        ExportError: there are others, or too few.
    """
    space = tuple(axis.id for axis in tensor.axes if axis.kind == "space")
    flipped = space not in _SPACE and space[::-1] in _SPACE
    letters = iter(_SPACE.get(space[::-1] if flipped else space, ""))
    order = "".join(next(letters, "?") if axis.kind == "space" else _LETTERS.get(axis.kind, "?") for axis in tensor.axes)
    if order not in list(Layout):
        raise ExportError(
            f"{source}: {tensor.id} must have the axes batch, channel, and y, x or z, y, x, got "
            f"{', '.join(axis.id for axis in tensor.axes)}: wrap the network so that it takes and gives these"
        )
    return Layout(order), flipped


def _channels(source: Path, tensor: Tensor, given: int | None = None) -> int:
    """Number of channels; of an output, they may follow those of the image."""
    reference = tensor.channel.reference
    size = len(tensor.channel.names) or tensor.channel.size
    if size is None and reference and given:
        size = round(given * reference.factor + reference.offset)
    if not isinstance(size, int):
        raise ExportError(f"{source}: {tensor.id} must have a fixed number of channels, got {size}: name the channels")
    return size


def _names(image: Tensor, count: int) -> int | list[str]:
    """Names of the channels, where there are several that tell them apart."""
    names = list(dict.fromkeys(" ".join(name.split()) for name in image.channel.names))
    return names if count > 1 and len(names) == count and all(names) else count


def _tile(image: Tensor, given: Mapping[str, Any]) -> list[int]:
    largest = LARGEST[len(image.space)]
    asked = given.get("tile")
    sizes = [asked] * len(image.space) if isinstance(asked, int) else asked if isinstance(asked, list) else None
    return sizes if sizes and len(sizes) == len(image.space) else [_size(axis, largest) for axis in image.space]


def _size(axis: Axis, largest: int) -> int:
    if isinstance(axis.size, Range):
        return axis.size.least + max(0, largest - axis.size.least) // axis.size.step * axis.size.step
    return axis.size if isinstance(axis.size, int) else largest


def _tiling(source: Path, image: Tensor, scores: Tensor, tile: list[int]) -> dict[str, Any]:
    """Tile, margin, overlap and, for volumes, whose stride is not measured, the stride that the sizes show."""
    halos, margin = [axis.halo for axis in scores.space], _margin(source, image, scores)
    scored = [size - 2 * less for size, less in zip(tile, margin, strict=True)]
    overlap = [max(2 * halo, size // 4 - 2 * less, 0) for halo, size, less in zip(halos, tile, margin, strict=True)]
    if any(o >= t for o, t in zip(overlap, scored, strict=True)):
        raise ExportError(
            f"{source}: the halo on both sides must be smaller than the tile, got {halos} and {scored}: add a larger tile "
            "by --contract"
        )
    keys: dict[str, Any] = {"tile": tile, "overlap": overlap, **({"margin": margin} if any(margin) else {})}
    if len(tile) == 3:
        steps = [axis.size.step if isinstance(axis.size, Range) else 32 for axis in image.space]
        keys["align"] = [_align(*sizes) for sizes in zip(scored, overlap, steps, strict=True)]
    return keys


def _align(size: int, shared: int, step: int) -> int:
    """A multiple of the network's stride by which windows may start: sizes are least + n * step for such networks."""
    whole = math.gcd(size, step)
    return whole if whole <= size - shared else math.gcd(whole, size - shared)


def _margin(source: Path, image: Tensor, scores: Tensor) -> list[int]:
    """Pixels on each side that the network takes away, as the offset of the output's size says.

    Raises:
        ExportError: the size follows another tensor, or the output is not the middle of the tile.
    """
    other = [axis.id for axis in scores.space if axis.reference and axis.reference.tensor != image.id]
    if other:
        raise ExportError(
            f"{source}: the size of the output must follow {image.id}, and that of {', '.join(other)} does not"
        )
    less = [-axis.reference.offset if axis.reference else 0 for axis in scores.space]
    wrong = [axis.id for axis, n in zip(scores.space, less, strict=True) if n < 0 or n % 2 or (n and _is_coarser(axis))]
    if wrong:
        raise ExportError(
            f"{source}: an output that is smaller than the tile by an offset must be its middle, with as many pixels less "
            f"on both sides, and that along {', '.join(wrong)} is not: export it with padded convolutions"
        )
    return [int(n) // 2 for n in less]


def _is_coarser(axis: Axis) -> bool:
    return axis.reference is not None and axis.reference.factor != 1


def _weights(package: Package, rdf: Mapping[str, Any], version: str) -> WeightsFile:
    """The best weights that the package holds: ONNX, TorchScript, a state with its architecture.

    Raises:
        ExportError: it holds none that can be used.
    """
    entries = rdf.get("weights")
    entries = entries if isinstance(entries, Mapping) else {}
    for form in ("onnx", "torchscript", "pytorch_state_dict"):
        entry = entries.get(form)
        if isinstance(entry, Mapping) and package.has(str(entry.get("source", ""))):
            path = package.check_digest(str(entry["source"]), entry.get("sha256"))
            if form != "pytorch_state_dict":
                return WeightsFile("onnx" if form == "onnx" else "torchscript", path)
            return WeightsFile("state", path, _architecture(package, entry, version))
    listed = ", ".join(f"{key} ({_where(package, entry)})" for key, entry in entries.items()) or "none"
    raise ExportError(
        f"{package.source} must hold weights as onnx, torchscript or pytorch_state_dict, got {listed}: download one "
        "of them into "
        "the folder under its file name and correct source, or export the model to ONNX (keras by tf2onnx) and name it by "
        "--weights"
    )


def _own_architecture(package: Package, rdf: Mapping[str, Any], version: str) -> Architecture | None:
    entries = rdf.get("weights")
    entry = entries.get("pytorch_state_dict") if isinstance(entries, Mapping) else None
    return _architecture(package, entry, version) if isinstance(entry, Mapping) else None


def _where(package: Package, entry: Any) -> str:
    source = str(entry.get("source", "")) if isinstance(entry, Mapping) else ""
    return source if package.has(source) else f"{source or 'no source'}, not in the package"


def _architecture(package: Package, entry: Mapping[str, Any], version: str) -> Architecture:
    described = entry.get("architecture")
    if version == "0.5" and isinstance(described, Mapping):
        options = described.get("kwargs") or {}
        name = str(described.get("callable", ""))
        if "import_from" in described:
            return Architecture(f"{described['import_from']}:{name}", options)
        return Architecture(f":{name}", options, package.check_digest(str(described.get("source")), described.get("sha256")))
    file, colon, name = str(described or "").rpartition(":")
    options = entry.get("kwargs") or {}
    if colon:
        return Architecture(f":{name}", options, package.check_digest(file, entry.get("architecture_sha256")))
    module, _, name = str(described or "").rpartition(".")
    return Architecture(f"{module}:{name}", options)


def _example(package: Package, image: Tensor, scores: Tensor, flipped: bool) -> Example | None:
    given, wanted = image.example, scores.example
    if not (given and wanted and package.has(given) and package.has(wanted)):
        return None
    return Example(package.path(given), package.path(wanted), flipped=flipped)


def _provenance(rdf: Mapping[str, Any]) -> dict[str, Any]:
    found = {"description": f"bioimage.io {rdf['format_version']}"}
    found |= {key: str(rdf[key]) for key in ("name", "id", "version", "license") if rdf.get(key)}
    return found


def _notes(image: Tensor) -> list[str]:
    sizes = [(axis.scale, axis.unit) for axis in image.space]
    if not all(unit for _, unit in sizes):
        return []
    said = " x ".join(f"{scale:g} {unit}" for scale, unit in sizes)
    return [f"trained on pixels of {said}, says its description: a spacing by --contract has that checked"]

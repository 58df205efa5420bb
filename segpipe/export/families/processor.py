"""Find the scaling of an image processor of transformers by running it, and express it in contract keys."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segpipe.errors import ExportError
from segpipe.export.families import need
from segpipe.storage.existence import is_file

FILES = ("preprocessor_config.json", "processor_config.json")
PICTURE = ("red", "green", "blue")
"""Processors' names for the channels of a picture."""

SPATIAL = {
    "do_resize": "resizes to {size}",
    "do_thumbnail": "shrinks to {size}",
    "do_center_crop": "cuts out the middle, {crop_size}",
    "do_crop_margin": "cuts off margins",
    "do_split_image": "splits into patches of {size}",
    "do_pad": "pads",
}
"""Switches that move pixels without changing their values; a run uses tiles instead."""

SIDE = 128
"""Rows and columns of a probe: a multiple of the patch of every supported network."""

TOLERANCE = 1e-5
"""Largest deviation from an affine map, relative to the largest value: float32 rounding is a tenth of it."""


@dataclass(frozen=True)
class ChannelScaling:
    """Each channel of the network as channel ``source`` of the picture, times ``gain``, plus ``bias``."""

    source: tuple[int, ...]
    gain: NDArray[np.float64]
    bias: NDArray[np.float64]

    def is_like(self, gain: NDArray[np.float64], bias: NDArray[np.float64]) -> bool:
        """Whether another map gives the same result for every 8-bit value."""
        largest = (np.abs(self.gain) * 255 + np.abs(self.bias)).max()
        away = np.abs(gain - self.gain) * 255 + np.abs(bias - self.bias)
        return bool(away.max() <= 2 * TOLERANCE * largest)


def read_processor(folder: Path, channels: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Contract keys and notes; empty where the folder has no processor.

    Args:
        folder: folder of ``save_pretrained``.
        channels: channels of the network.

    Raises:
        ExportError: it needs its own code, or is not an affine map of each channel.
    """
    if not any(is_file(folder / name) for name in FILES):
        return {}, ()
    processor, said = _load(folder)
    affine = _fitted(processor, channels, folder)
    reduced = bool(getattr(processor, "do_reduce_labels", None) or said.get("reduce_labels"))
    return _keys(processor, affine), tuple(_notes(processor, affine, reduced=reduced))


def _load(folder: Path) -> tuple[Any, Mapping[str, Any]]:
    """The processor, with its class's defaults, and its configuration as in the file."""
    library = need("transformers")
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        said, _ = library.ImageProcessingMixin.get_image_processor_dict(folder, local_files_only=True)
        names = {"class_info_file": None} if said.get("class_info_file") else {}  # OneFormer's file would be downloaded
        return library.AutoImageProcessor.from_pretrained(folder, **local, **names), said
    except Exception as error:  # noqa: BLE001 - the library passes on whatever its readers raise
        raise ExportError(f"the image processor in {folder} cannot be loaded ({_first(error)}): {MEND}") from None


MEND = "say in the file of --classes how pixels are scaled, by scale, normalize, mean and std"


def _first(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}".rstrip(":. ")


def _fitted(processor: Any, channels: int, folder: Path) -> ChannelScaling:
    """Fit the map by least squares to bright and dark noise at once: scaling by image statistics differs between them."""
    rng = np.random.default_rng(0)
    probes = [rng.integers(0, high, (channels, SIDE, SIDE), dtype=np.uint8) for high in (256, 60)]
    name = type(processor).__name__
    try:
        given = [_run(processor, probe) for probe in probes]
    except Exception as error:  # noqa: BLE001 - a processor may raise anything
        raise ExportError(f"{name} in {folder} does not take {channels} channels ({_first(error)}): {MEND}") from None
    if any(g.shape != probe.shape for g, probe in zip(given, probes, strict=True)):
        shapes = f"{given[0].shape} for {probes[0].shape}"
        raise ExportError(f"{name} in {folder} must leave pixels where they are, got {shapes}: {MEND}")
    x, y = (np.concatenate([a.reshape(channels, -1) for a in arrays], axis=1) for arrays in (probes, given))
    maps = [_best(x.astype(np.float64), row.astype(np.float64)) for row in y]
    source = tuple(m[0] for m in maps)
    if max(m[3] for m in maps) > TOLERANCE or sorted(source) != list(range(channels)):
        raise ExportError(f"{name} in {folder} must scale each channel by one factor and offset, and does more: {MEND}")
    return ChannelScaling(source, np.array([m[1] for m in maps]), np.array([m[2] for m in maps]))


def _run(processor: Any, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixel values ``(channels, rows, cols)`` of one image, with all spatial steps switched off."""
    off = {key: False for key in SPATIAL if hasattr(processor, key)}
    tasks = {"task_inputs": ["semantic"]} if "oneformer" in type(processor).__module__ else {}
    given = processor([torch.from_numpy(image)], input_data_format="channels_first", **tasks, **off)["pixel_values"]
    return np.asarray(given[0], np.float32)


def _best(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[int, float, float, float]:
    """The channel that best fits a row by an affine map, gain and bias, and the largest relative deviation."""
    fits = []
    for source, values in enumerate(x):
        gain, bias = np.polyfit(values, y, 1)
        deviation = np.abs(values * gain + bias - y).max() / (np.abs(y).max() or 1.0)
        fits.append((source, float(gain), float(bias), float(deviation) if gain else np.inf))
    return min(fits, key=lambda fit: fit[3])


def _keys(processor: Any, affine: ChannelScaling) -> dict[str, Any]:
    """The processor's own numbers if they describe what it does, else the fitted ones."""
    keys = next((keys for keys in _said(processor, affine) if _does(keys, affine)), None)
    keys = keys or {"scale": affine.gain.tolist(), "offset": affine.bias.tolist(), "normalize": "none"}
    if affine.source != tuple(range(len(affine.source))):
        keys["channels"] = _names(affine)
    return keys


def _names(affine: ChannelScaling) -> list[str]:
    if len(affine.source) == len(PICTURE):
        return [PICTURE[k] for k in affine.source]
    return [f"band {k + 1}" for k in affine.source]


def _said(processor: Any, affine: ChannelScaling) -> Iterator[dict[str, Any]]:
    """Yield the keys by the processor's attributes, with mean and std in the order of the channels before or after."""
    scale = float(processor.rescale_factor) if getattr(processor, "do_rescale", None) else 1.0
    mean, std = (getattr(processor, f"image_{key}", None) for key in ("mean", "std"))
    if not getattr(processor, "do_normalize", None) or mean is None or std is None:
        yield {"scale": scale, "normalize": "none"}
        return
    for order in (range(len(affine.source)), affine.source):
        in_order = {key: _each(value, order) for key, value in (("mean", mean), ("std", std))}
        yield {"scale": scale, "normalize": "fixed", **in_order}


def _each(value: Any, order: Any) -> list[float]:
    values = [float(v) for v in np.ravel(value)]
    return [values[k] for k in order] if len(values) > max(order) else values * len(order)


def _does(keys: Mapping[str, Any], affine: ChannelScaling) -> bool:
    mean, std = (np.array(keys.get(key, default)) for key, default in (("mean", 0.0), ("std", 1.0)))
    with np.errstate(divide="ignore", invalid="ignore"):
        gain, bias = keys["scale"] / std, -mean / std
    return affine.is_like(np.broadcast_to(gain, affine.gain.shape), np.broadcast_to(bias, affine.bias.shape))


def _notes(processor: Any, affine: ChannelScaling, *, reduced: bool) -> Iterator[str]:
    sizes = {key: _size(getattr(processor, key, None)) for key in ("size", "crop_size")}
    moves = [words.format(**sizes) for key, words in SPATIAL.items() if getattr(processor, key, None)]
    if moves:
        yield f"the image processor also {', '.join(moves)}; a run does not, and takes tiles at the pixels' own size"
    if affine.source != tuple(range(len(affine.source))):
        yield f"the image processor changes the order of channels: the network's are {', '.join(_names(affine))}"
    if reduced:
        yield "classes were trained with do_reduce_labels: an id here is the data set's less one"


def _size(size: Any) -> str:
    pairs = dict(size).items() if size else ()
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in pairs if value is not None)

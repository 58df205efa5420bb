"""Read the scaling in a transform of albumentations that was saved beside a network, without its library."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import ExportError
from segpipe.export.families.processor import MEND
from segpipe.export.terms import IMAGENET
from segpipe.storage.documents import DocumentError, read_json
from segpipe.storage.existence import is_file

FILE = "albumentations_config_eval.json"
"""What ``Compose.save_pretrained`` writes, and the folders of smp-hub contain."""

SPATIAL = {
    "Resize": "resizes",
    "LongestMaxSize": "resizes",
    "SmallestMaxSize": "resizes",
    "PadIfNeeded": "pads",
    "Pad": "pads",
    "CenterCrop": "cuts out the middle",
    "Crop": "cuts out a part",
}
"""Steps that move pixels without changing their values; a run uses tiles instead."""

NEUTRAL = ("ToTensorV2", "ToTensor3D", "NoOp")
"""Steps that change the form of an array alone."""

GROUPS = {"Compose": 1.0, "Sequential": 0.5}
"""Steps that hold others, one after the other, and the default of their probability."""


@dataclass(frozen=True)
class _Scaling:
    """``pixel * gain + bias`` per channel, and the contract keys that say the same; no keys after several steps."""

    gain: NDArray[np.float64]
    bias: NDArray[np.float64]
    keys: Mapping[str, Any] = field(default_factory=lambda: {"scale": 1.0, "normalize": "none"})
    steps: int = 0

    def then(self, gain: NDArray[np.float64], bias: NDArray[np.float64], keys: Mapping[str, Any]) -> "_Scaling":
        """This scaling, followed by ``x * gain + bias``."""
        whole = keys if not self.steps else {}
        return replace(self, gain=self.gain * gain, bias=self.bias * gain + bias, keys=whole, steps=self.steps + 1)


def read_transform(folder: Path, channels: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Contract keys and notes; empty where the folder has no transform.

    Keys that the file leaves out have the library's defaults (albumentations 1.4: ``Normalize`` is
    ``(pixel - mean * max_pixel_value) / (std * max_pixel_value)``).

    Args:
        folder: folder of ``save_pretrained``.
        channels: channels of the network.

    Raises:
        ExportError: the file cannot be read, or a step is no affine map of each channel.
    """
    path = folder / FILE
    if not is_file(path):
        return {}, ()
    try:
        steps = list(_steps(read_json(path)["transform"]))
    except DocumentError as error:
        raise ExportError(f"{path} must be a transform of albumentations, and {error}: {MEND}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(
            f"{path} must be a transform of albumentations ({type(error).__name__}: {error}): {MEND}"
        ) from None
    scaling, moves = _Scaling(np.ones(channels), np.zeros(channels)), []
    for step in steps:
        name = _name(step)
        if name in SPATIAL:
            moves.append(SPATIAL[name])
        elif name not in NEUTRAL:
            scaling = _scaled(scaling, name, step, path)
    return _keys(scaling), tuple(_notes(moves))


def _steps(value: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield single steps in order, and groups that are left out now and then: the default of ``Sequential`` is p = 0.5."""
    if _name(value) not in GROUPS or value.get("p", GROUPS[_name(value)]) != 1.0:
        yield value
        return
    for step in value["transforms"]:
        yield from _steps(step)


def _name(step: Mapping[str, Any]) -> str:
    """Name of a step's class; older versions wrote its module, too."""
    return str(step["__class_fullname__"]).rpartition(".")[2]


_LEFT_OUT = ("__class_fullname__", "transforms")


def _scaled(scaling: _Scaling, name: str, step: Mapping[str, Any], path: Path) -> _Scaling:
    try:
        if step.get("p", 1.0) == 1.0:
            if name == "Normalize" and step.get("normalization", "standard") == "standard":
                return _normalized(scaling, step)
            if name == "ToFloat" and step.get("max_value"):
                scale = 1 / float(step["max_value"])
                return scaling.then(np.array(scale), np.array(0.0), {"scale": scale, "normalize": "none"})
    except (ValueError, TypeError, ZeroDivisionError):  # numbers that are none, or that do not fit the channels
        pass
    said = ", ".join(f"{key} = {json.dumps(value)}" for key, value in step.items() if key not in _LEFT_OUT)
    raise ExportError(
        f"{path} must scale each of {len(scaling.gain)} channels by one factor and offset, got {name} ({said[:200]}): {MEND}"
    )


def _normalized(scaling: _Scaling, step: Mapping[str, Any]) -> _Scaling:
    largest = float(step.get("max_pixel_value", 255.0))
    mean, std = (_each(step.get(key, IMAGENET[key]), len(scaling.gain)) for key in ("mean", "std"))
    if not (np.isfinite(mean).all() and (std > 0).all() and largest > 0):
        raise ValueError("mean must be finite, std and the largest value above 0")
    keys = {"scale": 1 / largest, "normalize": "fixed", "mean": mean.tolist(), "std": std.tolist()}
    return scaling.then(1 / (std * largest), -mean / std, keys)


def _each(value: Any, channels: int) -> NDArray[np.float64]:
    values: NDArray[np.float64] = np.ravel(np.asarray(value, np.float64))
    return np.broadcast_to(values, channels)


def _keys(scaling: _Scaling) -> dict[str, Any]:
    several = {"scale": scaling.gain.tolist(), "offset": scaling.bias.tolist(), "normalize": "none"}
    return dict(scaling.keys) or several


def _notes(moves: list[str]) -> Iterator[str]:
    if moves:
        done = ", ".join(dict.fromkeys(moves))
        yield f"the saved transform also {done}; a run does not, and takes tiles at the pixels' own size"

"""Settings of an export, validated once."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from segpipe.errors import SettingsError, correct_path
from segpipe.storage.documents import DocumentError, parse_toml
from segpipe.storage.existence import exists, is_file, is_folder, is_taken
from segpipe.storage.invalid import readable

Precision = Literal["fp32", "fp16", "int8"]

LEAST_AGREEMENT: dict[Precision, float] = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.99}
"""Least share of labels that must equal torch's."""

LARGEST_DIFFERENCE: dict[Precision, float | None] = {"fp32": 1e-4, "fp16": None, "int8": None}
"""Largest difference of a score, relative to torch's largest score; None where labels alone decide."""


class ExportSettings(BaseModel):
    """All settings of an export. None means: by the contract or the network's own files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: Path
    output: Path
    arch: str | None = None
    """``library:name``, such as ``smp:Unet``."""
    encoder: str | None = None
    module: str | None = None
    """``package.module:factory`` of a network of the user's."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the architecture's constructor, or of the factory."""
    classes: str | None = None
    """A built-in table, or a TOML file with classes and any other key of the contract."""
    bands: tuple[str, ...] | None = None
    """Names of the network's channels."""
    imagenet: bool = False
    """Scale pixels from 0-255 to 0-1, then by ImageNet's mean and deviation."""
    tile: tuple[int, ...] | None = None
    overlap: tuple[int, ...] | None = None
    raw: Literal["uint8", "uint16", "int16"] | None = None
    """Type of raw pixels that the exported model scales itself; None: the runner scales."""
    precision: Precision = "fp32"
    calibrate: tuple[str, ...] = ()
    """Scenes whose tiles determine the ranges of int8."""
    verify: tuple[str, ...] = ()
    """Scenes on whose tiles torch and ONNX Runtime are compared."""
    scene_bands: tuple[int, ...] | None = None
    """Bands of those scenes, 1-based, where neither names nor counts identify them."""
    prefix: str | None = None
    """Prefix of the network's keys in the checkpoint."""
    score: str | None = None
    """Output of a network with several that holds the scores: its key, or its position from 0."""
    replace_head: bool = False
    trust_pickle: bool = False
    fixed_size: bool = False
    min_agreement: float | None = Field(default=None, ge=0, le=1)
    max_difference: float | None = Field(default=None, ge=0)
    stac_mlm: Path | None = None
    overwrite: bool = False
    seed: int = 0

    @field_validator("bands", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value

    @field_validator("tile", "overlap", "scene_bands", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        """Parse ``512``, ``"512"`` and ``"512,256"`` alike."""
        return str(value).split(",") if isinstance(value, str | int) else value

    @property
    def least_agreement(self) -> float:
        """Least share of equal labels: the user's, or that of the precision."""
        return LEAST_AGREEMENT[self.precision] if self.min_agreement is None else self.min_agreement

    @property
    def largest_difference(self) -> float | None:
        """Largest difference of scores, relative to the largest: the user's, or that of the precision."""
        return LARGEST_DIFFERENCE[self.precision] if self.max_difference is None else self.max_difference


def export_settings(flags: Mapping[str, Any]) -> ExportSettings:
    """Build settings from flags; ``options`` are ``key=value`` texts with TOML values."""
    values = {key: value for key, value in flags.items() if not (value is None or value is False or value == ())}
    values["options"] = dict(_option(text) for text in flags.get("options", ()))
    try:
        settings = ExportSettings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(readable(error)) from None
    _check(settings)
    return settings


def _option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise SettingsError(f"--option must be key=value, got {text}")
    try:
        return key.strip(), parse_toml(f"value = {value}")["value"]
    except DocumentError:
        return key.strip(), value


def _check(settings: ExportSettings) -> None:
    if settings.precision == "int8" and not settings.calibrate:
        raise SettingsError("int8 needs real pixels to find its ranges, got no --calibrate: name a folder of scenes")
    if settings.arch and settings.module:
        raise SettingsError(f"one of --arch and --module builds the network, got both {settings.arch} and {settings.module}")
    if not exists(settings.weights):
        raise SettingsError(f"the weights must exist, got {settings.weights}: {correct_path(settings.weights)}")
    taken = [settings.weights]
    for path in (settings.output, settings.stac_mlm):
        if path is not None:
            _check_place(path, taken, settings.overwrite)
            taken.append(path)


def _check_place(path: Path, taken: list[Path], overwrite: bool) -> None:
    """Check an output path before the work begins."""
    if path.resolve() in [other.resolve() for other in taken]:
        raise SettingsError(f"weights, model and item must be three files, got {path} twice: name another")
    if is_folder(path):
        raise SettingsError(f"the output must be a file, got the folder {path}: name a file in it")
    if exists(path) and not is_file(path):
        raise SettingsError(f"the output must be a regular file, got {path}, which is a device or a pipe: name another")
    if is_taken(path) and not overwrite:
        raise SettingsError(f"the output must be new, got {path}, which exists: name another, or give --overwrite")
    folder = next(parent for parent in path.absolute().parents if exists(parent))
    if not (is_folder(folder) and os.access(folder, os.W_OK)):
        raise SettingsError(f"the output must lie in a folder that can be written, got {path} and {folder}: name another")

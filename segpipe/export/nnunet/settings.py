"""Settings of an export of a trained folder, validated once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segpipe.errors import SettingsError
from segpipe.export.settings import ExportSettings, export_settings
from segpipe.storage.invalid import readable


class NnunetSettings(BaseModel):
    """All settings of ``segpipe export nnunet``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    output: Path
    folds: tuple[str, ...] = ()
    """Empty: all that are trained."""
    checkpoint: str = "checkpoint_final.pth"
    merge: bool = False
    """One file with the mean of all folds, instead of a file per fold."""
    network_of_plans: bool = False
    """Take the network of the plans for a trainer that is not nnU-Net's own."""
    precision: Literal["fp32", "fp16"] = "fp32"
    verify: tuple[str, ...] = ()
    min_agreement: float | None = Field(default=None, ge=0, le=1)
    max_difference: float | None = Field(default=None, ge=0)
    overwrite: bool = False

    def output_of(self, fold: str, folds: int) -> Path:
        """The file of a fold: ``lesion-fold0.onnx`` where each of several gets its own."""
        if self.merge or folds == 1:
            return self.output
        return self.output.with_name(f"{self.output.stem}-fold{fold}{self.output.suffix}")

    def of_file(self, weights: Path, output: Path) -> ExportSettings:
        """Settings of the export of one file.

        Raises:
            SettingsError: the output cannot be written.
        """
        shared = ("precision", "verify", "min_agreement", "max_difference", "overwrite")
        return export_settings(
            {"weights": weights, "output": output, **{key: getattr(self, key) for key in shared}, "fixed_size": True}
        )


def nnunet_settings(flags: Mapping[str, Any]) -> NnunetSettings:
    """The checked settings of ``segpipe export nnunet``; flags that are None were not given.

    Raises:
        SettingsError: a flag is wrong.
    """
    values = {key: value for key, value in flags.items() if value is not None}
    try:
        settings = NnunetSettings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(readable(error)) from None
    if wrong := [fold for fold in settings.folds if fold != "all" and not fold.isdecimal()]:
        raise SettingsError(f"--fold must be a number or all, got {', '.join(wrong)}")
    return settings

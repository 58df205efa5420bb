"""Settings of a tuning."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segpipe.errors import SettingsError
from segpipe.settings import Settings, load_settings

NOISE = "noise"


@dataclass(frozen=True)
class TuneSettings:
    """Settings of ``segpipe tune``. Empty candidates mean those that the contract suggests."""

    model: Path
    also: tuple[Path, ...] = ()
    """Other files of the same network, such as an int8 version."""
    input: tuple[str, ...] = ()
    """Scenes; noise if there are none."""
    contract: Path | None = None
    bands: str | None = None
    bands_from: str | None = None
    band_resampling: str | None = None
    nodata: str | None = None
    crs: str | None = None
    ignore_alpha: bool = False
    resample: bool = False
    validity: str | None = None
    """The mask that comes with each scene, as of a run."""
    aoi: Path | None = None
    """Polygons inside which labels are compared."""
    aoi_layer: str | None = None
    blend: str | None = None
    tta: str | None = None
    """Test-time augmentation, as of a run."""
    device: str | None = None
    """Device to measure; None: the one that a run takes, and OpenVINO beside a CPU, if it is installed."""
    precisions: tuple[str, ...] = ()
    """Precisions to measure; empty: the file's own, and bf16 where OpenVINO computes in it."""
    tiles: tuple[int, ...] = ()
    overlaps: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    seconds: float = 90.0
    """Time budget; candidates that do not fit are left out and reported."""
    min_agreement: float = 0.99
    reference: Path | None = None
    """True labels of the scenes: a folder with a file per case, or the file of the only one."""
    map_classes: Path | None = None
    """TOML file that says which values of the reference are which classes."""
    max_loss: float | None = None
    """Largest loss of mean IoU of the recommended choice; takes the place of ``min_agreement``."""

    def __post_init__(self) -> None:
        if not 0 < self.min_agreement <= 1:
            raise SettingsError(f"--min-agreement is a share of labels, above 0 and up to 1, got {self.min_agreement:g}")
        if self.reference is None and (self.max_loss is not None or self.map_classes is not None):
            named = "max-loss" if self.max_loss is not None else "map-classes"
            raise SettingsError(f"--{named} needs true labels: give --reference, too, or leave --{named} out")
        if self.max_loss is not None and not 0 <= self.max_loss <= 1:
            raise SettingsError(f"--max-loss is a difference of mean IoU, from 0 to 1, got {self.max_loss:g}")
        if self.seconds <= 0:
            raise SettingsError(f"--seconds must be above 0, got {self.seconds:g}")
        for flag, values, least in (("tile", self.tiles, 1), ("overlap", self.overlaps, 0), ("batch", self.batches, 1)):
            if min(values, default=least) < least:
                raise SettingsError(f"--{flag} must be at least {least}, got {min(values)}")
        files = [path.resolve() for path in (self.model, *self.also)]
        if len(set(files)) < len(files):
            raise SettingsError("--also names another file of the model, got the same one twice: leave it out")

    def of_run(self, model: Path, device: str | None = None, precision: str | None = None) -> Settings:
        """Settings of a run with one of the files, on another device than ``device`` if one is given."""
        values: dict[str, Any] = {"input": self.input or (NOISE,), "model": model, "contract": self.contract}
        values |= {"bands": self.bands, "nodata": self.nodata, "ignore_alpha": self.ignore_alpha, "crs": self.crs}
        values |= {"bands_from": self.bands_from, "band_resampling": self.band_resampling}
        values |= {"validity": self.validity, "aoi": self.aoi, "aoi_layer": self.aoi_layer}
        return load_settings(
            None,
            values
            | {
                "resample": self.resample,
                "blend": self.blend,
                "tta": self.tta,
                "device": device or self.device,
                "precision": precision,
            },
        )

    @property
    def flags(self) -> list[str]:
        """Flags of ``segpipe run`` that do not depend on the candidate."""
        named = {"--contract": self.contract, "--bands": self.bands, "--nodata": self.nodata, "--crs": self.crs}
        named |= {"--bands-from": self.bands_from, "--band-resampling": self.band_resampling}
        named |= {"--validity": self.validity, "--aoi": self.aoi, "--aoi-layer": self.aoi_layer}
        named |= {"--blend": self.blend, "--tta": self.tta}
        inputs = [part for text in self.input for part in ("--input", text)]
        switches = ["--ignore-alpha"] * self.ignore_alpha + ["--resample"] * self.resample
        return [
            *inputs,
            *(part for flag, value in named.items() if value is not None for part in (flag, str(value))),
            *switches,
        ]

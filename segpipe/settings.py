"""Settings of a run from flags and the configuration file, validated once."""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    field_validator,
)

from segpipe.choices import Blend, Executor, OverlapRule, Precision, executor_of
from segpipe.contract.keys import MOST_CHANNELS, MOST_PIXELS
from segpipe.errors import SettingsError
from segpipe.geometry.quantity import Quantity
from segpipe.overrides import (
    BandResampling,
    Nodata,
    Overrides,
    Patterns,
    check_bands_from,
    check_patterns,
    parse_nodata,
    parse_patterns,
)
from segpipe.storage.documents import DocumentError, read_toml, shortened
from segpipe.storage.invalid import readable
from segpipe.validity import parse_validity

DEVICES = ("auto", "cpu", "openvino", "cuda", "tensorrt", "cpu-tensors")
PLACE = re.compile(r"openvino:[A-Z]+(\.\d+)?")
"""One of OpenVINO's devices, such as ``openvino:GPU.1``."""


def _check_device(value: str) -> str:
    if value not in DEVICES and not PLACE.fullmatch(value):
        raise ValueError(f"must be {', '.join(DEVICES[:-2])} or {DEVICES[-2]}; openvino:GPU names one of OpenVINO's devices")
    return value


Device = Annotated[str, AfterValidator(_check_device)]
ALL = "*"
"""Value of ``--lesions`` given without classes."""

LARGEST = 1e18
"""Maximum ``min_size``: still finite in voxels of any size."""

CaseNames = Literal["path", "uid", "number"]
UnusualValues = Literal["fail", "allow"]
Seg = Literal["binary", "labelmap", "none"]
BlendOn = Literal["logits", "probabilities"]
Tta = Literal["none", "flips"]
Like = Literal["nnunet"]

LONGEST_WAIT = 30 * 86_400
"""Seconds, a month: timers of Python and of the kernel overflow far above it."""

MOST_MEMORY = 1_000_000
"""GB, a petabyte; no machine has more."""

MOST_WORKERS = 65_535
"""Each worker takes one of the scheduler's ports, and there are no more ports."""

MOST_TILES = 65_535
"""Maximum batch, which is held in memory at once."""

MOST_THREADS = 1_024
"""Maximum per call; ONNX Runtime starts them all at once."""

MOST_PARTS = 999_999
"""Part files are numbered with six digits."""

MOST_AUDITED = 1000
"""Most windows that ``--audit`` can list."""

LARGEST_WINDOW = 101
"""Largest window of the majority filter."""

MOST_RETRIES = 16
"""Each wait is twice the previous one: the 16th takes nine hours."""

LONGEST_PATH, LONGEST_FILE_NAME = 4_095, 255
"""Maximum lengths in bytes on Linux."""


def check_text(value: Any) -> Any:
    """Check that text from the user, such as a path, is not empty and has no NUL, which would end it for the system."""
    text = str(value) if isinstance(value, str | Path) else None
    if text is not None and (not text.strip() or "\0" in text):
        raise ValueError("must not hold a NUL character" if text.strip() else "must not be empty")
    return value


def check_path(value: Any) -> Any:
    """Check that a local path is not too long for Linux."""
    text = os.fsencode(check_text(value)) if isinstance(value, str | Path) else b""
    if b"://" not in text and (len(text) > LONGEST_PATH or max(map(len, text.split(b"/"))) > LONGEST_FILE_NAME):
        raise ValueError(f"must be a path of at most {LONGEST_PATH} bytes, and {LONGEST_FILE_NAME} in each part")
    return value


Text = Annotated[str, BeforeValidator(check_text)]
File = Annotated[Path, BeforeValidator(check_path)]
Band = Annotated[int, Field(le=MOST_CHANNELS)]
Tile = Annotated[int, Field(ge=1, le=MOST_PIXELS)]
Overlap = Annotated[int, Field(ge=0, le=MOST_PIXELS)]

FORMS = {
    "lesions": "true, false, or a list of names or ids of classes",
    "profile": "true, false or a path",
}
"""Keys whose value may have several forms, and which these are."""


NEEDS = {
    "min_size": "lesions",
    "instances": "lesions",
    "aoi_layer": "aoi",
    "zone_id": "zones",
    "zones_layer": "zones",
    "zones_out": "zones",
}
"""Keys that mean nothing without another one, and which that is."""


class Settings(BaseModel):
    """Everything that a user can choose. None: the contract or the machine decides."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    input: tuple[Text, ...] = Field(min_length=1, repr=False)
    model: tuple[File, ...] = Field(min_length=1)
    """One, or several whose scores are averaged, such as folds; or a list of models whose labels are joined."""
    output: str = "segpipe-out"
    """A folder, or ``s3://bucket/prefix``."""
    contract: File | None = None
    bands: tuple[Band, ...] | None = None
    """1-based bands of the file in the order of the contract's channels; replaces matching by descriptions."""
    channels: Patterns | None = None
    """Pattern of the files of each channel, for cases of several files: ``t1=*_t1.nii.gz,flair=*_flair.nii.gz``."""
    bands_from: Text | None = None
    """Pattern of the files of scenes with one file per band, such as ``{case}_{band}.tif``."""
    band_resampling: BandResampling = "bilinear"
    """How bands of coarser pixels are read where a scene's bands are files of several pixel sizes."""
    nodata: Nodata | None = None
    """Value of pixels without data, in place of the files' own; ``none``: no value."""
    ignore_alpha: bool = Field(default=False, strict=True)
    """Treat bands tagged alpha as ordinary bands: they make no pixel invalid, and may be channels."""
    crs: Text | None = None
    """A code or WKT, for files whose own CRS is missing or wrong."""
    resample: bool = Field(default=False, strict=True)
    """Resample images whose pixel size on the ground differs from the model's; masks keep the grid of their input."""
    allow_remote_sources: bool = Field(default=False, strict=True)
    """Let a local VRT refer to servers, and a VRT on a server to any place."""
    validity: Text | None = None
    """The mask that comes with each scene: scl, udm2, qa-pixel, fmask, or a pattern of its path; and its valid values."""
    aoi: File | None = None
    """A file of polygons: what lies outside is neither decoded nor inferred, and is nodata."""
    aoi_layer: Text | None = None
    """Layer of this file, if it has several."""
    series: Text | None = None
    """Which DICOM series are cases: text in the description, a glob for all of it, a number or a UID; None: all."""
    case_name: CaseNames = "path"
    """Source of the names of masks, records and table rows."""
    tile: tuple[Tile, ...] | None = None
    overlap: tuple[Overlap, ...] | None = None
    blend: Blend = "gaussian"
    blend_on: BlendOn | None = None
    tta: Tta = "none"
    """Test-time augmentation: ``flips`` averages the scores of every tile over its flips."""
    like: Like | None = None
    """A program whose preprocessing, windows and weights are taken instead of segpipe's, for comparison with it."""
    majority: int | None = Field(default=None, ge=3, le=LARGEST_WINDOW, strict=True)
    """Each pixel takes the label that occurs most in the square of this many pixels around it."""
    sieve: Text | None = None
    """Regions below this size take the label of their largest neighbour: pixels, or a number with a unit."""
    batch: int | None = Field(default=None, ge=1, le=MOST_TILES, strict=True)
    device: Device = "auto"
    """``cpu-tensors`` runs the GPU code on the CPU, for tests."""
    precision: Precision = "auto"
    """What the network computes in: ``auto`` is the file's own, fp32 or int8; ``bf16`` needs OpenVINO."""
    min_agreement: float = Field(default=0.99, ge=0, le=1, strict=True)
    """Least share of labels of trial tiles that must be ONNX Runtime's on the CPU; for OpenVINO and GPUs. With 0, OpenVINO's
    are not compared."""
    tf32: bool = Field(default=False, strict=True)
    """Let a GPU round the inputs of products to 10 bits, which is faster but differs more from the CPU."""
    nhwc: bool = Field(default=False, strict=True)
    """Let a GPU convolve with channels last, which is faster for some networks."""
    unusual_values: UnusualValues = "fail"
    """Treatment of cases whose pixels cannot be what the contract expects."""
    executor: Executor = "processes"
    """One process, processes of this machine, or Dask; ``runs_in`` is the one that is used."""
    scheduler: Text | None = None
    """Address of a running Dask scheduler, such as tcp://10.0.0.1:8786."""
    cluster: File | None = None
    """A TOML file that describes a batch system."""
    tls_ca: File | None = None
    tls_cert: File | None = None
    tls_key: File | None = None
    """TLS files for the scheduler, as ``distributed``'s Security takes them."""
    dashboard: Text = "127.0.0.1:0"
    """Address of Dask's dashboard, if bokeh is installed; port 0 is any free port."""
    workers: int | None = Field(default=None, ge=1, le=MOST_WORKERS, strict=True)
    threads: int | None = Field(default=None, ge=1, le=MOST_THREADS, strict=True)
    """CPU threads per call of the model; parallel calls of a worker share the rest. None: chosen by a short trial."""
    parts: int | None = Field(default=None, ge=1, le=MOST_PARTS, strict=True)
    """Cut every case into this many parts, if it has enough windows; None: chosen from workers and memory."""
    memory: float | None = Field(default=None, gt=0, le=MOST_MEMORY, strict=True)
    """GB that one worker may use; None: its share of 80 % of the machine's, and at most 8 if a tile's scores are large."""
    job_timeout: float = Field(default=3600, gt=0, le=LONGEST_WAIT, strict=True)
    """Seconds after which a worker that is still busy with one job is ended, and the job retried."""
    grace: float = Field(default=20, ge=0, le=LONGEST_WAIT, strict=True)
    """Seconds that running jobs have to end after SIGINT, SIGTERM or SIGHUP."""
    confidence: bool = Field(default=False, strict=True)
    lesions: bool | tuple[Text, ...] = False
    """Measure every connected component of these classes, given by name or id; true: all but the background."""
    min_size: float = Field(default=0, ge=0, le=LARGEST, strict=True)
    """Components below this size are counted but not listed: mm3 in volumes, m2 on the Earth, else pixels."""
    instances: bool = Field(default=False, strict=True)
    """Also write a second mask with each component's number in the table."""
    per_class: bool = Field(default=False, strict=True)
    """Also write a mask of zeros and ones for each class, ``<case>.classes/<class>``."""
    seg: Seg = "binary"
    """The DICOM Segmentation beside the NIfTI mask of a series: a bit per voxel and class, a label per voxel, or none."""
    report: Literal["dicom"] | None = None
    """Also write a measurement report and a secondary capture of each DICOM series."""
    audit: int | None = Field(default=None, ge=1, le=MOST_AUDITED, strict=True)
    """List this many windows that are least sure, in ``audit.csv``."""
    style: Literal["qgis"] | None = None
    """Also write a style beside each mask of one band: ``<case>.qml`` for QGIS."""
    overlap_rule: OverlapRule = "first"
    """Which case counts where several share ground, in totals and zones: the first by name, the newest, or the surest."""
    zones: File | None = None
    """A file of polygons, such as fields: ``zones.csv`` gets the size of each class in each polygon."""
    zone_id: Text | None = None
    """Column with the names of the polygons; None: they are numbered."""
    zones_layer: Text | None = None
    """Layer of the file, if it has several."""
    zones_out: File | None = None
    """Also write the polygons with the columns of ``zones.csv``."""
    overwrite: bool = Field(default=False, strict=True)
    retries: int = Field(default=4, ge=0, le=MOST_RETRIES, strict=True)
    """How often a case, or a part of one, is retried after a storage fault, 1, 2, 4 ... s later."""
    log_file: File | None = None
    """File to which events are appended as JSON lines."""
    profile: bool | File = False
    """Report where the time went; a path: write the trace there."""
    fail_fast: bool = Field(default=False, strict=True)
    verify_input: bool = Field(default=False, strict=True)
    """Compare every block of a TIFF with its checksum, which means a second decoding."""

    @property
    def runs_in(self) -> Executor:
        """The executor: Dask where a cluster is named, or Dask's dashboard and no executor."""
        return executor_of({key: getattr(self, key) for key in self.model_fields_set})

    @property
    def overrides(self) -> Overrides:
        """The user's statements about the input files."""
        return Overrides(
            self.bands,
            nodata=self.nodata,
            ignore_alpha=self.ignore_alpha,
            crs=self.crs,
            remote=self.allow_remote_sources,
            resample=self.resample,
            validity=None if self.validity is None else parse_validity(self.validity),
            band_resampling=self.band_resampling,
        )

    @field_validator("input", "model", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path) else value

    @field_serializer("model")
    def _one_as_itself(self, value: tuple[Path, ...]) -> Any:
        """Write one model as a single value, as all versions did."""
        return value[0] if len(value) == 1 else value

    @field_validator("channels", mode="before")
    @classmethod
    def _patterns(cls, value: Any) -> Any:
        """Accept the text of a flag, or the table of a file."""
        if isinstance(value, str):
            return parse_patterns(value)
        return tuple(value.items()) if isinstance(value, Mapping) else value

    @field_validator("bands_from")
    @classmethod
    def _with_names(cls, value: str | None) -> str | None:
        return None if value is None else check_bands_from(value)

    @field_validator("channels")
    @classmethod
    def _alike(cls, value: Patterns | None) -> Patterns | None:
        return None if value is None else check_patterns(value)

    @field_validator("profile", mode="before")
    @classmethod
    def _there(cls, value: Any) -> Any:
        """The flag without a path means: beside the masks."""
        return (Path(value) if value else True) if isinstance(value, str) else value

    @field_validator("nodata", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Nodata | None:
        return None if value is None else parse_nodata(value)

    @field_validator("lesions", mode="before")
    @classmethod
    def _classes(cls, value: Any) -> Any:
        """The flag alone is ``*`` and means all; ``"tumour,2"`` and ``["tumour", "2"]`` name classes."""
        if isinstance(value, str):
            return True if value == ALL else tuple(name.strip() for name in value.split(","))
        return tuple(map(str, value)) if isinstance(value, list | tuple) else value

    @field_validator("lesions")
    @classmethod
    def _any(cls, value: bool | tuple[str, ...]) -> bool | tuple[str, ...]:
        if value == ():
            raise ValueError("must be one class or more, or true for all but the background")
        return value

    @field_validator("majority")
    @classmethod
    def _odd(cls, value: int | None) -> int | None:
        if value is not None and value % 2 == 0:
            raise ValueError("must be odd, so that the window has a middle, such as 3 or 5")
        return value

    @field_validator("sieve", mode="before")
    @classmethod
    def _size(cls, value: Any) -> Any:
        """One text for each size: ``12`` is ``12px``, ``0.5ha`` is ``5000m2``."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return str(Quantity.parse(str(value))) if isinstance(value, str) or number else value

    @field_validator("validity")
    @classmethod
    def _parsed(cls, value: str | None) -> str | None:
        if value is not None:
            parse_validity(value)
        return value

    @field_validator("crs")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None:
            from segpipe.geometry.raster_grid import parse_crs
            from segpipe.process.environment import clean_environment

            clean_environment()
            parse_crs(value)
        return value

    @field_validator("output", mode="before")
    @classmethod
    def _folder_or_bucket(cls, value: Any) -> Any:
        local = isinstance(check_path(value), str | Path) and "://" not in str(value)
        return os.fspath(Path(value)) if local else value

    @field_validator("model")
    @classmethod
    def _different(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        files = [Path(os.path.realpath(path)) for path in value]
        if len(set(files)) < len(files):
            raise ValueError("must name each model once, and one of them is there twice")
        return tuple(_of_this_machine(path) for path in value)

    @field_validator("log_file", "zones", "zones_out", "aoi")
    @classmethod
    def _on_this_machine(cls, value: Path | None) -> Path | None:
        return None if value is None else _of_this_machine(value)

    @field_validator("bands", "tile", "overlap", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        """``512``, ``"512"``, ``"512,256"`` and ``[512, 256]`` all name sizes."""
        if isinstance(value, str):
            parts = tuple(part.strip() for part in value.split(","))
            if not all(part.lstrip("-").isdigit() for part in parts):
                raise ValueError("must be whole numbers, such as 512 or 512,256")
            return parts
        return (value,) if isinstance(value, int) else value

    @field_validator("bands", "tile", "overlap")
    @classmethod
    def _some(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value == ():
            raise ValueError("must be one number or more")
        return value

    @field_validator("bands")
    @classmethod
    def _one_based(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and min(value, default=0) < 1:
            raise ValueError("bands are counted from 1")
        return value


def _of_this_machine(path: Path) -> Path:
    if re.match(r"\w+:/", str(path)):  # Path has made s3:/ of s3://
        raise ValueError("must be a file of this machine")
    return path


def _check_places(settings: Settings) -> None:
    places = {"scheduler": settings.scheduler, "cluster": settings.cluster, "workers": settings.workers}
    named = [key for key, value in places.items() if value is not None]
    if len(named) > 1:
        raise SettingsError(f"one of scheduler, cluster and workers says where to run, got {' and '.join(named)}")
    if settings.executor == "serial" and (settings.scheduler or settings.cluster):
        raise SettingsError(f"{named[0]} needs the executor dask, got serial: leave --executor out")


def _check_needed(settings: Settings) -> None:
    for key, needed in NEEDS.items():
        if _is_given(settings, key) and not _is_given(settings, needed):
            flag = key.replace("_", "-")
            raise SettingsError(f"{key} needs {needed}: give --{needed}, too, or leave --{flag} out")


def _is_given(settings: Settings, key: str) -> bool:
    return bool(getattr(settings, key) != Settings.model_fields[key].default)


def _check_bands(settings: Settings) -> None:
    if settings.bands is not None and settings.bands_from is not None and "{band}" in settings.bands_from:
        raise SettingsError("bands_from finds bands by their names, and bands by their numbers, got both: leave --bands out")


def _check_report(settings: Settings) -> None:
    if settings.report is not None and settings.seg == "none":
        raise SettingsError("a report refers to the segments of a SEG, got report dicom and seg none: leave --seg none out")


def _check_rule(settings: Settings) -> None:
    if settings.overlap_rule == "confidence" and not settings.confidence:
        raise SettingsError(
            "overlap_rule confidence needs confidence: give --confidence, too, or leave --overlap-rule confidence out"
        )


def load_settings(config: Path | None, flags: Mapping[str, Any], caller: str = "the command line") -> Settings:
    """Settings from a TOML file and flags; flags override the file.

    Raises:
        SettingsError: ``config`` or ``caller`` gave an unknown key, or a value does not fit.
    """
    values = {**(_read(config) if config else {}), **{k: v for k, v in flags.items() if not _is_absent(v)}}
    _check_keys(values, str(config or caller))
    for key, flag in (("input", "--input"), ("model", "--model")):
        if key not in values:
            raise SettingsError(f"{key} is needed: give {flag}, or {key} in the file of --config")
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(readable(error, FORMS)) from None
    _check_places(settings)
    _check_needed(settings)
    _check_report(settings)
    _check_bands(settings)
    _check_rule(settings)
    return settings


def _is_absent(value: Any) -> bool:
    return value is None or (isinstance(value, tuple) and not value)


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path)
    except DocumentError as error:
        raise SettingsError(f"the configuration {shortened(path)} {error}") from None


def _check_keys(values: Mapping[str, Any], origin: str) -> None:
    known = list(Settings.model_fields)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            mend = f"did you mean {near[0]}?" if near else "known keys are " + ", ".join(known)
            raise SettingsError(f"{origin}: unknown key {shortened(key)}: {mend}")

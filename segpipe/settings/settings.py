"""The settings of a run: every key with its type, its default and its meaning."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator

from segpipe.choices import Blend, Executor, OverlapRule, Precision, executor_of
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
from segpipe.settings.values import (
    ALL,
    LARGEST,
    LARGEST_WINDOW,
    LONGEST_WAIT,
    MOST_AUDITED,
    MOST_MEMORY,
    MOST_PARTS,
    MOST_RETRIES,
    MOST_THREADS,
    MOST_TILES,
    MOST_WORKERS,
    Band,
    BlendOn,
    CaseNames,
    Device,
    File,
    Like,
    Overlap,
    Seg,
    Text,
    Tile,
    Tta,
    UnusualValues,
    check_path,
    on_this_machine,
)
from segpipe.validity import parse_validity


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
        return tuple(on_this_machine(path) for path in value)

    @field_validator("log_file", "zones", "zones_out", "aoi")
    @classmethod
    def _on_this_machine(cls, value: Path | None) -> Path | None:
        return None if value is None else on_this_machine(value)

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

"""The contract of a model: channels, scaling, tile, classes. It travels inside the ONNX file."""

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from segpipe.errors import ContractError
from segpipe.geometry.layout import Layout
from segpipe.messages.printable import CONTROL
from segpipe.snomed import checked_concept
from segpipe.storage.documents import MOST_BYTES, DocumentError, parse_json, read_toml, shortened
from segpipe.storage.invalid import readable, shown_value

METADATA_KEY = "segpipe"
DEFAULT_ALIGN = 32
"""Total stride assumed if the contract names none: five halvings, as in most encoders."""

MOST_CLASSES = 65_535
"""Number of ids in a 16-bit mask, whose largest value is nodata."""

MOST_CHANNELS = 65_535
"""Maximum number of bands in a TIFF."""

MOST_PIXELS = 2**31 - 1
"""Maximum tile size along an axis: GDAL opens no larger raster."""

LONGEST_NAME = 1_000
"""Maximum length in characters of a class or channel name, which appears in tables, legends and messages."""

LISTED = 5
"""Maximum number of repeated names that a message shows; it counts the others."""

IMAGE_TOLERANCE, VOLUME_TOLERANCE = 0.1, 0.01
"""Default of ``spacing_tolerance``: the largest relative difference from the contract's spacing. Pixel sizes on the ground
always differ a little from those on the map. Voxel sizes are exact, 10 % along each axis would be a third of the volume, and
volumes can be resampled."""

VOLUMES = tuple(layout for layout in Layout if layout.is_volume)

ORIENTED = {"R": "RL", "L": "RL", "A": "AP", "P": "AP", "S": "SI", "I": "SI"}
"""The two ends of the body axis for each letter of an orientation."""

MOST_NEIGHBOURS = 64
"""Maximum number of slices on each side of the labelled slice."""

PerChannel = float | list[float]
Normalization = Literal["fixed", "zscore", "minmax", "none"]
Pair = tuple[float, float]
Pairs = Pair | list[Pair]
"""One for all channels, or one per channel."""
Size = Annotated[int, Field(ge=1, le=MOST_PIXELS)]
Name = Annotated[str, Field(max_length=LONGEST_NAME)]
Snomed = Annotated[str, AfterValidator(checked_concept)]
"""The identifier of a SNOMED CT concept, in quotes."""
Color = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]

FORMS = {
    "snomed": 'the identifier of a SNOMED CT concept in quotes, such as "10200004", or two, of category and type',
    "channels": f"their number, 1 to {MOST_CHANNELS:,}, or a list of their names",
    **dict.fromkeys(("scale", "offset", "mean", "std"), "a number, or a list of one per channel"),
    "clip": "two numbers, low and high, or a list of such pairs, one per channel",
    "window": "two numbers, centre and width, or a list of such pairs, one per channel",
    "normalize": "'fixed', 'zscore', 'minmax' or 'none', or a list of one per channel",
    "align": "a whole number, 1 or more, or a list of one per axis",
    "color": "a colour such as '#1f77b4'",
}
"""Allowed forms of the keys whose value may have several."""


class _Keys(BaseModel):
    """Base class for keys of a contract. Keys in ``_later`` are written only if set, so older contracts keep their hash."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    _later: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        unset = {key for key in self._later if getattr(self, key) == type(self).model_fields[key].get_default()}
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if key not in unset}


class SegmentationClass(_Keys):
    """One class: its id in the mask, its name, its colour, and its channel in the model's output."""

    _later = frozenset({"snomed"})

    id: int = Field(ge=0, lt=MOST_CLASSES)
    name: Name
    color: Color | None = None
    index: int | None = Field(default=None, ge=0, lt=MOST_CLASSES)
    """Channel of the output; None: the same number as the id."""
    snomed: Snomed | tuple[Snomed, Snomed] | None = None
    """SNOMED CT code of the type, or of the category and of the type, for DICOM; None: a private code."""

    @field_validator("name")
    @classmethod
    def _one_line(cls, value: str) -> str:
        """Refuse control characters: no mask format stores them, and those of text direction disguise a name."""
        if CONTROL.search(value):
            raise ValueError(f"a class name must be one line without control characters, got {value!r}: rename the class")
        return value

    @property
    def snomed_codes(self) -> tuple[str, ...]:
        """Codes of category and type; of the type alone; or none."""
        return (self.snomed,) if isinstance(self.snomed, str) else tuple(self.snomed or ())

    @property
    def channel(self) -> int:
        return self.id if self.index is None else self.index


class Contract(_Keys):
    """Everything needed to run a model; validated on construction."""

    _later = frozenset({"window", "clip_percentiles", "statistics_over", "neighbours", "flips"})

    version: Literal[1]
    channels: (
        Annotated[list[Name], Field(min_length=1, max_length=MOST_CHANNELS)] | Annotated[int, Field(ge=1, le=MOST_CHANNELS)]
    )
    """Names in the model's order, or only their number if they have no names."""
    scale: PerChannel = 1.0
    offset: PerChannel = 0.0
    clip: Pairs | None = None
    """Lower and upper limit after ``scale`` and ``offset``."""
    window: Pairs | None = None
    """Centre and width, another way to write ``clip``: the limits are centre - width / 2 and centre + width / 2."""
    clip_percentiles: Pair | None = None
    """Percentiles of each case that become its limits."""
    statistics_over: Literal["all", "nonzero"] = "all"
    """Valid pixels that a case's own statistics use; with ``nonzero``, pixels of value 0 are 0 after scaling, too."""
    normalize: Normalization | list[Normalization]
    mean: PerChannel | None = None
    std: PerChannel | None = None
    scaling: Literal["host", "graph"] = "host"
    """``graph``: the model takes raw pixels and scales them itself."""
    pixel: Literal["stored", "physical"] = "stored"
    """``physical``: the scale and offset tags of the file are applied first."""
    layout: Layout = Layout.NCHW
    tile: list[Size] | None = None
    """One number for all axes, or one per axis."""
    overlap: list[Annotated[int, Field(ge=0, le=MOST_PIXELS)]] | None = None
    align: Size | list[Size] | None = None
    equivariant: bool | None = None
    """Whether scores away from borders are the same wherever a tile starts, in steps of ``align``; None: not measured."""
    spacing: list[float] | None = None
    spacing_unit: Literal["m", "mm", "um"] = "m"
    spacing_tolerance: float = Field(default=IMAGE_TOLERANCE, ge=0)
    orientation: str | None = None
    """For volumes, one letter per axis of the network's input, first axis first: the side of the body towards which the
    index increases, such as ``"RAS"``. For a network of images: the orientation of the volume, sliced along axis 0."""
    neighbours: int = Field(default=0, ge=0, le=MOST_NEIGHBOURS)
    """For a network of images on volumes: number of slices on each side that are added as channels."""
    activation: Literal["softmax", "sigmoid", "none"]
    """Function that turns scores into probabilities; ``none``: they are probabilities."""
    task: Literal["multiclass", "binary", "multilabel"] = "multiclass"
    threshold: float = Field(default=0.5, gt=0, lt=1)
    classes: list[SegmentationClass] = Field(min_length=1, max_length=MOST_CLASSES)
    input: str | None = None
    output: str | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)
    flips: list[int] | None = None
    """Spatial axes that flips for averaging may reverse: numbers, the first axis being 0, or letters, ``x`` for the last
    axis, ``y`` and ``z`` for those before it. None: all."""

    @model_validator(mode="before")
    @classmethod
    def _of_volumes(cls, values: Any) -> Any:
        """Set the default unit and tolerance of spacing for volumes; keys of the contract override them."""
        if isinstance(values, Mapping) and values.get("layout") in VOLUMES:
            return {"spacing_unit": "mm", "spacing_tolerance": VOLUME_TOLERANCE, **values}
        return values

    @field_validator("orientation")
    @classmethod
    def _three_sides(cls, value: str | None) -> str | None:
        if value is not None and sorted(ORIENTED.get(letter, "") for letter in value) != sorted(set(ORIENTED.values())):
            raise ValueError(
                "orientation must be three letters, one per axis, the first axis first: one of R and L, one of A and P, one "
                f'of S and I, such as "RAS", got "{shortened(value)}"'
            )
        return value

    @field_validator("tile", "overlap", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("flips", mode="before")
    @classmethod
    def _numbered(cls, value: Any, info: ValidationInfo) -> Any:
        """Convert axis letters to sorted numbers."""
        layout = info.data.get("layout")
        if not isinstance(value, list) or layout is None:
            return value
        letters = "zyx"[-layout.ndim :]
        axes = [letters.find(axis) if isinstance(axis, str) and len(axis) == 1 else axis for axis in value]
        known = all(type(axis) is int and 0 <= axis < layout.ndim for axis in axes)
        if not known or len(set(axes)) < len(axes):
            raise ValueError(f"must be axes, each once, of {', '.join(letters)} or 0 to {layout.ndim - 1}")
        return sorted(axes)

    @field_validator("scale", "offset", "mean", "std")
    @classmethod
    def _finite(cls, value: PerChannel | None) -> PerChannel | None:
        numbers = value if isinstance(value, list) else [value]
        if any(n is not None and n - n != 0 for n in numbers):
            raise ValueError("must be finite")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for key in ("scale", "offset", "mean", "std", "normalize", "clip", "window"):
            self._check_length(key)
        fixed = "fixed" in self.normalizations
        if fixed and (self.mean is None or self.std is None):
            raise ValueError('normalize = "fixed" needs mean and std, as the network was trained')
        if not fixed and not (self.mean is None and self.std is None):
            raise ValueError(
                f'mean and std are used by normalize = "fixed" only, got normalize = "{_listed(self.normalizations)}"'
            )
        if self.scaling == "graph" and self.pixel == "physical":
            raise ValueError(
                'scaling = "graph" hands pixels to the network as they are stored, and pixel = "physical" applies the tags '
                'of the file first: for a network that takes physical values, set scaling = "host" with normalize = "none"'
            )
        if any(s <= 0 for s in _per_channel(self.std, 1)):
            raise ValueError(f"std must be above 0, got {self.std}")
        if 0 in self.column("scale"):
            raise ValueError(f"scale must not be 0, got {self.scale}")
        self._check_limits()
        self._check_neighbours()
        if self.spacing is not None and (len(self.spacing) != self.ndim or min(self.spacing) <= 0):
            raise ValueError(f"spacing must be {self.ndim} numbers above 0, one per spatial axis, got {self.spacing}")
        self._check_classes()
        return self

    def _check_length(self, key: str) -> None:
        value, one = getattr(self, key), {"normalize": "word", "clip": "pair", "window": "pair"}.get(key, "number")
        if isinstance(value, list) and len(value) != self.channel_count:
            raise ValueError(
                f"{key} must be one {one} or one per channel, got {len(value)} for {self.channel_count} channels"
            )

    def _check_limits(self) -> None:
        given = [key for key in ("clip", "window", "clip_percentiles") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"one of clip, window and clip_percentiles sets the limits, got {' and '.join(given)}")
        if any(low >= high for low, high in _pairs(self.clip)):
            raise ValueError(f"clip must be [low, high], got {_as_list(self.clip)}")
        if any(width <= 0 for _, width in _pairs(self.window)):
            raise ValueError(f"window must be [centre, width] with a width above 0, got {_as_list(self.window)}")
        if self.window is not None and (limits := self.limits) is not None and any(map(operator.ge, *limits)):
            raise ValueError(
                "window must be [centre, width] with a width that floats can add to the centre, got "
                f"{_as_list(self.window)}: both limits would be the same number"
            )
        if self.clip_percentiles is not None and not 0 <= self.clip_percentiles[0] < self.clip_percentiles[1] <= 100:
            raise ValueError(f"clip_percentiles must be [low, high] from 0 to 100, got {list(self.clip_percentiles)}")
        if self.statistics_over == "nonzero" and not self.is_measured:
            raise ValueError(
                'statistics_over = "nonzero" is for statistics of each case: normalize = "zscore" or "minmax", or '
                f'clip_percentiles, got normalize = "{_listed(self.normalizations)}"'
            )
        if self.scaling == "graph" and (self.clip_percentiles is not None or self.statistics_over != "all"):
            raise ValueError(
                'scaling = "graph" hands pixels to the network as they are stored, and clip_percentiles and statistics_over '
                'need statistics of the case: leave them out, or set scaling = "host"'
            )

    def _check_neighbours(self) -> None:
        if self.neighbours and self.layout.is_volume:
            raise ValueError(
                f'neighbours is for a network of images, which gets a volume slice by slice, got layout = "{self.layout}": '
                "leave it out"
            )
        if self.input_channels > MOST_CHANNELS:
            raise ValueError(f"the network must take at most {MOST_CHANNELS} channels, got {self.input_channels}")

    def _check_classes(self) -> None:
        for what, values in (("ids", [c.id for c in self.classes]), ("names", [c.name for c in self.classes])):
            if len(set(values)) != len(values):
                raise ValueError(f"class {what} must differ, got more than once: {_listed(repeated(values))}")
        if self.task == "multiclass" and self.activation == "sigmoid":
            raise ValueError(
                'a multiclass model has activation "softmax" or "none"; independent sigmoids are task = "multilabel"'
            )
        if self.task != "multiclass" and self.activation == "softmax":
            raise ValueError(
                f'task = "{self.task}" has activation "sigmoid" or "none", got "softmax": '
                'scores that compete are task = "multiclass"'
            )
        taken = sorted(c.channel for c in self.classes)
        if self.task != "binary" and taken != list(range(len(taken))):
            raise ValueError(
                f"output channels of the classes must be 0 to {len(taken) - 1}, each once, got {_listed(taken)}: "
                "give each class its index in the model's output where that is not its id"
            )
        if self.task == "binary" and (len(self.classes) > 2 or max(c.id for c in self.classes) != 1):
            raise ValueError("a binary model has classes 0 and 1, or 1 alone")
        if "nodata" in {c.name for c in self.classes}:
            raise ValueError('no class may be called "nodata": the tables use that name for pixels that were not seen')

    @property
    def channel_count(self) -> int:
        return self.channels if isinstance(self.channels, int) else len(self.channels)

    @property
    def channel_names(self) -> tuple[str, ...] | None:
        return None if isinstance(self.channels, int) else tuple(self.channels)

    @property
    def input_channels(self) -> int:
        """Number of channels of the network's input: those of the slice and of its neighbours, if any."""
        return self.channel_count * (2 * self.neighbours + 1)

    @property
    def normalizations(self) -> list[Normalization]:
        """``normalize`` per channel."""
        return self.normalize if isinstance(self.normalize, list) else [self.normalize] * self.channel_count

    @property
    def is_measured(self) -> bool:
        """Whether scaling needs statistics of each case."""
        return self.clip_percentiles is not None or not {"zscore", "minmax"}.isdisjoint(self.normalizations)

    @property
    def fixed(self) -> tuple[list[float], list[float]] | None:
        """``mean`` and ``std`` per channel, 0 and 1 for channels that are not ``fixed``; None if none is."""
        own = [one == "fixed" for one in self.normalizations]
        if not any(own):
            return None
        mean, std = (
            [value if mine else other for value, mine in zip(self.column(key), own, strict=True)]
            for key, other in (("mean", 0.0), ("std", 1.0))
        )
        return mean, std

    @property
    def limits(self) -> tuple[list[float], list[float]] | None:
        """Lower and upper limits per channel, from ``clip`` or ``window``; None if neither is set."""
        pairs = _pairs(self.clip) or [(centre - width / 2, centre + width / 2) for centre, width in _pairs(self.window)]
        if not pairs:
            return None
        each = pairs * self.channel_count if len(pairs) == 1 else pairs
        return [low for low, _ in each], [high for _, high in each]

    def of_channel(self, channel: int) -> Self:
        """The contract of one channel, for a file that holds only this channel."""
        each = {key: value[channel] for key in _LISTS if isinstance(value := getattr(self, key), list)}
        name = self.channel_names
        return self.model_copy(update={**each, "channels": 1 if name is None else [name[channel]]})

    @property
    def flip_axes(self) -> tuple[int, ...]:
        """Spatial axes that flips may reverse."""
        return tuple(range(self.ndim)) if self.flips is None else tuple(self.flips)

    def column(self, key: str) -> list[float]:
        """``scale``, ``offset``, ``mean`` or ``std`` as one number per channel."""
        return _per_channel(getattr(self, key), self.channel_count)

    def axes(self, key: str, ndim: int) -> tuple[int, ...] | None:
        """``tile``, ``overlap`` or ``align`` as one integer per spatial axis."""
        value = getattr(self, key)
        if value is None:
            return None
        values = [value] if isinstance(value, int) else value
        if len(values) == 1:
            values = values * ndim
        if len(values) != ndim:
            raise ContractError(f"{key} must have one number or {ndim}, one per spatial axis, got {value}")
        return tuple(values)

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return self.layout.ndim

    @property
    def mask_classes(self) -> list[SegmentationClass]:
        """Classes that a mask can hold, by id, including a binary model's background."""
        classes = sorted(self.classes, key=lambda c: c.id)
        if self.task == "binary" and len(classes) == 1:
            return [SegmentationClass(id=0, name="background"), *classes]
        return classes

    @property
    def scores(self) -> int:
        """Number of output channels with class scores."""
        return 1 if self.task == "binary" else len(self.classes)


_LISTS = ("scale", "offset", "mean", "std", "clip", "window", "normalize")
"""Keys that may have one value per channel."""


def _pairs(value: Pairs | None) -> list[Pair]:
    """The pairs of a key; none if it is not set."""
    return [] if value is None else value if isinstance(value, list) else [value]


def _as_list(value: Pairs | None) -> list[Any]:
    """The value as lists, as TOML writes it."""
    return [list(pair) for pair in value] if isinstance(value, list) else list(value or ())


def _per_channel(value: PerChannel | None, count: int) -> list[float]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value] * count


def parse_contract(values: Mapping[str, Any], origin: str) -> Contract:
    """Check the keys of a contract; messages name ``origin`` as their source."""
    try:
        return Contract.model_validate(dict(values))
    except ValidationError as error:
        raise ContractError(f"{origin}: {readable(error, FORMS)}") from None


def repeated(values: Sequence[Any]) -> list[Any]:
    """Values that occur more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


def _listed(values: Sequence[Any]) -> str:
    """The first few values, and the number of the others."""
    more = len(values) - LISTED
    return ", ".join(shortened(v) for v in values[:LISTED]) + (f" and {more} more" if more > 0 else "")


def read_contract(path: Path) -> Contract:
    """The contract in a TOML file."""
    try:
        values = read_toml(path)
    except OSError as error:
        raise ContractError(f"the contract cannot be read: {path}: {error.strerror}") from None
    except DocumentError as error:
        raise ContractError(f"{path} {error}") from None
    return parse_contract(values, str(path))


def contract_of_metadata(metadata: Mapping[str, str], channels: int | None, scores: int | None = None) -> Contract | None:
    """The contract inside an ONNX file, in segpipe's form or in Deepness's; None if there is none.

    Args:
        metadata: the file's ``metadata_props``.
        channels: number of channels of the model's input, if fixed.
        scores: number of channels of the model's output, if fixed.
    """
    if METADATA_KEY in metadata:
        try:
            values = parse_json(metadata[METADATA_KEY], most=MOST_BYTES)
        except DocumentError as error:
            raise ContractError(f'metadata "{METADATA_KEY}" of the model {error}') from None
        if not isinstance(values, dict):
            raise ContractError(f'metadata "{METADATA_KEY}" of the model must be a JSON object, got {shown_value(values)}')
        return parse_contract(values, f'metadata "{METADATA_KEY}" of the model')
    check_deepness_type(metadata)
    values = deepness_values(metadata, channels, scores)
    if {"mean", "std"} <= values.keys():
        return parse_contract({"version": 1, **values}, "Deepness metadata of the model")
    return None


def check_deepness_type(metadata: Mapping[str, str]) -> None:
    """Check that a model with a declared type is a segmentation model.

    Raises:
        ContractError: Deepness would interpret its output as something else.
    """
    kind = metadata.get("model_type", "Segmentor")
    kind = str(_as_json(kind) or kind)
    if kind.casefold() != "segmentor":
        raise ContractError(
            f'a mask needs a model of class scores, and its Deepness metadata says model_type = "{shortened(kind)}": '
            "where its output is class scores all the same, say so with --contract"
        )


def deepness_values(metadata: Mapping[str, str], channels: int | None, scores: int | None = None) -> dict[str, Any]:
    """Contract keys from the metadata of QGIS's Deepness plugin.

    Deepness divides pixels by 255, then standardises; its models return probabilities; ``resolution`` is in cm per pixel and
    ``tiles_overlap`` in per cent; a model with one score separates background from one class by ``seg_thresh``, which other
    models do not use. Without mean and std the scaling is unknown, so none is returned.
    """
    try:
        return _deepness_values(metadata, channels, scores)
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ContractError(f"the model's Deepness metadata cannot be read ({shortened(error)}): give --contract") from None


def _deepness_values(metadata: Mapping[str, str], channels: int | None, scores: int | None) -> dict[str, Any]:
    read = {key: value for key in _DEEPNESS_KEYS if (value := _as_json(metadata.get(key, ""))) is not None}
    values: dict[str, Any] = {}
    names = read.get("class_names", read.get("names"))
    names = names[0] if isinstance(names, list) and names else names  # of the first output, where there are several
    if isinstance(names, dict):
        first = 1 if scores == 1 and len(names) == 1 else 0  # the one name is not the background's
        values["classes"] = [{"id": int(i) + first, "name": str(name)} for i, name in names.items()]
    if scores == 1:
        values["task"] = "binary"
    if "standardization_mean" in read and "standardization_std" in read:
        values |= {"scale": 1 / 255, "normalize": "fixed", "activation": "none"}
        values |= {"mean": read["standardization_mean"], "std": read["standardization_std"]}
        values["channels"] = channels or len(values["mean"])
    if (tile := read.get("tile_size", read.get("tiles_size"))) is not None:
        values["tile"] = [tile]
        values["overlap"] = [round(tile * read.get("tiles_overlap", 0) / 100)]
    if "resolution" in read:
        values["spacing"] = [read["resolution"] / 100] * 2
    if "seg_thresh" in read and scores == 1:
        values["threshold"] = read["seg_thresh"]
    return values


_DEEPNESS_KEYS = {
    "class_names",
    "names",
    "resolution",
    "tile_size",
    "tiles_size",
    "tiles_overlap",
    "standardization_mean",
    "standardization_std",
    "seg_thresh",
}


def _as_json(text: str) -> Any:
    """Parse a JSON text; None if it is not JSON: another program may use a key of the same name."""
    try:
        return parse_json(text, most=MOST_BYTES)
    except DocumentError:
        return None

"""The contract of a model: channels, scaling, tile, classes. It travels inside the ONNX file."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from segpipe.contract.checks import PER_CHANNEL, check_contract
from segpipe.contract.inputs import ModelInput, over_dates
from segpipe.contract.keys import (
    IMAGE_TOLERANCE,
    MOST_CHANNELS,
    MOST_CLASSES,
    MOST_NEIGHBOURS,
    MOST_PIXELS,
    ORIENTED,
    VOLUME_TOLERANCE,
    VOLUMES,
    Keys,
    Name,
    Normalization,
    Pair,
    Pairs,
    PerChannel,
    SegmentationClass,
    Size,
    StatisticsOver,
    pairs,
    per_channel,
)
from segpipe.errors import ContractError
from segpipe.geometry.layout import Layout
from segpipe.storage.documents import shortened

JOINED = "joined"
"""Key of ``provenance`` with the names of the models whose labels are joined."""


class Contract(Keys):
    """Everything needed to run a model; validated on construction."""

    _later = frozenset(
        {
            "window",
            "clip_percentiles",
            "range_percentiles",
            "statistics_over",
            "statistics_of",
            "epsilon",
            "neighbours",
            "flips",
            "inputs",
            "axis_order",
            "output_layout",
            "upsampling",
            "margin",
            "crop",
        }
    )

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
    range_percentiles: Pair | None = None
    """Percentiles of each case that ``minmax`` maps to 0 and 1; pixels beyond them keep their values beyond."""
    statistics_of: Literal["channel", "case"] = "channel"
    """Whether each channel has its own statistics, or all channels of a case together."""
    epsilon: float = Field(default=0.0, ge=0, le=1)
    """Added to a case's own standard deviation or range before the division."""
    statistics_over: StatisticsOver | list[StatisticsOver] = "all"
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
    activation: Literal["softmax", "sigmoid", "none", "labels"]
    """Function that turns scores into probabilities; ``none``: they are probabilities; ``labels``: there are no scores, the
    network gives the label of each pixel."""
    task: Literal["multiclass", "binary", "multilabel", "regions"] = "multiclass"
    """``multilabel``: a mask band per class; ``regions``: classes overlap, and one map holds the last of each pixel."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    classes: list[SegmentationClass] = Field(min_length=1, max_length=MOST_CLASSES)
    input: str | None = None
    output: str | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)
    flips: list[int] | None = None
    """Spatial axes that flips for averaging may reverse: numbers, the first axis being 0, or letters, ``x`` for the last
    axis, ``y`` and ``z`` for those before it. None: all."""
    axis_order: list[int] | None = None
    """For volumes without ``orientation``: the axis of the file, the slowest being 0, that becomes each axis of the input of
    the network, or of the volume that a network of images gets slice by slice. None: as stored."""
    inputs: dict[Name, ModelInput] | None = Field(default=None, min_length=1, max_length=MOST_CHANNELS)
    """Inputs of the network by name, if it has several, dates or constants; None: one, which takes all channels."""
    output_layout: Layout | None = None
    """Axis order of the output; None: that of the input, ``layout``."""
    upsampling: Literal["half_pixel", "align_corners"] | None = None
    """Where the pixels of an output lie that is coarser than the tile: spread evenly over it, or with the outermost centres
    on those of the tile. None: ``align_corners`` for an output of ``(n - 1) / s + 1`` pixels of a tile of ``n``, where ``s``
    does not divide ``n``, else ``half_pixel``."""
    margin: list[Annotated[int, Field(ge=0, le=MOST_PIXELS)]] | None = None
    """Pixels on each side of a tile that the network sees and does not score, as valid convolutions; None: none."""
    crop: Literal["nonzero"] | None = None
    """``nonzero``: the network sees the smallest box with all pixels that are not 0 in some channel, whose statistics are
    those of the case; pixels outside are background. None: the whole case."""

    @model_validator(mode="before")
    @classmethod
    def _of_dates(cls, values: Any) -> Any:
        """Repeat the channels and their scaling for each date, if ``dates`` says how many there are."""
        return over_dates(values, PER_CHANNEL) if isinstance(values, Mapping) and "dates" in values else values

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

    @field_validator("tile", "overlap", "margin", mode="before")
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
        check_contract(self)
        return self

    @property
    def gives_labels(self) -> bool:
        """Whether the network gives labels in place of scores."""
        return self.activation == "labels"

    @property
    def scores_layout(self) -> Layout:
        """Axis order of the output."""
        return self.layout if self.output_layout is None else self.output_layout

    @property
    def channel_count(self) -> int:
        """Number of channels."""
        return self.channels if isinstance(self.channels, int) else len(self.channels)

    @property
    def channel_names(self) -> tuple[str, ...] | None:
        """Names of the channels, in the model's order; None if only their number is known."""
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
    def over_nonzero(self) -> list[bool]:
        """Per channel, whether pixels of value 0 are left out of statistics."""
        over = self.statistics_over
        return [one == "nonzero" for one in (over if isinstance(over, list) else [over] * self.channel_count)]

    @property
    def at_zero(self) -> bool:
        """Whether pixels of value 0 mean that there is nothing."""
        return self.crop is not None or any(self.over_nonzero)

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
        windows = [(centre - width / 2, centre + width / 2) for centre, width in pairs(self.window)]
        given = pairs(self.clip) or windows
        if not given:
            return None
        each = given * self.channel_count if len(given) == 1 else given
        return [low for low, _ in each], [high for _, high in each]

    def of_channels(self, chosen: Sequence[int]) -> Self:
        """The contract of some channels, for a file that holds only these."""
        each = {key: [value[k] for k in chosen] for key in PER_CHANNEL if isinstance(value := getattr(self, key), list)}
        name = self.channel_names
        channels = len(chosen) if name is None else [name[k] for k in chosen]
        return self.model_copy(update={**each, "channels": channels, "inputs": None})

    @property
    def flip_axes(self) -> tuple[int, ...]:
        """Spatial axes that flips may reverse."""
        return tuple(range(self.ndim)) if self.flips is None else tuple(self.flips)

    def column(self, key: str) -> list[float]:
        """``scale``, ``offset``, ``mean`` or ``std`` as one number per channel."""
        return per_channel(getattr(self, key), self.channel_count)

    def axes(self, key: str, ndim: int) -> tuple[int, ...] | None:
        """``tile``, ``overlap``, ``align`` or ``margin`` as one integer per spatial axis."""
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
    def is_joined(self) -> bool:
        """Whether it is that of a list of models, whose labels are joined on the case's own grid: no network sees it."""
        return JOINED in self.provenance

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return self.layout.ndim

    @property
    def mask_classes(self) -> list[SegmentationClass]:
        """Classes that a mask can hold, by id, including the background of a binary model or of regions."""
        classes = sorted(self.classes, key=lambda c: c.id)
        if self.task == "regions" or (self.task == "binary" and len(classes) == 1):
            return [SegmentationClass(id=0, name="background"), *classes]
        return classes

    @property
    def scores(self) -> int:
        """Number of output channels: with class scores; with labels, one, or one per class where classes overlap."""
        return 1 if self.task == "binary" or (self.gives_labels and self.task == "multiclass") else len(self.classes)

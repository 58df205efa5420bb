"""Values that the keys of a contract may have, and one class of it."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from segpipe.contract.snomed import checked_concept
from segpipe.geometry.layout import Layout
from segpipe.messages.printable import CONTROL, and_more
from segpipe.storage.documents import shortened

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
StatisticsOver = Literal["all", "nonzero"]
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


class Keys(BaseModel):
    """Base class for keys of a contract. Keys in ``_later`` are written only if set, so older contracts keep their hash."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    _later: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        unset = {key for key in self._later if getattr(self, key) == type(self).model_fields[key].get_default()}
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if key not in unset}


class SegmentationClass(Keys):
    """One class: its id in the mask, its name, its colour, and its channel in the model's output."""

    _later = frozenset({"snomed"})

    id: int = Field(ge=0, lt=MOST_CLASSES)
    name: Name
    color: Color | None = None
    index: int | None = Field(default=None, ge=0, lt=MOST_CLASSES)
    """Channel of the output, or label value in the output; None: the same number as the id."""
    snomed: Snomed | tuple[Snomed, Snomed] | None = None
    """SNOMED CT code of the type, or of the category and of the type, for DICOM; None: a private code."""

    @field_validator("index", mode="before")
    @classmethod
    def _one_output(cls, value: Any) -> Any:
        if isinstance(value, list):
            raise ValueError("index must be one output; several are combined inside the model, by segpipe export attach")
        return value

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
        """Channel of the output, or label value in the output."""
        return self.id if self.index is None else self.index


def duplicates(values: Sequence[Any]) -> list[Any]:
    """Values that occur more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


def listed(values: Sequence[Any]) -> str:
    """The first few values, and the number of the others."""
    return and_more(list(map(shortened, values)), LISTED)


def pairs(value: Pairs | None) -> list[Pair]:
    """The pairs of a key; none if it is not set."""
    return [] if value is None else value if isinstance(value, list) else [value]


def as_lists(value: Pairs | None) -> list[Any]:
    """The value as lists, as TOML writes it."""
    return [list(pair) for pair in value] if isinstance(value, list) else list(value or ())


def per_channel(value: PerChannel | None, count: int) -> list[float]:
    """The value of each channel; none if it is not set."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value] * count

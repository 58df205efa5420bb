"""The header facts of a series, without patient and pixels: the index that a case carries to its worker."""

import pickle
import zlib
from dataclasses import dataclass, field

Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Frame:
    """One plane of pixels: a file of its own, or a frame of an enhanced multi-frame file."""

    path: str
    number: int
    """Position of the frame in its file, from 0."""
    instance: str
    """SOPInstanceUID of the file."""
    position: Vector | None
    """ImagePositionPatient: the centre of the first pixel, in mm, LPS."""
    directions: tuple[Vector, Vector] | None
    """ImageOrientationPatient: the directions in which columns and rows are counted, LPS."""
    spacing: tuple[float, float] | None
    """PixelSpacing: mm between rows, and between columns."""
    shape: tuple[int, int]
    """Rows and columns."""
    slope: float = 1.0
    intercept: float = 0.0
    is_scaled: bool = True
    """Whether its file states slope and intercept."""
    thickness: float | None = None
    """SliceThickness in mm."""
    bits: int = 16
    """BitsStored."""
    signed: bool = False
    keys: tuple[tuple[str, str], ...] = ()
    """Attributes that distinguish planes at one position, such as echo or time; sorted pairs of keyword and value."""
    padding: tuple[int, int] | None = None
    """Least and largest stored value that stand for no value: PixelPaddingValue, PixelPaddingRangeLimit."""
    state: tuple[int, int] | None = field(default=None, compare=False)
    """Size and time of the file when its header was read; pixels are read later, perhaps by hours."""


@dataclass(frozen=True, slots=True)
class Series:
    """The frames that make one volume, and what they share."""

    uid: str
    """SeriesInstanceUID."""
    study: str
    frame_of_reference: str
    modality: str
    description: str
    """SeriesDescription."""
    number: str
    """SeriesNumber."""
    sop_class: str
    photometric: tuple[str, ...]
    """Each PhotometricInterpretation once."""
    samples: int
    """Largest SamplesPerPixel."""
    syntaxes: tuple[str, ...]
    """Each TransferSyntaxUID once."""
    frames: tuple[Frame, ...]
    """In the order of InstanceNumber."""
    label: str = ""
    """Which volume of the series it is, where the series holds several, such as ``echo2``."""
    unusable: str = ""
    """The reason why a file is truncated or its pixels have no values; empty if there is none."""
    lossy: bool = False
    patient_id: str = ""
    """Of a single file, a digest of PatientID; empty in the index of a case, as is the next."""
    patient_name: str = ""
    """A digest of PatientName."""

    @property
    def files(self) -> tuple[str, ...]:
        """Each file once, in the order of the frames."""
        return tuple(dict.fromkeys(frame.path for frame in self.frames))

    @property
    def instances(self) -> tuple[str, ...]:
        """SOPInstanceUID of each file, in the order of ``files``."""
        return tuple({frame.path: frame.instance for frame in self.frames}.values())


def pack(series: Series) -> bytes:
    """A series as few bytes, which travel with its case to workers."""
    return zlib.compress(pickle.dumps(series), 1)


def unpack(packed: bytes) -> Series:
    """The inverse of ``pack``; for what this run packed alone."""
    series = pickle.loads(zlib.decompress(packed))
    assert isinstance(series, Series)
    return series

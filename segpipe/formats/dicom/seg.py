"""Write a mask as a DICOM Segmentation that refers to its source instances, and compare it with the mask."""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import highdicom
import numpy as np
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom import DataElement, Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import RLELosslessEncoder
from pydicom.pixels.utils import iter_pixels
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from segpipe.errors import OutputError
from segpipe.formats.dicom.concepts import concepts_of, schemes, text
from segpipe.formats.dicom.reference import (
    MULTI,
    NOT_A_DEVICE,
    SINGLE,
    UTF8,
    Authorship,
    Instance,
    SourceReference,
    derived_uid,
    drop_clock,
    light_images,
)
from segpipe.formats.style import Segment

Kind = Literal["binary", "labelmap"]

NUMBER = 1000
"""Added to the number of the source's series."""

LABEL = {"binary": "SEG", "labelmap": "LABELMAP"}

PIXEL_DATA_HEAD = 12
"""Bytes of an element of OB before its value: tag, type, two bytes that are reserved, length."""

CODEC = "pydicom"
"""Plugin that compresses and decompresses label maps. GDCM ends the process at frames of an odd number of pixels (3.2.6)."""


@dataclass(frozen=True, eq=False, slots=True)
class SegmentedPlanes:
    """A mask, plane by plane."""

    plane: Callable[[int], NDArray[Any]]
    """Labels ``(bands, rows, columns)`` of a plane; called several times for each."""
    count: int
    """Number of planes."""
    segments: Sequence[Segment]
    """Classes to store, which are numbered from 1."""


@dataclass(frozen=True, eq=False)
class MaskContent:
    """The content of a mask."""

    counts: NDArray[np.int64]
    """Voxels, shape ``(planes, segments)``."""
    overlap: bool
    """Whether a voxel has several segments."""
    digest: str
    """SHA-256 of the labels."""

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which segments have voxels."""
        return self.counts > 0


def content_of(labels: SegmentedPlanes) -> MaskContent:
    """Count the voxels of every segment in every plane."""
    segments = labels.segments
    counts, overlap, digest = np.zeros((labels.count, len(segments)), np.int64), False, hashlib.sha256()
    for k in range(labels.count):
        plane = labels.plane(k)
        digest.update(plane.tobytes())
        counts[k] = _counts(plane, segments)
        overlap = overlap or _overlap(plane, segments)
    return MaskContent(counts, overlap, digest.hexdigest())


def _counts(plane: NDArray[Any], segments: Sequence[Segment]) -> list[int]:
    if len(plane) > 1:
        return [int(np.count_nonzero(shows(plane, segment))) for segment in segments]
    found = np.bincount(plane.reshape(-1), minlength=max(segment.value for segment in segments) + 1)
    return [int(found[segment.value]) for segment in segments]


def _overlap(plane: NDArray[Any], segments: Sequence[Segment]) -> bool:
    """Whether a pixel has several segments."""
    seen = np.zeros(plane.shape[1:], np.bool_)
    for segment in segments if len(plane) > 1 else ():
        shown = shows(plane, segment)
        if (seen & shown).any():
            return True
        seen |= shown
    return False


def shows(plane: NDArray[Any], segment: Segment) -> NDArray[np.bool_]:
    """Which pixels of a plane ``(bands, rows, columns)`` have a segment."""
    shown: NDArray[np.bool_] = plane[segment.band] == segment.value
    return shown


def check_kind(kind: Kind, found: MaskContent) -> None:
    """Refuse a label map of segments that overlap: it has one label for each voxel.

    Raises:
        OutputError: segments overlap.
    """
    if kind == "labelmap" and found.overlap:
        raise OutputError(
            "a SEG of the type LABELMAP has one class per voxel, and this mask has voxels of several classes: "
            "leave out --seg labelmap"
        )


def write_segmentation(
    path: Path, reference: SourceReference, labels: SegmentedPlanes, author: Authorship, kind: Kind
) -> Dataset:
    """Write a SEG to a new file plane by plane, and return its header without pixels.

    Segments without voxels are described, too. Frames without
    voxels are left out, but a mask without any voxel has one empty frame per segment, since a file must have one.

    Args:
        path: of the file.
        reference: source of the planes.
        labels: the mask, on the planes of the source.
        author: what made the mask.
        kind: one bit per voxel and segment, or one label per voxel.

    Raises:
        OutputError: segments overlap in a label map.
    """
    found = content_of(labels)
    check_kind(kind, found)
    header: Dataset = segmentation_header(reference, found, labels.segments, author, kind)
    with tempfile.TemporaryFile(dir=path.parent) as pixels:
        _add_pixels(header, pixels, _images(header, reference, labels), kind)
        header.save_as(path, enforce_file_format=True)
    del header.PixelData
    return header


def segmentation_header(
    reference: SourceReference, found: MaskContent, segments: Sequence[Segment], author: Authorship, kind: Kind
) -> Any:
    """A SEG without pixels: highdicom describes one voxel per plane and segment, whose frames have the same description."""
    shown = found.present if found.present.any() else found.present[:1]
    common, images = reference.common, [*_known(light_images(reference), MULTI if reference.is_multiframe else SINGLE)]
    header: Any = Segmentation(
        source_images=images,
        pixel_array=_one_voxel_each(shown, kind),
        segmentation_type=kind.upper(),
        segment_descriptions=[_description(n, segment, author) for n, segment in enumerate(segments, 1)],
        series_instance_uid=author.series_uid(reference, LABEL[kind]),
        series_number=NUMBER + reference.number,
        sop_instance_uid=author.uid(reference, LABEL[kind]),
        instance_number=1,
        transfer_syntax_uid=RLELossless if kind == "labelmap" else ExplicitVRLittleEndian,
        content_label="SEGMENTATION",
        content_description=NOT_A_DEVICE,
        content_date=common.ContentDate,
        content_time=common.ContentTime,
        series_description=f"segpipe {LABEL[kind]}",
        coding_schemes=schemes(segments),
        specific_character_set=UTF8,
        plane_positions=_positions(reference)[: len(shown)],
        plane_orientation=None,
        pixel_measures=_measures(reference),
        omit_empty_frames=True,
        **author.equipment,
    )
    _complete(header, reference, found)
    return header


def _one_voxel_each(shown: NDArray[np.bool_], kind: Kind) -> NDArray[np.uint8]:
    if kind == "labelmap":
        return np.asarray(shown.any(axis=1), np.uint8)[:, None, None]
    return shown.astype(np.uint8)[:, None, None, :]


def _positions(reference: SourceReference) -> list[highdicom.PlanePositionSequence]:
    return [highdicom.PlanePositionSequence("PATIENT", position) for position in reference.positions]


def _measures(reference: SourceReference) -> highdicom.PixelMeasuresSequence:
    return highdicom.PixelMeasuresSequence(reference.spacing, reference.thickness, reference.gap)


def _description(number: int, segment: Segment, author: Authorship) -> SegmentDescription:
    category, kind = concepts_of(segment)
    algorithm = highdicom.AlgorithmIdentificationSequence(
        "segpipe", codes.DCM.ArtificialIntelligence, author.model[:16], parameters={"MODEL_SHA256": author.model}
    )
    color = highdicom.color.CIELabColor.from_rgb(*segment.color[:3])
    return SegmentDescription(number, text(segment.name), category, kind, "AUTOMATIC", algorithm, display_color=color)


def _complete(header: Dataset, reference: SourceReference, found: MaskContent) -> None:
    """Set the attributes that highdicom cannot know, or takes from chance or the clock."""
    header.Rows, header.Columns = reference.shape
    header.SegmentsOverlap = "YES" if found.overlap else "NO"
    drop_clock(header)
    organization = derived_uid(header.SOPInstanceUID, "dimensions")
    for item in (*header.DimensionOrganizationSequence, *header.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    if reference.is_multiframe:
        _renumber(header, reference)
    _name_class(header, reference.planes[0].sop_class)


def _known(images: Sequence[Dataset], classes: Sequence[str]) -> Iterator[Dataset]:
    """Images of classes that highdicom knows: it refuses private ones, and several files of a class that allows frames."""
    for image in images:
        if image.SOPClassUID not in classes:
            image.SOPClassUID = classes[0]
        yield image


def _renumber(header: Dataset, reference: SourceReference) -> None:
    """Replace references to plane positions in one file by references to the actual source files and frames."""
    for source in _sources(header):
        plane = reference.planes[int(source.ReferencedFrameNumber) - 1]
        source.ReferencedSOPInstanceUID, source.ReferencedFrameNumber = plane.sop_instance, plane.frame
    header.ReferencedSeriesSequence[0].ReferencedInstanceSequence = [*map(_listed, reference.files)]
    header.SourceImageSequence = [*map(_listed, reference.files)]


def _listed(file: Instance) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = file.sop_class, file.sop_instance
    return item


def _name_class(header: Dataset, sop_class: str) -> None:
    """Refer to the source by its own class, where highdicom was given another."""
    listed = [instance for series in header.ReferencedSeriesSequence for instance in series.ReferencedInstanceSequence]
    for item in (*_sources(header), *listed, *header.get("SourceImageSequence", ())):
        item.ReferencedSOPClassUID = sop_class


def _sources(header: Dataset) -> Iterable[Dataset]:
    """References of frames to their sources; the frames of a plane, one per class, share an item, which is given once."""
    groups = header.PerFrameFunctionalGroupsSequence
    derivations = [derivation for group in groups for derivation in group.DerivationImageSequence]
    return {id(source): source for derivation in derivations for source in derivation.SourceImageSequence}.values()


def frames_of(header: Dataset, reference: SourceReference) -> Iterator[tuple[int, int]]:
    """Plane and segment number of each frame; the number is 0 in a label map, whose frames show all segments."""
    positions = np.array(reference.positions)
    shared = header.SharedFunctionalGroupsSequence[0]
    for group in header.PerFrameFunctionalGroupsSequence:
        place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, np.float64)
        identity = group.get("SegmentIdentificationSequence") or shared.get("SegmentIdentificationSequence")
        plane = int(np.linalg.norm(positions - place, axis=1).argmin())
        yield plane, int(identity[0].ReferencedSegmentNumber) if identity else 0


def _images(header: Dataset, reference: SourceReference, labels: SegmentedPlanes) -> Iterator[NDArray[Any]]:
    """The image of each frame, shape ``(rows, columns)``."""
    dtype = np.uint16 if header.BitsAllocated == 16 else np.uint8
    for plane, number in frames_of(header, reference):
        yield _image(labels.plane(plane), labels.segments, number, dtype)


def _image(plane: NDArray[Any], segments: Sequence[Segment], number: int, dtype: Any) -> NDArray[Any]:
    if number:
        return shows(plane, segments[number - 1]).astype(np.uint8)
    if len(plane) == 1:
        numbers: NDArray[Any] = number_of_value(segments, plane.dtype, dtype)[plane[0]]
        return numbers
    image = np.zeros(plane.shape[1:], dtype)
    for position, segment in enumerate(segments, 1):
        image[shows(plane, segment)] = position
    return image


def number_of_value(segments: Sequence[Segment], stored: np.dtype[Any], dtype: Any = np.uint8) -> NDArray[Any]:
    """Segment number of every value of a mask of one band; 0 for background and nodata."""
    numbers = np.zeros(np.iinfo(stored).max + 1, dtype)
    for position, segment in enumerate(segments, 1):
        numbers[segment.value] = position
    return numbers


def _add_pixels(header: Dataset, stream: IO[bytes], images: Iterator[NDArray[Any]], kind: Kind) -> None:
    """Add the pixels of all frames: packed bits through a file, or compressed label maps, which are small."""
    if kind == "labelmap":
        header.PixelData = encapsulate([_encoded(header, image) for image in images])
        header["PixelData"].is_undefined_length = True
        return
    for chunk in _packed(images):
        stream.write(chunk)
    if stream.tell() % 2:
        stream.write(b"\0")
    stream.seek(0)
    header.add(DataElement("PixelData", "OB", stream))


def _encoded(header: Dataset, image: NDArray[Any]) -> bytes:
    encoded: bytes = RLELosslessEncoder.encode(
        image,
        encoding_plugin=CODEC,
        rows=header.Rows,
        columns=header.Columns,
        samples_per_pixel=1,
        bits_allocated=header.BitsAllocated,
        bits_stored=header.BitsStored,
        pixel_representation=0,
        number_of_frames=1,
        photometric_interpretation=header.PhotometricInterpretation,
    )
    return encoded


def _packed(images: Iterator[NDArray[np.uint8]]) -> Iterator[bytes]:
    """Bits of consecutive frames without a gap, the first in the lowest bit (PS3.5, 8.1.1)."""
    rest = np.zeros(0, np.uint8)
    for image in images:
        bits = np.concatenate([rest, image.reshape(-1)]) if rest.size else image.reshape(-1)
        whole = bits.size // 8 * 8
        yield np.packbits(bits[:whole], bitorder="little").tobytes()
        rest = bits[whole:]
    yield np.packbits(rest, bitorder="little").tobytes()


def check_segmentation(path: Path, reference: SourceReference, labels: SegmentedPlanes) -> None:
    """Read a SEG, and compare every frame with the mask.

    Raises:
        OutputError: a frame differs, or one is missing.
    """
    header = dcmread(path, stop_before_pixels=True)
    left = content_of(labels).present
    dtype = np.uint16 if header.BitsAllocated == 16 else np.uint8
    for (plane, number), image in zip(frames_of(header, reference), _stored(path, header), strict=True):
        if not np.array_equal(image, _image(labels.plane(plane), labels.segments, number, dtype)):
            raise OutputError("it does not read back as it was written")
        left[plane, slice(None) if number == 0 else number - 1] = False
    if left.any():
        raise OutputError("it does not read back as it was written: frames are missing")


def _stored(path: Path, header: Dataset) -> Iterator[NDArray[Any]]:
    """The image of every frame of a file."""
    if header.file_meta.TransferSyntaxUID.is_encapsulated:
        yield from iter_pixels(path, raw=True, decoding_plugin=CODEC)
    else:
        yield from _unpacked(path, header)


def _unpacked(path: Path, header: Dataset) -> Iterator[NDArray[np.uint8]]:
    """Frames of packed bits. Readers differ where a frame does not begin with a byte: pydicom 3.0.2 cannot read it."""
    size = header.Rows * header.Columns
    with path.open("rb") as stream:
        dcmread(stream, stop_before_pixels=True)
        start = stream.tell() + PIXEL_DATA_HEAD
        for n in range(header.NumberOfFrames):
            first, skipped = divmod(n * size, 8)
            stream.seek(start + first)
            bits = np.frombuffer(stream.read((skipped + size + 7) // 8), np.uint8)
            flat = np.unpackbits(bits, bitorder="little")[skipped : skipped + size]
            yield flat.reshape(header.Rows, header.Columns)

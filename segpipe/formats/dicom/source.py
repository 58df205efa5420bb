"""Read a DICOM series as a volume: values of the modality on the grid that the audit found."""

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from pydicom.uid import UID

from segpipe.contract import Contract
from segpipe.errors import SourceError
from segpipe.formats.case import EVERY_CASE, Case
from segpipe.formats.dicom.audit import audit
from segpipe.formats.dicom.decoder_process import BYTES as DECODER_BYTES
from segpipe.formats.dicom.pixels import check_decodable, check_padding, padding_of, value_type
from segpipe.formats.dicom.plane_cache import PlaneCache, plane_cache_of
from segpipe.formats.dicom.series import Series, unpack
from segpipe.formats.dicom.stored import plugin_of
from segpipe.formats.identity import FolderListings, Identity, identities, unhidden
from segpipe.formats.nifti.sink import NiftiTemplate
from segpipe.formats.source import Begun, Invalid, Pixels
from segpipe.formats.volume.checks import box_near, check_local, check_overrides, declared_nodata, order_notes
from segpipe.formats.volume.turning import network_grid
from segpipe.geometry.voxel_grid import VoxelGrid
from segpipe.geometry.windows import Window
from segpipe.overrides import AS_STORED, Overrides


@dataclass(frozen=True, slots=True)
class SeriesTemplate:
    """The facts about a series that a sink needs besides its grid."""

    series: Series
    """Frames in the order of the planes of ``grid``."""
    grid: VoxelGrid
    """The grid of the planes as they are stored: plane, row, column."""
    nifti: NiftiTemplate
    """The header of a NIfTI volume on this grid."""


def series_of(case: Case) -> Series:
    """The series of a case, from the search or, for the path of a file alone, from the file.

    Raises:
        SourceError: the file is not of this machine, or is no slice of a volume.
    """
    if isinstance(case.index, bytes):
        return unpack(case.index)
    check_local(case.path, "a series must be files")
    from segpipe.formats.dicom.index import find

    found = find([(Path(case.path).name, case.path)], EVERY_CASE)
    if len(found.cases) != 1 or not isinstance(index := found.cases[0].index, bytes):
        several = f"it has {len(found.cases)}: name one, such as {found.cases[0].path}" if len(found.cases) > 1 else ""
        why = ", ".join([*found.errors.values(), *found.left_out]) or several
        raise SourceError(f"{case.path} must be a slice or a volume: {why}")
    return unpack(index)


class SeriesSource:
    """A series in the model's orientation; a plane is decoded when its first pixel is read."""

    separable = True

    def __init__(self, case: Case, contract: Contract, overrides: Overrides = AS_STORED) -> None:
        series, path = series_of(case), case.path
        if series.unusable:
            raise SourceError(series.unusable)
        check_headers(series)
        check_decodable(path, series)
        _check_use(path, contract, overrides)
        found = audit(series.frames)
        if found.grid is None:
            raise SourceError(f"{path}: {'; '.join(fault.text for fault in found.faults)}")
        self._path, self._series = path, replace(series, frames=tuple(series.frames[n] for n in found.order))
        self.grid = network_grid(found.grid, contract)
        self.dtype = value_type(series.frames)
        self.files: tuple[str, ...] = self._series.files
        self.scene: Mapping[str, Mapping[str, str]] = {}
        self.notes = (*found.notes, *_value_notes(series), *order_notes(found.grid, contract))
        self.template = SeriesTemplate(self._series, found.grid, _header(found.grid))
        self._nodata = declared_nodata(path, self.dtype, overrides.nodata)
        if overrides.nodata is None:
            check_padding(self._series.frames)
        self._padding = None if overrides.nodata is not None else padding_of(self._series.frames, self.dtype)
        self.notes += () if self._padding is None else (_padding_note(series),)
        self._planes: PlaneCache | None = None

    @property
    def unpacked(self) -> int:
        """Bytes of all decoded planes."""
        return math.prod(self.template.grid.shape) * self.dtype.itemsize

    @property
    def block(self) -> int:
        """Bytes of a plane, as stored, as float64 and as decoded."""
        return math.prod(self.template.grid.shape[1:]) * (8 + 8 + self.dtype.itemsize)

    def memory(self, shape: tuple[int, ...]) -> int:
        """The planes that are being decoded: one. Decoded ones lie in TMPDIR."""
        del shape
        return self.block + self._decoder_bytes

    @property
    def _decoder_bytes(self) -> int:
        """Bytes of the process that decodes what no library decodes safely here."""
        bits = max(frame.bits for frame in self._series.frames)
        return DECODER_BYTES if any(plugin_of(UID(syntax), bits) is None for syntax in self._series.syntaxes) else 0

    def empty(self, window: Window) -> bool:
        """False: a series does not state which pixels are valid before they are read."""
        del window
        return False

    def begin(self, window: Window, threads: int | None = None) -> Begun:
        del threads  # reading uses one thread
        box = self.grid.turned.window_back(window, self.grid.shape)
        stored = self._opened().read(box)
        return lambda: self._ended(stored, range(box.start[0], box.stop[0]))

    def read(self, window: Window) -> tuple[Pixels, Invalid | None]:
        return self.begin(window)()

    def _ended(self, stored: NDArray[Any], planes: range) -> tuple[Pixels, Invalid | None]:
        invalid = self._invalid(stored, planes)
        pixels = np.ascontiguousarray(self.grid.turned.array(stored))
        return pixels[None], None if invalid is None else np.ascontiguousarray(self.grid.turned.array(invalid))

    def _invalid(self, stored: NDArray[Any], planes: range) -> Invalid | None:
        """Where stored planes have no value, in their order."""
        marks = []
        if stored.dtype.kind == "f":
            marks.append(~np.isfinite(stored))
        if self._nodata is not None:
            marks.append(stored == self._nodata)
        if self._padding is not None:
            low, high = self._padding[:, planes.start : planes.stop, None, None]
            marks.append((stored >= low) & (stored <= high))
        invalid = np.logical_or.reduce(marks) if marks else None
        return invalid if invalid is not None and invalid.any() else None

    def _opened(self) -> PlaneCache:
        if self._planes is None:
            self._planes = plane_cache_of(self._path, self._series.frames, self.dtype)
        return self._planes

    def near(self, place: tuple[float, ...], most: int) -> Window:
        return box_near(self.grid.shape, place, most)

    def tags(self) -> None:
        """None: slope and intercept, which may differ between slices, are applied already."""

    def close(self) -> None:
        self._planes = None


def check_headers(series: Series) -> None:
    """Refuse a series whose files have changed since the search read their headers: the new pixels may have another
    place and slope.

    Raises:
        SourceError: the size or time of a file has changed. A missing file is reported when it is read.
    """
    for path, state in {frame.path: frame.state for frame in series.frames}.items():
        with suppress(FileNotFoundError):
            now = os.stat(path)  # noqa: PTH116 - a Path for each of 100,000 files takes a second
            if state is not None and (now.st_size, now.st_mtime_ns) != state:
                raise SourceError(f"{path} has changed since its header was read: run the same command again")


def _check_use(path: str, contract: Contract, overrides: Overrides) -> None:
    """Refuse series that are not supported."""
    check_overrides(path, overrides)
    if contract.channel_count != 1:
        raise SourceError(
            f"{path} has one channel, and the model takes {contract.channel_count}: convert the series to NIfTI files, one "
            "per channel, or take a model of one channel"
        )


def _value_notes(series: Series) -> list[str]:
    scales = sorted({(frame.slope, frame.intercept) for frame in series.frames})
    notes = []
    if scales != [(1.0, 0.0)]:
        scale = " of its own" if len(scales) > 1 else f" {scales[0][0]:g} and intercept {scales[0][1]:g}"
        notes.append(f"values are stored * slope + intercept, with slope{scale}" + " for each slice" * (len(scales) > 1))
    if series.photometric == ("MONOCHROME1",):
        notes.append("PhotometricInterpretation is MONOCHROME1, which inverts the display; values are not inverted")
    if series.lossy:
        notes.append("the images were compressed with loss (LossyImageCompression)")
    return notes


def _padding_note(series: Series) -> str:
    ranges = {frame.padding for frame in series.frames if frame.padding is not None}
    (low, high), *more = sorted(ranges)
    stored = "of each slice" if more else f"{low}" if low == high else f"{low} to {high}"
    return (
        f"pixels of PixelPaddingValue, {stored} as stored, are invalid: the mask has nodata there; --nodata none takes "
        "them as values"
    )


def _header(grid: VoxelGrid) -> NiftiTemplate:
    """The header of a volume on a grid of planes, rows and columns; sform and qform say the same."""
    family: Any = nibabel.Nifti1Header
    header = family()
    affine = grid.affine[:, [2, 1, 0, 3]]
    header.set_data_shape(grid.shape[::-1])
    header.set_zooms(grid.spacing[::-1])
    header.set_xyzt_units("mm")
    header.set_sform(affine, 1)
    header.set_qform(affine, 1)
    return NiftiTemplate(header.binaryblock, header.endianness, packed=True)


def is_same_series(place: str, files: Sequence[Identity], case: Case, listings: FolderListings) -> bool:
    """Whether the files of a series are those of a record, each unchanged, none more and none less."""
    if place != listings.place(case.path) or not (paths := files_of_series(case)):
        return False
    now = identities(case.path, paths, listings)
    return unhidden(files, [file["path"] for file in now]) == now


def files_of_series(case: Case) -> Sequence[str]:
    """The files of a case that the search found; none if it was not searched for."""
    return unpack(case.index).files if isinstance(case.index, bytes) else ()

"""Write the mask of a series: a NIfTI volume on the series' own grid, and the DICOM files that are made of it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pydicom
from numpy.typing import NDArray

from segpipe.errors import OutputError, SourceError, one_line
from segpipe.formats.dicom.source import Origin
from segpipe.formats.dicom.stored import UNREADABLE
from segpipe.formats.nifti.sink import NiftiSink, is_own_volume
from segpipe.formats.sink import Sink, Target
from segpipe.geometry.windows import Window
from segpipe.storage import Store
from segpipe.storage.files import output_errors

SEG = ".seg.dcm"

OWN = "segpipe"
"""Manufacturer (0008,0070) of the DICOM files that segpipe writes."""

REFUSED = (ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError)
"""What pydicom and highdicom raise for values of a source that a DICOM file cannot have."""


class SeriesSink:
    """Writes the NIfTI volume; the files that are made of it are written and compared before any file gets its name."""

    def __init__(self, target: Target) -> None:
        assert isinstance(target.origin, Origin)
        self._target, self._origin = target, target.origin
        self._volume = NiftiSink(replace(target, origin=target.origin.nifti))
        self.name = self._volume.name
        self.size = 0

    @cached_property
    def _derived(self) -> dict[str, Callable[[Path], None]]:
        """Names of the files that are made of the mask, and what writes them, in order."""
        target = self._target
        wanted = target.derived.seg if target.style.segments else "none"
        return {target.stem + SEG: self._write_seg} if wanted != "none" else {}

    def files(self) -> Sequence[str]:
        return (self.name, *self._derived)

    def write(self, window: Window, values: NDArray[Any]) -> None:
        self._volume.write(window, values)

    def finish(self) -> list[str]:
        output = self._target.output
        try:
            with ExitStack() as drafts:
                for name, write in self._derived.items():
                    with _refused(output.path(name)):
                        write(drafts.enter_context(output.draft_of(name)))
                self._volume.finish()
            self.size = self._volume.size
        finally:
            self.discard()
        return [*self.files()]

    def _write_seg(self, path: Path) -> None:
        from segpipe.formats.dicom.reference import lenient
        from segpipe.formats.dicom.seg import check_segmentation, write_segmentation

        kind = self._target.derived.seg
        assert kind != "none"
        with lenient():
            write_segmentation(path, self._reference, self._labels, self._author, kind)
            check_segmentation(path, self._reference, self._labels)

    @cached_property
    def _labels(self) -> Any:
        from segpipe.formats.dicom.seg import Labels

        return Labels(self._volume.plane, self._origin.grid.shape[0], self._target.style.segments)

    @cached_property
    def _reference(self) -> Any:
        from segpipe.formats.dicom.reference import reference_of, tags

        path = self._origin.series.frames[0].path
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags())
        except UNREADABLE as error:
            raise SourceError(f"{path} cannot be read as DICOM: {type(error).__name__}: {one_line(error)[:200]}") from error
        return reference_of(self._origin.series, header)

    @cached_property
    def _author(self) -> Any:
        from segpipe.formats.dicom.reference import Authorship
        from segpipe.formats.dicom.seg import survey

        return Authorship((self._target.style.tags or {})["MODEL_SHA256"], survey(self._labels).digest)

    def discard(self) -> None:
        self._volume.discard()


@contextmanager
def _refused(path: str) -> Iterator[None]:
    """Say which file a library refuses to write; without its message, which may have values of the patient."""
    try:
        yield
    except OutputError as error:
        raise OutputError(f"{path} cannot be written: {error}") from error
    except REFUSED as error:
        raise OutputError(
            f"{path} cannot be written: the source has values that it cannot repeat ({type(error).__name__}): "
            "check the source with dciodvfy, or leave the file out with --seg none"
        ) from error


def series_sink(target: Target) -> Sink:
    """The sink of a mask or a confidence of a series."""
    return SeriesSink(target)


def is_own_file(output: Store, name: str) -> bool:
    """Whether segpipe wrote a volume or a DICOM file.

    Raises:
        OutputError: the file cannot be read now, but may be readable later.
    """
    if not name.endswith(".dcm"):
        return is_own_volume(output, name)
    try:
        with output_errors(output.path(name)), output.local(name) as path:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Manufacturer"])
            return bool(header.get("Manufacturer") == OWN)
    except UNREADABLE:  # errors of the storage are an OutputError by now
        return False

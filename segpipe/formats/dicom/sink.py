"""Write the mask of a series: a NIfTI volume on the series' own grid, and the DICOM files that are made of it."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from numpy.typing import NDArray

from segpipe.errors import OutputError, SourceError
from segpipe.formats.dicom.pixels import Decoder, value_type
from segpipe.formats.dicom.series import Series
from segpipe.formats.dicom.source import SeriesTemplate
from segpipe.formats.dicom.stored import UNREADABLE, error_text
from segpipe.formats.nifti.sink import NiftiSink, is_own_volume
from segpipe.formats.sink import Sink, Target
from segpipe.geometry.windows import Window
from segpipe.storage import Store
from segpipe.storage.files import output_errors

SEG, REPORT, CAPTURE = ".seg.dcm", ".sr.dcm", ".sc.dcm"

OWN = "segpipe"
"""Manufacturer (0008,0070) of the DICOM files that segpipe writes."""

REFUSED = (ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError)
"""Errors of pydicom and highdicom for source values that a DICOM file cannot have."""


class SeriesSink:
    """Writes the NIfTI volume; the files that are made of it are written and compared before any file gets its name."""

    def __init__(self, target: Target) -> None:
        assert isinstance(target.template, SeriesTemplate)
        self._target, self._template = target, target.template
        self._volume = NiftiSink(replace(target, template=target.template.nifti))
        self.name = self._volume.name
        self.size = 0
        self._header = pydicom.Dataset()
        if self._derived:
            _check_identified(target.output.path(next(iter(self._derived))), self._template.series)

    @cached_property
    def _derived(self) -> dict[str, Callable[[Path], None]]:
        """Names of the files that are made of the mask, and what writes them, in order."""
        target = self._target
        if target.derived.seg == "none" or not target.style.segments:
            return {}
        more = {REPORT: self._write_report, CAPTURE: self._write_capture} if target.derived.report else {}
        return {target.stem + suffix: write for suffix, write in {SEG: self._write_seg, **more}.items()}

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
            self._header = write_segmentation(path, self._reference, self._labels, self._author, kind)
            check_segmentation(path, self._reference, self._labels)

    def _write_report(self, path: Path) -> None:
        """After the SEG, to whose segments it refers."""
        from segpipe.formats.dicom.reference import lenient
        from segpipe.formats.dicom.report import measurement_report

        shown = dict(zip(self._labels.segments, self._survey.counts.sum(axis=0).tolist(), strict=True))
        lesions = self._target.tables().get("lesions", ())
        with lenient():
            _save(measurement_report(self._reference, self._header, shown, lesions, self._author), path)

    def _write_capture(self, path: Path) -> None:
        from segpipe.formats.dicom.capture import pictures_of, write_capture
        from segpipe.formats.dicom.reference import lenient

        with lenient(), self._decoded() as values:
            pictures = pictures_of(self._reference, values, self._labels, self._survey.counts)
            write_capture(path, self._reference, pictures, self._author)

    @contextmanager
    def _decoded(self) -> Iterator[Callable[[int], NDArray[Any]]]:
        """The decoder of source planes."""
        frames = self._template.series.frames
        numbers = Counter(frame.path for frame in frames)
        with closing(Decoder(value_type(frames))) as decoder:
            yield lambda k: decoder.plane(frames[k], alone=numbers[frames[k].path] == 1)

    @cached_property
    def _labels(self) -> Any:
        from segpipe.formats.dicom.seg import SegmentedPlanes

        return SegmentedPlanes(self._volume.plane, self._template.grid.shape[0], self._target.style.segments)

    @cached_property
    def _reference(self) -> Any:
        from segpipe.formats.dicom.reference import reference_of, tags

        path = self._template.series.frames[0].path
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags())
        except UNREADABLE as error:
            raise SourceError(f"{path} cannot be read as DICOM: {type(error).__name__}: {error_text(error)}") from error
        return reference_of(self._template.series, header)

    @cached_property
    def _survey(self) -> Any:
        from segpipe.formats.dicom.seg import content_of

        return content_of(self._labels)

    @cached_property
    def _author(self) -> Any:
        from segpipe.formats.dicom.reference import EQUIPMENT, Authorship

        tags = self._target.style.tags or {}
        return Authorship(tags["MODEL_SHA256"], self._survey.digest, self._target.derived.model or EQUIPMENT)

    def discard(self) -> None:
        self._volume.discard()


def _check_identified(path: str, series: Series) -> None:
    """Check, before inference, that a file can refer to its source.

    Raises:
        OutputError: the source has no UID.
    """
    uids = {"StudyInstanceUID": (series.study,), "SOPInstanceUID": series.instances}
    if lacking := [keyword for keyword, values in uids.items() if not all(values)]:
        raise OutputError(
            f"{path} cannot be written: it refers to its source, where a file has no {lacking[0]}: write the series again "
            "with it, or leave the file out with --seg none and without --report"
        )


def _save(dataset: Any, path: Path) -> None:
    """Write a small file, read it, and compare.

    Raises:
        OutputError: it differs.
    """
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    path.write_bytes(buffer.getvalue())
    written = path.read_bytes()
    if written != buffer.getvalue() or pydicom.dcmread(BytesIO(written)).SOPInstanceUID != dataset.SOPInstanceUID:
        raise OutputError("it does not read back as it was written")


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
            "check the source with dciodvfy, or leave the file out with --seg none and without --report"
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

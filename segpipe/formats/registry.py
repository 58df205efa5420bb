"""The table of formats: how files are found and opened, and which sink writes their masks.

A new format is a line in ``FORMATS``. Its modules are imported when its first case is opened.
"""

import os
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from segpipe.contract import Contract
from segpipe.errors import OutputError, SourceError, on_failure
from segpipe.formats.case import RASTER as RASTER  # noqa: PLC0414
from segpipe.formats.case import SCENE, Case, CaseSelection, ChannelFiles, FamilyCases, Finder
from segpipe.formats.channels import per_channel
from segpipe.formats.dicom import family as dicom
from segpipe.formats.format import Format as Format  # noqa: PLC0414
from segpipe.formats.format import MapFormat
from segpipe.formats.format import OpenMask as OpenMask  # noqa: PLC0414
from segpipe.formats.nifti import family as nifti
from segpipe.formats.nrrd import family as nrrd
from segpipe.formats.process_state import release_of, released_after
from segpipe.formats.raster import family as raster
from segpipe.formats.scenes import family as scenes
from segpipe.formats.source import Source
from segpipe.geometry.grid import Grid
from segpipe.overrides import AS_STORED, Overrides
from segpipe.process.extras import install
from segpipe.storage import Store

CONFIDENCE = ".confidence"
"""Text between the name of a case and the suffix of its confidence."""

VOLUMES, SERIES, DECODER = (
    "segpipe.formats.volume.unpacked_files",
    "segpipe.formats.dicom.plane_cache",
    "segpipe.formats.dicom.decoder_process",
)
"""Modules that keep something for the next opening of a case."""

FORMATS: dict[str, Format] = {
    family.name: family
    for family in (
        Format(
            name=RASTER,
            suffixes=(".tif", ".tiff", ".vrt", ".jp2", ".j2k", ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".img"),
            open=raster.open_case,
            sink=raster.sink,
            outputs=(".tif", ".png", ".tif.aux.xml"),
            owns=raster.is_own,
            environment=raster.environment,
            drafts=raster.drafts,
            cache=raster.cache,
            is_same_input=raster.is_same_input,
            verify=raster.verify,
            style=raster.style,
            read_mask=raster.read_mask,
            open_mask=raster.open_mask,
            maps=MapFormat(raster.style_of, raster.map_sink),
            unchanged=raster.unchanged,
        ),
        Format(
            name=SCENE,
            suffixes=(),
            open=scenes.open_case,
            sink=raster.sink,
            outputs=(".tif", ".png", ".tif.aux.xml"),
            owns=raster.is_own,
            drafts=raster.drafts,
            cache=raster.cache,
            is_same_input=scenes.is_same_input,
            verify=scenes.verify,
            style=raster.style,
            read_mask=raster.read_mask,
            open_mask=raster.open_mask,
            files=scenes.files,
            maps=MapFormat(raster.style_of, raster.map_sink),
        ),
        Format(
            name="nifti",
            suffixes=(".nii", ".nii.gz"),
            open=nifti.open_case,
            sink=nifti.sink,
            outputs=(".nii", ".nii.gz"),
            owns=nifti.is_own,
            verify=nifti.verify,
            unchanged=released_after(VOLUMES),
            release=release_of(VOLUMES),
            read_mask=nifti.read_mask,
            per_channel=True,
            extra="medical",
            area_columns=("ml",),
        ),
        Format(
            name="nrrd",
            suffixes=(".nrrd", ".nhdr"),
            open=nrrd.open_case,
            sink=nrrd.sink,
            outputs=(".nrrd",),
            owns=nrrd.is_own,
            verify=nrrd.verify,
            unchanged=released_after(VOLUMES),
            release=release_of(VOLUMES),
            read_mask=nrrd.read_mask,
            per_channel=True,
            extra="medical",
            area_columns=("ml",),
        ),
        Format(
            name="dicom",
            suffixes=(".dcm", ".dicom", ".ima"),
            open=dicom.open_case,
            sink=dicom.sink,
            outputs=(".nii", ".nii.gz", ".seg.dcm", ".sr.dcm", ".sc.dcm"),
            owns=dicom.is_own,
            is_same_input=dicom.is_same_input,
            files=dicom.files,
            verify=dicom.verify,
            unchanged=released_after(SERIES, DECODER),
            release=release_of(SERIES),
            read_mask=nifti.read_mask,
            extra="medical",
            area_columns=("ml",),
            derives=True,
            derived_space=dicom.derived_space,
            derived_memory=dicom.derived_memory,
            uids=dicom.uids,
            finder=Finder(dicom.may_be, dicom.is_one, dicom.find),
        ),
    )
}


def element_of(cases: Iterable[Case]) -> str:
    """``voxel`` if all cases are volumes, else ``px``."""
    return "voxel" if {FORMATS[name].element for name in {case.format for case in cases}} == {"voxel"} else "px"


def by_suffix() -> dict[str, Format]:
    """The format of each suffix; a search of a folder finds files with these suffixes."""
    return {suffix: family for family in FORMATS.values() for suffix in family.suffixes}


def split_suffix(name: str, known: Container[str]) -> tuple[str, str]:
    """Stem and suffix of a file's name or path; a suffix such as ``.nii.gz`` is kept whole if it is in ``known``.

    >>> split_suffix("a/T1.NII.gz", {".nii.gz"}), split_suffix("a/b.c.tif", {".tif"}), split_suffix("a.b/.c", {})
    (('a/T1', '.NII.gz'), ('a/b.c', '.tif'), ('a.b/.c', ''))
    """
    stem, last = os.path.splitext(name)  # noqa: PTH122 - fast for 100,000 names
    shorter, before = os.path.splitext(stem)  # noqa: PTH122
    if before and (before + last).lower() in known:
        return shorter, before + last
    return (name, "") if last == "." else (stem, last)


def format_of(name: str, known: dict[str, Format] | None = None) -> str:
    """Name of the format of a file by its suffix; ``RASTER`` if no format has this suffix.

    Args:
        name: name or path of the file.
        known: result of ``by_suffix()``, to save time over many calls.
    """
    known = by_suffix() if known is None else known
    family = known.get(split_suffix(name, known)[1].lower())
    return RASTER if family is None else family.name


def format_at(path: str) -> str:
    """Name of the format of a local file: by its suffix, or by its content if the suffix is ambiguous."""
    name = os.path.basename(path)  # noqa: PTH119
    finders = [(f.name, f.finder) for f in FORMATS.values() if f.finder is not None and format_of(name) == RASTER]
    return next((own for own, finder in finders if finder.may_be(name) and finder.is_one(path)), format_of(name))


def open_case(case: Case, contract: Contract, overrides: Overrides = AS_STORED) -> Source:
    """Open a case with its format.

    Raises:
        SourceError: it cannot be opened, or an optional dependency is not installed.
        OutsideError: it lies outside the area of interest.
    """
    source = _open(case, contract, overrides)
    if overrides.aoi is None and overrides.validity is None:
        return source
    with on_failure(source.close):
        return _restricted(source, case, contract, overrides)


def _restricted(source: Source, case: Case, contract: Contract, overrides: Overrides) -> Source:
    from segpipe.formats.restricted import restricted

    return restricted(source, case, contract, overrides)


def _open(case: Case, contract: Contract, overrides: Overrides) -> Source:
    """All of a case, whatever the user asks for."""
    if isinstance(case.index, ChannelFiles):
        return _open_channels(case, contract, overrides)
    family = FORMATS[case.format]
    with _extra_of(family, case.path):
        return family.open(case, contract, overrides)


def _open_channels(case: Case, contract: Contract, overrides: Overrides) -> Source:
    """Open a case with one file per channel; the first one's format writes the mask."""
    from segpipe.formats.stacked import Stacked

    each = [(replace(one, format=format_of(one.path)), own) for one, own in per_channel(case, contract)]
    return Stacked([_open(one, own, overrides) for one, own in each])


def find_in_family(name: str, files: Sequence[tuple[str, str]], choice: CaseSelection) -> FamilyCases:
    """The cases of the format ``name``, which has a finder, among some files.

    Raises:
        SourceError: an optional dependency is not installed.
    """
    family = FORMATS[name]
    if family.finder is None or not files:
        return FamilyCases()
    with _extra_of(family, files[0][1]):
        return family.finder.find(files, choice)


def read_mask(name: str, output: Store, file: str) -> tuple[NDArray[Any], Grid]:
    """Read a mask of the format ``name``: its bands ``(bands, *grid)``, and the grid of its file.

    Raises:
        OutputError: it is not there, or is damaged.
        SourceError: an optional dependency is not installed.
    """
    family, path = FORMATS[name], output.path(file)
    if family.read_mask is None or not output.has(file):
        raise OutputError(f"{path} must be a mask that segpipe wrote, and cannot be read: run again with the same output")
    with _extra_of(family, path), output.local(file) as local:
        return family.read_mask(local)


@contextmanager
def _extra_of(family: Format, path: str) -> Iterator[None]:
    """If an optional dependency of a format is missing, raise an error with the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if family.extra is None or (error.name or "").partition(".")[0] == "segpipe":
            raise
        raise SourceError(
            f"{path}: {' and '.join(family.suffixes)} files need {error.name}, which is not installed: "
            f"run {install(family.extra)}"
        ) from error


@contextmanager
def environment(threads: int = 1) -> Iterator[None]:
    """Context that every thread enters before it opens cases, reads them or writes masks, for all formats.

    Args:
        threads: number of threads that may decode one window together.
    """
    with ExitStack() as stack:
        for family in FORMATS.values():
            stack.enter_context(family.environment(threads))
        yield


@contextmanager
def unchanged() -> Iterator[None]:
    """Context at whose end the libraries of all formats are as before in this process."""
    with ExitStack() as stack:
        for family in FORMATS.values():
            stack.enter_context(family.unchanged())
        yield


def release() -> None:
    """Free what formats keep in this process for the next opening of a case."""
    for family in FORMATS.values():
        family.release()


def kinds(families: Sequence[Format]) -> list[str]:
    """The endings of the names of masks and confidences of some formats, after the name of the case."""
    return [kind + suffix for kind in ("", CONFIDENCE) for family in families for suffix in family.outputs]

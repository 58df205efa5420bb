"""Read NRRD volumes, with attached or detached voxels."""

from segpipe.formats.nifti.header import Volume
from segpipe.formats.nifti.source import NiftiSource
from segpipe.formats.nrrd.header import read_nrrd


class NrrdSource(NiftiSource):
    """As ``NiftiSource``, which differs in its header alone."""

    how_to_place = (
        "its space is not RAS, LAS or LPS, so that left and right are a guess: set space, with 3D Slicer or nrrd.write"
    )

    def _read(self, path: str, several: int) -> tuple[Volume, object]:
        return read_nrrd(path, several)

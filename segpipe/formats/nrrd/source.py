"""Read NRRD volumes, with attached or detached voxels."""

from segpipe.formats.nrrd.header import read_nrrd
from segpipe.formats.volume.file import Volume
from segpipe.formats.volume.source import VolumeSource


class NrrdSource(VolumeSource):
    """A volume with an NRRD header."""

    how_to_place = (
        "its space is not RAS, LAS or LPS, so that left and right are a guess: set space, with 3D Slicer or nrrd.write"
    )

    def _read(self, path: str, several: int) -> tuple[Volume, object]:
        return read_nrrd(path, several)

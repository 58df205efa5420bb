"""Read NIfTI volumes; nibabel parses their headers."""

from segpipe.formats.nifti.header import read_volume
from segpipe.formats.nifti.sink import origin_of
from segpipe.formats.volume.file import Volume
from segpipe.formats.volume.source import VolumeSource


class NiftiSource(VolumeSource):
    """A volume with a NIfTI header."""

    how_to_place = (
        "its sform_code and qform_code are 0, so that left and right are a guess: set its affine with nibabel's "
        "img.set_sform(affine, 1)"
    )

    def _read(self, path: str, several: int) -> tuple[Volume, object]:
        volume = read_volume(path, several)
        return volume, origin_of(volume)

"""Disk space and memory of the DICOM files derived from a mask, from shapes alone."""

from segpipe.formats.sink import Derived, Space

PRESENT = 0.25
"""Share of the planes in which a class likely is: each class of a CT of the trunk is in few of them."""

RUNS = 0.03
"""Likely size of a run-length encoded label map over that of its labels."""

CAPTURED = 32 * 512 * 512 * 3
"""Most bytes of the pictures of a secondary capture."""

LIBRARIES, FRAME = 200 * 10**6, 10_000
"""Bytes of memory of highdicom and what it imports, while it is loaded, and of the description of a frame (measured)."""


def derived_memory(derived: Derived, classes: int, planes: int) -> float:
    """Bytes of memory that writing a Segmentation likely takes; a report and pictures, written after it, take less."""
    if derived.seg == "none":
        return 0.0
    return LIBRARIES + FRAME * planes * (max(1, PRESENT * classes) if derived.seg == "binary" else 1)


def derived_space(derived: Derived, classes: int, voxels: float) -> Space:
    """Space of a Segmentation and, if requested, of a measurement report and a secondary capture.

    A Segmentation of the type BINARY has a bit per voxel of each plane that a class is in. A label map has a byte per voxel,
    or two if there are more than 255 classes.
    """
    if derived.seg == "none":
        return Space()
    if derived.seg == "binary":
        most = classes * voxels / 8
        likely = max(1, PRESENT * classes) * voxels / 8
    else:
        most = voxels * (1 if classes < 256 else 2)
        likely = RUNS * most
    captured = min(CAPTURED, 3 * voxels) if derived.report else 0
    return Space(likely + captured, most + captured, 3 if derived.report else 1)

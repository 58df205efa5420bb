"""Memory of DICOM files that are derived from a mask, against that of a process which writes them."""

import subprocess
import sys
from pathlib import Path

import pytest

from segpipe.formats.dicom.space import derived_memory
from segpipe.formats.sink import Derived

WRITE = """
import sys
import numpy as np
import segpipe.formats.dicom.source

def most():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

before = most()
import test_dicom_report
from dicom_series import series_of, slices
from pathlib import Path
from segpipe.formats.dicom.capture import pictures_of, write_capture
from segpipe.formats.dicom.reference import reference_of
from segpipe.formats.dicom.seg import SegmentedPlanes, check_segmentation, content_of, write_segmentation
from segpipe.formats.style import Segment

folder, (planes, classes), author = Path(sys.argv[1]), (200, 30), test_dicom_report.AUTHOR
labels = np.repeat(np.arange(1, classes + 1, dtype=np.uint8), 64 * 64 // classes + 1)[: 64 * 64].reshape(1, 64, 64)
headers = slices((planes, 64, 64))
reference = reference_of(series_of(headers), headers[0])
shown = SegmentedPlanes(lambda k: labels * (k % 4 == 0), planes, [Segment(f"{n}", n) for n in range(1, classes + 1)])
seg = write_segmentation(folder / "a.seg.dcm", reference, shown, author, "binary")
check_segmentation(folder / "a.seg.dcm", reference, shown)
counts = content_of(shown).counts
voxels = dict(zip(shown.segments, counts.sum(axis=0).tolist()))
report = test_dicom_report.measurement_report(reference, seg, voxels, (), author)
report.save_as(folder / "a.sr.dcm", enforce_file_format=True)
write_capture(folder / "a.sc.dcm", reference, pictures_of(reference, lambda k: labels[0], shown, counts), author)
print(most() - before)
"""


def test_the_memory_of_writing_is_that_of_a_process(tmp_path: Path) -> None:
    tests = Path(__file__).parent
    code = f"import sys; sys.path[:0] = [{str(tests)!r}, {str(tests.parent)!r}]" + WRITE
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = derived_memory(Derived("binary", report=True), 30, 200)
    assert 0.4 * expected < int(done.stdout) < expected


@pytest.mark.parametrize(("seg", "expected"), [("none", 0.0), ("labelmap", 203e6), ("binary", 222.5e6)])
def test_the_memory_depends_on_the_frames(seg: str, expected: float) -> None:
    assert derived_memory(Derived(seg), 30, 300) == expected  # type: ignore[arg-type]

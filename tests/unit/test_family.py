"""The functions of the table of formats: they are there before the libraries of any format."""

import subprocess
import sys

LIBRARIES = ("rasterio", "nibabel", "nrrd", "pydicom", "highdicom")


def test_the_table_is_imported_without_the_libraries_of_its_formats():
    code = f"import sys, segpipe.formats.registry; print([name for name in {LIBRARIES} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

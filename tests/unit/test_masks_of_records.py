"""The masks that records name, by hand."""

from pathlib import Path

import pytest

from segpipe.errors import OutputError
from segpipe.results.masks import mask_name, stored_mask
from segpipe.results.schema import Amount, Record, RecordedInput, RecordedModel
from segpipe.storage.folder import Folder


def record(*outputs: str, form: str = "raster") -> Record:
    source = RecordedInput("/in/a", (3, 4), (), format=form)
    return Record("a", "1", source, RecordedModel("0"), {}, False, outputs, Amount(0, 0.0, "ha"), {"areas": []})


def test_the_mask_has_the_suffix_of_its_format_and_the_confidence_its_own_name() -> None:
    several = record("a.confidence.tif", "a.qml", "a.tif")
    assert (mask_name(several), mask_name(several, ".confidence")) == ("a.tif", "a.confidence.tif")
    assert mask_name(record("a.nii.gz", form="nifti")) == "a.nii.gz"
    assert mask_name(record("a.qml")) is None


def test_a_mask_that_is_gone_is_an_error_with_its_mend(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"a mask")
    assert stored_mask(Folder(tmp_path), record("a.tif")) == "a.tif"
    (tmp_path / "a.tif").unlink()
    with pytest.raises(OutputError, match=r"the mask of a must be in .*, and is not: run again with the same output"):
        stored_mask(Folder(tmp_path), record("a.tif"))

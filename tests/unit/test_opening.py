"""What is read of a case, and what its record vouches for, are of one file."""

import shutil
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import volumes

from segpipe.errors import SourceError
from segpipe.formats.cases import find_cases
from segpipe.network.read import read_spec
from segpipe.pipeline import opening
from segpipe.pipeline.opening import open_checked
from segpipe.settings import load_settings


@pytest.mark.parametrize("kind", ["volume", "raster"])
def test_a_file_that_is_replaced_while_its_header_is_read_is_not_taken(
    kind: str, tmp_path: Path, raster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one of equal length that lies elsewhere."""
    if kind == "volume":
        model = networks.volumetric(tmp_path / "m.onnx", (8, 12, 10))
        path = volumes.write(tmp_path / "a.nii", volumes.voxels())
        other = volumes.write(tmp_path / "other.nii", volumes.voxels(), np.diag([2.0, 2, 2, 1]))
    else:
        model = networks.pixelwise(tmp_path / "m.onnx")
        path, other = (Path(raster(name, np.full((3, 40, 50), n, np.uint8))) for n, name in enumerate(("a.tif", "b.tif")))
    assert path.stat().st_size == other.stat().st_size
    spec = read_spec(load_settings(None, {"input": (str(path),), "model": model, "device": "cpu"}))
    (case,) = find_cases([str(path)])
    source, info = open_checked(case, spec)
    source.close()
    assert info.files[0]["path"] == str(path)
    plain = opening.open_case

    def replaced(*given: Any) -> Any:
        source = plain(*given)
        shutil.copyfile(other, tmp_path / "new")
        (tmp_path / "new").replace(path)
        return source

    monkeypatch.setattr(opening, "open_case", replaced)
    with pytest.raises(SourceError, match="has changed while it was processed"):
        open_checked(case, spec)

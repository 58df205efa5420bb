"""Files for which the operating system has no answer: a command ends with the path, the error and the mend."""

import numpy as np
import pytest
from click.testing import CliRunner
from networks import contract, pixelwise, toml
from unreadable import fail

from segpipe.cli import main


def told(*words):
    """What a command says on stderr as it ends with 2."""
    ended = CliRunner().invoke(main, [str(word) for word in words])
    assert ended.exit_code == 2, ended.output
    return ended.stderr.strip()


@pytest.fixture
def model(tmp_path):
    (tmp_path / "m.toml").write_text(toml(contract(1, 2)))
    return pixelwise(tmp_path / "m.onnx", 1, 2)


@pytest.mark.parametrize("name", ["m.onnx", "m.toml"])
def test_a_model_or_its_contract_is_named_with_the_mend(name, model, raster, monkeypatch):
    scene = raster("in/a.tif", np.ones((1, 8, 9), np.uint8))
    fail(monkeypatch, model.with_name(name), "stat")
    flags = ["-m", model, "-o", scene.with_name("out"), "--device", "cpu", "--executor", "serial"]
    assert told("run", "-i", scene, *flags) == (
        f"error: {model.with_name(name)} cannot be read or written: Input/output error: check the disk"
    )

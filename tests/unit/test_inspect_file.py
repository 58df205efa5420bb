"""What is a model, what a raster, what neither, and which flags mean something for it."""

import re
from pathlib import Path

import pytest
from inspecting import EXAMPLE, SCENE, command, told


def text(path: Path) -> Path:
    path.write_text("neither")
    return path


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        (
            "x.bin",
            text,
            "takes an ONNX model, a raster or a volume, and .*x.bin opens as none of them: rasters are GTiff",
        ),
        ("x.onnx", text, "x.onnx is not an ONNX file"),
        ("x.tif", text, "x.tif cannot be opened: .*not recognized"),
        ("x.nii.gz", text, "x.nii.gz is no NIfTI file: its first number must be 348 or 540"),
        ("x.tif", lambda path: path, "takes one file that exists, got .*x.tif"),
        ("x", lambda path: path.mkdir() or path, "no raster or volume found in .*x"),
    ],
)
def test_neither_a_model_nor_a_raster(name, make, words, tmp_path):
    ended = command(make(tmp_path / name), "--json")
    assert ended.exit_code == 2
    assert ended.stdout == ""
    assert re.match(f"error: .*{words}", ended.stderr)


def test_what_it_is_shows_whatever_the_suffix(tmp_path):
    (tmp_path / "m.bin").write_bytes(EXAMPLE.read_bytes())
    (tmp_path / "r.bin").write_bytes(SCENE.read_bytes())
    assert told(tmp_path / "m.bin")["kind"] == "model"
    assert told(tmp_path / "r.bin")["kind"] == "raster"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((SCENE, "--tile", "64"), "--tile counts where a model is given"),
        ((SCENE, "--contract", "c.toml"), "--contract counts where a model is given"),
        ((EXAMPLE, "--bands", "1"), "--bands counts where a raster or a volume is inspected"),
        ((EXAMPLE, "--model", "m.onnx"), "--model counts where a raster or a volume is inspected"),
        ((SCENE, "--bands", "0"), "bands are counted from 1"),
        ((SCENE, "--model", "m.onnx"), "the model must exist, got m.onnx"),
    ],
)
def test_flags_that_mean_nothing_are_refused(arguments, words):
    ended = command(*arguments)
    assert ended.exit_code == 2
    assert words in ended.stderr

"""Damaged files of every kind that a command takes: what can be shown is, and what is wrong is one line."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from inspecting import settings, sidecar
from mutants import DAMAGES, bases, damaged
from networks import contract, local, pixelwise, pooling
from safetensors.torch import save_file

from segpipe.errors import SegpipeError
from segpipe.export.attach import attach
from segpipe.export.network import open_network
from segpipe.export.settings import ExportSettings
from segpipe.export.terms import Terms
from segpipe.export.unet import UNet
from segpipe.inspect.facts import as_json
from segpipe.inspect.file import inspect_file
from segpipe.inspect.show import print_facts
from segpipe.storage.folder import Folder
from segpipe.tune.measure import tune
from segpipe.tune.settings import TuneSettings

RASTERS, MODELS, CHECKPOINTS = 100, 150, 100
"""Files that are damaged, each in its own way by its number."""

LONGEST = 1500


def error_of(command, *arguments):
    """The error of a command as a user sees it, None where there is none; what is no error of segpipe's ends the test."""
    try:
        command(*arguments)
    except SegpipeError as error:
        return str(error)
    return None


def assert_told(text):
    if text is not None:
        assert "\n" not in text or "[[classes]]" in text, text  # the contract to fill in has lines
        assert len(text) < LONGEST, text
        assert "does not know" not in text, text


def shown(file, **flags):
    facts = inspect_file(settings(file, **flags))
    json.loads(as_json(facts))
    print_facts(facts)
    assert_told(facts.error)
    return facts


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    return bases(tmp_path_factory.mktemp("bases"))


@pytest.mark.slow
def test_damaged_rasters_are_inspected_or_refused(kinds, tmp_path, capsys):
    """Alone and under a model; most have a header that can be shown."""
    model, seen, refused = pixelwise(tmp_path / "m.onnx", normalize="none"), 0, 0
    for number in range(RASTERS):
        base = kinds[number % len(kinds)]
        _, files = damaged(base, np.random.default_rng(number))
        folder = tmp_path / f"{number}"
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        file = folder / next(iter(files))
        alone, under = error_of(shown, file), error_of(lambda file=file: shown(file, model=model))
        assert_told(alone)
        assert (alone is None) == (under is None)
        seen += alone is None
        refused += alone is not None
    assert seen > RASTERS / 2
    assert refused > RASTERS / 20
    capsys.readouterr()


def test_a_raster_of_a_damaged_block_shows_its_header(kinds, tmp_path):
    base = next(base for base in kinds if base.name == "deflate-tiles")
    (tmp_path / "a.tif").write_bytes(base.files["a.tif"][: len(base.files["a.tif"]) // 2])
    facts = shown(tmp_path / "a.tif")
    assert (facts.driver, facts.crs, len(facts.bands)) == ("GTiff", "EPSG:32633", 3)
    assert "a.tif cannot be read at row" in facts.error


def mutants(files, count):
    for number in range(count):
        rng = np.random.default_rng(number)
        file = files[number % len(files)]
        data = bytearray(file.read_bytes())
        DAMAGES[int(rng.integers(len(DAMAGES)))](data, rng)
        mutant = file.with_stem("mutant")
        mutant.write_bytes(bytes(data))
        yield number, mutant


@pytest.mark.slow
def test_damaged_models_are_inspected_attached_and_tuned_or_refused(tmp_path, capsys):
    (tmp_path / "whole").mkdir()
    sidecar(tmp_path / "c.toml", contract(3, 3))
    files = [make(tmp_path / "whole" / f"{make.__name__}.onnx") for make in (pixelwise, pooling, local)]
    out = tmp_path / "out.onnx"
    for number, mutant in mutants(files, MODELS):
        assert_told(error_of(shown, mutant))
        out.unlink(missing_ok=True)
        raised = error_of(attach, mutant, tmp_path / "c.toml", out)
        assert_told(raised)
        assert out.exists() == (raised is None)
        if number % 10 == 0:
            choices = {"tiles": (64,), "overlaps": (16,), "batches": (1,), "seconds": 0.1}
            assert_told(error_of(lambda mutant=mutant, choices=choices: tune(TuneSettings(mutant, **choices), str)))
    capsys.readouterr()


def test_weights_that_do_not_fit_their_shape_are_one_line(tmp_path):

    path = pixelwise(tmp_path / "m.onnx")
    proto = onnx.load(str(path))
    proto.graph.initializer[0].dims[0] += 1
    onnx.save(proto, str(path))
    sidecar(tmp_path / "c.toml", contract(3, 3))
    with pytest.raises(SegpipeError, match=r"m\.onnx is damaged: its tensor .* cannot be read"):
        attach(path, tmp_path / "c.toml", tmp_path / "out.onnx")


def checkpoints(root: Path) -> list[Path]:
    torch.manual_seed(0)
    net, small = UNet(3, 2, widths=(4, 6)).eval(), torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3, padding=1)).eval()
    torch.save(net.state_dict(), root / "zip.pt")
    torch.save(net.state_dict(), root / "legacy.ckpt", _use_new_zipfile_serialization=False)
    save_file(net.state_dict(), root / "s.safetensors")
    torch.jit.trace(small, torch.zeros(1, 3, 8, 8)).save(str(root / "script.pth"))
    torch.export.save(torch.export.export(small, (torch.zeros(2, 3, 8, 8),)), root / "program.pt2")
    return sorted(root.iterdir())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_damaged_checkpoints_are_opened_or_refused(tmp_path):
    (tmp_path / "whole").mkdir()
    terms = Terms(
        {"classes": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}], "channels": 3, "tile": [64], "normalize": "none"}
    )
    for _, mutant in mutants(checkpoints(tmp_path / "whole"), CHECKPOINTS):
        own = {} if mutant.suffix in (".pt2", ".pth") else {"arch": "unet", "options": {"widths": [4, 6]}}
        exported = ExportSettings(weights=mutant, output=tmp_path / "o.onnx", **own)
        assert_told(error_of(open_network, exported, terms))


def test_a_message_of_a_codec_is_one_line(kinds, tmp_path):
    """OpenJPEG ends its own with a line end."""
    base = next(base for base in kinds if base.name == "lossless.jp2")
    (tmp_path / "a.jp2").write_bytes(base.files["a.jp2"][: len(base.files["a.jp2"]) // 2])
    facts = shown(tmp_path / "a.jp2")
    assert "a.jp2 cannot be read at row" in facts.error


def test_a_pipe_in_the_output_holds_up_no_run(tmp_path):

    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(OSError, match="it must be a regular file"):
        Folder(tmp_path).read("a.json")

"""What ``segpipe inspect`` says of models, in a terminal and as JSON."""

import json
import math
import re

import onnx
import pytest
from inspecting import EXAMPLE, SHARED_MODELS, command, model_facts, settings, sidecar, told
from networks import Network, contract, pixelwise, volumetric

from segpipe.network.read import read_spec


def test_a_model_in_a_terminal(segpipe):
    ended = segpipe("inspect", EXAMPLE, env={"COLUMNS": "80", "PATH": ""})
    assert ended.returncode == 0
    assert ended.stderr == ""
    assert max(map(len, ended.stdout.splitlines())) <= 80
    for words in (
        r"image  float32 \(batch, 4, rows, cols\)",
        "opset +ai.onnx 20; IR 10",
        "176,391 in 705.6 kB",
        "2.86 G for one tile, 1 x 4 x 256 x 256",
        "channels +4: B02, B03, B04, B08",
        r"scaling +x = \(pixel \* 0.0001 - mean\) / std",
        "mean +0.0556, 0.0838, 0.0763, 0.2925",
        "tile +256 x 256, overlap 64 x 64, align 8 x 8",
        "spacing +10 x 10 m",
        "6  rapeseed +#f4e01f",
        "architecture +unet",
    ):
        assert re.search(words, ended.stdout), words


def test_a_model_as_json(segpipe):
    """Nothing else on stdout, keys that stay, numbers as numbers."""
    ended = segpipe("inspect", EXAMPLE, "--json")
    facts = json.loads(ended.stdout)
    assert list(facts) == [
        *("kind", "file", "bytes", "producer", "ir", "opset", "operators", "inputs", "outputs", "parameters", "metadata"),
        *("flops", "contract_origin", "contract", "tiling", "sha256", "error"),
    ]
    assert facts["kind"] == "model"
    assert facts["bytes"] == EXAMPLE.stat().st_size
    assert facts["opset"] == {"ai.onnx": 20}
    assert facts["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["batch", 4, "rows", "cols"]}]
    assert facts["outputs"] == [{"name": "scores", "dtype": "float32", "shape": ["batch", 7, "rows", "cols"]}]
    assert facts["parameters"]["types"] == {"float32": facts["parameters"]["count"]}
    assert facts["contract"]["classes"][1] == {"id": 1, "name": "forest", "color": "#1f6b3a", "index": None}
    assert facts["tiling"] == {"tile": [256, 256], "overlap": [64, 64], "align": [8, 8]}
    assert facts["error"] is None


def test_a_model_of_volumes(segpipe, tmp_path):
    """FLOPs by hand: 2 per weight and voxel."""
    terms = {"spacing": [2.0, 1.0, 1.0], "orientation": "RAS", "align": 2}
    ended = segpipe("inspect", volumetric(tmp_path / "m.onnx", (8, 12, 10), **terms))
    assert ended.returncode == 0
    flops = 2 * 3 * 3**3 * 8 * 12 * 10
    for words in (
        rf"FLOPs +{flops / 1e3:.3g} k for one tile, 1 x 1 x 8 x 12 x 10",
        "tile +8 x 12 x 10, overlap 2 x 3 x 2, align 2 x 2 x 2",
        "spacing +2.0 x 1.0 x 1.0 mm, within 1%|spacing +2 x 1 x 1 mm, within 1%",
        "orientation +RAS",
        "layout +NCDHW",
    ):
        assert re.search(words, ended.stdout), (words, ended.stdout)


def test_the_identity_is_that_of_a_run(tmp_path):
    assert model_facts(EXAMPLE).sha256 == read_spec(settings(EXAMPLE)).sha256


def test_verification_is_shown_whatever_it_holds(tmp_path):
    verification = {"labels": {"agree": 0.99991, "worst image": "a.png"}, "max [logits]": 3e-06, "runs": [1, 2]}
    provenance = {"verification": verification, "own": {}, "date": "2026-11-21", "framework": "torch 2.15.0"}
    path = pixelwise(tmp_path / "m.onnx", provenance=provenance)
    lines = command(path).stdout.split("provenance\n")[1].splitlines()
    assert [re.split("  +", line.strip()) for line in lines if line] == [
        ["framework", "torch 2.15.0"],
        ["date", "2026-11-21"],
        ["own", "{}"],
        ["verification.labels.agree", "0.99991"],
        ["verification.labels.worst image", "a.png"],
        ["verification.max [logits]", "3e-06"],
        ["verification.runs", "[1, 2]"],
    ]
    assert told(path)["contract"]["provenance"] == provenance


def test_what_json_has_no_number_or_date_for_is_a_string(tmp_path):
    path = sidecar(tmp_path / "c.toml", contract())
    path.write_text(path.read_text() + "\n[provenance]\ndate = 2026-11-21\nmiou = nan\n")
    facts = told(pixelwise(tmp_path / "m.onnx"), "--contract", path)
    assert facts["contract"]["provenance"] == {"date": "2026-11-21", "miou": "nan"}
    assert re.search(r"date +2026-11-21", command(tmp_path / "m.onnx", "--contract", path).stdout)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scale": 1.0}, "x = pixel"),
        ({"scale": [1.0, 2.0, 2.0], "offset": -1.0}, "x = pixel * scale + -1"),
        ({"clip": [0, 1], "pixel": "physical"}, "x = clip(physical value by the file's tags * 0.00392157, 0, 1)"),
        ({"normalize": "fixed", "mean": 0.5, "std": [0.1, 0.2, 0.3]}, "x = (pixel * 0.00392157 - 0.5) / std"),
        ({"normalize": "zscore", "scale": 1.0}, "x = pixel; then mean 0 and deviation 1 over the case's valid pixels"),
        ({"normalize": "minmax", "scale": 1.0}, "x = pixel; then 0 to 1 over the case's valid pixels"),
        ({"scaling": "graph"}, "inside the model, which takes pixels as they are"),
    ],
)
def test_scaling_in_one_line(changes, words, tmp_path):
    shown = command(pixelwise(tmp_path / "m.onnx", **changes), COLUMNS="120").stdout
    assert re.search(rf"^scaling +{re.escape(words)} *$", shown, re.MULTILINE)


def test_many_classes_run_in(tmp_path):
    classes = [{"id": i, "name": f"class [{i}]", "color": "#aabbcc"} for i in range(150)]
    path = Network(3).conv(3, 150, 1).save(tmp_path / "m.onnx", contract(classes=classes), classes=150)
    shown = command(path, COLUMNS="80").stdout
    assert "149 class [149]" in " ".join(shown.split())
    assert len(shown.splitlines()) < 60
    assert len(told(path)["contract"]["classes"]) == 150


def test_a_model_without_contract_gives_its_facts_and_the_lines_to_write(segpipe, tmp_path):
    path = Network(4).conv(4, 6, 3).save(tmp_path / "m.onnx", None, classes=6, shape=("n", 128, 96))
    ended = segpipe("inspect", path)
    assert ended.returncode == 1
    assert "parameters  222" in ended.stdout
    assert "contract, from" not in ended.stdout
    assert re.search(r"no contract .*\nWrite these lines.*\n\nversion = 1\nchannels = 4", ended.stderr)
    (tmp_path / "m.toml").write_text(ended.stderr.split("\n\n", 1)[1])
    facts = told(path)
    assert facts["contract_origin"] == str(tmp_path / "m.toml")
    assert facts["flops"]["total"] == 2 * 128 * 96 * 6 * 4 * 9


@pytest.mark.parametrize(
    ("classes", "changes", "words", "shown"),
    [
        (3, {"normalize": "mean"}, "normalize: must be", False),
        (3, {"channels": 4}, "got 4 in the contract .* and 3 in", True),
        (5, {}, "gives 5 scores per pixel", True),
        (3, {"tile": [60, 60], "align": 32}, "tile must be a multiple of align", True),
        (3, {"tile": [64, 64, 64]}, "tile must have one number or 2", True),
    ],
)
def test_a_contract_that_is_broken_or_does_not_fit(classes, changes, words, shown, tmp_path):
    net = Network(3).conv(3, classes, 1)
    path = net.save(tmp_path / "m.onnx", contract(**changes), classes=classes)
    facts = told(path, code=1)
    assert facts["parameters"]["count"] == 4 * classes
    assert (facts["contract"] is not None) is shown
    ended = command(path)
    assert ended.exit_code == 1
    assert re.search(words, facts["error"])
    assert facts["error"] in ended.stderr


def test_a_contract_of_its_own_file_wins(tmp_path):
    path = pixelwise(tmp_path / "m.onnx", tile=[64, 64])
    sidecar(tmp_path / "m.toml", contract(tile=[96, 96]))
    assert told(path)["tiling"]["tile"] == [96, 96]
    other = sidecar(tmp_path / "c.toml", contract(tile=[128, 128]))
    assert told(path, "--contract", other)["tiling"]["tile"] == [128, 128]
    assert told(path, "--contract", other, "--tile", "32")["flops"]["shape"] == [1, 3, 32, 32]


@pytest.mark.shared_data
@pytest.mark.parametrize("path", sorted(SHARED_MODELS.rglob("*.onnx")), ids=lambda path: path.stem)
def test_real_models_without_contract(path):
    facts = told(path, code=1)
    sizes = [t.dims for t in onnx.load(path).graph.initializer]
    assert facts["parameters"]["count"] == sum(map(math.prod, sizes))
    assert "has no contract" in facts["error"]

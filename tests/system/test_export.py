"""Exports as a user makes them: labels of a run are torch's, or an error says why there is no file."""

import hashlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import onnx
import onnxruntime
import pytest
import rasterio
import torch
from command import invoke
from onnx import numpy_helper
from scenes import PATIENCE
from torch import Tensor, nn
from torch.nn import functional

from segpipe.cli import main
from segpipe.errors import ContractError, DisagreementError, ExportError, SegpipeError, SettingsError
from segpipe.export import large, make
from segpipe.export.families import smp
from segpipe.export.graph import Scorer, topologically_sorted
from segpipe.export.make import Exported, export_model
from segpipe.export.outputs import find_scores
from segpipe.export.settings import ExportSettings, export_settings
from segpipe.process.extras import install

TILE = 64
CLASSES = ["water", "wood", "field"]
SCALED = 'scale = 0.01\noffset = -1.0\nnormalize = "none"\n'


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    """Commands in this process must leave its signals as they were."""
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


# --- networks, found here by ``--module test_export:Small`` ---------------------------------------------------------------

Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensor": lambda scores, other: scores,
    "dict": lambda scores, other: {"aux": other, "out": scores},
    "tuple": lambda scores, other: (scores, other),
    "list": lambda scores, other: [scores, other],
    "named tuple": Pair,
    "dataclass": Output,
    "dataclass in a tuple": lambda scores, other: (Output(scores, other), other),
    "flat": lambda scores, other: scores[:, 0],
    "scores last": lambda scores, other: [other, {"masks": scores}],
    "nothing of the kind": lambda scores, other: {"boxes": other, "more": [other]},
    "nothing at all": lambda scores, other: None,
}
TRICKY = ("flat", "nothing of the kind", "nothing at all")


def scores_in(output: Any) -> Tensor:
    """The tensor that `FORMS` put the scores into: the one of fewest channels."""
    if isinstance(output, Tensor):
        return output
    parts = output.values() if isinstance(output, dict) else vars(output).values() if isinstance(output, Output) else output
    return min(map(scores_in, parts), key=lambda tensor: tensor.shape[1])


class Small(nn.Module):
    """A stem with batch norm and dropout, one pooling, and a head; its scores are smaller than the image if not ``full``."""

    def __init__(
        self,
        channels: int = 3,
        classes: int = 3,
        form: str = "tensor",
        *,
        pool: int = 2,
        full: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(8, classes, 1)
        self.form, self.pool, self.full = form, pool, full

    def forward(self, image: Tensor) -> Any:
        features = functional.max_pool2d(torch.relu(self.norm(self.stem(image))), self.pool)
        scores = self.head(self.dropout(features))
        if self.full:
            scores = functional.interpolate(scores, scale_factor=float(self.pool), mode="nearest")
        return FORMS[self.form](scores, features)


class Plain(nn.Module):
    """What TorchScript can read whole."""

    def __init__(self, channels: int = 3, classes: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        features = torch.max_pool2d(torch.relu(self.norm(self.stem(image))), 2)
        return functional.interpolate(self.head(self.dropout(features)), scale_factor=2.0, mode="nearest")


class Restless(Plain):
    """Drops out whatever its mode is."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(functional.dropout(image, 0.5, training=True))


def not_a_network() -> int:
    return 3


def seeded(net: nn.Module, seed: int = 0, *, calibrate: bool = True) -> Any:
    """Weights that make every class likely, and statistics as training leaves them."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
        channels = net.stem.in_channels
        for _ in range(3):
            net.norm(net.stem(torch.randn(2, channels, 16, 16)))
        net.eval()
        if not calibrate:
            return net
        image = torch.from_numpy(pixels(channels=channels)[None] * np.float32(0.01) - 1)
        net.head.weight /= scores_in(net(image)).std()
        net.head.bias -= scores_in(net(image)).mean((0, -2, -1))
    return net


# --- fixtures -------------------------------------------------------------------------------------------------------------


def class_lines(names: list[str]) -> str:
    return "".join(f'[[classes]]\nid = {i}\nname = "{name}"\n' for i, name in enumerate(names))


@pytest.fixture
def terms(tmp_path: Path) -> Callable[..., Path]:
    """A TOML file for ``--classes``."""

    def write(keys: str = SCALED, names: list[str] | None = None) -> Path:
        path = tmp_path / "classes.toml"
        path.write_text(keys + class_lines(CLASSES if names is None else names))
        return path

    return write


def traced(net: nn.Module, path: Path, channels: int = 3) -> Path:
    """As a TorchScript program: it is exported in a tenth of a second."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(net, torch.zeros(2, channels, TILE, TILE), check_trace=False).save(path)
    return path


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return traced(seeded(Plain()), tmp_path / "w.pt")


@pytest.fixture
def export(tmp_path: Path, terms: Callable[..., Path]) -> Callable[..., Exported]:
    """Export into ``m.onnx``."""

    def run(weights: Path, **flags: Any) -> Exported:
        usual = {"output": tmp_path / "m.onnx", "bands": ("r", "g", "b"), "tile": (TILE,)}
        if "classes" not in flags:
            flags["classes"] = str(terms())
        return export_model(ExportSettings(weights=weights, **{**usual, **flags}), lambda line: None)

    return run


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., click.testing.Result]:
    """``segpipe export`` in this process; nothing but ``SystemExit`` may come of it."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: Any) -> click.testing.Result:
        ended = click.testing.CliRunner().invoke(main, ["export", *map(str, arguments)])
        assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exc_info
        return ended

    return run


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def scores_of(model: Path | bytes, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def of_torch(net: nn.Module, images: np.ndarray) -> np.ndarray:
    """Scores in double precision, so that differences are ONNX Runtime's."""
    with torch.no_grad():
        scores = net.double()(torch.from_numpy(np.asarray(images, np.float64)))
        net.float()
    return scores_in(scores).numpy()


def pixels(dtype: str = "uint8", channels: int = 3, size: int = TILE) -> np.ndarray:
    """Blocks of 1 to 16 pixels over the middle of a type's range."""
    rng = np.random.default_rng(5)
    total = np.zeros((channels, size, size))
    for block in (1, 4, 16):
        coarse = rng.normal(size=(channels, -(-size // block), -(-size // block)))
        total += np.kron(coarse, np.ones((block, block)))[:, :size, :size]
    low, high = {"uint8": (0, 255), "uint16": (0, 400), "int16": (-200, 400)}[dtype]
    return np.clip((high + low) / 2 + (high - low) / 6 * total, *((low, high))).astype(dtype)


def contract_in(model: Path) -> dict[str, Any]:
    props = {p.key: p.value for p in onnx.load(str(model)).metadata_props}
    return dict(json.loads(props["segpipe"]))


def assert_several(labels: np.ndarray, classes: int = 3) -> None:
    shares = np.bincount(labels.ravel(), minlength=classes) / labels.size
    assert (shares[:classes] >= 0.05).sum() >= min(3, classes), f"the premise: classes appear, got {shares}"


# --- from checkpoint to labels --------------------------------------------------------------------------------------------


def test_the_command_of_the_issue(tmp_path, cli, raster):
    """The file that comes out is all that ``segpipe run`` needs, and gives torch's labels; the scene has another order."""
    import segmentation_models_pytorch as smp

    torch.manual_seed(3)
    net = smp.Unet("resnet18", encoder_weights=None, in_channels=4, classes=3)
    bands = ["B04", "B03", "B02", "B08"]
    for _ in range(4):
        net(torch.randn(2, 4, TILE, TILE))
    net.eval()
    torch.save({"state_dict": {f"model.{key}": value for key, value in net.state_dict().items()}}, tmp_path / "unet.pt")
    (tmp_path / "classes.toml").write_text(SCALED + class_lines(CLASSES))
    line = "unet.pt --arch smp:Unet --encoder resnet18 --classes classes.toml --bands B04,B03,B02,B08 --tile 64"
    done = cli(*line.split(), "--output", "unet.onnx")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("unet.onnx: smp:Unet, encoder resnet18, 14,3")
    assert "agrees with torch on 6 tiles of noise" in done.stdout
    steps = ["loading", "measuring", "exporting", "converting", "comparing", "note: keys taken"]
    assert [line for line in done.stderr.splitlines() if not line.startswith(tuple(steps))] == []

    scene = pixels("uint16", 4)
    order = [2, 1, 0, 3]
    raster("in/a.tif", scene[order], descriptions=[bands[i] for i in order])
    line = "run -i in -m unet.onnx -o out --device cpu --executor serial"
    done = click.testing.CliRunner().invoke(main, line.split())
    assert done.exit_code == 0, done.stdout + done.stderr
    with rasterio.open(tmp_path / "out" / "a.tif") as mask:
        labels = mask.read(1)
    wanted = of_torch(net, scene[None] * 0.01 - 1)[0].argmax(0)
    assert (labels == wanted).mean() >= 0.9999
    assert len(np.unique(labels)) > 1


def test_labels_of_a_run_are_those_of_torch(export, tmp_path, raster, run_serial):
    """A folder of scenes larger than a tile would blend; one tile is compared exactly."""
    net = seeded(Small())
    torch.save(net.state_dict(), tmp_path / "w.pt")
    exported = export(tmp_path / "w.pt", module="test_export:Small")
    assert (exported.free_size, exported.stride.align, exported.stride.equivariant) == (True, 2, True)
    scene = pixels()
    out = run_serial(raster("in/a.tif", scene), tmp_path / "m.onnx")
    with rasterio.open(out / "a.tif") as mask:
        labels = mask.read(1)
    np.testing.assert_array_equal(labels, of_torch(net, scene[None] * 0.01 - 1)[0].argmax(0))
    assert_several(labels)


def test_free_sizes_are_right_at_sizes_that_were_not_tried(export, tmp_path):
    net = seeded(Small(pool=4, full=False))
    torch.save(net.state_dict(), tmp_path / "w.pt")
    exported = export(tmp_path / "w.pt", module="test_export:Small", options={"pool": 4, "full": False})
    assert exported.free_size
    rng = np.random.default_rng(0)
    for shape in ((1, 3, 128, 32), (4, 3, 20, 76), (2, 3, TILE, TILE)):
        images = rng.normal(size=shape).astype(np.float32)
        wanted = functional.interpolate(
            torch.from_numpy(of_torch(net, images)), size=shape[2:], mode="bilinear", align_corners=False
        )
        np.testing.assert_allclose(scores_of(exported.path, images), wanted, atol=1e-5)


class Placed(Plain):
    """Adds what it has learned for each place of its tile."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1, 3, TILE, TILE))

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image) + self.table


def test_a_network_of_one_size_keeps_it(export, tmp_path):
    net = seeded(Placed())
    torch.save(net.state_dict(), tmp_path / "w.pt")
    exported = export(tmp_path / "w.pt", module="test_export:Placed")
    assert (exported.free_size, exported.stride.equivariant) == (False, False)
    image = np.random.default_rng(0).normal(size=(3, 3, TILE, TILE)).astype(np.float32)
    np.testing.assert_allclose(scores_of(exported.path, image), of_torch(net, image), atol=1e-5)


def test_a_graph_that_is_wrong_at_other_sizes_is_not_left_free(export, tmp_path, monkeypatch):
    """It runs at any size, and mends its scores at the tile's alone: an exporter that froze a size would do so."""
    real = make.to_onnx

    def to_onnx(*arguments: Any, free_size: bool) -> onnx.ModelProto:
        proto = real(*arguments, free_size=free_size)
        node, constant = onnx.helper.make_node, numpy_helper.from_array
        proto.graph.node[-1].output[0] = "right"
        tile = np.array(TILE if free_size else 0, np.int64)
        proto.graph.initializer.extend([constant(tile, "tile"), constant(np.array(3, np.int64), "axis")])
        proto.graph.node.extend(
            [
                node("Shape", ["image"], ["shape"]),
                node("Gather", ["shape", "axis"], ["cols"]),
                node("Greater", ["cols", "tile"] if free_size else ["tile", "cols"], ["wrong"]),
                node("Cast", ["wrong"], ["error"], to=onnx.TensorProto.FLOAT),
                node("Add", ["right", "error"], ["scores"]),
            ]
        )
        return proto

    monkeypatch.setattr(make, "to_onnx", to_onnx)
    torch.save(seeded(Small()).state_dict(), tmp_path / "w.pt")
    assert not export(tmp_path / "w.pt", module="test_export:Small").free_size


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_scores_of_a_fraction_of_the_size_are_upsampled_inside(factor, export, tmp_path):
    """By half-pixel centres, as a run upsamples; the oracle is written out below."""
    net = seeded(Small(pool=factor, full=False))
    exported = export(traced(net, tmp_path / "w.pt"))
    image = np.random.default_rng(0).normal(size=(1, 3, TILE, TILE)).astype(np.float32)
    small = of_torch(net, image)
    place = np.clip((np.arange(TILE) + 0.5) / factor - 0.5, 0, TILE // factor - 1)
    below = np.minimum(np.floor(place).astype(int), TILE // factor - 2)
    share = place - below
    rows = small[:, :, below] * (1 - share)[:, None] + small[:, :, below + 1] * share[:, None]
    wanted = rows[..., below] * (1 - share) + rows[..., below + 1] * share
    np.testing.assert_allclose(scores_of(exported.path, image), wanted, atol=1e-5)
    assert exported.contract.align == factor


# --- what networks give ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [form for form in FORMS if form not in TRICKY])
def test_output_forms_of_networks(form):
    net, image = seeded(Small(form=form)), torch.randn(1, 3, TILE, TILE)
    plain = seeded(Small())
    name, _ = find_scores(net, (1, 3, TILE, TILE), 3)
    torch.testing.assert_close(Scorer(net, name)(image), plain(image))


@pytest.mark.parametrize("form", ["dict", "dataclass in a tuple"])
def test_output_forms_are_exported(form, export, tmp_path):
    net = seeded(Small(form=form))
    torch.save(net.state_dict(), tmp_path / "w.pt")
    exported = export(tmp_path / "w.pt", module="test_export:Small", options={"form": form}, fixed_size=True)
    image = np.random.default_rng(0).normal(size=(1, 3, TILE, TILE)).astype(np.float32)
    np.testing.assert_allclose(scores_of(exported.path, image), of_torch(net, image), atol=1e-5)


def test_output_of_another_form_is_named():
    shapes = re.escape("got outputs boxes (1 x 8 x 32 x 32), more.0 (1 x 8 x 32 x 32): correct")
    with pytest.raises(ExportError, match=shapes):
        find_scores(seeded(Small(form="nothing of the kind"), calibrate=False), (1, 3, TILE, TILE), 3)
    with pytest.raises(ExportError, match=r"must give scores, as a tensor, .*got NoneType"):
        find_scores(seeded(Small(form="nothing at all"), calibrate=False), (1, 3, TILE, TILE), 3)


class Several(Plain):
    """An auxiliary head of as many scores as the main one, as nets with deep supervision have, and a form for the two."""

    def __init__(self, form: str = "list") -> None:
        super().__init__()
        self.aux, self.form = nn.Conv2d(3, 3, 1), form

    def forward(self, image: Tensor) -> Any:
        aux, main = self.aux(image), super().forward(image)
        return {
            "list": [aux, main],
            "tuple": (main, aux),
            "dict": {"side": aux, "fine": main},
            "out": {"aux": aux, "out": main},
            "out of other classes": {"aux": aux, "out": main[:, :2]},
            "logits twice": [{"logits": aux}, {"logits": main}],
            "two conventions": {"pred": aux, "scores": main},
        }[self.form]


AMBIGUOUS = [
    ("list", "0 (1 x 3 x 64 x 64), 1 (1 x 3 x 64 x 64)", "1"),
    ("tuple", "0 (1 x 3 x 64 x 64), 1 (1 x 3 x 64 x 64)", "0"),
    ("dict", "side (1 x 3 x 64 x 64), fine (1 x 3 x 64 x 64)", "fine"),
    ("logits twice", "0.logits (1 x 3 x 64 x 64), 1.logits (1 x 3 x 64 x 64)", "1.logits"),
    ("two conventions", "pred (1 x 3 x 64 x 64), scores (1 x 3 x 64 x 64)", "scores"),
]


@pytest.mark.parametrize(("form", "listed", "main"), AMBIGUOUS)
def test_outputs_that_could_each_be_the_scores_are_an_error_that_lists_them(form, listed, main):
    net, image = seeded(Several(form)), torch.randn(1, 3, TILE, TILE)
    shape = (1, 3, TILE, TILE)
    with pytest.raises(ExportError, match=re.escape(f"2 outputs that could be its scores, {listed}: say which by --score")):
        find_scores(net, shape, 3)
    name, (other,) = find_scores(net, shape, 3, main)
    assert name == main
    assert other in listed.split(", ")
    torch.testing.assert_close(Scorer(net, name)(image), Plain.forward(net, image))


def test_a_name_of_a_library_says_which_is_meant_and_no_other_replaces_it():
    assert find_scores(Several("out").eval(), (1, 3, TILE, TILE), 3) == ("out", ("aux (1 x 3 x 64 x 64)",))
    with pytest.raises(ExportError, match=r"must give 3 scores per pixel, as the classes say, got outputs aux \(1 x 3"):
        find_scores(Several("out of other classes").eval(), (1, 3, TILE, TILE), 3)


@pytest.mark.parametrize(
    ("form", "asked", "message"),
    [
        ("list", "2", "--score must name one of the network's outputs, got 2: it has 0 (1 x 3"),
        ("dict", "0", "got 0: it has side (1 x 3"),
        ("out of other classes", "out", "3 scores per pixel, as the classes say, got output 1 x 2 x 64 x 64 of outputs aux"),
    ],
)
def test_score_must_name_an_output_that_fits(form, asked, message):
    with pytest.raises(ExportError, match=re.escape(message)):
        find_scores(Several(form).eval(), (1, 3, TILE, TILE), 3, asked)
    with pytest.raises(ExportError, match="--score is for networks of several outputs"):
        find_scores(Plain().eval(), (1, 3, TILE, TILE), 3, asked)


@pytest.mark.parametrize("kind", ["module", "traced", "exported"])
def test_the_chosen_output_is_exported_and_recorded(kind, cli, terms, tmp_path):
    """The main head comes second; the first was taken, with 3.8 % of its labels."""
    net = seeded(Several())
    if kind == "module":
        torch.save(net.state_dict(), tmp_path / "w.pt")
    else:
        {"traced": traced, "exported": exported_program}[kind](net, tmp_path / "w.pt")
    line = ["w.pt", "--classes", terms(), "--bands", "r,g,b", "--tile", 64, "--fixed-size", "-o", "m.onnx"]
    line += ["--module", "test_export:Several"] if kind == "module" else []
    refused = cli(*line)
    assert refused.exit_code == 2
    assert "0 (1 x 3 x 64 x 64), 1 (1 x 3 x 64 x 64): say which by --score, as in --score 1" in refused.stderr
    done = cli(*line, "--score", 1)
    assert done.exit_code == 0, done.stderr
    assert "note: scores are the network's output 1; left out: 0 (1 x 3 x 64 x 64)" in done.stderr
    image = np.random.default_rng(0).normal(size=(1, 3, TILE, TILE)).astype(np.float32)
    found = scores_of(tmp_path / "m.onnx", image)
    np.testing.assert_allclose(found, Plain.forward(net, torch.from_numpy(image)).detach(), atol=1e-5)
    provenance = contract_in(tmp_path / "m.onnx")["provenance"]
    assert (provenance["score"], provenance["verification"]["output"]) == ("1", "1")
    assert "agrees with torch's output 1 on 6 tiles" in done.stdout


class Deep(Plain):
    """Deep supervision: scores at each level in a list, the finest last, beside a dataclass, in a dictionary."""

    def forward(self, image: Tensor) -> Any:
        main = super().forward(image)
        coarse = functional.avg_pool2d(main, 4)
        return {"levels": [coarse, functional.avg_pool2d(main, 2), -main], "heads": Output(logits=main, hidden=image)}


@pytest.mark.parametrize(("asked", "sign"), [("heads.logits", 1), ("levels.2", -1)])
def test_a_run_gives_the_labels_of_the_head_that_was_asked_for(asked, sign, cli, terms, tmp_path, raster, run_serial):
    net = seeded(Deep(), calibrate=False)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    line = ["w.pt", "--module", f"{__name__}:Deep", "--classes", terms(), "--bands", "r,g,b", "--tile", 64, "--fixed-size"]
    ended = cli(*line, "-o", "m.onnx", "--score", asked)
    assert ended.exit_code == 0, ended.stderr
    image = pixels()
    out = run_serial(raster("in/a.tif", image), tmp_path / "m.onnx")
    with torch.no_grad():
        wanted = sign * Plain.forward(net, torch.from_numpy(image[None] * np.float32(0.01) - 1))[0]
    with rasterio.open(out / "a.tif") as mask:
        assert (mask.read(1) == wanted.argmax(0).numpy()).mean() >= 0.9999


class Cut(nn.Module):
    """Scores of whatever size."""

    def __init__(self, cut: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.cut = nn.Conv2d(3, 3, 1), cut

    def forward(self, image: Tensor) -> Tensor:
        return self.cut(self.conv(image))


SIZES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "larger": (lambda x: functional.interpolate(x, scale_factor=2.0), "got 128 x 128 for 64 x 64"),
    "cropped on one side": (lambda x: x[..., 3:, 3:], "got 61 x 61 for 64 x 64"),
    "one more": (lambda x: functional.pad(x, (0, 1, 0, 1)), "got 65 x 65 for 64 x 64"),
    "other factors": (lambda x: x[..., ::2, ::4], "got 32 x 16 for 64 x 64"),
    "rows alone": (lambda x: x[..., ::2, :], "got 32 x 64 for 64 x 64"),
    "one score for the image": (lambda x: x.mean((2, 3)), "3 scores per pixel, as the classes say, got output 1 x 3:"),
    "channels last": (lambda x: x.permute(0, 2, 3, 1), "3 scores per pixel, as the classes say, got output 1 x 64 x 64 x 3"),
    "no batch": (lambda x: x[0], "3 scores per pixel, as the classes say, got output 3 x 64 x 64"),
}


@pytest.mark.parametrize("name", SIZES)
def test_scores_that_would_be_stretched_are_refused(name):
    """Bilinear upsampling takes any size; what it made of these would lie beside its pixels."""
    cut, message = SIZES[name]
    with pytest.raises(ExportError, match=re.escape(message)):
        find_scores(Cut(cut), (1, 3, TILE, TILE), 3)


def test_scores_of_another_number_of_images_are_refused():
    """Three maps of one image are no three images of one score."""
    with pytest.raises(ExportError, match="must give 1 scores per pixel, as the classes say, got output 3 x 64 x 64"):
        find_scores(Cut(lambda x: x[0]), (1, 3, TILE, TILE), 1)


def test_scores_that_are_stretched_are_refused_by_the_command(cli, terms, tmp_path):
    traced(Cut(SIZES["one more"][0]), tmp_path / "w.pt")
    ended = cli("w.pt", "-o", "m.onnx", "--classes", terms(), "--bands", "r,g,b", "--tile", 64)
    assert ended.exit_code == 2
    assert "as much less on both sides, got 65 x 65 for 64 x 64: take a tile that is a multiple" in ended.stderr


@pytest.mark.parametrize("classes", [2, 4])
def test_another_number_of_scores(classes, export, tmp_path, terms):
    weights = traced(seeded(Plain()), tmp_path / "w.pt")
    names = [f"c{i}" for i in range(classes)]
    with pytest.raises(ExportError, match=rf"must give {classes} scores per pixel, .*got output 1 x 3 x 64 x 64"):
        export(weights, classes=str(terms(names=names)))
    assert not (tmp_path / "m.onnx").exists()


def test_another_number_of_channels(export, program):
    with pytest.raises(ExportError, match=r"does not run on 1 x 4 x 64 x 64: .*channels"):
        export(program, bands=("r", "g", "b", "n"))


def test_a_network_that_cannot_be_shown_so_small_a_tile(export, tmp_path):
    weights = traced(seeded(Plain()), tmp_path / "w.pt")
    with pytest.raises(ExportError, match="does not run on 1 x 3 x 1 x 1"):
        export(weights, tile=(1,))


@pytest.mark.parametrize(
    ("keys", "names", "scores"),
    [
        ('task = "binary"\n', ["rest", "found"], 1),
        ('task = "binary"\nthreshold = 0.7\n', ["rest", "found"], 1),
        ('task = "multilabel"\n', CLASSES, 3),
    ],
)
def test_other_tasks(keys, names, scores, export, tmp_path, terms, raster, run_serial):
    net = seeded(Plain(classes=scores))
    exported = export(traced(net, tmp_path / "w.pt"), classes=str(terms(keys + SCALED, names)))
    assert (exported.contract.activation, exported.contract.scores) == ("sigmoid", scores)
    scene = pixels()
    with rasterio.open(run_serial(raster("in/a.tif", scene), exported.path) / "a.tif") as mask:
        labels = mask.read()
    threshold = 0.7 if "threshold" in keys else 0.5
    wanted = 1 / (1 + np.exp(-of_torch(net, scene[None] * 0.01 - 1)[0])) > threshold
    np.testing.assert_array_equal(labels, wanted)
    assert 0.05 < labels.mean() < 0.95


def test_a_flat_output_is_one_score(export, tmp_path, terms):
    net = seeded(Small(classes=1, form="flat"))
    weights = traced(net, tmp_path / "w.pt")
    exported = export(weights, classes=str(terms('task = "binary"\n' + SCALED, ["rest", "found"])))
    image = np.random.default_rng(0).normal(size=(2, 3, TILE, TILE)).astype(np.float32)
    np.testing.assert_allclose(scores_of(exported.path, image)[:, 0], of_torch(net, image), atol=1e-5)


@pytest.mark.parametrize(
    ("end", "classes", "keys", "message"),
    [
        (nn.Sigmoid(), 1, 'task = "binary"\n', 'activation = "sigmoid" is for logits, .*Sigmoid: set activation = "none"'),
        (nn.Softmax(1), 3, "", 'activation = "softmax" is for logits, .*Softmax: set activation = "none"'),
        (
            nn.Identity(),
            3,
            'activation = "none"\n',
            'scores are probabilities, .*Conv: set activation = "softmax"',
        ),
    ],
)
def test_an_activation_that_is_not_the_networks_is_refused(end, classes, keys, message, export, tmp_path, terms):
    """Though torch and ONNX Runtime agree: both sides of the comparison share the contract."""
    weights = traced(nn.Sequential(seeded(Small(classes=classes)), end), tmp_path / "w.pt")
    names = ["rest", "found", "more"][: max(classes, 2)]
    with pytest.raises(ContractError, match=message):
        export(weights, classes=str(terms(keys + SCALED, names)))
    assert not (tmp_path / "m.onnx").exists()


class Middle(nn.Module):
    """Scores of the middle of the image, as unpadded convolutions leave them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = seeded(Small())

    def forward(self, image: Tensor) -> Tensor:
        quarter = image.shape[-1] // 4
        scores: Tensor = self.inner(image)[..., quarter:-quarter, quarter:-quarter]
        return scores


def test_a_network_that_shows_the_middle_of_its_tile_has_a_margin(export, tmp_path):
    assert export(traced(Middle(), tmp_path / "w.pt")).contract.margin == [TILE // 4] * 2


# --- modes ----------------------------------------------------------------------------------------------------------------


def test_a_network_saved_in_training_mode_is_exported_in_evaluation(export, tmp_path):
    net = seeded(Small(dropout=0.5))
    net.train()
    torch.save(net, tmp_path / "w.pt")
    exported = export(tmp_path / "w.pt", trust_pickle=True, fixed_size=True)
    image = np.random.default_rng(0).normal(size=(1, 3, TILE, TILE)).astype(np.float32)
    np.testing.assert_allclose(scores_of(exported.path, image), of_torch(net.eval(), image), atol=1e-5)
    assert exported.contract.provenance["architecture"] == "Small"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_a_network_saved_in_another_precision(dtype, export, tmp_path):
    net = seeded(Plain()).to(dtype)
    torch.save(net, tmp_path / "w.pt")
    exported = export(tmp_path / "w.pt", trust_pickle=True, fixed_size=True)
    image = np.random.default_rng(0).normal(size=(1, 3, TILE, TILE)).astype(np.float32)
    np.testing.assert_allclose(scores_of(exported.path, image), of_torch(net.float(), image), atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_scripted_program_can_leave_training_mode(training, export, tmp_path):
    net = seeded(Plain(dropout=0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(net.train(training)).save(tmp_path / "w.pt")
    exported = export(tmp_path / "w.pt")
    image = np.random.default_rng(0).normal(size=(2, 3, TILE, TILE)).astype(np.float32)
    np.testing.assert_allclose(scores_of(exported.path, image), of_torch(net.eval(), image), atol=1e-5)
    assert exported.contract.provenance["architecture"] == "TorchScript program"


@pytest.mark.parametrize(
    ("dropout", "message"),
    [(0.5, r"dropout is on, so save it in eval\(\)"), (0.0, "batch normalisation is in training mode")],
)
@pytest.mark.parametrize("kind", ["traced", "exported"])
def test_programs_made_in_training_mode_are_refused(dropout, message, kind, export, tmp_path):
    net = seeded(Plain(dropout=dropout)).train()
    weights = traced(net, tmp_path / "w.pt") if kind == "traced" else exported_program(net, tmp_path / "w.pt2")
    with pytest.raises(ExportError, match=message):
        export(weights)
    assert not (tmp_path / "m.onnx").exists()


def test_a_network_that_drops_out_in_any_mode_is_refused(export, tmp_path):
    torch.save(seeded(Restless()).state_dict(), tmp_path / "w.pt")
    with pytest.raises(ExportError, match="same scores each time, and does not"):
        export(tmp_path / "w.pt", module="test_export:Restless")


def exported_program(net: nn.Module, path: Path, *, free: tuple[int, ...] = (0,)) -> Path:
    sizes = dict.fromkeys(free, torch.export.Dim.DYNAMIC)
    image = torch.zeros(2 if 0 in free else 1, 3, TILE, TILE)
    torch.export.save(torch.export.export(net, (image,), dynamic_shapes=(sizes,) if free else None), path)
    return path


@pytest.mark.parametrize(("free", "name"), [((0,), "w.pt2"), ((0, 2, 3), "w.pt2"), ((0,), "w.pt")])
def test_program_of_torch_export(free, name, export, tmp_path):
    net = seeded(Plain(dropout=0.5))
    exported = export(exported_program(net, tmp_path / "p.pt2", free=free).rename(tmp_path / name))
    assert exported.free_size == (len(free) == 3)
    image = np.random.default_rng(0).normal(size=(3, 3, TILE, TILE)).astype(np.float32)
    np.testing.assert_allclose(scores_of(exported.path, image), of_torch(net, image), atol=1e-5)


def test_program_of_a_fixed_batch_is_refused_with_the_mend(export, tmp_path):
    weights = exported_program(seeded(Plain()), tmp_path / "w.pt2", free=())
    with pytest.raises(ExportError, match=r"does not run on 2: .*free batch, dynamic_shapes in torch.export"):
        export(weights)


def test_program_of_broken_weights(export, tmp_path):
    net = seeded(Plain())
    with torch.no_grad():
        net.head.weight[0, 0] = torch.nan
    with pytest.raises(ExportError, match="scores must be finite, got NaN or infinity on noise: see its weights"):
        export(traced(net, tmp_path / "w.pt"))


def test_program_brings_its_own_architecture(export, program):
    with pytest.raises(ExportError, match="brings its own architecture and weights: leave --arch, --replace-head out"):
        export(program, arch="unet", replace_head=True)


@pytest.mark.parametrize("keep", [0.2, 0.9])
def test_truncated_program(keep, export, program, tmp_path):
    whole = program.read_bytes()
    program.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(ExportError, match="damaged or truncated"):
        export(program)
    assert not (tmp_path / "m.onnx").exists()


# --- raw pixels -----------------------------------------------------------------------------------------------------------

SCALINGS: dict[str, str] = {
    "plain": 'normalize = "none"\n',
    "scale and offset": 'scale = 0.01\noffset = -1.5\nnormalize = "none"\n',
    "clip": 'scale = 0.01\noffset = -0.5\nclip = [0.0, 1.0]\nnormalize = "none"\n',
    "fixed": 'scale = 0.01\nnormalize = "fixed"\nmean = 1.2\nstd = 0.4\n',
    "all of it": (
        "scale = [0.01, 0.005, 0.02]\noffset = [-1.0, 0.25, -0.5]\nclip = [-0.5, 1.5]\n"
        'normalize = "fixed"\nmean = [0.2, 0.7, 0.9]\nstd = [0.3, 0.5, 0.8]\n'
    ),
}


def scaled(stored: np.ndarray, keys: dict[str, Any]) -> np.ndarray:
    """The contract's formula in float64: clip(pixel * scale + offset), then (x - mean) / std."""

    def column(key: str, otherwise: float) -> np.ndarray:
        return np.broadcast_to(np.array(keys.get(key, otherwise), np.float64), 3).reshape(3, 1, 1)

    x = stored.astype(np.float64) * column("scale", 1) + column("offset", 0)
    if "clip" in keys:
        x = np.clip(x, *keys["clip"])
    return (x - column("mean", 0)) / column("std", 1) if keys["normalize"] == "fixed" else x


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_raw_pixels_are_scaled_inside_as_outside(scaling, dtype, export, program, terms, tmp_path, raster, run_serial):
    import tomllib

    keys = tomllib.loads(SCALINGS[scaling])
    classes = str(terms(SCALINGS[scaling]))
    raw = export(program, raw=dtype, classes=classes, output=tmp_path / "raw.onnx")
    host = export(program, classes=classes, output=tmp_path / "host.onnx")
    assert (raw.contract.scaling, host.contract.scaling) == ("graph", "host")
    scene = pixels(dtype)
    wanted = of_torch(seeded(Plain()), scaled(scene, keys)[None])
    assert onnx.load(str(raw.path)).graph.input[0].type.tensor_type.elem_type == onnx.helper.np_dtype_to_tensor_dtype(
        scene.dtype
    )
    found = scores_of(raw.path, scene[None])
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
    masks = []
    for model in (raw, host):
        with rasterio.open(
            run_serial(raster("in/a.tif", scene), model.path, output=tmp_path / model.path.stem) / "a.tif"
        ) as mask:
            masks.append(mask.read(1))
    assert (masks[0] == masks[1]).mean() >= 0.9999
    assert (masks[0] == wanted[0].argmax(0)).mean() >= 0.9999


@pytest.mark.parametrize("raw", [None, "uint8"])
def test_raw_pixels_and_half_precision(raw, export, program):
    """The converter to fp16 leaves nodes out of order, before which no scaling can be put."""
    exported = export(program, raw=raw, precision="fp16")
    onnx.checker.check_model(onnx.load(str(exported.path)), full_check=True)
    scene = pixels()
    wanted = of_torch(seeded(Plain()), scene[None] * 0.01 - 1)
    found = scores_of(exported.path, scene[None] if raw else (scene[None] * 0.01 - 1).astype(np.float32))
    np.testing.assert_allclose(found, wanted, atol=5e-3 * np.abs(wanted).max())


def test_nodes_are_put_in_order():
    """Also behind what the graphs inside them take."""
    node = onnx.helper.make_node
    branch = onnx.helper.make_graph([node("Neg", ["late"], ["inner"])], "b", [], [onnx.ValueInfoProto(name="inner")])
    nodes = [
        node("If", ["cond"], ["end"], then_branch=branch, else_branch=branch),
        node("Add", ["half", "half"], ["late"]),
        node("Identity", ["image"], ["half"]),
    ]
    proto = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [onnx.ValueInfoProto(name="image")], []))
    assert [n.op_type for n in topologically_sorted(proto).graph.node] == ["Identity", "Add", "If"]
    assert [n.op_type for n in topologically_sorted(proto).graph.node] == ["Identity", "Add", "If"]


@pytest.mark.parametrize("limits", [(0, 255), (0, 65535), (-32768, 32767)])
def test_the_ends_of_a_type_are_scaled_too(limits, export, program, terms):
    dtype = {255: "uint8", 65535: "uint16", 32767: "int16"}[limits[1]]
    exported = export(program, raw=dtype, classes=str(terms('scale = 0.0001\nnormalize = "none"\n')))
    scene = np.full((3, TILE, TILE), limits[0], dtype)
    scene[:, ::2] = limits[1]
    wanted = of_torch(seeded(Plain()), scene[None] * 0.0001)
    np.testing.assert_allclose(scores_of(exported.path, scene[None]), wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    "keys", ['normalize = "zscore"\n', 'normalize = "minmax"\n', 'normalize = "none"\npixel = "physical"\n']
)
def test_raw_pixels_need_scaling_that_is_the_same_for_all_files(keys, export, program, terms, monkeypatch):
    """And this is known before anything is exported."""
    monkeypatch.setattr(make, "to_onnx", never)
    with pytest.raises(
        ExportError, match=r"--raw needs scaling that is the same for all files, got normalize = .*leave --raw out"
    ):
        export(program, raw="uint8", classes=str(terms(keys)))


def never(*arguments: Any, **options: Any) -> Any:
    raise AssertionError("must not be reached")


# --- agreement ------------------------------------------------------------------------------------------------------------


def with_one_weight_changed(change: float) -> Callable[..., onnx.ModelProto]:
    """``to_onnx``, whose graph has one weight of the head that is not the network's."""
    real = make.to_onnx

    def to_onnx(*arguments: Any, **options: Any) -> onnx.ModelProto:
        proto = real(*arguments, **options)
        head = next(t for t in proto.graph.initializer if list(t.dims) == [3, 8, 1, 1])
        values = numpy_helper.to_array(head).copy()
        values[1, 2] += change
        head.CopyFrom(numpy_helper.from_array(values, head.name))
        return proto

    return to_onnx


@pytest.mark.parametrize("change", [0.5, 0.01])
def test_one_wrong_weight_is_caught(change, export, program, tmp_path, monkeypatch):
    monkeypatch.setattr(make, "to_onnx", with_one_weight_changed(change))
    before = content(tmp_path)
    with pytest.raises(
        DisagreementError, match=r"no file was written: .*differ most in tile \d at row \d+, column \d+, class 1"
    ):
        export(program)
    assert {k: v for k, v in content(tmp_path).items() if k != "classes.toml"} == before


@pytest.mark.parametrize("precision", ["fp16"])
def test_one_wrong_weight_is_caught_in_other_precisions(precision, export, program, monkeypatch):
    monkeypatch.setattr(make, "to_onnx", with_one_weight_changed(0.5))
    with pytest.raises(DisagreementError, match="labels must be torch's at fp16"):
        export(program, precision=precision)


def test_a_graph_that_is_wrong_in_batches_only_is_caught(export, program, monkeypatch):
    """Its second image gets the first one's scores."""
    real = make.to_onnx

    def to_onnx(*arguments: Any, **options: Any) -> onnx.ModelProto:
        proto = real(*arguments, **options)
        graph = proto.graph
        graph.node[-1].output[0] = "all"
        graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "zero"))
        graph.node.append(onnx.helper.make_node("Gather", ["all", "zero"], ["first"], axis=0))
        graph.node.append(onnx.helper.make_node("Shape", ["all"], ["shape"]))
        graph.node.append(onnx.helper.make_node("Expand", ["first", "shape"], ["scores"]))
        return proto

    monkeypatch.setattr(make, "to_onnx", to_onnx)
    with pytest.raises(DisagreementError, match=r"does not agree with its network.*name real scenes by --verify, since"):
        export(program)


def test_limits_decide_the_exit_code(cli, terms, program, tmp_path, monkeypatch):
    usual = ["w.pt", "-o", "m.onnx", "--classes", terms(), "--bands", "r,g,b", "--tile", 64]
    monkeypatch.setattr(make, "to_onnx", with_one_weight_changed(0.02))
    before = content(tmp_path)
    ended = cli(*usual)
    assert ended.exit_code == 1
    assert re.search(r"error: the export does not agree .*differ most in tile .*by torch, .*--min-agreement", ended.stderr)
    assert ended.stdout == ""
    assert content(tmp_path) == before
    loose = cli(*usual, "--min-agreement", 0.5, "--max-difference", 0.5)
    assert loose.exit_code == 0
    assert "equal labels" in loose.stdout
    assert 0.5 < contract_in(tmp_path / "m.onnx")["provenance"]["verification"]["equal_labels"] < 0.9999


def test_limits_of_zero_and_one_are_limits(cli, terms, program, tmp_path):
    """0 is a number, not a flag that was left out."""
    usual = ["w.pt", "-o", "m.onnx", "--classes", terms(), "--bands", "r,g,b", "--tile", 64]
    strict = cli(*usual, "--max-difference", 0)
    assert strict.exit_code == 1
    assert "by 0 of the largest at most" in strict.stderr
    assert not (tmp_path / "m.onnx").exists()
    assert export_settings({"weights": program, "output": tmp_path / "m.onnx", "min_agreement": 0.0}).least_agreement == 0
    assert cli(*usual, "--min-agreement", 1.5).exit_code == 2


def test_scenes_are_compared_where_they_are_given(export, program, raster):
    raster("scenes/a.tif", pixels(size=150), descriptions=["r", "g", "b"])
    raster("scenes/b.tif", pixels(size=100), descriptions=["r", "g", "b"])
    exported = export(program, verify=(str(raster("scenes/a.tif", pixels(size=150)).parent),))
    assert (exported.agreement.source, exported.agreement.tiles) == ("scenes", 6)
    figures = exported.contract.provenance["verification"]
    assert (figures["source"], figures["tiles"], figures["batches"]) == ("scenes", 6, [1, 2, 3])
    assert figures["equal_labels"] == 1.0


def test_scenes_that_cannot_be_compared(export, program, raster, tmp_path):
    empty = raster("empty.tif", np.zeros((3, 90, 90), np.uint8), nodata=0)
    for scenes, match in (
        ("nowhere", "input must exist, got nowhere"),
        (str(raster("two.tif", pixels(channels=2))), "two.tif"),
        (str(empty), "valid pixels"),
    ):
        with pytest.raises(SegpipeError, match=match):
            export(program, verify=(scenes,))
        assert not (tmp_path / "m.onnx").exists()
        assert not list(tmp_path.glob(".*"))


# --- what is in the file --------------------------------------------------------------------------------------------------


def test_provenance_is_complete(export, program):
    exported = export(program)
    provenance = contract_in(exported.path)["provenance"]
    assert provenance["weights_sha256"] == hashlib.sha256(program.read_bytes()).hexdigest()
    assert provenance["weights"] == "w.pt"
    assert provenance["parameters"] == sum(p.numel() for p in Plain().parameters())
    assert provenance["framework"] == f"torch {torch.__version__.split('+')[0]}"
    assert re.fullmatch(r"segpipe \S+", provenance["exporter"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", provenance["date"])
    assert provenance["precision"] == "fp32"
    opset = next(o.version for o in onnx.load(str(exported.path)).opset_import if o.domain == "")
    assert provenance["opset"] == opset
    keys = {"tiles", "source", "batches", "max_relative_difference", "mean_relative_difference", "equal_labels", "miou"}
    assert keys <= provenance["verification"].keys()
    assert provenance["verification"]["max_relative_difference"] < 1e-5


def test_provenance_of_the_user_is_added_and_wins(export, program, terms):
    path = terms()
    path.write_text(path.read_text() + '[provenance]\nlicence = "CC0"\ndate = "2020-02-02"\n')
    provenance = export(program, classes=str(path)).contract.provenance
    assert (provenance["licence"], provenance["date"], provenance["precision"]) == ("CC0", "2020-02-02", "fp32")


def test_deepness_reads_it(export, program):
    props = {p.key: json.loads(p.value) for p in onnx.load(str(export(program).path)).metadata_props}
    assert props["model_type"] == "Segmentor"
    assert props["class_names"] == {"0": "water", "1": "wood", "2": "field"}
    assert (props["tile_size"], props["tiles_overlap"]) == (TILE, 25)
    # the plugin computes (pixel / 255 - mean) / std
    pixel = np.array([0.0, 100.0, 255.0])
    ours = (pixel / 255 - props["standardization_mean"][0]) / props["standardization_std"][0]
    np.testing.assert_allclose(ours, pixel * 0.01 - 1, atol=1e-9)


def test_stac_item_is_written(export, program, tmp_path):
    exported = export(program, stac_mlm=tmp_path / "stac" / "item.json")
    item = json.loads((tmp_path / "stac" / "item.json").read_text())
    assert (item["type"], item["properties"]["mlm:framework"]) == ("Feature", "ONNX")
    model = item["assets"]["model"]
    assert model["file:checksum"] == "1220" + hashlib.sha256(exported.path.read_bytes()).hexdigest()
    assert model["file:size"] == exported.path.stat().st_size


def test_the_graph_is_one_tidy_file(export, tmp_path):
    """Of an opset and IR that the oldest ONNX Runtime takes, and without paths of this machine."""
    torch.save(seeded(Small()).state_dict(), tmp_path / "w.pt")
    exported = export(tmp_path / "w.pt", module="test_export:Small", fixed_size=True)
    proto = onnx.load(str(exported.path), load_external_data=False)
    onnx.checker.check_model(proto, full_check=True)
    assert proto.ir_version <= 10
    assert all(o.version <= 20 for o in proto.opset_import)
    assert not exported.free_size
    assert b"/work" not in exported.path.read_bytes().replace(json.dumps(str(tmp_path)).encode(), b"")
    assert b"site-packages" not in exported.path.read_bytes()
    (image,) = proto.graph.input
    sizes = [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim]
    assert (image.name, sizes) == ("image", ["batch", 3, TILE, TILE])
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_contract_is_what_was_said_and_measured(export, program, terms):
    keys = 'scale = [0.1, 0.2, 0.3]\nnormalize = "fixed"\nmean = 0.5\nstd = 0.25\nspacing = [10, 10]\nthreshold = 0.4\n'
    exported = export(program, classes=str(terms(keys)), tile=(64, 128), overlap=(8, 32))
    written = contract_in(exported.path)
    assert (written["scale"], written["mean"], written["std"]) == ([0.1, 0.2, 0.3], 0.5, 0.25)
    assert (written["tile"], written["overlap"], written["spacing"]) == ([64, 128], [8, 32], [10.0, 10.0])
    assert (written["align"], written["equivariant"]) == (2, True)
    assert (written["channels"], written["activation"], written["threshold"]) == (["r", "g", "b"], "softmax", 0.4)
    assert [c["name"] for c in written["classes"]] == CLASSES


def test_flags_win_over_the_file(export, program, terms):
    keys = 'scale = 0.5\nnormalize = "none"\nchannels = ["x", "y", "z"]\ntile = 32\noverlap = 4\n'
    contract = export(program, classes=str(terms(keys)), imagenet=True, overlap=(8,)).contract
    assert contract.channels == ["r", "g", "b"]
    assert (contract.tile, contract.overlap) == ([64, 64], [8, 8])
    assert (contract.scale, contract.mean, contract.std) == (1 / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    kept = export(program, classes=str(terms(keys)), bands=None, tile=None, overwrite=True).contract
    assert (kept.channels, kept.tile, kept.overlap) == (["x", "y", "z"], [32, 32], [4, 4])


@pytest.mark.parametrize(("align", "right"), [(4, True), ([2, 8], True), (1, False), (3, False), ([2, 1], False)])
def test_a_named_stride_must_be_a_multiple(align, right, export, program, terms):
    classes = str(terms(f"align = {align}\n" + SCALED))
    if right:
        assert export(program, classes=classes).contract.align == (align if isinstance(align, int) else max(align))
        return
    with pytest.raises(
        ExportError, match=r"align must be a multiple of the network's stride, measured as 2, got .*leave it out"
    ):
        export(program, classes=classes)


def test_two_exports_give_the_same_bytes(export, program, tmp_path):
    first = export(program, output=tmp_path / "a.onnx").path.read_bytes()
    assert export(program, output=tmp_path / "b.onnx").path.read_bytes() == first


def test_a_head_begun_anew_is_told_and_the_same_each_time(cli, terms, tmp_path):
    torch.save(seeded(Small(classes=7)).state_dict(), tmp_path / "w.pt")
    usual = ["w.pt", "--module", "test_export:Small", "--classes", terms(), "--bands", "r,g,b", "--tile", 64, "--fixed-size"]
    refused = cli(*usual, "-o", "a.onnx")
    assert refused.exit_code == 2
    assert re.search(r"head.weight \(7, 8, 1, 1\) for \(3, 8, 1, 1\).*--replace-head", refused.stderr)
    image = np.random.default_rng(0).normal(size=(1, 3, TILE, TILE)).astype(np.float32)
    scores = []
    for name in ("a.onnx", "b.onnx"):
        torch.rand(7)
        ended = cli(*usual, "-o", name, "--replace-head")
        assert ended.exit_code == 0, ended.stderr
        assert "note: new untrained head: head.weight (7, 8, 1, 1) for (3, 8, 1, 1)" in ended.stderr
        scores.append(scores_of(tmp_path / name, image).tobytes())
    assert scores[0] == scores[1]
    assert any("new untrained head" in note for note in contract_in(tmp_path / "a.onnx")["provenance"]["notes"])


def test_a_contract_beside_the_output_is_told(cli, terms, program, tmp_path):
    (tmp_path / "m.toml").write_text("")
    ended = cli("w.pt", "-o", "m.onnx", "--classes", terms(), "--bands", "r,g,b", "--tile", 64)
    assert ended.exit_code == 0
    assert "note: m.toml beside the model is its contract in a run" in ended.stderr


# --- refusals -------------------------------------------------------------------------------------------------------------

USUAL = "--bands r,g,b --tile 64 -o m.onnx"
REFUSED: list[tuple[str, str, str]] = [
    ("no such weights", f"none.pt {USUAL} --classes classes.toml", "weights must exist, got none.pt"),
    ("no arch", f"s.pt {USUAL} --classes classes.toml", "s.pt holds weights alone, .*--arch, as in smp:Unet, or --module"),
    ("arch and module", f"s.pt --arch unet --module a:b {USUAL} --classes classes.toml", "one of --arch and --module"),
    (
        "unknown library",
        f"s.pt --arch keras:Unet {USUAL} --classes classes.toml",
        "must be one of torchvision, smp.*'keras:Unet'",
    ),
    ("unknown smp", f"s.pt --arch smp:Vnet --encoder resnet18 {USUAL} --classes classes.toml", "are Unet, .*got 'Vnet'"),
    ("no encoder", f"s.pt --arch smp:Unet {USUAL} --classes classes.toml", "needs an encoder, got no --encoder"),
    ("unknown encoder", f"s.pt --arch smp:Unet --encoder vit9 {USUAL} --classes classes.toml", "cannot be built .*vit9"),
    ("unknown torchvision", f"s.pt --arch torchvision:fcn {USUAL} --classes classes.toml", "fcn_resnet50.*got 'fcn'"),
    ("unknown option", f"s.pt --arch unet --option depth=3 {USUAL} --classes classes.toml", "unet cannot be built .*depth"),
    (
        "option without value",
        f"s.pt --arch unet --option depth {USUAL} --classes classes.toml",
        "must be key=value, got depth",
    ),
    ("unknown table", f"w.pt {USUAL} --classes pascal", "voc, cityscapes, .*got pascal, which does not exist"),
    ("table of other classes", f"w.pt {USUAL} --classes voc --imagenet", "must give 21 scores per pixel"),
    (
        "nothing but weights",
        "s.pt -o m.onnx",
        "give --arch.*\nthe network's channels must .*\nthe classes must .*\nthe tile must .*\nnothing says how pixels",
    ),
    ("no classes", f"s.pt --arch unet {USUAL}", "classes must be named: give --classes"),
    ("no classes, program", f"w.pt {USUAL} --imagenet", "classes must be named: give --classes"),
    (
        "no scaling",
        f"w.pt {USUAL} --classes bare.toml",
        "nothing says how pixels are scaled.*\n  scale = .*\n.*\n  mean.*\n.*\nor give",
    ),
    ("no tile", "w.pt --bands r,g,b -o m.onnx --classes classes.toml", "tile must be named: give --tile"),
    ("no bands", "s.pt --arch unet --tile 64 -o m.onnx --classes classes.toml", "channels must be named: give --bands"),
    ("no bands, program", "w.pt --tile 64 -o m.onnx --classes classes.toml", "channels must be named: give --bands"),
    ("unknown key", f"w.pt {USUAL} --classes unknown.toml", "unknown.toml.*: unknown key normalise"),
    ("no TOML", f"w.pt {USUAL} --classes no.toml", "no.toml is not TOML"),
    (
        "classes of a number",
        f"w.pt {USUAL} --classes number.toml",
        r"number.toml: classes must be tables, \[\[classes\]\], .*got 3",
    ),
    ("classes of names", f"w.pt {USUAL} --classes names.toml", "classes.0: must be a table .*got 'a'"),
    ("tile of words", "w.pt --bands r,g,b -o m.onnx --classes tile.toml", "tile must be one or two whole numbers, got '64'"),
    (
        "channels of a float",
        f"w.pt {USUAL} --classes channels.toml",
        "channels must be a list of names, or their number, got 3.5",
    ),
    (
        "tile flag of words",
        "w.pt --bands r,g,b --tile big -o m.onnx --classes classes.toml",
        "tile.0: must be a whole number, got 'big'",
    ),
    ("three tiles", "w.pt --bands r,g,b --tile 64,64,64 -o m.onnx --classes classes.toml", "tile must have one number or 2"),
    (
        "tile of nothing",
        "w.pt --bands r,g,b --tile 0 -o m.onnx --classes classes.toml",
        r"tile\.0: must be at least 1, got 0",
    ),
    (
        "tile below nothing",
        "w.pt --bands r,g,b --tile=-64 -o m.onnx --classes classes.toml",
        r"tile\.0: must be at least 1, got -64",
    ),
    (
        "overlap",
        f"w.pt {USUAL} --overlap 64 --classes classes.toml",
        "overlap must be smaller than the tile, got overlap 64",
    ),
    (
        "imagenet of other bands",
        "w.pt --bands a,b --tile 64 -o m.onnx --classes classes.toml --imagenet",
        "got 3 for 2 channels",
    ),
    (
        "no module",
        f"s.pt --module nowhere:Net {USUAL} --classes classes.toml",
        "nowhere:Net cannot be built: ModuleNotFoundError",
    ),
    ("no factory", f"s.pt --module test_export:Gone {USUAL} --classes classes.toml", "Gone cannot be built: AttributeError"),
    (
        "no network",
        f"s.pt --module test_export:not_a_network {USUAL} --classes classes.toml",
        "must give a torch.nn.Module, got int",
    ),
    ("int8 of nothing", f"w.pt {USUAL} --classes classes.toml --precision int8", "int8 needs real pixels .*--calibrate"),
    (
        "existing output",
        f"w.pt {USUAL} --classes classes.toml --stac-mlm s.pt",
        "output must be new, got s.pt, which exists",
    ),
    (
        "output is a folder",
        "w.pt --bands r,g,b --tile 64 -o folder --classes classes.toml",
        "must be a file, got the folder folder",
    ),
    (
        "output in a file",
        "w.pt --bands r,g,b --tile 64 -o s.pt/m.onnx --classes classes.toml",
        "folder that can be written, got s.pt/m",
    ),
    (
        "output is the weights",
        "w.pt --bands r,g,b --tile 64 -o w.pt --overwrite --classes classes.toml",
        "must be three files, got w.pt",
    ),
    (
        "item is the output",
        f"w.pt {USUAL} --stac-mlm m.onnx --classes classes.toml",
        "must be three files, got m.onnx twice",
    ),
    ("layout", f"w.pt {USUAL} --classes layout.toml", 'have layout "NCHW" and a tile, got "NHWC"'),
    ("folder without config", f"folder {USUAL} --classes classes.toml", "must hold config.json, got folder"),
]


@pytest.fixture
def messy(tmp_path: Path, program: Path, terms: Callable[..., Path]) -> Path:
    """Files that the refusals name."""
    terms()
    torch.save(seeded(Small()).state_dict(), tmp_path / "s.pt")
    (tmp_path / "folder").mkdir()
    for name, text in {
        "bare": class_lines(CLASSES),
        "unknown": 'normalise = "none"\n' + SCALED + class_lines(CLASSES),
        "no": "= 1",
        "number": SCALED + "classes = 3\n",
        "names": SCALED + 'classes = ["a", "b", "c"]\n',
        "tile": 'tile = "64"\n' + SCALED + class_lines(CLASSES),
        "channels": "channels = 3.5\n" + SCALED + class_lines(CLASSES),
        "layout": 'layout = "NHWC"\n' + SCALED + class_lines(CLASSES),
    }.items():
        (tmp_path / f"{name}.toml").write_text(text)
    return tmp_path


@pytest.mark.parametrize(("line", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_cannot_be_meant_is_refused(line, message, cli, messy):
    before = content(messy)
    ended = cli(*line.split())
    assert (ended.exit_code, ended.stdout) == (2, "")
    last = ended.stderr[ended.stderr.index("error: ") :]
    assert re.search(message, last), last
    assert content(messy) == before


def test_an_output_that_exists_is_replaced_only_if_asked(export, program, tmp_path):
    (tmp_path / "m.onnx").write_text("mine")
    with pytest.raises(SettingsError, match=r"must be new, got .*m.onnx, which exists: name another, or give --overwrite"):
        export_settings({"weights": program, "output": tmp_path / "m.onnx"})
    assert export(program, overwrite=True).path.stat().st_size > 1000


class Own(Plain):
    """A factory by the names that many have."""

    def __init__(self, in_channels: int, num_classes: int, width: int = 8) -> None:
        super().__init__(in_channels, num_classes)
        assert width == 8


class Wide(Plain):
    """``channels`` is the width of its layers, as some have it."""

    def __init__(self, channels: int = 8, classes: int = 3) -> None:
        super().__init__(3, classes)
        self.head = nn.Conv2d(8, classes, 1) if channels == 8 else nn.Conv2d(channels, classes, 1)


def test_a_factory_is_given_channels_and_classes_by_the_names_that_it_has(export, tmp_path, terms):
    net = seeded(Plain(channels=4, classes=2))
    torch.save(net.state_dict(), tmp_path / "w.pt")
    flags = {
        "module": "test_export:Own",
        "bands": tuple("rgbn"),
        "classes": str(terms(names=["a", "b"])),
        "fixed_size": True,
    }
    exported = export(tmp_path / "w.pt", **flags)
    assert (exported.contract.channel_count, exported.contract.scores) == (4, 2)
    with pytest.raises(
        ExportError, match=r"head.weight \(2, 8, 1, 1\) for \(5, 8, 1, 1\).*--module was given in_channels=4 from"
    ):
        export(tmp_path / "w.pt", **{**flags, "output": tmp_path / "n.onnx", "options": {"num_classes": 5}})


def test_a_network_pickled_as_a_whole_is_exported_by_its_class(cli, terms, tmp_path, raster, run_serial):
    net = seeded(Plain())
    torch.save(net, tmp_path / "whole.pt")
    line = ["whole.pt", "--classes", terms(), "--bands", "r,g,b", "--tile", 64, "--fixed-size", "-o", "m.onnx"]
    refused = cli(*line)
    assert refused.exit_code == 2, refused.stderr
    assert f"name it by --module {__name__}:Plain" in refused.stderr
    ended = cli(*line, "--module", f"{__name__}:Plain")
    assert ended.exit_code == 0, ended.stderr
    image = pixels()
    out = run_serial(raster("in/a.tif", image), tmp_path / "m.onnx")
    with rasterio.open(out / "a.tif") as mask:
        found = mask.read(1)
    assert_several(found)
    np.testing.assert_array_equal(found, of_torch(net, image[None] * np.float32(0.01) - 1)[0].argmax(0))


def test_a_factory_to_which_a_name_means_something_else_says_what_it_was_given(export, tmp_path):
    torch.save(seeded(Plain()).state_dict(), tmp_path / "w.pt")
    with pytest.raises(
        ExportError, match=r"given channels=3, classes=3 from --bands and --classes: another value .* --option"
    ):
        export(tmp_path / "w.pt", module="test_export:Wide")
    assert export(tmp_path / "w.pt", module="test_export:Wide", options={"channels": 8}, fixed_size=True).path.exists()


def test_imagenet_is_of_red_green_and_blue(export, program, terms):
    exported = export(program, bands=None, imagenet=True, classes=str(terms("")))
    assert exported.contract.channels == ["red", "green", "blue"]
    assert exported.contract.mean == [0.485, 0.456, 0.406]


def saved_by_smp(folder: Path, **config: Any) -> Any:
    import segmentation_models_pytorch as smp

    torch.manual_seed(3)
    net = smp.Unet("resnet18", encoder_weights=None, decoder_channels=(8, 8, 8, 8, 8), classes=3, **config).eval()
    net.save_pretrained(folder)
    return net


def test_a_folder_of_segmentation_models_pytorch(cli, terms, tmp_path):
    net = saved_by_smp(tmp_path / "unet")
    line = ["unet", "--classes", terms(""), "--imagenet", "--tile", 64, "--fixed-size"]
    ended = cli(*line, "-o", "m.onnx")
    assert ended.exit_code == 0, ended.stderr
    image = np.random.default_rng(0).normal(size=(1, 3, TILE, TILE)).astype(np.float32)
    np.testing.assert_allclose(scores_of(tmp_path / "m.onnx", image), of_torch(net, image), atol=1e-4)
    assert contract_in(tmp_path / "m.onnx")["provenance"]["architecture"] == "smp:Unet, encoder resnet18"
    refused = cli(*line, "-o", "n.onnx", "--arch", "smp:FPN", "--encoder", "resnet34")
    assert "unet names its own architecture: leave --arch, --encoder out" in refused.stderr


def test_a_folder_of_smp_hub_brings_its_scaling(cli, terms, tmp_path):
    saved_by_smp(tmp_path / "unet")
    normalize = {"__class_fullname__": "Normalize", "p": 1.0, "mean": [120, 110, 100], "std": 60, "max_pixel_value": 1.0}
    transform = {"__class_fullname__": "Compose", "p": 1.0, "transforms": [normalize]}
    beside = tmp_path / "unet" / "albumentations_config_eval.json"
    beside.write_text(json.dumps({"transform": transform}))
    line = ["unet", "--bands", "r,g,b", "--tile", 64, "--fixed-size"]
    ended = cli(*line, "--classes", terms(""), "-o", "m.onnx")
    assert ended.exit_code == 0, ended.stderr
    inside = contract_in(tmp_path / "m.onnx")
    assert [inside[key] for key in ("scale", "mean", "std")] == [1.0, [120, 110, 100], [60, 60, 60]]
    beside.write_text(json.dumps({"transform": {**transform, "transforms": [{"__class_fullname__": "CLAHE", "p": 1.0}]}}))
    ended = cli(*line, "--classes", terms(""), "-o", "n.onnx")
    assert "got CLAHE (p = 1.0): say in the file of --classes how pixels are scaled" in ended.stderr
    network, _ = smp.open_folder(tmp_path / "unet", None, scaled=True)
    assert network.known == {"channels": 3}


def test_a_folder_that_does_not_name_its_network_says_how_to(cli, terms, tmp_path):
    saved_by_smp(tmp_path / "unet")
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    del config["_model_class"]
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    ended = cli("unet", "--classes", terms(""), "--imagenet", "--tile", 64, "-o", "m.onnx")
    assert "give unet/model.safetensors itself, with --arch, as in smp:Unet, and --encoder resnet18" in ended.stderr, (
        ended.stderr
    )


@pytest.mark.parametrize(("activation", "wanted"), [("sigmoid", "none"), ("softmax2d", "none"), (None, None)])
def test_an_activation_in_the_folder_is_in_the_contract(activation, wanted, tmp_path):
    saved_by_smp(tmp_path / "unet", activation=activation)
    network, weights = smp.open_folder(tmp_path / "unet", None)
    assert (network.known.get("activation"), weights.name) == (wanted, "model.safetensors")


def test_a_folder_whose_network_ends_in_no_scores_is_refused(tmp_path):
    saved_by_smp(tmp_path / "unet", activation="tanh")
    with pytest.raises(ExportError, match="end in scores, or in a sigmoid or softmax, got activation 'tanh'"):
        smp.open_folder(tmp_path / "unet", None)


class Loud(Plain):
    """Writes as torch does: by print, by warnings, by loggers, and by C++ to the descriptor."""

    def forward(self, image: Tensor) -> Tensor:
        print("printed")  # noqa: T201
        os.write(2, b"written\n")
        logging.getLogger("torch.fx").error("logged")
        return super().forward(image)


@pytest.mark.parametrize("flags", [[], ["-v"]])
def test_only_segpipe_writes_unless_asked(flags, terms, tmp_path):
    torch.save(seeded(Plain()).state_dict(), tmp_path / "w.pt")
    line = ["w.pt", "--module", "test_export:Loud", "--classes", str(terms()), "--bands", "r,g,b", "--tile", "64", *flags]
    line += ["--fixed-size", "-o", "m.onnx"]
    done = invoke(["export", *line], tmp_path)
    assert done.returncode == 0, done.stderr
    steps = ["loading", "measuring", "exporting", "converting", "comparing"]
    others = [line for line in done.stderr.splitlines() if not line.startswith(tuple(steps))]
    assert bool(others) is bool(flags)
    assert {"written", "printed"} <= {*done.stderr.split(), *done.stdout.split()} if flags else "printed" not in done.stdout
    assert len([line for line in done.stderr.splitlines() if line.startswith(tuple(steps))]) == 5


def test_eomt_is_exported_in_six_lines(cli, tmp_path):
    """It asks a buffer which layers to mask, of which torch wrote 1,882 lines and no file."""
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64, "patch_size": 16}
    layers = {"num_blocks": 1, "num_queries": 8, "num_upscale_blocks": 2, "mlp_ratio": 2}
    config = transformers.EomtConfig(**sizes, **layers, id2label=dict(enumerate("abc")))
    net = transformers.EomtForUniversalSegmentation(config).eval()
    net.save_pretrained(tmp_path / "eomt")
    transformers.EomtImageProcessor().save_pretrained(tmp_path / "eomt")
    image = np.random.default_rng(0).normal(size=(1, 3, TILE, TILE)).astype(np.float32)
    with torch.no_grad():
        given = net(torch.from_numpy(image))
    masks = functional.interpolate(given.masks_queries_logits, size=(TILE, TILE), mode="bilinear").sigmoid()
    wanted = torch.einsum("bqc,bqhw->bchw", given.class_queries_logits.softmax(-1)[..., :-1], masks)
    ended = cli("eomt", "--tile", 64, "--fixed-size", "-o", "m.onnx")
    assert ended.exit_code == 0, ended.stderr
    assert len(ended.stderr.splitlines()) == 6
    np.testing.assert_allclose(scores_of(tmp_path / "m.onnx", image), wanted / wanted.sum(1, keepdim=True), atol=1e-5)


@pytest.mark.parametrize("indices", ["[0, 2]", "2"])
def test_classes_of_a_larger_head_are_for_attach(indices, cli, program, tmp_path):
    text = f'{SCALED}[[classes]]\nid = 0\nname = "a"\nindex = {indices}\n[[classes]]\nid = 1\nname = "b"\nindex = 1\n'
    (tmp_path / "few.toml").write_text(text)
    ended = cli("w.pt", "--classes", "few.toml", "--bands", "r,g,b", "--tile", 64, "-o", "m.onnx")
    assert ended.exit_code == 2
    assert "with all its classes, then combine them by segpipe export attach" in ended.stderr


# --- weights that do not fit into one file --------------------------------------------------------------------------------


class Heavy(nn.Module):
    """Weights of 150 kB in one layer."""

    def __init__(self, channels: int = 3, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 64, 3, padding=1)
        self.norm = nn.BatchNorm2d(64)
        self.middle = nn.Conv2d(64, 64, 3, padding=1)
        self.head = nn.Conv2d(64, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(torch.relu(self.middle(torch.relu(self.norm(self.stem(image))))))


@pytest.fixture
def small_files(monkeypatch):
    """Files of 60 kB, in place of 2 GB."""
    monkeypatch.setattr(large, "LARGEST", 60_000)


@pytest.mark.parametrize(("precision", "raw"), [("fp32", None), ("fp32", "uint8"), ("fp16", None), ("int8", None)])
def test_weights_outside_are_those_of_one_file(precision, raw, export, tmp_path, raster, run_serial, monkeypatch):
    weights, scene = traced(seeded(Heavy()), tmp_path / "w.pt"), raster("in/a.tif", pixels())
    options = {"precision": precision, "raw": raw, "min_agreement": 0.9}
    options |= {"calibrate": (str(scene),)} if precision == "int8" else {}
    one = export(weights, output=tmp_path / "one.onnx", **options)
    monkeypatch.setattr(large, "LARGEST", 30_000 if precision == "int8" else 60_000)
    two = export(weights, output=tmp_path / "out" / "two.onnx", stac_mlm=tmp_path / "item.json", **options)
    assert sorted(p.suffix for p in two.path.parent.iterdir()) == [".data", ".onnx"]
    assert two.path.stat().st_size < 60_000
    assets = json.loads((tmp_path / "item.json").read_text())["assets"]
    (data,) = two.path.parent.glob("two.*.data")
    assert assets["weights"]["href"] == f"./{data.name}"
    assert assets["weights"]["file:checksum"].endswith(hashlib.sha256(data.read_bytes()).hexdigest())
    assert (assets["model"]["roles"], assets["weights"]["roles"]) == (["mlm:model"], ["mlm:weights"])
    labels = []
    for made in (one, two):
        out = run_serial(scene, made.path, output=tmp_path / f"labels of {made.path.stem}")
        with rasterio.open(out / "a.tif") as mask:
            labels.append(mask.read(1))
    np.testing.assert_array_equal(*labels)
    assert_several(labels[0])


def test_weights_outside_belong_to_the_model(cli, terms, tmp_path, small_files, raster):
    traced(seeded(Heavy()), tmp_path / "w.pt")
    line = ["w.pt", "--classes", terms(), "--bands", "r,g,b", "--tile", 64, "-o"]
    assert cli(*line, "m.onnx").exit_code == 0
    (data,) = tmp_path.glob("m.*.data")
    before = content(tmp_path)
    assert cli(*line, "m.onnx", "--overwrite").exit_code == 0
    assert content(tmp_path) == before
    refused = cli(*line, "n.onnx", "--tile", 63, "--min-agreement", 1, "--max-difference", 0)
    assert refused.exit_code != 0
    assert content(tmp_path) == before
    scene = raster("in/a.tif", pixels())
    run = ["run", "--input", scene, "--model", tmp_path / "m.onnx", "--output", tmp_path / "out", "--device", "cpu"]
    data.rename(tmp_path / "elsewhere")
    ended = click.testing.CliRunner().invoke(main, [*map(str, run)])
    assert ended.exit_code == 2
    assert f"needs its external data {data}" in ended.stderr


# --- what is left behind --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["_stride", "to_onnx", "try_out", "converted", "compare", "check_agreement", "_origin"])
@pytest.mark.parametrize("error", [ExportError("so it is"), KeyboardInterrupt(), RuntimeError("unforeseen")])
def test_nothing_is_left_of_an_export_that_ends_early(step, error, export, program, terms, tmp_path, monkeypatch):
    def fail(*arguments: Any, **options: Any) -> Any:
        raise error

    (tmp_path / "m.onnx").write_bytes(b"an older model")
    terms()
    before = content(tmp_path)
    monkeypatch.setattr(make, step, fail)
    with pytest.raises(type(error)):
        export(program, overwrite=True)
    assert content(tmp_path) == before


INTERRUPTED = "interrupted: run the same command again"


def test_interrupted_by_the_user(cli, program, terms, tmp_path, monkeypatch):
    """Ctrl-C anywhere: exit code 75 as for a run, one line, and no file."""

    def interrupt(*arguments: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGINT)

    line = f"w.pt {USUAL} --classes {terms()}"
    before = content(tmp_path)
    monkeypatch.setattr(make, "compare", interrupt)
    ended = cli(*line.split())
    assert (ended.exit_code, ended.stdout) == (75, "")
    assert ended.stderr.splitlines()[-1] == INTERRUPTED
    assert content(tmp_path) == before


def test_ended_by_a_scheduler(tmp_path, program, terms):
    """SIGTERM to a process of its own, in the midst of torch's exporter."""
    torch.save(seeded(Small()).state_dict(), tmp_path / "s.pt")
    line = f"export s.pt --module test_export:Small {USUAL} --classes {terms()}"
    before = content(tmp_path)
    paths = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "segpipe.cli", *line.split()],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **paths},
    ) as process:
        assert process.stderr is not None
        while "exporting" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(0.3)
        process.terminate()
        stdout, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stdout) == (75, "")
    assert stderr.splitlines()[-1] == INTERRUPTED
    assert "Traceback" not in stderr
    assert content(tmp_path) == before


def test_export_without_torch_says_what_to_install(tmp_path, program, terms):
    code = "import sys; sys.modules['torch'] = None; from segpipe.cli import main; main()"
    line = f"export w.pt {USUAL} --classes {terms()}"
    done = subprocess.run(
        [sys.executable, "-c", code, *line.split()], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"exporting needs torch, which is not installed: {install('export')}" in done.stderr

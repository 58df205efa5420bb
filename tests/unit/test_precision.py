"""fp32, fp16 and int8 of the bundled network, and int8 of other graphs."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import rasterio
import torch
from torch import nn

from segpipe.errors import ExportError, SettingsError
from segpipe.export import make
from segpipe.export.families import Network
from segpipe.export.file import spec_of
from segpipe.export.graph import score, to_onnx
from segpipe.export.make import export_model
from segpipe.export.precision import converted
from segpipe.export.settings import LEAST_AGREEMENT, ExportSettings, export_settings
from segpipe.export.stride import Stride
from segpipe.export.tiles import noise
from segpipe.network.device import open_session
from segpipe.network.scaling import fixed_scaling

EXAMPLES = Path(__file__).parents[2] / "examples"
SCENES = EXAMPLES / "scenes"


def settings(output: Path, **more) -> ExportSettings:
    """To export the bundled weights; a fixed size and a known stride only save time."""
    fixed = {"arch": "unet", "classes": str(EXAMPLES / "classes.toml"), "calibrate": (str(SCENES),), "fixed_size": True}
    return ExportSettings(weights=EXAMPLES / "crops.safetensors", output=output, **fixed, **more)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """One file per precision, and one of int8 that scales raw pixels itself; all of one graph, as torch takes long."""
    graphs, build = [], make._graph

    def graph(*arguments):
        graphs or graphs.append(build(*arguments))
        return onnx.ModelProto.FromString(graphs[0][0].SerializeToString()), False

    folder = tmp_path_factory.mktemp("models")
    wanted = {"fp32": {}, "fp16": {"precision": "fp16"}, "int8": {"precision": "int8"}}
    wanted["raw"] = {"precision": "int8", "raw": "uint16"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make, "measure_stride", lambda *_, **__: Stride(8, True, 0.0))
        patch.setattr(make, "_graph", graph)
        return {name: export_model(settings(folder / f"{name}.onnx", **more)).path for name, more in wanted.items()}


def scores_of(model: Path | bytes, images: np.ndarray) -> np.ndarray:
    session = open_session(model if isinstance(model, bytes) else str(model), arena="none")
    return session.run(None, {"image": images})[0]


@pytest.mark.parametrize("precision", LEAST_AGREEMENT)
def test_the_file_says_its_precision_and_how_far_it_agrees_with_torch(models, precision):
    told = spec_of(models[precision]).contract.provenance
    assert told["precision"] == precision
    assert told["verification"]["equal_labels"] >= LEAST_AGREEMENT[precision]
    assert told["verification"]["miou"] > 0.98


def test_smaller_numbers_make_smaller_files(models):
    size = {name: path.stat().st_size for name, path in models.items()}
    assert size["int8"] < 0.4 * size["fp32"]
    assert size["fp16"] < 0.55 * size["fp32"]


def test_masks_of_int8_are_those_of_fp32(models, run_serial, tmp_path):
    masks = {}
    for name in ("fp32", "int8"):
        out = run_serial(SCENES, models[name], output=tmp_path / name)
        masks[name] = np.concatenate([rasterio.open(path).read(1).ravel() for path in sorted(out.glob("*.tif"))])
    valid = masks["fp32"] != 255
    assert (valid == (masks["int8"] != 255)).all()
    assert (masks["fp32"] == masks["int8"])[valid].mean() > 0.99


def test_ranges_come_from_other_tiles_than_the_comparison(models, tmp_path):
    calibration, held = make._tiles(settings(tmp_path / "x.onnx"), spec_of(models["fp32"]))
    assert len(held) == make.VERIFICATION_TILES
    assert len(calibration) > len(held)
    assert not {tile.tobytes() for tile in calibration} & {tile.tobytes() for tile, _ in held}


def test_scaling_inside_the_graph_stays_in_float_and_gives_the_same_labels(models):
    assert [node.op_type for node in onnx.load(models["raw"]).graph.node[:4]] == ["Cast", "Mul", "Add", "QuantizeLinear"]
    with rasterio.open(SCENES / "morava.tif") as dataset:
        raw = dataset.read(window=((100, 356), (200, 456)))
    assert raw.min() > 0
    scaled = fixed_scaling(spec_of(models["int8"]).contract, None)(raw, None)
    inside, outside = scores_of(models["raw"], raw[None]), scores_of(models["int8"], scaled[None])
    assert (inside.argmax(1) == outside.argmax(1)).mean() > 0.9999


def test_scores_are_not_rounded(models):
    scores = scores_of(models["int8"], noise((4, 256, 256), 0)[None])
    assert len(np.unique(scores[0, 0])) > 1000


def test_int8_without_scenes_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="int8 needs real pixels"):
        export_settings({"weights": EXAMPLES / "crops.safetensors", "output": tmp_path / "x.onnx", "precision": "int8"})
    with pytest.raises(ExportError, match="int8 needs tiles with valid pixels"):
        converted(onnx.ModelProto(), "int8", [])


class Attentive(nn.Module):
    """What transformers are made of, and no convolution but the first and the last."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 16, 4, stride=4), nn.ConvTranspose2d(16, 5, 4, stride=4)
        self.norm, self.mix = nn.LayerNorm(16), nn.Linear(16, 48)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        patches = self.embed(image)
        tokens = self.norm(patches.flatten(2).transpose(1, 2))
        query, key, value = self.mix(tokens).chunk(3, dim=-1)
        tokens = tokens + nn.functional.gelu((query @ key.transpose(1, 2)).softmax(-1) @ value)
        return self.head(tokens.transpose(1, 2).reshape(patches.shape))


NEAR = 0.05 if "vnni" in Path("/proc/cpuinfo").read_text() else 0.1
"""Without VNNI sums of two products of int8 saturate at 16 bits: ONNX Runtime's kernels for x86 are less exact."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("traced", [True, False], ids=["traced, opset 17", "exported, opset 20, free sizes"])
def test_transformers_convert_and_keep_their_free_axes(traced):
    torch.manual_seed(0)
    module, shape = Attentive().eval(), (3, 64, 64)
    program = torch.jit.trace(module, torch.zeros(2, *shape)) if traced else module
    proto = to_onnx(Network(program, "attentive", traced=traced), shape, free_size=not traced)
    int8 = converted(proto, "int8", [noise(shape, seed) for seed in range(4)]).SerializeToString()
    assert b"QuantizeLinear" in int8
    for size in [shape] if traced else [shape, (3, 32, 96)]:
        images = np.stack([noise(size, seed) for seed in (8, 9, 10)])
        wanted = score(module, images)
        assert np.abs(scores_of(int8, images) - wanted).mean() < NEAR * wanted.std()


def test_a_map_that_two_nodes_in_float_share_is_cast_once():
    """Resize stays in float, and the converter used to cast its input once for each."""

    class Pyramid(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = torch.nn.Conv2d(4, 3, 3, stride=2, padding=1)

        def forward(self, image):
            x = self.stem(image)
            up = [torch.nn.functional.interpolate(x, scale_factor=2.0, mode=mode) for mode in ("nearest", "bilinear")]
            return up[0] + up[1]

    network, image = Pyramid().eval(), np.random.default_rng(0).normal(size=(2, 4, 64, 64)).astype(np.float32)
    half = converted(to_onnx(Network(network, "pyramid"), (4, 64, 64), free_size=False), "fp16", [])
    (found,) = open_session(half.SerializeToString(), arena="none").run(None, {"image": image})
    np.testing.assert_allclose(found, network(torch.from_numpy(image)).detach().numpy(), atol=0.02)

"""Networks of several arguments: exported with one input, their labels are torch's, whatever form the weights have."""

import warnings

import numpy as np
import pytest
import rasterio
import torch
from torch import Tensor, nn

from segpipe.contract import parse_contract
from segpipe.errors import ExportError
from segpipe.export.families import Network
from segpipe.export.joined import Joined, joined
from segpipe.export.make import export_model
from segpipe.export.settings import ExportSettings

TILE = 32
CLASSES = "\n".join(f'[[classes]]\nid = {k}\nname = "{name}"' for k, name in enumerate(("same", "built", "gone")))
SCALED = 'scale = 0.03125\noffset = -4.0\nnormalize = "none"\n'


class Change(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        return self.head(torch.relu(self.encode(before) - self.encode(after)))


class Sensors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.radar, self.optical, self.head = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(12, 3, 1)

    def forward(self, s1: Tensor, s2: Tensor) -> Tensor:
        return self.head(torch.relu(torch.cat([self.radar(s1), self.optical(s2)], 1)))


class Dated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.date, self.head = nn.Conv2d(6, 8, 3, padding=1), nn.Linear(2, 8), nn.Conv2d(8, 3, 1)

    def forward(self, image: Tensor, date: Tensor, scale: float = 1.0) -> Tensor:
        return self.head(torch.relu(self.encode(image) * scale + self.date(date)[:, :, None, None]))


class Series(nn.Module):
    """As Prithvi: ``(N, C, T, rows, cols)``."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.head = nn.Conv3d(2, 8, (3, 3, 3), padding=(0, 1, 1)), nn.Conv2d(8, 3, 1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(torch.relu(self.encode(pixel_values)[:, :, 0]))


NETWORKS = {
    "two images": (
        Change,
        '[inputs]\nafter = { channels = "3:6" }\nbefore = { channels = "0:3" }\n',
        lambda x: {"before": x[:, :3], "after": x[:, 3:]},
    ),
    "two sensors": (
        Sensors,
        "[inputs]\ns1 = { channels = [5, 0] }\ns2 = { channels = [1, 2, 3, 4] }\n",
        lambda x: {"s1": x[:, [5, 0]], "s2": x[:, 1:5]},
    ),
    "constants": (
        Dated,
        '[inputs]\nimage = { channels = ":" }\ndate = { value = [0.05, -0.2] }\nscale = { value = 2.0 }\n',
        lambda x: {"image": x, "date": torch.tensor([[0.05, -0.2]]).expand(len(x), 2), "scale": 2.0},
    ),
    "dates": (
        Series,
        '[inputs]\npixel_values = { channels = ":", axes = "NCTHW" }\n',
        lambda x: {"pixel_values": x.reshape(len(x), 3, 2, *x.shape[2:]).transpose(1, 2)},
    ),
}


def seeded(kind):
    torch.manual_seed(7)
    return NETWORKS[kind][0]().eval()


def exported(kind, folder, weights, **settings):
    terms = folder / "terms.toml"
    channels = "dates = 3\nchannels = 2\n" if kind == "dates" else "channels = 6\n"
    terms.write_text(channels + SCALED + NETWORKS[kind][1] + CLASSES)
    module = {"module": f"test_joined:{NETWORKS[kind][0].__name__}"} if weights.suffix == ".pt" else {}
    own = {"weights": weights, "classes": str(terms), "tile": TILE, "output": folder / "m.onnx", **module}
    return export_model(ExportSettings(**own | settings))


@pytest.mark.parametrize("kind", NETWORKS)
def test_labels_of_a_run_are_torchs(kind, tmp_path, raster, run_serial):
    network = seeded(kind)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    found = exported(kind, tmp_path, tmp_path / "w.pt")
    assert found.agreement.equal_labels >= 0.9999
    assert found.contract.inputs is None
    assert found.contract.channel_count == 6
    assert found.free_size
    assert "are cut out of one, which takes all 6 channels" in found.notes[-1]
    pixels = np.random.default_rng(1).integers(0, 256, (6, TILE, TILE), dtype=np.uint8)
    image = torch.from_numpy(pixels[None].astype(np.float32)) / 32 - 4
    with torch.inference_mode():
        wanted = network(**NETWORKS[kind][2](image))[0].argmax(0).numpy()
    out = run_serial(raster("in/a.tif", pixels), tmp_path / "m.onnx")
    with rasterio.open(out / "a.tif") as mask:
        assert (mask.read(1) == wanted).mean() >= 0.9999
    assert len(np.unique(wanted)) > 1


@pytest.mark.parametrize("form", ["torchscript", "program"])
def test_programs_of_several_arguments_are_exported(form, tmp_path):
    network = seeded("two images")
    example = tuple(torch.zeros(2, 3, TILE, TILE) for _ in range(2))  # torch takes one tensor given twice for one argument
    path = tmp_path / ("w.torchscript" if form == "torchscript" else "w.pt2")
    if form == "torchscript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated, and still in use
            torch.jit.script(network).save(str(path))
    else:
        free = {0: torch.export.Dim.DYNAMIC}
        torch.export.save(torch.export.export(network, example, dynamic_shapes=(free, free)), path)
    assert exported("two images", tmp_path, path).agreement.equal_labels >= 0.9999


@pytest.mark.parametrize("settings", [{"precision": "int8"}, {"raw": "uint8"}, {"precision": "fp16"}])
def test_precisions_and_raw_pixels_need_nothing_more(settings, tmp_path, raster):
    torch.save(seeded("two images").state_dict(), tmp_path / "w.pt")
    pixels = np.random.default_rng(1).integers(0, 256, (6, 2 * TILE, TILE), dtype=np.uint8)
    settings = {"calibrate": (str(raster("in/a.tif", pixels)),), **settings}
    found = exported("two images", tmp_path, tmp_path / "w.pt", min_agreement=0.9, **settings)
    assert found.agreement.equal_labels >= 0.95


def of(inputs, **changes):
    keys = {"version": 1, "channels": 6, "normalize": "none", "activation": "softmax", "tile": [TILE, TILE]}
    return parse_contract({**keys, "classes": [{"id": 0, "name": "a"}], "inputs": inputs, **changes}, "terms")


REFUSED = {
    "nothing said": (None, r'takes 2 inputs, before, after, .*such as\ninputs.before = \{ channels = "0:3" \}\n'),
    "no such argument": ({"before": {"channels": ":"}, "x": {"value": 1}}, r"got x: it takes before, after"),
    "one left out": ({"before": {"channels": ":"}}, r"inputs does not name after: add it"),
    "no dates": (
        {"before": {"channels": ":", "axes": "NTCHW"}, "after": {"value": 1}},
        r"the number of dates of the input before must be named: .*dates = 3",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_that_differ_are_refused(case):
    inputs, match = REFUSED[case]
    with pytest.raises(ExportError, match=match):
        joined(Network(Change(), "own"), of(inputs))


def test_a_network_of_one_argument_is_left_as_it_is():
    network, own = Network(nn.Conv2d(6, 1, 1), "own"), of(None)
    assert joined(network, own) == (network, own)
    assert not isinstance(joined(network, own)[0].module, Joined)

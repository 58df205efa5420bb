"""BiSeNetV2 against table 1 of its paper and against figures taken from the public implementation with its names."""

from hashlib import sha256

import numpy as np
import pytest
import torch

from segpipe.export.bisenetv2 import BiSeNetV2
from segpipe.export.families import Wanted, own

# channels and stride of each stage, table 1; the sums and gates of the aggregation stand at the detail's stride
TABLE = {
    "detail.S1": (64, 2),
    "detail.S2": (64, 4),
    "detail.S3": (128, 8),
    "segment.S1S2": (16, 4),
    "segment.S3": (32, 8),
    "segment.S4": (64, 16),
    "segment.S5_4": (128, 32),
    "segment.S5_5": (128, 32),
    "bga": (128, 8),
}


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def drawn(rng, name, shape):
    if len(shape) == 4:
        return rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
    if name.endswith(("weight", "var")):
        return rng.uniform(0.5, 1.5, shape)
    return rng.normal(size=shape) * 0.3


def network(bands=3, classes=3, *, auxiliary=False):
    """In eval mode; weights and statistics from one seeded generator, in the order of the state."""
    net, rng = BiSeNetV2(bands, classes, auxiliary=auxiliary).eval(), np.random.default_rng(0)
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.from_numpy(drawn(rng, name, tuple(value.shape))))
    return net


def image(*shape):
    return torch.from_numpy(np.random.default_rng(1).normal(size=shape).astype(np.float32))


def test_stages_have_the_channels_and_strides_of_table_1():
    net, seen = network(bands=4), {}
    for name in TABLE:
        net.get_submodule(name).register_forward_hook(lambda _, args, out, name=name: seen.update({name: out.shape[1:]}))
    net(image(1, 4, 128, 192))
    assert seen == {name: (channels, 128 // stride, 192 // stride) for name, (channels, stride) in TABLE.items()}


@pytest.mark.parametrize(
    ("auxiliary", "parameters", "digest"),
    [(False, 3_358_627, "170507f4c9ec77ce"), (True, 5_231_487, "41a80386e1ab62c4")],
)
def test_names_and_shapes_are_those_of_the_public_implementation(auxiliary, parameters, digest):
    net = BiSeNetV2(3, 19, auxiliary=auxiliary)
    assert sum(value.numel() for value in net.parameters()) == parameters
    state = "\n".join(f"{name} {tuple(value.shape)}" for name, value in net.state_dict().items())
    assert sha256(state.encode()).hexdigest()[:16] == digest


def test_scores_are_those_of_the_public_implementation():
    net = network(auxiliary=True)
    net.training = True  # of this module alone: norms and dropout stay as in eval
    # one pixel of the scores and of each auxiliary head, from lib/models/bisenetv2.py of CoinCheung/BiSeNet at 6b4b67a
    expected = [
        [3.5860, 6.5282, 10.7797],
        [0.2408, 0.0996, 6.4642],
        [-4.0245, -1.6361, -7.2209],
        [-15.0736, 11.4235, -7.4555],
        [-52.0773, -18.6937, 17.1968],
    ]
    got = [scores[1, :, 20, 70].numpy() for scores in net(image(2, 3, 64, 96))]
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (64, 96), (75, 131)])
def test_scores_have_the_size_of_the_image(size):
    net = network(bands=5, classes=7, auxiliary=True)
    assert net(image(2, 5, *size)).shape == (2, 7, *size)
    net.training = True
    assert [scores.shape for scores in net(image(2, 5, *size))] == [(2, 7, *size)] * 5


def test_auxiliary_heads_serve_training_only():
    plain, full = network(), network(auxiliary=True)
    extra = full.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert {name.split(".")[0] for name in extra} == {"aux2", "aux3", "aux4", "aux5_4"}
    x = image(2, 3, 64, 64)
    assert torch.equal(full(x), plain(x))
    full.train(), plain.train()
    assert len(full(x)) == 5
    assert plain(x).shape == (2, 3, 64, 64)


def test_only_the_mean_over_the_image_keeps_scores_from_moving_with_it():
    net, strip = network(), image(1, 3, 1312, 32)
    inner = slice(512, 736)  # rows whose view, 474 rows up and 443 down, ends before the borders of both windows

    def shift():
        """By how much scores change when their window moves by 32 rows."""
        return (net(strip[:, :, :1280])[:, :, 32:][:, :, inner] - net(strip[:, :, 32:])[:, :, inner]).abs().max()

    assert shift() > 0.01
    net.segment.S5_5.bn.register_forward_hook(lambda _, args, mean: torch.zeros_like(mean))
    assert shift() < 1e-4


@pytest.mark.parametrize(("key", "auxiliary"), [("aux2.conv.weight", True), ("head.conv.weight", False)])
def test_heads_are_built_where_the_checkpoint_has_them(key, auxiliary):
    wanted = Wanted(3, 4, None, {}, {key: torch.zeros(1)})
    network = own.build("bisenetv2", wanted)
    assert isinstance(network, BiSeNetV2)
    assert any("aux" in name for name, _ in network.named_parameters()) == auxiliary


def test_the_small_unet_keeps_sizes():
    network = own.build("unet", Wanted(4, 5, None, {}, {})).eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, 4, 64, 96)).shape == (1, 5, 64, 96)

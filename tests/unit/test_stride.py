"""The stride of networks whose stride is known by construction. Too large costs little; too small is a wrong result."""

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from segpipe.contract import DEFAULT_ALIGN
from segpipe.errors import ExportError
from segpipe.export.graph import Scorer, output_stride, score
from segpipe.export.stride import Stride, _smallest, is_strided, measure_stride, named_stride, total_stride

TILE = (96, 96)
"""Of many divisors: 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48."""


class Of(nn.Module):
    """A network from a function of its layers and the image."""

    def __init__(self, forward: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.function = forward

    def forward(self, image: Tensor) -> Tensor:
        return self.function(image, *self.layers)


def conv(inside: int, outside: int, size: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, size, padding=options.pop("padding", size // 2), **options)


def halved(times: int, pool: nn.Module) -> nn.Sequential:
    """Poolings one after the other, each behind a convolution, brought back to full size by nearest neighbours."""
    layers = [layer for _ in range(times) for layer in (conv(4, 4), nn.ReLU(), pool)]
    return nn.Sequential(conv(2, 4), *layers, nn.Upsample(scale_factor=2**times), conv(4, 3))


def patchified(image: Tensor, size: int, mix: nn.Module) -> Tensor:
    """Patches by reshaping alone, as vision transformers and Focus layers cut them: no operator shows a stride."""
    n, c, h, w = image.shape
    x = image.reshape(n, c, h // size, size, w // size, size).permute(0, 1, 3, 5, 2, 4)
    x = mix(x.reshape(n, c * size * size, h // size, w // size))
    return functional.interpolate(x, scale_factor=size)


def unet(image: Tensor, top: nn.Module, deep: nn.Module, up: nn.Module, *, weight: float = 1.0, bias: float = 0.0) -> Tensor:
    """A skip connection over three halvings by functions, which no module shows."""
    skip = top(image)
    x = functional.max_pool2d(functional.max_pool2d(functional.max_pool2d(skip, 2), 2), 2)
    return skip[:, :3] + weight * up(functional.interpolate(functional.relu(deep(x) + bias), scale_factor=8))


def unet_of(weight: float = 1.0, bias: float = 0.0) -> nn.Module:
    return Of(partial(unet, weight=weight, bias=bias), conv(2, 4), conv(4, 4), conv(4, 3, 1))


NETWORKS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "pixel by pixel": (1, lambda: conv(2, 3, 1)),
    "3 x 3": (1, lambda: nn.Sequential(conv(2, 8), nn.ReLU(), conv(8, 3))),
    "dilated": (1, lambda: nn.Sequential(conv(2, 8), nn.ReLU(), conv(8, 3, dilation=4, padding=4))),
    "5 x 5 pooling of stride 1": (1, lambda: nn.Sequential(conv(2, 3), nn.MaxPool2d(5, 1, 2))),
    "pixels normalised": (1, lambda: nn.Sequential(conv(2, 4), Of(functional.normalize), conv(4, 3))),
    "max 2": (2, lambda: halved(1, nn.MaxPool2d(2))),
    "max 4": (4, lambda: halved(2, nn.MaxPool2d(2))),
    "mean 8": (8, lambda: halved(3, nn.AvgPool2d(2))),
    "stride 2, bilinear": (
        2,
        lambda: nn.Sequential(conv(2, 4, stride=2), nn.ReLU(), conv(4, 3), nn.Upsample(scale_factor=2, mode="bilinear")),
    ),
    "stride 3": (3, lambda: nn.Sequential(conv(2, 4, stride=3), nn.ReLU(), nn.ConvTranspose2d(4, 3, 3, 3))),
    "stride 6": (6, lambda: nn.Sequential(conv(2, 4, stride=3), nn.MaxPool2d(2), conv(4, 3), nn.Upsample(scale_factor=6))),
    "transposed": (4, lambda: nn.Sequential(conv(2, 4, stride=4), nn.ReLU(), nn.ConvTranspose2d(4, 3, 4, 4))),
    "quarter of the size": (4, lambda: nn.Sequential(conv(2, 4, stride=2), nn.ReLU(), conv(4, 3, stride=2))),
    "dilated behind a stride": (
        4,
        lambda: nn.Sequential(conv(2, 4, stride=4), conv(4, 3, dilation=2, padding=2)),
    ),
    "unet by functions": (8, unet_of),
    "unshuffled": (2, lambda: nn.Sequential(nn.PixelUnshuffle(2), conv(8, 12, 1), nn.PixelShuffle(2))),
    "two strides side by side": (
        12,
        lambda: Of(lambda x, a, b: a(x) + b(x), halved(2, nn.MaxPool2d(2)), NETWORKS["stride 3"][1]()),
    ),
}


def built(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make().eval()


def measured(net: nn.Module, tile: tuple[int, int] = TILE, *, visible: int | None = None, channels: int = 2) -> Stride:
    """As an export measures it; ``visible=1`` hides the layers, as a model made elsewhere may."""
    if visible is None:
        visible = output_stride(net, np.zeros((1, channels, *tile), np.float32))
    return measure_stride(partial(score, Scorer(net)), channels, tile, visible)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NETWORKS)
def test_stride_is_the_one_it_was_built_with(name, seed):
    align, make = NETWORKS[name]
    found = measured(built(make, seed))
    assert (found.align, found.equivariant) == (align, True)
    assert found.error < 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_stride_is_measured_where_no_layer_can_be_seen(name):
    align, make = NETWORKS[name]
    found = measured(built(make), visible=1)
    assert (found.align, found.equivariant) == (align, True)


@pytest.mark.parametrize("tile", [(32, 64), (64, 32), (48, 96)])
def test_tile_need_not_be_square(tile):
    for visible in (None, 1):
        assert measured(built(unet_of), tile, visible=visible).align % 8 == 0


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_patches_that_no_operator_shows_are_measured(size):
    net = built(lambda: Of(lambda x, mix: patchified(x, size, mix), conv(2 * size * size, 3, 1)))
    assert output_stride(net, np.zeros((1, 2, *TILE), np.float32)) == 1
    assert measured(net).align == size


def test_rows_picked_by_slices_are_measured():
    net = built(lambda: Of(lambda x, c: functional.interpolate(c(x[:, :, ::2, ::2]), scale_factor=2), conv(2, 3)))
    assert measured(net).align == 2


# --- what could hide a stride ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1e-2, 1e-3, 1e-4, 1e-6, 0.0])
def test_a_weak_deep_path_beside_a_strong_skip_counts(weight):
    """Noise may hardly show it; real images may."""
    assert measured(built(lambda: unet_of(weight))).align == 8


@pytest.mark.parametrize("weight", [1e-2, 1e-3, 1e-4])
def test_a_weak_deep_path_is_measured(weight):
    assert measured(built(lambda: unet_of(weight)), visible=1).align == 8


def test_a_deep_path_that_noise_leaves_silent_counts():
    """Its rectifier opens for pixels brighter than any of the noise."""
    net = built(lambda: unet_of(bias=-50.0))
    assert measured(net, visible=1).align == 1, "the premise: shifting noise cannot see it"
    assert measured(net).align == 8


@pytest.mark.parametrize("weight", [1e-2, 1e-4])
def test_a_weak_class_among_many_counts(weight):
    """One class of a hundred has a stride of 8, and its scores are far smaller than the others'."""

    def forward(x: Tensor, fine: nn.Module, deep: nn.Module) -> Tensor:
        return torch.cat([fine(x), weight * functional.interpolate(deep(functional.avg_pool2d(x, 8)), scale_factor=8)], 1)

    net = built(lambda: Of(forward, conv(2, 99, 1), conv(2, 1, 1)))
    assert measured(net).align == 8
    assert measured(net, visible=1).align == 8


def test_changes_that_only_fade_are_no_stride():
    """Each shift twice as good as the one before it, the best of them still bad: what a wide receptive field gives."""
    fading = {1: 1.0, 2: 0.5, 4: 0.25, 8: 0.13, 16: 0.12}
    assert _smallest(fading) is None
    assert _smallest({**fading, 8: 0.06, 16: 0.07}) == 8, "the premise: a clear step is one"
    assert _smallest({1: 0.0, 2: 0.0}) == 1
    assert _smallest({1: 1e-3, 2: 1e-3, 4: 1e-7, 8: 2e-7}) == 4


def test_scores_that_do_not_vary_tell_nothing():
    """A saturated network gives one number everywhere, however it is shifted."""
    for net in (Of(lambda x, c: 0 * c(x), conv(2, 3)), Of(lambda x, c: torch.sigmoid(c(x) - 1000), conv(2, 1))):
        found = measured(net)
        assert (found.align, found.equivariant) == (DEFAULT_ALIGN, False)
    net = Of(lambda x, c: 0 * functional.interpolate(c(x), scale_factor=4), conv(2, 3, stride=4))
    assert measured(net).align == 4


@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
def test_rounding_of_large_scores_hides_no_stride(offset):
    net = built(lambda: Of(lambda x, n: n(x) + offset, halved(3, nn.MaxPool2d(2))))
    assert measured(net).align % 8 == 0
    assert measured(net, visible=1).align % 8 == 0


@pytest.mark.parametrize("tile", [64, 96, 128])
def test_receptive_field_wider_than_the_tile(tile):
    """Five halvings with skips: borders reach the middle, and the smaller shifts must not look good enough."""

    def pyramid(x: Tensor, stem: nn.Module, *levels: nn.Module) -> Tensor:
        skips = [stem(x)]
        for level in levels[:5]:
            skips.append(functional.relu(level(functional.max_pool2d(skips[-1], 2))))
        out = skips.pop()
        for level in levels[5:]:
            out = functional.relu(level(functional.interpolate(out, scale_factor=2))) + skips.pop()
        return out

    for seed in range(3):
        net = built(lambda: Of(pyramid, conv(2, 8), *(conv(8, 8, 5) for _ in range(10))), seed)
        assert measured(net, (tile, tile)).align == 32


# --- never equivariant ------------------------------------------------------------------------------------------------


def attending(x: Tensor, embed: nn.Module, out: nn.Module) -> Tensor:
    """Every patch of 8 looks at every other."""
    tokens = embed(x).flatten(2)
    weights = torch.softmax(tokens.transpose(1, 2) @ tokens, -1)
    seen = (tokens @ weights.transpose(1, 2)).reshape(len(x), -1, x.shape[2] // 8, x.shape[3] // 8)
    return functional.interpolate(out(seen), scale_factor=8)


def pooled(x: Tensor, fine: nn.Module, coarse: nn.Module) -> Tensor:
    """Five bins over whatever the size is."""
    features = fine(x)
    bins = coarse(functional.adaptive_avg_pool2d(features, 5))
    return functional.interpolate(features + functional.interpolate(bins, size=features.shape[-2:]), scale_factor=2)


def placed(x: Tensor, c: nn.Module) -> Tensor:
    """A score for where in the tile a pixel lies."""
    return c(x) + torch.linspace(0, 3, x.shape[-1])


def stretched(x: Tensor, c: nn.Module) -> Tensor:
    return functional.interpolate(c(x), size=x.shape[-2:], mode="bilinear", align_corners=True)


NEVER: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "global pooling": (
        4,
        lambda: Of(
            lambda x, c: functional.interpolate(c(x) + 3 * c(x).mean((2, 3), keepdim=True), scale_factor=4),
            conv(2, 3, stride=4),
        ),
    ),
    "adaptive pooling to a pyramid": (2, lambda: Of(pooled, conv(2, 3, stride=2), conv(3, 3, 1))),
    "attention": (8, lambda: Of(attending, conv(2, 4, 8, stride=8, padding=0), conv(4, 3, 1))),
    "place in the tile": (DEFAULT_ALIGN, lambda: Of(placed, conv(2, 3))),
    "corners aligned": (4, lambda: Of(stretched, conv(2, 3, stride=4))),
    "instance norm": (4, lambda: nn.Sequential(nn.InstanceNorm2d(2), conv(2, 3, stride=4))),
}


@pytest.mark.parametrize("name", [name for name in NEVER if name != "instance norm"])
def test_never_equivariant_is_said_so_and_has_the_output_stride(name):
    align, make = NEVER[name]
    found = measured(built(make))
    assert (found.align, found.equivariant) == (align, False)
    assert found.error > 1e-2


def test_statistics_of_the_tile_are_not_equivariant():
    align, make = NEVER["instance norm"]
    found = measured(built(make))
    assert found.align % align == 0
    assert not found.equivariant


# --- tiles that fit badly ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [80, 100, 50])
def test_tile_that_is_no_multiple_of_the_stride(tile):
    """No start but 0 is right, and the contract must say so; windows start where the tile allows."""
    net = built(lambda: Of(lambda x, c: functional.interpolate(c(x), size=x.shape[-2:]), conv(2, 3, stride=32)))
    found = measured(net, (tile, tile))
    assert tile % found.align == 0
    assert not found.equivariant
    assert 0.01 < found.error < 10


def test_tile_that_is_no_multiple_of_a_silent_stride():
    """Noise finds nothing wrong with any shift, and the layers do."""

    def forward(x: Tensor, fine: nn.Module, deep: nn.Module) -> Tensor:
        silent = torch.relu(deep(x) - 50)
        return fine(x) + functional.interpolate(silent, size=x.shape[-2:])

    net = built(lambda: Of(forward, conv(2, 3), conv(2, 3, stride=8)))
    assert measured(net, (96, 96)).equivariant
    found = measured(net, (100, 100))
    assert (found.align, found.equivariant) == (4, False)


def test_a_tile_of_two_strides_has_a_middle():
    """What lies behind the borders of a tile changes its middle only if the network reaches so far."""

    def forward(x: Tensor, fine: nn.Module, deep: nn.Module) -> Tensor:
        return fine(x) + functional.interpolate(torch.relu(deep(x) - 50), scale_factor=32)

    found = measured(built(lambda: Of(forward, conv(2, 3), conv(2, 3, stride=32))), (64, 64))
    assert (found.align, found.equivariant) == (32, True)
    assert found.error < 1e-5


@pytest.mark.parametrize("tile", [1, 2, 3, 4, 5, 8, 9, 16])
@pytest.mark.parametrize("classes", [1, 3])
def test_tiny_tiles_give_something_that_divides_them(tile, classes):
    found = measured(built(lambda: conv(2, classes)), (tile, tile))
    assert tile % found.align == 0
    assert np.isfinite(found.error)


def test_a_tile_of_one_stride():
    net = built(lambda: halved(3, nn.MaxPool2d(2)))
    assert measured(net, (8, 8)).align == 8


# --- what layers show -------------------------------------------------------------------------------------------------


def shown(net: nn.Module, size: int = 64, channels: int = 2) -> int:
    return output_stride(net, np.zeros((1, channels, size, size), np.float32))


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_show_the_stride(name):
    align, make = NETWORKS[name]
    net = built(make)
    sides = {"two strides side by side": 4}  # each of its own
    assert shown(net, 96) == sides.get(name, align)


def test_programs_show_their_stride_too():
    net = built(lambda: halved(3, nn.MaxPool2d(2)))
    image = torch.zeros(2, 2, 64, 64)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and people have it
        traced = torch.jit.trace(net, image)
        program = torch.export.export(net, (image,)).module()
    assert shown(traced) == 8
    assert output_stride(program, image.numpy()) == 8


def test_pooling_over_the_whole_image_is_no_stride():
    pooled = nn.Sequential(conv(2, 4, stride=4), nn.AvgPool2d(16), nn.Upsample(scale_factor=64), conv(4, 3))
    adaptive = nn.Sequential(conv(2, 4, stride=4), nn.AdaptiveAvgPool2d(2), nn.Upsample(scale_factor=32), conv(4, 3))
    assert shown(pooled) == shown(adaptive) == 4


@pytest.mark.parametrize(
    ("sizes", "image", "stride"),
    [
        ([], (64, 64), 1),
        ([((64, 64), (64, 64))], (64, 64), 1),
        # ResNet at 500 pixels rounds up at each step
        ([((500, 500), (250, 250)), ((250, 250), (125, 125)), ((125, 125), (63, 63))], (500, 500), 8),
        # the first U-Net, without padding
        ([((572,) * 2, (570,) * 2), ((568,) * 2, (284,) * 2), ((280,) * 2, (140,) * 2)], (572, 572), 4),
        # up again and down again, as hourglasses do
        ([((64, 64), (32, 32)), ((32, 32), (64, 64)), ((64, 64), (16, 16))], (64, 64), 4),
        ([((32, 64), (16, 32)), ((16, 32), (8, 16))], (32, 64), 4),
        # strips pooled along one axis
        ([((32, 64), (32, 32)), ((32, 32), (32, 8))], (32, 64), 8),
    ],
)
def test_steps_multiply(sizes, image, stride):
    assert total_stride(sizes, image) == stride


@pytest.mark.parametrize(
    ("operator", "strided"),
    [
        *((name, True) for name in ("aten.convolution.default", "aten.max_pool2d_with_indices.default", "Conv", "MaxPool")),
        *((name, True) for name in ("AveragePool", "SpaceToDepth", "QLinearConv", "aten.pixel_unshuffle.default")),
        *((name, False) for name in ("aten._adaptive_avg_pool2d.default", "GlobalAveragePool", "aten.mean.dim", "Relu")),
    ],
)
def test_operators_with_a_lattice(operator, strided):
    assert is_strided(operator, (8, 8), (4, 4)) == strided


@pytest.mark.parametrize("operator", ["aten.upsample_bilinear2d.vec", "Resize"])
def test_maps_that_are_resized_by_a_fraction_have_none(operator):
    assert is_strided(operator, (8, 8), (4, 4))
    assert not is_strided(operator, (6, 6), (4, 4))
    assert not is_strided(operator, (4, 4), (8, 8))


# --- the user's word ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measured", "named", "visible", "align"),
    [
        (Stride(8, True, 0.0), None, 1, 8),
        (Stride(8, True, 0.0), (8, 8), 1, 8),
        (Stride(8, True, 0.0), (16, 24), 8, 24),
        (Stride(8, True, 0.0), (4, 4), 1, None),
        (Stride(8, True, 0.0), (8, 4), 1, None),
        # the layers are known, though scores change at any shift
        (Stride(8, False, 0.5), (4, 4), 8, None),
        (Stride(8, False, 0.5), (16, 16), 8, 16),
        # nothing is known: 32 was a guess
        (Stride(32, False, 0.5), (4, 4), 1, 4),
    ],
)
def test_a_named_stride_is_a_multiple_of_what_is_known(measured, named, visible, align):
    if align is None:
        with pytest.raises(ExportError, match=r"measured as 8, got \[\d, 4\]: leave it out"):
            named_stride(measured, named, visible)
        return
    assert named_stride(measured, named, visible) == Stride(align, measured.equivariant, measured.error)

"""Random weights whose labels are neither one class everywhere nor noise."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from catalogue.family import CLASSES, Family

SHARP = 2.0
"""Deviation of what attention asks for."""
RESIDUAL = 0.25
"""Share of a bottleneck block: training begins them near 0 (Goyal et al. 2017), and a hundred at 1 amplify rounding.

On noise, LR-ASPP's inverted ones at 1 differ between float32 and float64 by 5e-3 of the largest score, which is 700.
"""


def enliven(family: Family, network: nn.Module, images: Tensor) -> None:
    """Random weights whose labels are neither one class everywhere nor noise.

    Batch norm gets the statistics of the images, each convolution and linear layer unit variance (Mishkin and Matas 2016,
    "All you need is a good init"), and each channel of the heads, hence each class, median 0 and the same deviation.
    """
    network.eval()
    _fill(network)
    call = partial(family.call, network, images)
    with torch.no_grad():
        with _batch_statistics(network), _unit_variance(network):
            call()
        for head in family.heads:
            _centre(call, network.get_submodule(head))
        for layer in family.queries:
            _teach(call, network.get_submodule(layer))


def _fill(network: nn.Module) -> None:
    """Zeros would hide what comes behind them, and queries that are all alike tell nothing apart."""
    for weights in network.parameters():
        if weights.ndim > 1 and not weights.any():
            nn.init.normal_(weights, std=0.5)
    layer: Any
    for layer in network.modules():
        if isinstance(layer, nn.MultiheadAttention):
            layer.in_proj_weight.data[: layer.embed_dim] *= SHARP
        if isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight)
        if hasattr(layer, "bn3"):
            nn.init.constant_(layer.bn3.weight, RESIDUAL)
        if getattr(layer, "use_res_connect", False):
            nn.init.constant_(layer.block[-1][-1].weight, RESIDUAL)


@contextmanager
def _batch_statistics(network: nn.Module) -> Iterator[None]:
    layers = [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    yield
    for layer in layers:
        layer.eval()


@contextmanager
def _unit_variance(network: nn.Module) -> Iterator[None]:
    seen: set[nn.Module] = set()
    wanted = {layer: SHARP for name, layer in network.named_modules() if name.endswith((".q_proj", ".query"))}

    def scale(layer: Any, _: Any, output: Tensor) -> Tensor:
        bias = 0 if layer.bias is None else layer.bias.reshape(-1, *[1] * (0 if isinstance(layer, nn.Linear) else 2))
        gain = 1 if layer in seen else wanted.get(layer, 1) / (output - bias).std().clamp_min(1e-12)
        seen.add(layer)
        layer.weight.mul_(gain)
        return (output - bias) * gain + bias

    kinds = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
    hooks = [layer.register_forward_hook(scale) for layer in network.modules() if isinstance(layer, kinds)]
    yield
    for hook in hooks:
        hook.remove()


def _centre(call: Callable[[], Any], layer: Any) -> None:
    """Median 0 and deviation 1 per channel of what the layer gives."""
    _, output = _seen(call, layer)
    channels = (output if isinstance(layer, nn.Linear) else output.movedim(1, -1)).flatten(0, -2)
    median, spread = channels.median(0).values, channels.std(0)
    layer.weight.div_(spread.reshape(-1, *[1] * (layer.weight.ndim - 1)))
    layer.bias.copy_((layer.bias - median) / spread)


def _teach(call: Callable[[], Any], layer: Any) -> None:
    """By least squares over five images, each query gets a direction of its own, or a class, as trained ones have."""
    states, output = _seen(call, layer)
    states = states[:5]
    images, queries, width = states.shape
    aims = 0.5 * torch.randn(queries, output.shape[-1])
    if output.shape[-1] == len(CLASSES) + 1:
        aims = 4.0 * torch.eye(len(CLASSES) + 1)[torch.arange(queries) % len(CLASSES)]
    known = torch.cat([states.reshape(-1, width), torch.ones(images * queries, 1)], 1)
    found = torch.linalg.solve(known.T @ known + 0.1 * torch.eye(width + 1), known.T @ aims.repeat(images, 1))
    layer.weight.copy_(found[:-1].T)
    layer.bias.copy_(found[-1])


def _seen(call: Callable[[], Any], layer: nn.Module) -> tuple[Tensor, Tensor]:
    """What a layer takes and gives, the last time that it is called."""
    seen: list[tuple[Tensor, Tensor]] = []
    hook = layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    call()
    hook.remove()
    return seen[-1]

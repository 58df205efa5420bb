"""The stride of a network by its graph, and the align that follows for a tile."""

import numpy as np
import onnx
import pytest
from networks import Network

from segpipe.network.graph_stride import graph_stride, likely_align


def strided(path, *strides, up=()):
    net = Network(3).conv(3, 4, 3)
    for stride in strides:
        net.add("Conv", np.ones((4, 4, stride, stride), np.float32), strides=[stride, stride])
    for stride in up:
        net.add("ConvTranspose", np.ones((4, 4, stride, stride), np.float32), strides=[stride, stride])
    return onnx.load(net.save(path, None, classes=4))


@pytest.mark.parametrize(
    ("strides", "up", "seen"),
    [((), (), None), ((2, 2), (), 4), ((2, 2, 2), (2, 2, 2), 8), ((14,), (), 14), ((16, 16), (), None)],
)
def test_strides_multiply_along_a_path(strides, up, seen, tmp_path):
    assert graph_stride(strided(tmp_path / "m.onnx", *strides, up=up)) == seen


@pytest.mark.parametrize(
    ("stride", "tile", "fixed", "align"),
    [
        (None, (512, 512), False, 32),
        (None, (300, 300), True, 32),
        (14, (518, 518), True, 14),
        (16, (513, 513), True, 32),
        (None, (48, 48), True, 16),
        (None, (513, 513), False, 1),
        (None, (1, 64, 64), True, 1),
    ],
)
def test_align_of_a_tile(stride, tile, fixed, align):
    assert likely_align(stride, tile, fixed=fixed) == align

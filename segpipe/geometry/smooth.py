"""Values of a smooth function at all points of a large grid, from a few in each block of it.

A block is interpolated by polynomials through Chebyshev nodes (Trefethen 2013, chapter 5), if they give the function's own
values between the nodes; else the function is computed at each of its points.
"""

from collections.abc import Callable
from itertools import product

import numpy as np
from numpy.typing import NDArray

from segpipe.array_types import Float

BLOCK = 64
"""Points along each side of a block."""
NODES = 8
TESTS = np.array([-0.9, -0.1, 0.35, 0.95])
"""Where a block is compared with the function along each axis, from -1 to 1; between the nodes."""
CLOSE = 1e-10
"""Largest relative difference there."""
MANY = 2**16
"""Points from which on it pays: fewer are computed one by one."""


def on_grid(function: Callable[[Float, Float], Float], rows: Float, cols: Float) -> Float:
    """Values ``(rows, cols)`` of a function of rows and columns, each in ascending order.

    Args:
        function: takes and gives arrays of one shape; smooth but for some places.
        rows: positions along the first axis.
        cols: positions along the second axis.
    """
    if len(rows) * len(cols) < MANY:
        return function(*np.meshgrid(rows, cols, indexing="ij"))
    down, across = _Axis(rows), _Axis(cols)
    at_nodes = function(*np.meshgrid(down.nodes, across.nodes, indexing="ij"))
    values = across.interpolated(down.interpolated(at_nodes).T).T
    close = _are_close(function, down, across, at_nodes)
    waiting = [(int(i), int(j)) for i, j in np.argwhere(~close)]
    met = set(waiting)
    while waiting:
        i, j = waiting.pop()
        part = down.blocks[i], across.blocks[j]
        exact = function(*np.meshgrid(rows[part[0]], cols[part[1]], indexing="ij"))
        if (np.abs(values[part] - exact) > CLOSE * np.abs(exact)).any():
            # the edge of a map that shows in this block may pass between the nodes of the next
            near = set(_around(i, j, close.shape)) - met
            met |= near
            waiting += near
        values[part] = exact
    return np.asarray(values)


class _Axis:
    """Blocks along an axis, and the nodes of each."""

    def __init__(self, places: Float) -> None:
        self.places = places
        self.blocks = [slice(a, min(a + BLOCK, len(places))) for a in range(0, len(places), BLOCK)]
        middles = [(places[b.start] + places[b.stop - 1]) / 2 for b in self.blocks]
        self._middle, self._half = (
            np.array(middles),
            [max(places[b.stop - 1] - places[b.start], 1.0) / 2 for b in self.blocks],
        )
        self.nodes, self.tests = self._spread(_CHEBYSHEV), self._spread(TESTS)

    def _spread(self, relative: Float) -> Float:
        """Positions in every block of points from -1 to 1."""
        return np.asarray((self._middle[:, None] + np.outer(self._half, relative)).ravel())

    def interpolated(self, at_nodes: Float) -> Float:
        """Values ``(places, others)`` from those at the nodes, ``(nodes, others)``."""
        each = [
            _matrix((self.places[block] - middle) / half) @ at_nodes[k * NODES : (k + 1) * NODES]
            for k, (block, middle, half) in enumerate(zip(self.blocks, self._middle, self._half, strict=True))
        ]
        return np.concatenate(each)

    def at_tests(self, at_nodes: Float) -> Float:
        """Values ``(tests, others)`` from those at the nodes."""
        matrix = _matrix(TESTS)
        return np.concatenate([matrix @ at_nodes[k : k + NODES] for k in range(0, len(at_nodes), NODES)])


def _are_close(function: Callable[[Float, Float], Float], down: _Axis, across: _Axis, at_nodes: Float) -> NDArray[np.bool_]:
    """Whether each block, ``(blocks down, blocks across)``, is interpolated well."""
    truth = function(*np.meshgrid(down.tests, across.tests, indexing="ij"))
    found = across.at_tests(down.at_tests(at_nodes).T).T
    close = np.abs(found - truth) <= CLOSE * np.abs(truth)
    inside = at_nodes != 0
    return _all(close, len(TESTS)) & _all(inside, NODES)


def _around(i: int, j: int, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """The blocks around a block.

    >>> _around(0, 1, (1, 3))
    [(0, 0), (0, 2)]
    """
    each = product(range(max(0, i - 1), min(i + 2, shape[0])), range(max(0, j - 1), min(j + 2, shape[1])))
    return [block for block in each if block != (i, j)]


def _all(flags: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """Whether all flags of each block of this side are set."""
    tall, wide = flags.shape
    return np.asarray(flags.reshape(tall // side, side, wide // side, side).all(axis=(1, 3)))


_CHEBYSHEV: Float = -np.cos(np.pi * np.arange(NODES) / (NODES - 1))


def _matrix(places: Float) -> Float:
    """Weights ``(places, nodes)`` of the values at the nodes, by the barycentric formula (Berrut and Trefethen 2004).

    >>> bool(np.allclose(_matrix(np.array([0.3])) @ _CHEBYSHEV**5, 0.3**5))
    True
    """
    signs = np.where(np.arange(NODES) % 2, -1.0, 1.0)
    signs[[0, -1]] /= 2
    away = places[:, None] - _CHEBYSHEV
    at_node = away == 0
    terms = signs / np.where(at_node, 1.0, away)
    weights = terms / terms.sum(axis=1, keepdims=True)
    return np.asarray(np.where(at_node.any(axis=1, keepdims=True), at_node, weights))

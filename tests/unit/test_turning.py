"""Axes of a volume as the network sees them, with the place of every voxel kept."""

import networks
import numpy as np
import pytest

from segpipe.contract import Contract, parse_contract
from segpipe.errors import ContractError
from segpipe.formats.volume.checks import order_notes
from segpipe.formats.volume.turning import network_grid
from segpipe.geometry.voxel_grid import AS_STORED, VoxelGrid

GRID = VoxelGrid((4, 5, 6), ((0, 0, -1, 9), (0, 2, 0, -3), (3, 0, 0, 1)))
"""Axes S, A and L, slowest first."""


def contract(**changes: object) -> Contract:
    return parse_contract(networks.contract(1, 2, layout="NCDHW", tile=[8] * 3, overlap=[2] * 3, **changes), "test")


def test_axes_are_as_stored_without_either_key():
    assert network_grid(GRID, contract()) == GRID
    assert order_notes(GRID, contract()) == [
        "the contract names no orientation: the network gets the axes as they are stored, SAL"
    ]


def test_an_axis_order_permutes_and_flips_nothing():
    seen = network_grid(GRID, contract(axis_order=[2, 0, 1]))
    assert (seen.shape, seen.directions, seen.turned.flipped) == ((6, 4, 5), "LSA", (False,) * 3)
    assert np.allclose(seen.world(np.array([5.0, 1, 2])), GRID.world(np.array([1.0, 2, 5])))
    assert seen.stored.shape == GRID.shape
    assert "axes [2, 0, 1] of those stored, SAL" in order_notes(GRID, contract(axis_order=[2, 0, 1]))[0]


def test_an_orientation_turns():
    assert network_grid(GRID, contract(orientation="RAS")).directions == "RAS"
    assert network_grid(GRID, contract()).turned == AS_STORED


def test_both_keys_are_one_too_many():
    with pytest.raises(ContractError, match=r'one of orientation and axis_order turns a volume, got "RAS" and \[0, 2, 1\]'):
        contract(orientation="RAS", axis_order=[0, 2, 1])
    with pytest.raises(ContractError, match="axis_order must have the axes 0, 1 and 2 of a volume, each once"):
        contract(axis_order=[0, 1, 1])

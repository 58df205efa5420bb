"""The axes of a volume in the order and directions in which the network sees them."""

from dataclasses import replace

from segpipe.contract import Contract
from segpipe.geometry.voxel_grid import AS_STORED, Turned, VoxelGrid, turned_to

UNFLIPPED = (False, False, False)


def network_grid(stored: VoxelGrid, contract: Contract) -> VoxelGrid:
    """The grid of a volume with its axes turned to the contract's ``orientation``, or put into its ``axis_order``.

    Args:
        stored: the grid with the file's axes.
        contract: without either key, axes stay as they are stored.
    """
    if contract.orientation is not None:
        return stored.turn(turned_to(stored, contract.orientation))
    if contract.axis_order is not None:
        return stored.turn(Turned(tuple(contract.axis_order), UNFLIPPED))
    return replace(stored, turned=AS_STORED)

"""What an export has made."""

from typing import TYPE_CHECKING

from segpipe.messages.console import echo
from segpipe.messages.printable import counted, dims

if TYPE_CHECKING:  # torch and all that comes with it
    from segpipe.contract import Contract
    from segpipe.export.attach import Attached
    from segpipe.export.make import Exported


def print_export(exported: "Exported") -> None:
    """Print what was exported, and how well it agrees with torch."""
    agreement, contract = exported.agreement, exported.contract
    for note in exported.notes:
        echo(f"note: {note}", err=True)
    size = "rows and columns free" if exported.free_size else "size fixed to the tile"
    tile = dims(contract.tile or ())
    shift = "" if exported.stride.equivariant else f", though scores change by {exported.stride.error:.1%} under such shifts"
    score = contract.provenance["verification"].get("output")
    whose = f"torch's output {score}" if score else "torch"
    echo(
        f"{exported.path}: {contract.provenance['architecture']}, {contract.provenance['parameters']:,} parameters, "
        f"{contract.provenance['precision']}, {_ends(contract)}\n"
        f"tile {tile}, {size}; windows start at multiples of {exported.stride.align}{shift}\n"
        f"agrees with {whose} on {counted(agreement.tiles, 'tile')} of {agreement.source}: "
        f"{agreement.equal_labels:.4%} equal labels, "
        f"mIoU {agreement.miou:.4f}, largest difference of scores {agreement.max_difference:.2g} of the largest"
    )


def _ends(contract: "Contract") -> str:
    return f"{counted(contract.channel_count, 'channel')} to {counted(contract.scores, 'score')}"


def print_attached(attached: "Attached") -> None:
    """Print which contract was attached to which model."""
    for note in attached.notes:
        echo(f"note: {note}", err=True)
    contract = attached.contract
    echo(f"{attached.path}: {_ends(contract)}, contract attached")
    if attached.stride is not None:
        shift = (
            "" if attached.stride.equivariant else f", though scores change by {attached.stride.error:.1%} under such shifts"
        )
        echo(f"windows start at multiples of {attached.stride.align}, as measured{shift}")

"""``segpipe export attach``: a contract for an ONNX file that was made elsewhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segpipe.commands.edge import guarded
from segpipe.commands.options import PATH
from segpipe.errors import SettingsError

if TYPE_CHECKING:  # importing ONNX Runtime takes a second
    from segpipe.export.attach import Attached
    from segpipe.export.bundles.attach import Kind


@click.command()
@click.argument("model", type=PATH)
@click.option("--contract", type=PATH, help="TOML file with the model's channels, scaling, tile and classes.")
@click.option("--output", "-o", type=PATH, help="The file to write [MODEL itself].")
@click.option(
    "--from",
    "kind",
    type=click.Choice(["bioimageio", "monai"]),
    help="MODEL is a folder or zip of bioimage.io or a MONAI bundle; --contract then adds to its description.",
)
@click.option("--weights", type=PATH, help="With --from: ONNX, TorchScript or state of the network in place of MODEL's own.")
@click.option("--without", multiple=True, help="With --from: a step of the description to leave out; repeatable.")
@click.option("--trust-pickle", is_flag=True, help="With --from: load files that can run code. Only from people you trust.")
@guarded(writes=True)
def attach(model: Path, contract: Path | None, output: Path | None, kind: "Kind | None", **choices: Any) -> int:
    """Check that a contract fits MODEL, an ONNX file, and put it into the file.

    With --from, network and contract come from MODEL, a folder or zip with a description.
    """
    from segpipe.export.show import print_attached

    attached = (
        _plain(model, contract, output, choices) if kind is None else _described(kind, model, contract, output, choices)
    )
    print_attached(attached)
    return 0


def _plain(model: Path, contract: Path | None, output: Path | None, choices: Mapping[str, Any]) -> "Attached":
    from segpipe.export import attach as attaching

    if given := [f"--{name.replace('_', '-')}" for name, value in choices.items() if value]:
        raise SettingsError(
            f"{', '.join(given)} is for models with a description, got an ONNX file: give --from, or leave it out"
        )
    if contract is None:
        raise SettingsError(f"{model} needs a contract, got no --contract: name a TOML file with one")
    return attaching.attach(model, contract, output)


def _described(
    kind: "Kind", package: Path, contract: Path | None, output: Path | None, choices: Mapping[str, Any]
) -> "Attached":
    from segpipe.export.bundles.attach import Choices, attach_described
    from segpipe.export.quiet import quiet

    if output is None:
        raise SettingsError(f"the model of {package} goes into a new file, got no --output: name one")
    own = Choices(contract, choices["weights"], choices["without"], choices["trust_pickle"])
    with quiet(False):
        return attach_described(kind, package, output, own)

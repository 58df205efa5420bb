"""``segpipe export``: a group whose first command needs no name."""

import click

from segpipe.commands.lazy import LazyGroup

NETWORK = "network"
"""Command of a word that is no command: a checkpoint."""

COMMANDS = {
    NETWORK: "Make an ONNX file of the network in WEIGHTS: a checkpoint, a transformers folder, or a program.",
    "nnunet": "Make ONNX files of the folds of a folder that nnU-Net trained.",
    "join": "List ONNX models for parts of the classes, whose label maps segpipe run then joins.",
    "attach": "Put a contract into an ONNX file that was made elsewhere.",
}


class _Export(LazyGroup):
    """Treat a word that is not a command as a checkpoint: ``export unet.pt``, ``export attach model.onnx``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args[:1] and args[0] in self.sentences else [NETWORK, *args])


@click.group(cls=_Export, package=__name__, sentences=COMMANDS)
def export() -> None:
    """Make a verified, self-describing ONNX file of a trained network."""

"""``segpipe export nnunet``: the folds of a folder that nnU-Net trained."""

from pathlib import Path
from typing import Any

import click

from segpipe.commands.edge import guarded
from segpipe.commands.export.making import Make, print_made
from segpipe.commands.options import CHECKS, MORE, NETWORK, OUTPUT, PATH
from segpipe.errors import SettingsError
from segpipe.terminal.option_groups import GroupedCommand


@click.command(cls=GroupedCommand)
@click.argument("folders", type=PATH, nargs=-1, required=True)
@NETWORK("--fold", "folds", multiple=True, help="Fold to export: a number, or all [every fold]; repeatable.")
@NETWORK("--checkpoint", help="File name of the checkpoint in each fold [checkpoint_final.pth].")
@NETWORK("--merge", is_flag=True, help="One file with the mean of the folds, instead of a file for each.")
@NETWORK("--network-of-plans", is_flag=True, help="Use the network of plans.json for a trainer that is not nnU-Net's own.")
@OUTPUT(
    "--output",
    "-o",
    type=PATH,
    required=True,
    help="The ONNX file to write; of several folds, the name before -foldN. A list.toml: see below.",
)
@OUTPUT("--precision", type=click.Choice(["fp32", "fp16"]), help="Number format of the graph [fp32].")
@OUTPUT("--overwrite", is_flag=True, help="Replace existing outputs.")
@CHECKS("--verify", multiple=True, help="Cases for the comparison with torch [noise]; repeatable.")
@CHECKS("--min-agreement", type=float, help="Minimum share of torch's labels [fp32 0.9999, fp16 0.999].")
@CHECKS("--max-difference", type=float, help="Maximum difference of scores, relative to the largest score [fp32 1e-4].")
@MORE("--verbose", "-v", is_flag=True, help="Show the output of torch and other libraries on stderr.")
@guarded(writes=True)
def nnunet(verbose: bool, folders: tuple[Path, ...], **flags: Any) -> int:
    """Make ONNX files of FOLDERS, such as Dataset042/nnUNetTrainer__nnUNetPlans__3d_fullres, one for each fold.

    A file holds all that segpipe run needs, and appears only if ONNX Runtime gives the scores that torch gives.

    Several folders, each for a part of the classes, are one model with --output NAME.toml: that is a list of their
    files, NAME-DATASET.onnx, for segpipe run. Where two claim a voxel, the later one wins.
    """
    from segpipe.export.nnunet.settings import nnunet_settings

    output = flags["output"]
    listed = output.suffix.lower() == ".toml"
    if len(folders) > 1 and not listed:
        raise SettingsError(f"several folders need a list, got --output {output}: name it {output.with_suffix('.toml')}")
    each = [nnunet_settings({**flags, "folder": folder}) for folder in folders]

    def load() -> Make:
        from segpipe.export.nnunet.make import export_nnunet
        from segpipe.export.nnunet.several import export_list

        return lambda say: export_list(each, output, say) if listed else export_nnunet(each[0], say)

    return print_made(load, "nnunet", verbose=verbose)

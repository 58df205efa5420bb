"""``segpipe export WEIGHTS``: an ONNX file of a trained network."""

from typing import Any

import click

from segpipe.commands.edge import guarded
from segpipe.commands.export.making import Make, print_made
from segpipe.commands.options import CHECKS, MODEL, MORE, NETWORK, OUTPUT, PATH
from segpipe.terminal.option_groups import GroupedCommand


@click.command(cls=GroupedCommand, epilog="For an existing ONNX model: segpipe export attach MODEL.onnx --contract c.toml")
@click.argument("weights", type=PATH)
@NETWORK("--arch", help="torchvision:NAME, smp:NAME, transformers:FOLDER, bisenetv2 or unet.")
@NETWORK("--encoder", help="Encoder of a segmentation-models-pytorch network, such as resnet34.")
@NETWORK("--module", help="package.module:factory that builds your own network.")
@NETWORK("--option", "options", multiple=True, help="key=value for the constructor or factory; repeatable.")
@NETWORK("--prefix", help="Prefix of the network's keys in the checkpoint [detected].")
@NETWORK("--score", help="Output with the scores if the network has several: its key, or its position from 0.")
@NETWORK("--replace-head", is_flag=True, help="Replace the head by an untrained one if its number of classes differs.")
@NETWORK("--trust-pickle", is_flag=True, help="Load files that can run code. Only from people you trust.")
@MODEL("--classes", help="voc, cityscapes, ade20k, coco-stuff, or a TOML file with any keys of the contract.")
@MODEL("--bands", help="Names of the network's channels in order, such as B04,B03,B02,B08.")
@MODEL("--imagenet", is_flag=True, help="Pixels are 0 to 255, scaled by ImageNet's mean and standard deviation.")
@MODEL("--raw", type=click.Choice(["uint8", "uint16", "int16"]), help="Take raw pixels and scale them in the graph.")
@MODEL("--tile", help="Tile size in pixels.")
@MODEL("--overlap", help="Minimum overlap of neighbouring tiles in pixels [a quarter of the tile].")
@MODEL("--fixed-size", is_flag=True, help="Fix the model's input size to the tile.")
@OUTPUT("--output", "-o", type=PATH, required=True, help="The ONNX file to write.")
@OUTPUT("--precision", type=click.Choice(["fp32", "fp16", "int8"]), help="Number format of the graph [fp32].")
@OUTPUT("--stac-mlm", type=PATH, help="Also write a STAC item of the MLM extension to this file.")
@OUTPUT("--overwrite", is_flag=True, help="Replace an existing output.")
@CHECKS("--calibrate", multiple=True, help="Scenes that set the value ranges of int8, as --input of a run; repeatable.")
@CHECKS(
    "--verify", multiple=True, help="Scenes for the comparison with torch [those of --calibrate, else noise]; repeatable."
)
@CHECKS("--scene-bands", help="Bands of these scenes, counted from 1, such as 4,3,2.")
@CHECKS("--min-agreement", type=float, help="Minimum share of torch's labels [fp32 0.9999, fp16 0.999, int8 0.99].")
@CHECKS("--max-difference", type=float, help="Maximum difference of scores, relative to the largest score [fp32 1e-4].")
@MORE("--verbose", "-v", is_flag=True, help="Show the output of torch and other libraries on stderr.")
@guarded(writes=True)
def network(verbose: bool, **flags: Any) -> int:
    """Make an ONNX file of the network in WEIGHTS: a checkpoint, a transformers folder, or a program.

    The file holds all that segpipe run needs, and appears only if ONNX Runtime gives the scores that torch gives.
    """
    from segpipe.export.settings import export_settings

    settings = export_settings(flags)

    def load() -> Make:
        from segpipe.export.make import export_model

        return lambda say: [export_model(settings, say)]

    return print_made(load, "export", verbose=verbose)

"""``segpipe tune``: time and labels of other tiles, overlaps, batches and precisions."""

from typing import Any

import click

from segpipe.choices import BLENDS
from segpipe.commands.edge import SOME_FAILED, guarded
from segpipe.commands.options import BAND_RESAMPLING, BANDS_FROM, CONTRACT, INPUT, JSON, MODEL, MORE, PATH, TILES, WHERE
from segpipe.messages.console import echo
from segpipe.terminal.option_groups import GroupedCommand


@click.command(cls=GroupedCommand)
@click.argument("model", type=PATH)
@INPUT("--input", "-i", multiple=True, help="Scenes on which labels are compared, as --input of a run [noise]; repeatable.")
@INPUT("--bands", help="Bands of the scenes for the model's channels, counted from 1, such as 4,3,2.")
@BANDS_FROM
@BAND_RESAMPLING
@INPUT("--nodata", help="Value of pixels without data, instead of the scenes' own; none: all pixels hold data.")
@INPUT("--ignore-alpha", is_flag=True, help="Treat alpha bands as data, not as masks.")
@INPUT("--crs", help="CRS of files whose own CRS is missing or wrong: a code such as EPSG:32633, or WKT.")
@INPUT("--resample", is_flag=True, help="Resample images whose pixel size differs from the model's, as a run does.")
@INPUT("--validity", metavar="MASK[:VALUES]", help="Mask that comes with each scene, as of a run.")
@INPUT("--aoi", type=PATH, help="Polygons of the area of interest: labels are compared inside.")
@INPUT("--aoi-layer", help="Layer of the file of --aoi, if it has several.")
@MODEL("--also", multiple=True, type=PATH, help="Another file of the same network, such as int8; repeatable.")
@CONTRACT
@TILES("--tile", "tiles", multiple=True, type=int, help="Tile size to measure [the contract's, double, half]; repeatable.")
@TILES(
    "--overlap",
    "overlaps",
    multiple=True,
    type=int,
    help="Overlap to measure [1/4, 1/8, 1/16 and 0 of the tile]; repeatable.",
)
@TILES("--batch", "batches", multiple=True, type=int, help="Batch to measure [1, 2, 4; on a GPU 8, 16, 32]; repeatable.")
@TILES("--blend", type=click.Choice(BLENDS), help="How the weight of a tile falls towards its edges [gaussian].")
@TILES(
    "--tta",
    type=click.Choice(["none", "flips"]),
    help="Average the scores of each tile over its flips, as a run does [none].",
)
@WHERE("--device", metavar="NAME", help="Device for the model [that of a run, and openvino beside a CPU].")
@WHERE(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(["fp32", "bf16", "int8"]),
    help="Precision to measure [the file's own, and bf16 with openvino]; repeatable.",
)
@MORE("--seconds", type=float, help="Time to spend; choices that do not fit are left out [90].")
@MORE("--min-agreement", type=float, help="Minimum share of equal labels of the recommended choice [0.99].")
@MORE("--reference", type=PATH, help="True labels of the scenes, for mean IoU: a folder with a file per scene, or a file.")
@MORE("--map-classes", type=PATH, help="TOML file: which values of the reference are which classes.")
@MORE("--max-loss", type=float, help="Largest loss of mean IoU of the recommended choice, instead of --min-agreement.")
@JSON
@guarded()
def tune(json: bool, **flags: Any) -> int:
    """Measure the time and the labels of other tiles, overlaps, batches and precisions of MODEL; nothing is written.

    Exits with 1 if no choice reaches the share of equal labels that --min-agreement asks for.
    """
    from segpipe.tune.measure import tune as measure
    from segpipe.tune.settings import TuneSettings
    from segpipe.tune.show import as_json, print_tuned

    settings = TuneSettings(**{key: value for key, value in flags.items() if value is not None})
    tuned = measure(settings, lambda line: echo(line, err=True))
    if json:
        click.echo(as_json(tuned))
    else:
        print_tuned(tuned)
    return 0 if tuned.best else SOME_FAILED

"""``segpipe inspect``: what a file is, and what a run would need."""

from pathlib import Path
from typing import Any

import click

from segpipe.commands.edge import SOME_FAILED, guarded
from segpipe.commands.options import CONTRACT, INPUT, JSON, MODEL, PATH, TILES
from segpipe.messages.console import echo
from segpipe.terminal.option_groups import GroupedCommand


@click.command(cls=GroupedCommand)
@click.argument("file")
@INPUT("--bands", help="Bands of the raster for the model's channels, counted from 1, such as 4,3,2.")
@INPUT("--bands-from", help="Pattern of the files of one case, as of a run; FILE is their folder, or a glob. Needs --model.")
@INPUT("--nodata", help="Value of pixels without data, instead of the file's own; none: all pixels hold data.")
@INPUT("--ignore-alpha/--no-ignore-alpha", default=None, help="Treat alpha bands as data, not as masks.")
@INPUT("--crs", help="CRS if the file's own CRS is missing or wrong: a code such as EPSG:32633, or WKT.")
@INPUT("--validity", metavar="MASK[:VALUES]", help="Mask that comes with the raster, as of a run.")
@INPUT("--aoi", type=PATH, help="Polygons of the area of interest: what of the raster lies inside, and is valid there.")
@INPUT("--aoi-layer", help="Layer of the file of --aoi, if it has several.")
@INPUT("--allow-remote-sources/--no-allow-remote-sources", default=None, help="Let local VRT files read from servers.")
@MODEL("--model", "-m", type=PATH, multiple=True, help="ONNX model to check against the raster or volume; repeatable.")
@CONTRACT
@TILES("--tile", help="Tile size in pixels [the contract's].")
@TILES("--overlap", help="Minimum overlap of neighbouring tiles in pixels [the contract's].")
@JSON
@guarded()
def inspect(file: str, json: bool, **flags: Any) -> int:
    """Show what a model, a raster or a volume is, and what it would need; nothing is written. FILE may be the folder of a
    DICOM series.

    Exits with 1 if segpipe run would refuse FILE: known facts are printed, and the reason on stderr.
    """
    from segpipe.inspect.facts import as_json
    from segpipe.inspect.file import inspect_file
    from segpipe.inspect.show import print_facts
    from segpipe.settings import load_settings

    values = {"input": (file,), **flags, "model": flags["model"] or Path(file), "device": "cpu"}
    facts = inspect_file(load_settings(None, values))
    if json:
        click.echo(as_json(facts))
    else:
        print_facts(facts)
    if facts.error is not None:
        echo(f"error: {facts.error}", err=True)
        return SOME_FAILED
    return 0

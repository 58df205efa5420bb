"""What options of several commands share: the groups of ``--help``, and the type of paths."""

from pathlib import Path
from typing import Any

import click

from segpipe.terminal.option_groups import LAST, group


class _Path(click.Path):
    """A path that must not be empty: an unset shell variable must not mean the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value).strip():
            self.fail("must not be empty", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Path(path_type=Path)

INPUT, MODEL, TILES, OUTPUT = group("Input"), group("Model"), group("Tiles"), group("Output")
WHERE, CLUSTER, MORE = group("Where it runs"), group("Cluster"), group(LAST)
NETWORK, CHECKS = group("Network"), group("Comparison with torch")
SAMPLE = group("Sample")

BANDS_FROM = INPUT(
    "--bands-from", help="Scenes with a file per band: '{case}_{band}.tif'; per date or input of the model: {date}, {input}."
)
BAND_RESAMPLING = INPUT(
    "--band-resampling",
    type=click.Choice(["bilinear", "nearest"]),
    help="Bands of scenes of many files that are coarser than the finest [bilinear].",
)
CONTRACT = MODEL("--contract", type=PATH, help="TOML file with the model's channels, scaling, tile and classes.")
CONFIG = MORE("--config", "-c", type=PATH, help="TOML file with settings; flags override it.")
JSON = MORE("--json", is_flag=True, help="Print one JSON object.")

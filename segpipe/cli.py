"""The command line: the group of the commands, each of which is a file in ``commands/``."""

if __name__ == "__main__":  # before anything heavy is imported
    from segpipe.process.signals import handle_signals

    handle_signals()

import sys
from pathlib import Path
from typing import Any

import click

from segpipe.commands.edge import NOT_STARTED, SOME_FAILED
from segpipe.commands.lazy import LazyGroup
from segpipe.messages.console import echo
from segpipe.messages.streams import failure, make_steady

HELP_COLUMNS = 100

COMMANDS = {
    "run": "Segment every case of the input with one model.",
    "inspect": "Show what a model, a raster or a volume is, and what it would need.",
    "export": "Make a verified, self-describing ONNX file of a trained network.",
    "tune": "Measure the time and labels of other tiles, overlaps, batches and precisions.",
    "cases": "Show which case is which path, and what a hash in a message stands for.",
    "status": "Show how far the runs into an output folder have come.",
    "zones": "Sum up the classes in polygons, such as fields, over the masks of a run.",
    "polygons": "Write the masks of a run as polygons, one per connected region of a class.",
    "mosaic": "Join the masks of a run to one map.",
    "sample": "Draw a stratified random sample of a map, as points to be labelled.",
    "estimate": "Estimate areas and accuracy of a map from a sample of it, with errors.",
    "evaluate": "Compare the masks of a run with reference masks: IoU, Dice, accuracy, kappa.",
    "compare": "Compare two runs: what changed into what, hectares, where, agreement.",
}
"""What each command does; its options are in ``commands/<name>.py``."""

ENCODING = "the encoding of file names must be UTF-8, as GDAL expects, got {}: set PYTHONUTF8=1, or LC_ALL=C.UTF-8"
"""Of another, GDAL would not find files whose names are not ASCII, nor a second run notice that they have changed."""


class _Main(LazyGroup):
    """A command line that continues if its output cannot be written, and reports that at its end."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        make_steady()
        try:
            Path.cwd()
        except OSError as gone:
            echo(f"error: the current folder must exist ({gone.strerror}): cd to one that does", err=True)
            sys.exit(NOT_STARTED)
        if (found := sys.getfilesystemencoding()) != "utf-8":
            echo(f"error: {ENCODING.format(found)}", err=True)
            sys.exit(NOT_STARTED)
        try:
            return super().main(*arguments, **options)
        except SystemExit as ended:
            if (error := failure()) is None:
                raise
            echo(f"error: lines on stdout are lost: it cannot be written: {error.strerror}", err=True)
            sys.exit(ended.code or SOME_FAILED)


def _print_versions(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        from segpipe.terminal.versions import version_lines

        echo("\n".join(version_lines()))
        ctx.exit()


@click.group(
    cls=_Main,
    package="segpipe.commands",
    sentences=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": HELP_COLUMNS},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_versions, help="Show versions and exit."
)
def main() -> None:
    """Batch semantic segmentation of images too large for one forward pass."""


if __name__ == "__main__":
    main(prog_name="segpipe")

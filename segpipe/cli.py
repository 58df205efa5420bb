"""The command line: one function per command."""

import logging
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import click

from segpipe import __version__
from segpipe.pipeline.config import BLENDS, load_settings
from segpipe.pipeline.errors import SegpipeError

NOT_STARTED = 2
SOME_FAILED = 1
INTERRUPTED = 75


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="segpipe")
def main() -> None:
    """Batch semantic segmentation of images too large for one forward pass."""


@main.command(short_help="Segment every case of the input with one model.")
@click.option(
    "--input", "-i", multiple=True, help="A file, folder, glob, list (.txt, .csv), /vsi... or s3:// path; repeatable."
)
@click.option("--model", "-m", type=click.Path(path_type=Path), help="The ONNX model.")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Folder for masks and tables [./segpipe-out].")
@click.option("--config", "-c", type=click.Path(path_type=Path), help="TOML file with the same settings; flags win.")
@click.option("--contract", type=click.Path(path_type=Path), help="TOML file that says what the model needs and gives.")
@click.option("--bands", help="Bands of the file for the model's channels, counted from 1, such as 4,3,2.")
@click.option("--tile", help="Tile size in pixels [the contract's].")
@click.option("--overlap", help="Least overlap of neighbouring tiles in pixels [the contract's].")
@click.option("--blend", type=click.Choice(BLENDS), help="Weights of a tile towards its edges [gaussian].")
@click.option("--blend-on", type=click.Choice(["logits", "probabilities"]), help="What is blended [logits].")
@click.option("--batch", type=int, help="Tiles per call of the model [1 on the CPU, 8 on a GPU].")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where the model runs [auto].")
@click.option("--executor", type=click.Choice(["serial", "dask"]), help="Who runs the jobs [dask].")
@click.option("--workers", type=int, help="Worker processes [one per processor, no more than cases].")
@click.option("--confidence/--no-confidence", default=None, help="Write a second raster with the labels' probability.")
@click.option("--overwrite/--no-overwrite", default=None, help="Do again what is done.")
@click.option("--fail-fast/--no-fail-fast", default=None, help="Stop at the first case that fails.")
@click.option("--dry-run", is_flag=True, help="Print cases, windows, jobs, memory and every problem; start nothing.")
@click.option("--verbose", "-v", count=True, help="Say more, on stderr.")
def run(config: Path | None, dry_run: bool, verbose: int, **flags: Any) -> None:
    """Segment every case of the input with one model: masks on the grid of their input, and areas per class."""
    logging.basicConfig(level=[logging.ERROR, logging.INFO, logging.DEBUG][min(verbose, 2)], stream=sys.stderr)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        sys.exit(_run(config, dry_run, flags))
    except SegpipeError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(NOT_STARTED)
    except KeyboardInterrupt:
        click.echo("interrupted: run the same command again to go on", err=True)
        sys.exit(INTERRUPTED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM, as SLURM and Kubernetes send it, ends a run as Ctrl-C does; once is enough, and a second must not hurt."""
    del frame
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


def _run(config: Path | None, dry_run: bool, flags: dict[str, Any]) -> int:
    from segpipe import terminal
    from segpipe.pipeline.launch import carry_out, prepare

    prepared = prepare(load_settings(config, flags))
    for line in terminal.settings_lines(prepared):
        click.echo(line, err=True)
    if dry_run:
        terminal.print_plan(prepared)
        return SOME_FAILED if prepared.plan.failed else 0
    for line in terminal.note_lines(prepared):
        click.echo(line, err=True)
    with terminal.watcher(prepared) as watcher:
        summary = carry_out(prepared, watcher)
    terminal.conclude(prepared, summary)
    if summary.interrupted:
        raise KeyboardInterrupt
    for problem in summary.problems:
        click.echo(f"error: {problem}", err=True)
    return SOME_FAILED if summary.failed or summary.problems else 0


if __name__ == "__main__":
    main()

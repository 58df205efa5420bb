"""The command line: one function per command."""

if __name__ == "__main__":  # before anything heavy is imported
    from segpipe.process.signals import answer

    answer()

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from segpipe import __version__
from segpipe.errors import DisagreementError, ExportError, SegpipeError
from segpipe.messages.console import echo
from segpipe.messages.printable import printable
from segpipe.messages.streams import failure, make_steady
from segpipe.process import signals
from segpipe.process.extras import install
from segpipe.settings import BLENDS, load_settings

NOT_STARTED = 2
SOME_FAILED = 1


class _Path(click.Path):
    """A path; an empty one, as of a shell's variable that is not set, is not the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value).strip():
            self.fail("must not be empty", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Path(path_type=Path)


class _Main(click.Group):
    """A command line that goes on where its output cannot be written, and says so at its end."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        make_steady()
        try:
            Path.cwd()
        except OSError as gone:
            echo(f"error: the current folder must exist ({gone.strerror}): cd to one that does", err=True)
            sys.exit(NOT_STARTED)
        try:
            return super().main(*arguments, **options)
        except SystemExit as ended:
            if (error := failure()) is None:
                raise
            echo(f"error: lines on stdout are lost: it cannot be written: {error.strerror}", err=True)
            sys.exit(ended.code or SOME_FAILED)


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="segpipe")
def main() -> None:
    """Batch semantic segmentation of images too large for one forward pass."""


@main.command(short_help="Segment every case of the input with one model.")
@click.option(
    "--input", "-i", multiple=True, help="A file, folder, glob, list (.txt, .csv), /vsi... or s3:// path; repeatable."
)
@click.option("--model", "-m", type=PATH, help="The ONNX model.")
@click.option("--output", "-o", help="Folder or s3://bucket/prefix for masks and tables [./segpipe-out].")
@click.option("--config", "-c", type=PATH, help="TOML file with the same settings; flags win.")
@click.option("--contract", type=PATH, help="TOML file that says what the model needs and gives.")
@click.option("--bands", help="Bands of the file for the model's channels, counted from 1, such as 4,3,2.")
@click.option("--nodata", help="Value of pixels without data, in place of the files' own; none: no value.")
@click.option("--ignore-alpha/--no-ignore-alpha", default=None, help="Bands tagged alpha are none: they hold data.")
@click.option("--crs", help="CRS of files whose own is missing or wrong: a code such as EPSG:32633, or WKT.")
@click.option("--resample/--no-resample", default=None, help="Resample images of another pixel size than the model's.")
@click.option(
    "--allow-remote-sources/--no-allow-remote-sources", default=None, help="Let a VRT of this machine ask servers."
)
@click.option("--tile", help="Tile size in pixels [the contract's].")
@click.option("--overlap", help="Least overlap of neighbouring tiles in pixels [the contract's].")
@click.option("--blend", type=click.Choice(BLENDS), help="Weights of a tile towards its edges [gaussian].")
@click.option("--blend-on", type=click.Choice(["logits", "probabilities"]), help="What is blended [logits].")
@click.option("--batch", type=int, help="Tiles per call of the model [1 on the CPU, 8 on a GPU].")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "tensorrt"]), help="Where the model runs [auto].")
@click.option("--tf32/--no-tf32", default=None, help="Let a GPU round products to TF32: faster, further from the CPU.")
@click.option("--nhwc/--no-nhwc", default=None, help="Let a GPU convolve with channels last: faster for some networks.")
@click.option(
    "--unusual-values",
    type=click.Choice(["fail", "allow"]),
    help="Where pixels cannot be what the contract expects, as 0 to 1 for 0 to 10,000 [fail].",
)
@click.option("--executor", type=click.Choice(["serial", "dask"]), help="Who runs the jobs [dask].")
@click.option("--scheduler", help="A Dask scheduler that is there already, such as tcp://10.0.0.1:8786.")
@click.option("--cluster", type=PATH, help="TOML file of a batch system, as configs/slurm.toml.")
@click.option("--tls-ca", type=PATH, help="Authority file for a scheduler on tls://.")
@click.option("--tls-cert", type=PATH, help="Certificate for a scheduler on tls://.")
@click.option("--tls-key", type=PATH, help="Key for a scheduler on tls://.")
@click.option("--dashboard", help="Where Dask's dashboard listens, if bokeh is installed [127.0.0.1, any free port].")
@click.option("--workers", type=int, help="Worker processes [one per processor, no more than cases].")
@click.option("--threads", type=int, help="Threads within a call of the model, on a CPU [as a short trial shows].")
@click.option("--parts", type=int, help="Cut every case into as many parts [as workers and memory ask].")
@click.option("--memory", type=float, help="GB that one worker may use [its share of 80 % of the machine's].")
@click.option("--job-timeout", type=float, help="Seconds after which a job that hangs is ended and tried again [3600].")
@click.option("--grace", type=float, help="Seconds that running jobs have to end after SIGTERM or Ctrl-C [20].")
@click.option("--retries", type=int, help="New tries of a case after an input/output error, 1, 2, 4 ... s later [4].")
@click.option("--confidence/--no-confidence", default=None, help="Write a second raster with the labels' probability.")
@click.option("--style", type=click.Choice(["qgis"]), help="Write <case>.qml beside each mask of one band, for QGIS.")
@click.option("--verify-input/--no-verify-input", default=None, help="Compare all DEFLATE blocks with their checksums.")
@click.option("--overwrite/--no-overwrite", default=None, help="Do again what is done.")
@click.option("--log-file", type=PATH, help="Append what happens as JSON lines.")
@click.option(
    *("--profile", "profile"),
    is_flag=False,
    flag_value="",
    metavar="[FILE]",
    help="Say where the time went, and write a trace for Perfetto there [<output>/profile.json].",
)
@click.option("--fail-fast/--no-fail-fast", default=None, help="Stop at the first case that fails.")
@click.option("--dry-run", is_flag=True, help="Print cases, windows, jobs, memory and every problem; start nothing.")
@click.option("--verbose", "-v", count=True, help="Say more, on stderr.")
def run(config: Path | None, dry_run: bool, verbose: int, **flags: Any) -> None:
    """Segment every case of the input with one model: masks on the grid of their input, and areas per class."""
    logging.basicConfig(level=[logging.ERROR, logging.INFO, logging.DEBUG][min(verbose, 2)], handlers=[_Stderr()])
    if not verbose:
        logging.getLogger("segpipe").setLevel(logging.WARNING)  # what is tried again, or done with less: not of libraries
    signals.leave_at_once()
    try:
        code = _run(config, dry_run, flags)
    except SegpipeError as error:
        echo(f"error: {error}", err=True)
        code = NOT_STARTED
    except KeyboardInterrupt:
        echo("interrupted: run the same command again to go on", err=True)
        code = signals.INTERRUPTED
    signals.end(code)
    sys.exit(code)


class _Stderr(logging.Handler):
    """On stderr as it is now: above the progress bar, where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        for line in text.split("\n") if record.exc_info else [text]:  # a traceback has lines
            echo(printable(line), err=True)


class _Export(click.Group):
    """What is no command of its own is a checkpoint: ``export unet.pt``, ``export attach model.onnx``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args[:1] in (["attach"], [_EXPORT]) else [_EXPORT, *args])


_EXPORT = "network"


@main.group(cls=_Export, short_help="Make a verified, self-describing ONNX file of a trained network.")
def export() -> None:
    """Make a verified, self-describing ONNX file of a trained network."""


@export.command(_EXPORT, epilog="For a model that is ONNX already: segpipe export attach MODEL.onnx --contract c.toml")
@click.argument("weights", type=PATH)
@click.option("--output", "-o", type=PATH, required=True, help="The ONNX file to write.")
@click.option("--arch", help="torchvision:NAME, smp:NAME, transformers:FOLDER, bisenetv2 or unet.")
@click.option("--encoder", help="Encoder of a segmentation-models-pytorch network, such as resnet34.")
@click.option("--module", help="package.module:factory that builds your own network.")
@click.option("--option", "options", multiple=True, help="key=value for the constructor or factory; repeatable.")
@click.option("--classes", help="voc, cityscapes, ade20k, coco-stuff, or a TOML file with any keys of the contract.")
@click.option("--bands", help="Names of the network's channels in its order, such as B04,B03,B02,B08.")
@click.option("--imagenet", is_flag=True, help="Pixels are 0 to 255, scaled by the mean and deviation of ImageNet.")
@click.option("--tile", help="Tile size in pixels.")
@click.option("--overlap", help="Least overlap of neighbouring tiles in pixels [a quarter of the tile].")
@click.option("--raw", type=click.Choice(["uint8", "uint16", "int16"]), help="Take raw pixels, and scale them in the graph.")
@click.option("--precision", type=click.Choice(["fp32", "fp16", "int8"]), help="Numbers in the graph [fp32].")
@click.option("--calibrate", multiple=True, help="Scenes that tell the ranges of int8, as --input of a run; repeatable.")
@click.option(
    "--verify", multiple=True, help="Scenes to compare with torch on [those of --calibrate, else noise]; repeatable."
)
@click.option("--scene-bands", help="Bands of those scenes, counted from 1, such as 4,3,2.")
@click.option("--prefix", help="What stands before the network's keys in the checkpoint [found].")
@click.option("--score", help="Which output has the scores, where several could: its key, or its position from 0.")
@click.option("--replace-head", is_flag=True, help="Begin the head anew, untrained, where its number of classes differs.")
@click.option("--trust-pickle", is_flag=True, help="Load a pickle or program that can run code. Only from people you trust.")
@click.option("--fixed-size", is_flag=True, help="Do not try to leave rows and columns free.")
@click.option("--min-agreement", type=float, help="Least share of torch's labels [0.9999, fp16 0.999, int8 0.99].")
@click.option("--max-difference", type=float, help="Largest difference of scores, relative to the largest [fp32 1e-4].")
@click.option("--stac-mlm", type=PATH, help="Write a STAC item of the MLM extension there.")
@click.option("--overwrite", is_flag=True, help="Replace the output.")
@click.option("--verbose", "-v", is_flag=True, help="Show what torch and other libraries write, on stderr.")
def network(verbose: bool, **flags: Any) -> None:
    """Make an ONNX file of the network in WEIGHTS: a checkpoint, a transformers folder, or a program.

    The file holds all that segpipe run needs, and appears only if ONNX Runtime gives the scores that torch gives.
    """
    sys.exit(_guarded(lambda: _export(flags, verbose), writes=True))


def _export(flags: dict[str, Any], verbose: bool) -> int:
    from segpipe.export.quiet import quiet
    from segpipe.export.settings import export_settings
    from segpipe.terminal import progress as terminal

    settings = export_settings(flags)
    try:
        from segpipe.export.make import export_model
    except ModuleNotFoundError as error:
        raise ExportError(f"exporting needs {error.name}, which is not installed: {install('export')}") from None
    try:
        with quiet(verbose) as say:
            exported = export_model(settings, say)
    except DisagreementError as error:
        echo(f"error: {error}", err=True)
        return SOME_FAILED
    terminal.print_export(exported)
    return 0


@export.command(short_help="Put a contract into an ONNX file that was made elsewhere.")
@click.argument("model", type=PATH)
@click.option("--contract", type=PATH, required=True, help="TOML file that says what the model needs.")
@click.option("--output", "-o", type=PATH, help="A new file [the model itself].")
def attach(model: Path, contract: Path, output: Path | None) -> None:
    """Put a contract into MODEL, an ONNX file, once the two have been found to fit."""
    sys.exit(_guarded(lambda: _attach(model, contract, output), writes=True))


def _attach(model: Path, contract: Path, output: Path | None) -> int:
    from segpipe.export import attach as attaching
    from segpipe.terminal import progress as terminal

    terminal.print_attached(attaching.attach(model, contract, output))
    return 0


def _guarded(command: Callable[[], int], *, writes: bool = False) -> int:
    """The exit code of a command; an error is one line on stderr, and what it has half-written goes."""
    (signals.interrupt if writes else signals.leave_at_once)()
    try:
        return command()
    except SegpipeError as error:
        echo(f"error: {error}", err=True)
        return NOT_STARTED
    except KeyboardInterrupt:
        echo("interrupted: run the same command again", err=True)
        return signals.INTERRUPTED


@main.command(short_help="Show how far the runs into an output folder have come.")
@click.argument("output", default="segpipe-out")
@click.option("--json", is_flag=True, help="Print one JSON object.")
def status(output: str, json: bool) -> None:
    """Show what is done, failed and missing in OUTPUT, the folder of a run, and the command that goes on.

    Ends with 1 where a case failed or is missing, or the last run died.
    """
    sys.exit(_guarded(lambda: _status(output, json)))


def _status(output: str, json: bool) -> int:
    from segpipe.jobs.status import read_status
    from segpipe.terminal import progress as terminal

    found = read_status(output)
    terminal.print_status(found, json)
    return SOME_FAILED if found.failed or found.missing or found.problems or found.state == "died" else 0


@main.command(short_help="Show what a model or a raster is, and what it would need.")
@click.argument("file")
@click.option("--model", "-m", type=PATH, help="For a raster: an ONNX model to lay on it.")
@click.option("--contract", type=PATH, help="TOML file that says what the model needs and gives.")
@click.option("--bands", help="Bands of the raster for the model's channels, counted from 1, such as 4,3,2.")
@click.option("--nodata", help="Value of pixels without data, in place of the files' own; none: no value.")
@click.option("--ignore-alpha/--no-ignore-alpha", default=None, help="Bands tagged alpha are none: they hold data.")
@click.option("--crs", help="CRS of files whose own is missing or wrong: a code such as EPSG:32633, or WKT.")
@click.option(
    "--allow-remote-sources/--no-allow-remote-sources", default=None, help="Let a VRT of this machine ask servers."
)
@click.option("--tile", help="Tile size in pixels [the contract's].")
@click.option("--overlap", help="Least overlap of neighbouring tiles in pixels [the contract's].")
@click.option("--json", is_flag=True, help="Print one JSON object.")
def inspect(file: str, json: bool, **flags: Any) -> None:
    """Show what a model or a raster is, and what it would need; nothing is written.

    Ends with 1 where segpipe run would refuse FILE: what is known is printed, and why on stderr.
    """
    from segpipe.inspect.facts import as_json
    from segpipe.inspect.file import inspect_file
    from segpipe.inspect.show import print_facts

    signals.leave_at_once()
    values = {"input": (file,), **flags, "model": flags["model"] or Path(file), "device": "cpu"}
    try:
        facts = inspect_file(load_settings(None, values))
    except SegpipeError as error:
        echo(f"error: {error}", err=True)
        sys.exit(NOT_STARTED)
    if json:
        click.echo(as_json(facts))
    else:
        print_facts(facts)
    if facts.error is not None:
        echo(f"error: {facts.error}", err=True)
        sys.exit(SOME_FAILED)


@main.command(short_help="Measure what other tiles, overlaps, batches and precisions cost and give.")
@click.argument("model", type=PATH)
@click.option("--input", "-i", multiple=True, help="Scenes to compare labels on, as --input of a run [noise]; repeatable.")
@click.option("--also", multiple=True, type=PATH, help="Another file of the network, as its int8; repeatable.")
@click.option("--contract", type=PATH, help="TOML file that says what the model needs and gives.")
@click.option("--bands", help="Bands of the scenes for the model's channels, counted from 1, such as 4,3,2.")
@click.option("--nodata", help="Value of pixels without data, in place of the scenes' own; none: no value.")
@click.option("--ignore-alpha", is_flag=True, help="Bands tagged alpha are none: they hold data.")
@click.option("--crs", help="CRS of files whose own is missing or wrong: a code such as EPSG:32633, or WKT.")
@click.option("--blend", type=click.Choice(BLENDS), help="Weights of a tile towards its edges [gaussian].")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where the model runs [auto].")
@click.option(
    "--tile", "tiles", multiple=True, type=int, help="Measure this tile [the contract's, twice, half]; repeatable."
)
@click.option("--overlap", "overlaps", multiple=True, type=int, help="Measure this overlap [1/4 to 0 of it]; repeatable.")
@click.option(
    "--batch", "batches", multiple=True, type=int, help="Measure this batch [1, 2, 4; on a GPU 8 to 32]; repeatable."
)
@click.option("--seconds", type=float, help="Time to spend; what does not fit is left out [90].")
@click.option("--min-agreement", type=float, help="Least share of equal labels of what is advised [0.99].")
@click.option("--json", is_flag=True, help="Print one JSON object.")
def tune(json: bool, **flags: Any) -> None:
    """Measure what other tiles, overlaps, batches and precisions of MODEL cost in time and in labels; nothing is written.

    Ends with 1 where no choice gives as many equal labels as --min-agreement asks for.
    """
    sys.exit(_guarded(lambda: _tune(json, flags)))


def _tune(json: bool, flags: dict[str, Any]) -> int:
    from segpipe.tune.measure import tune
    from segpipe.tune.settings import TuneSettings
    from segpipe.tune.show import as_json, print_tuned

    settings = TuneSettings(**{key: value for key, value in flags.items() if value is not None})
    tuned = tune(settings, lambda line: echo(line, err=True))
    if json:
        click.echo(as_json(tuned))
    else:
        print_tuned(tuned)
    return 0 if tuned.best else SOME_FAILED


def _run(config: Path | None, dry_run: bool, flags: dict[str, Any]) -> int:
    from segpipe.api.running import Host, execute
    from segpipe.jobs.launch import prepare
    from segpipe.process.machine import age
    from segpipe.terminal import progress as terminal

    prepared = prepare(load_settings(config, flags), look=dry_run, age=age())
    for line in terminal.settings_lines(prepared):
        echo(line, err=True)
    if dry_run:
        terminal.print_plan(prepared)
        terminal.print_left_out(prepared)
        return SOME_FAILED if prepared.plan.failed or prepared.problems else 0
    summary = execute(prepared, Host(terminal.watcher, lambda line: echo(line, err=True), signals.halting))
    terminal.conclude(prepared, summary)
    terminal.print_left_out(prepared)
    terminal.print_profile(summary)
    if summary.interrupted:
        raise KeyboardInterrupt
    for problem in summary.problems:
        echo(f"error: {printable(problem)}", err=True)
    return SOME_FAILED if summary.failed or summary.problems else 0


if __name__ == "__main__":
    main()

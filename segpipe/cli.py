"""The command line: one function per command."""

if __name__ == "__main__":  # before anything heavy is imported
    from segpipe.process.signals import answer

    answer()

import logging
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import click

from segpipe.errors import DisagreementError, ExportError, SegpipeError, SettingsError
from segpipe.messages.console import echo
from segpipe.messages.printable import printable
from segpipe.messages.streams import failure, make_steady
from segpipe.process import signals
from segpipe.process.extras import install
from segpipe.settings import AUDITED, BLENDS, RULES, Executor, Precision, Settings, load_settings
from segpipe.terminal.option_groups import LAST, GroupedCommand, group

NOT_STARTED = 2
SOME_FAILED = 1
HELP_COLUMNS = 100


class _Path(click.Path):
    """A path that must not be empty: an unset shell variable must not mean the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value).strip():
            self.fail("must not be empty", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Path(path_type=Path)

_INPUT, _MODEL, _TILES, _OUTPUT = group("Input"), group("Model"), group("Tiles"), group("Output")
_WHERE, _CLUSTER, _MORE = group("Where it runs"), group("Cluster"), group(LAST)
_NETWORK, _CHECKS = group("Network"), group("Comparison with torch")
_ESTIMATE = group("Sample")


class _Main(click.Group):
    """A command line that continues if its output cannot be written, and reports that at its end."""

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


def _print_versions(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        from segpipe.terminal.versions import version_lines

        echo("\n".join(version_lines()))
        ctx.exit()


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": HELP_COLUMNS})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_versions, help="Show versions and exit."
)
def main() -> None:
    """Batch semantic segmentation of images too large for one forward pass."""


@main.command(cls=GroupedCommand, short_help="Segment every case of the input with one model.")
@_INPUT(
    *("--input", "-i"),
    multiple=True,
    help="File, folder, glob pattern, list (.txt, .csv), /vsi... or s3:// path; repeatable.",
)
@_INPUT("--bands", help="Bands of the file for the model's channels, counted from 1, such as 4,3,2.")
@_INPUT("--channels", help="Volumes with a file per channel: 't1=*_t1.nii.gz,flair=*_flair.nii.gz' [NAME_0000, ...].")
@_INPUT(
    "--bands-from", help="Scenes with a file per band: '{case}_{band}.tif'; per date or input of the model: {date}, {input}."
)
@_INPUT(
    "--band-resampling",
    type=click.Choice(["bilinear", "nearest"]),
    help="Bands of scenes of many files that are coarser than the finest [bilinear].",
)
@_INPUT("--nodata", help="Value of pixels without data, instead of the files' own; none: all pixels hold data.")
@_INPUT("--ignore-alpha/--no-ignore-alpha", default=None, help="Treat alpha bands as data, not as masks.")
@_INPUT("--crs", help="CRS of files whose own CRS is missing or wrong: a code such as EPSG:32633, or WKT.")
@_INPUT("--resample/--no-resample", default=None, help="Resample images whose pixel size differs from the model's.")
@_INPUT(
    "--validity",
    metavar="MASK[:VALUES]",
    help="Mask that comes with each scene: scl, udm2, qa-pixel, fmask or a pattern such as '{case}_SCL.tif:4-7,11'.",
)
@_INPUT("--aoi", type=PATH, help="Polygons of the area of interest: what lies outside is not inferred, and is nodata.")
@_INPUT("--aoi-layer", help="Layer of the file of --aoi, if it has several.")
@_INPUT("--series", help="DICOM series to take: text in the description, a glob for all of it, number or UID [all].")
@_INPUT(
    "--unusual-values",
    type=click.Choice(["fail", "allow"]),
    help="Cases whose pixels are far from what the model expects [fail].",
)
@_INPUT("--verify-input/--no-verify-input", default=None, help="Check the checksums of all DEFLATE blocks.")
@_INPUT("--allow-remote-sources/--no-allow-remote-sources", default=None, help="Let local VRT files read from servers.")
@_MODEL("--model", "-m", type=PATH, multiple=True, help="The ONNX model; repeatable: the mean of several models' scores.")
@_MODEL("--contract", type=PATH, help="TOML file with the model's channels, scaling, tile and classes.")
@_TILES("--tile", help="Tile size in pixels [the contract's].")
@_TILES("--overlap", help="Minimum overlap of neighbouring tiles in pixels [the contract's].")
@_TILES("--blend", type=click.Choice(BLENDS), help="How the weight of a tile falls towards its edges [gaussian].")
@_TILES("--blend-on", type=click.Choice(["logits", "probabilities"]), help="Scores to blend [logits].")
@_TILES("--tta", type=click.Choice(["none", "flips"]), help="Average the scores of each tile over its flips [none].")
@_TILES("--like", type=click.Choice(["nnunet"]), help="Read, tile and weight as nnU-Net's predictor does, to compare.")
@_TILES("--batch", type=int, help="Tiles per call of the model [1 on the CPU, 8 on a GPU].")
@_TILES("--parts", type=int, help="Parts into which each case is cut [chosen from workers and memory].")
@_OUTPUT("--output", "-o", help="Folder or s3://bucket/prefix for masks and tables [./segpipe-out].")
@_OUTPUT("--case-name", type=click.Choice(["path", "uid", "number"]), help="What masks are named after [path].")
@_OUTPUT("--confidence/--no-confidence", default=None, help="Also write the probability of each label.")
@_OUTPUT(
    "--lesions",
    is_flag=False,
    flag_value="*",
    metavar="[CLASSES]",
    help="Measure each component of these classes, such as tumour,cyst [all but the background], into lesions.csv.",
)
@_OUTPUT("--min-size", type=float, help="Size below which components are not listed: mm3, on maps m2 [0].")
@_OUTPUT("--instances/--no-instances", default=None, help="Also write the component of each voxel as a second mask.")
@_OUTPUT(
    "--seg",
    type=click.Choice(["binary", "labelmap", "none"]),
    help="DICOM SEG beside the mask of a series: a bit per class and voxel, a label per voxel, or none [binary].",
)
@_OUTPUT("--report", type=click.Choice(["dicom"]), help="Also write a DICOM report and pictures of each series.")
@_OUTPUT("--majority", type=int, help="First give each pixel the label most frequent in a window of N x N pixels.")
@_OUTPUT("--sieve", metavar="SIZE", help="Then merge regions below this size into neighbours: pixels, or as 0.5ha, 200mm3.")
@_OUTPUT(
    *("--audit", "audit"),
    is_flag=False,
    flag_value=AUDITED,
    type=int,
    metavar="[N]",
    help=f"List the N windows that are least sure, in audit.csv: where to look first [{AUDITED}].",
)
@_OUTPUT("--style", type=click.Choice(["qgis"]), help="Also write a QGIS style (<case>.qml) beside each mask.")
@_OUTPUT(
    "--overlap-rule",
    type=click.Choice(RULES),
    help="Case that counts where several share ground, in totals and zones [first].",
)
@_OUTPUT("--zones", type=PATH, help="Polygons, such as fields: the area of each class in each of them, into zones.csv.")
@_OUTPUT("--zone-id", help="Column with the names of the polygons [their number in the file].")
@_OUTPUT("--zones-layer", help="Layer of the file with polygons, if it has several.")
@_OUTPUT("--zones-out", type=PATH, help="Also write the polygons with these columns: .gpkg, .parquet, .geojson or .fgb.")
@_OUTPUT("--overwrite/--no-overwrite", default=None, help="Redo cases that are already done.")
@_WHERE("--device", metavar="NAME", help="auto, cpu, openvino, cuda or tensorrt; openvino:GPU for an Intel GPU [auto].")
@_WHERE(
    "--precision", type=click.Choice(get_args(Precision)), help="What the network computes in; bf16 needs OpenVINO [auto]."
)
@_WHERE("--min-agreement", type=float, help="Least share of labels equal to ONNX Runtime's on the CPU [0.99].")
@_WHERE("--tf32/--no-tf32", default=None, help="Allow TF32 on a GPU: faster, less precise.")
@_WHERE("--nhwc/--no-nhwc", default=None, help="Use channels-last convolutions on a GPU: faster for some networks.")
@_WHERE(
    "--executor",
    type=click.Choice(get_args(Executor)),
    help="A loop in this process, worker processes, or workers of Dask [processes; on GPUs dask].",
)
@_WHERE("--workers", type=int, help="Number of worker processes [one per processor, at most one per case].")
@_WHERE("--threads", type=int, help="CPU threads per call of the model [the fastest in a short trial].")
@_WHERE("--memory", type=float, help="Memory limit of a worker in GB [its share of 80 % of the machine's].")
@_CLUSTER("--scheduler", help="Address of a running Dask scheduler, such as tcp://10.0.0.1:8786.")
@_CLUSTER("--cluster", type=PATH, help="TOML file that describes a batch system, such as configs/slurm.toml.")
@_CLUSTER("--tls-ca", type=PATH, help="CA certificate for a tls:// scheduler.")
@_CLUSTER("--tls-cert", type=PATH, help="Client certificate for a tls:// scheduler.")
@_CLUSTER("--tls-key", type=PATH, help="Private key for a tls:// scheduler.")
@_CLUSTER(
    "--dashboard",
    help="Address of Dask's dashboard, if bokeh is installed; implies --executor dask [127.0.0.1, any free port].",
)
@_MORE("--config", "-c", type=PATH, help="TOML file with settings; flags override it.")
@_MORE("--dry-run", is_flag=True, help="Print cases, windows, jobs, memory and problems; infer and write nothing.")
@_MORE("--fail-fast/--no-fail-fast", default=None, help="Stop at the first case that fails.")
@_MORE("--retries", type=int, help="Retries of a case after an input/output error, 1, 2, 4 ... s apart [4].")
@_MORE("--job-timeout", type=float, help="Seconds after which a hanging job is stopped and retried [3600].")
@_MORE("--grace", type=float, help="Seconds that running jobs get to finish after SIGTERM or Ctrl-C [20].")
@_MORE("--log-file", type=PATH, help="Append events to this file as JSON lines.")
@_MORE(
    *("--profile", "profile"),
    is_flag=False,
    flag_value="",
    metavar="[FILE]",
    help="Print where the time went, and write a trace for Perfetto [<output>/profile.json].",
)
@_MORE("--verbose", "-v", count=True, help="Print all settings and more messages on stderr; -vv prints still more.")
def run(config: Path | None, dry_run: bool, verbose: int, **flags: Any) -> None:
    """Segment every case of the input with one model.

    Each case gets a mask on its own grid; areas.csv has the area of each class.
    """
    logging.basicConfig(level=[logging.ERROR, logging.INFO, logging.DEBUG][min(verbose, 2)], handlers=[_plain_stderr()])
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


class _Words(logging.Formatter):
    """Write segpipe's own messages as ``warning: …``, like the other lines of a run; others with level and logger."""

    def format(self, record: logging.LogRecord) -> str:
        text, own = super().format(record), record.name == "segpipe" and record.levelno >= logging.WARNING
        if own and text.startswith(("warning: ", "note: ")):
            return text
        return f"{record.levelname.lower()}: {text}" if own else f"{record.levelname}:{record.name}:{text}"


class _Stderr(logging.Handler):
    """Log to the current stderr, above the progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        for line in text.split("\n") if record.exc_info or record.exc_text else [text]:  # a traceback has lines
            echo(printable(line), err=True)


class _Export(click.Group):
    """Treat a word that is not a command as a checkpoint: ``export unet.pt``, ``export attach model.onnx``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args[:1] in (["attach"], ["nnunet"], [_EXPORT]) else [_EXPORT, *args])


_EXPORT = "network"


@main.group(cls=_Export, short_help="Make a verified, self-describing ONNX file of a trained network.")
def export() -> None:
    """Make a verified, self-describing ONNX file of a trained network."""


@export.command(
    _EXPORT, cls=GroupedCommand, epilog="For an existing ONNX model: segpipe export attach MODEL.onnx --contract c.toml"
)
@click.argument("weights", type=PATH)
@_NETWORK("--arch", help="torchvision:NAME, smp:NAME, transformers:FOLDER, bisenetv2 or unet.")
@_NETWORK("--encoder", help="Encoder of a segmentation-models-pytorch network, such as resnet34.")
@_NETWORK("--module", help="package.module:factory that builds your own network.")
@_NETWORK("--option", "options", multiple=True, help="key=value for the constructor or factory; repeatable.")
@_NETWORK("--prefix", help="Prefix of the network's keys in the checkpoint [detected].")
@_NETWORK("--score", help="Output with the scores if the network has several: its key, or its position from 0.")
@_NETWORK("--replace-head", is_flag=True, help="Replace the head by an untrained one if its number of classes differs.")
@_NETWORK("--trust-pickle", is_flag=True, help="Load files that can run code. Only from people you trust.")
@_MODEL("--classes", help="voc, cityscapes, ade20k, coco-stuff, or a TOML file with any keys of the contract.")
@_MODEL("--bands", help="Names of the network's channels in order, such as B04,B03,B02,B08.")
@_MODEL("--imagenet", is_flag=True, help="Pixels are 0 to 255, scaled by ImageNet's mean and standard deviation.")
@_MODEL("--raw", type=click.Choice(["uint8", "uint16", "int16"]), help="Take raw pixels and scale them in the graph.")
@_MODEL("--tile", help="Tile size in pixels.")
@_MODEL("--overlap", help="Minimum overlap of neighbouring tiles in pixels [a quarter of the tile].")
@_MODEL("--fixed-size", is_flag=True, help="Fix the model's input size to the tile.")
@_OUTPUT("--output", "-o", type=PATH, required=True, help="The ONNX file to write.")
@_OUTPUT("--precision", type=click.Choice(["fp32", "fp16", "int8"]), help="Number format of the graph [fp32].")
@_OUTPUT("--stac-mlm", type=PATH, help="Also write a STAC item of the MLM extension to this file.")
@_OUTPUT("--overwrite", is_flag=True, help="Replace an existing output.")
@_CHECKS("--calibrate", multiple=True, help="Scenes that set the value ranges of int8, as --input of a run; repeatable.")
@_CHECKS(
    "--verify", multiple=True, help="Scenes for the comparison with torch [those of --calibrate, else noise]; repeatable."
)
@_CHECKS("--scene-bands", help="Bands of these scenes, counted from 1, such as 4,3,2.")
@_CHECKS("--min-agreement", type=float, help="Minimum share of torch's labels [fp32 0.9999, fp16 0.999, int8 0.99].")
@_CHECKS("--max-difference", type=float, help="Maximum difference of scores, relative to the largest score [fp32 1e-4].")
@_MORE("--verbose", "-v", is_flag=True, help="Show the output of torch and other libraries on stderr.")
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


@export.command(cls=GroupedCommand, short_help="Make ONNX files of the folds of a folder that nnU-Net trained.")
@click.argument("folder", type=PATH)
@_NETWORK("--fold", "folds", multiple=True, help="Fold to export: a number, or all [every fold]; repeatable.")
@_NETWORK("--checkpoint", help="File name of the checkpoint in each fold [checkpoint_final.pth].")
@_NETWORK("--merge", is_flag=True, help="One file with the mean of the folds, instead of a file for each.")
@_NETWORK("--network-of-plans", is_flag=True, help="Use the network of plans.json for a trainer that is not nnU-Net's own.")
@_OUTPUT(
    "--output", "-o", type=PATH, required=True, help="The ONNX file to write; of several folds, the name before -foldN."
)
@_OUTPUT("--precision", type=click.Choice(["fp32", "fp16"]), help="Number format of the graph [fp32].")
@_OUTPUT("--overwrite", is_flag=True, help="Replace existing outputs.")
@_CHECKS("--verify", multiple=True, help="Cases for the comparison with torch [noise]; repeatable.")
@_CHECKS("--min-agreement", type=float, help="Minimum share of torch's labels [fp32 0.9999, fp16 0.999].")
@_CHECKS("--max-difference", type=float, help="Maximum difference of scores, relative to the largest score [fp32 1e-4].")
@_MORE("--verbose", "-v", is_flag=True, help="Show the output of torch and other libraries on stderr.")
def nnunet(verbose: bool, **flags: Any) -> None:
    """Make ONNX files of FOLDER, such as Dataset042/nnUNetTrainer__nnUNetPlans__3d_fullres, one for each fold.

    A file holds all that segpipe run needs, and appears only if ONNX Runtime gives the scores that torch gives.
    """
    sys.exit(_guarded(lambda: _export_nnunet(flags, verbose), writes=True))


def _export_nnunet(flags: dict[str, Any], verbose: bool) -> int:
    from segpipe.export.nnunet.settings import nnunet_settings
    from segpipe.export.quiet import quiet
    from segpipe.terminal import progress as terminal

    settings = nnunet_settings(flags)
    try:
        from segpipe.export.nnunet.make import export_nnunet
    except ModuleNotFoundError as error:
        raise ExportError(f"exporting needs {error.name}, which is not installed: {install('nnunet')}") from None
    try:
        with quiet(verbose) as say:
            exported = list(export_nnunet(settings, say))
    except DisagreementError as error:
        echo(f"error: {error}", err=True)
        return SOME_FAILED
    for one in exported:
        terminal.print_export(one)
    return 0


@export.command(short_help="Put a contract into an ONNX file that was made elsewhere.")
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
def attach(model: Path, contract: Path | None, output: Path | None, kind: str | None, **choices: Any) -> None:
    """Check that a contract fits MODEL, an ONNX file, and put it into the file.

    With --from, network and contract come from MODEL, a folder or zip with a description.
    """
    sys.exit(_guarded(lambda: _attach(model, contract, output, kind, choices), writes=True))


def _attach(model: Path, contract: Path | None, output: Path | None, kind: str | None, choices: dict[str, Any]) -> int:
    from segpipe.terminal import progress as terminal

    if kind is not None:
        terminal.print_attached(_described(kind, model, contract, output, choices))
        return 0
    from segpipe.export import attach as attaching

    if given := [f"--{name.replace('_', '-')}" for name, value in choices.items() if value]:
        raise SettingsError(
            f"{', '.join(given)} is for models with a description, got an ONNX file: give --from, or leave it out"
        )
    if contract is None:
        raise SettingsError(f"{model} needs a contract, got no --contract: name a TOML file with one")
    terminal.print_attached(attaching.attach(model, contract, output))
    return 0


def _described(kind: Any, model: Path, contract: Path | None, output: Path | None, choices: dict[str, Any]) -> Any:
    from segpipe.export.bundles.attach import Choices, attach_described
    from segpipe.export.quiet import quiet

    if output is None:
        raise SettingsError(f"the model of {model} goes into a new file, got no --output: name one")
    own = Choices(contract, choices["weights"], choices["without"], choices["trust_pickle"])
    with quiet(False):
        return attach_described(kind, model, output, own)


def _guarded(command: Callable[[], int], *, writes: bool = False) -> int:
    """Turn errors into one line on stderr and an exit code, and remove half-written output."""
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
@click.option("--input", "-i", "inputs", multiple=True, help="Input of the run, if --case-name hid it; repeatable.")
@click.option("--json", is_flag=True, help="Print one JSON object.")
def status(output: str, inputs: tuple[str, ...], json: bool) -> None:
    """Show what is done, failed and missing in OUTPUT, the folder of a run, and the command that continues.

    Exits with 1 if a case failed or is missing, or the last run died.
    """
    sys.exit(_guarded(lambda: _status(output, inputs, json)))


def _status(output: str, inputs: tuple[str, ...], json: bool) -> int:
    from segpipe.jobs.status import read_status
    from segpipe.terminal import progress as terminal

    found = read_status(output, inputs)
    terminal.print_status(found, json)
    return SOME_FAILED if found.failed or found.missing or found.problems or found.state == "died" else 0


@main.command(cls=GroupedCommand, short_help="Show which case is which path, and what a hash in a message stands for.")
@click.argument("codes", nargs=-1, metavar="[HASH]...")
@_INPUT("--input", "-i", multiple=True, required=True, help="Input of the run, as in segpipe run; repeatable.")
@_INPUT("--channels", help="Files of each channel, as in segpipe run; needs --model.")
@_INPUT("--bands-from", help="Files of each band, as in segpipe run; needs --model.")
@_INPUT("--series", help="DICOM series to take, as in segpipe run [all].")
@_INPUT("--case-name", type=click.Choice(["path", "uid", "number"]), help="What masks are named after [path].")
@_MODEL("--model", "-m", type=PATH, multiple=True, help="The ONNX model, if it takes several files per case.")
@_MODEL("--contract", type=PATH, help="TOML file with the model's channels, scaling, tile and classes.")
@_MORE("--config", "-c", type=PATH, help="TOML file with settings; flags override it.")
def cases(codes: tuple[str, ...], config: Path | None, **flags: Any) -> None:
    """Print the name and the path of each case of the inputs or, for each HASH of a message or a record, its paths.

    With --case-name number or uid, runs write and print hashes in place of paths. Nothing is written. Exits with 1 if a hash
    belongs to no path of these inputs.
    """
    sys.exit(_guarded(lambda: _cases(codes, config, flags)))


def _cases(codes: tuple[str, ...], config: Path | None, flags: dict[str, Any]) -> int:
    from segpipe.jobs.lookup import named_cases, paths_of

    lines, missing = (paths_of if codes else named_cases)(config, flags, codes)
    for line in lines:
        echo(line)
    for text in missing:
        echo(f"error: {text}", err=True)
    return SOME_FAILED if missing else 0


@main.command(cls=GroupedCommand, short_help="Sum up the classes in polygons, such as fields, over the masks of a run.")
@click.argument("output", default="segpipe-out")
@_INPUT("--zones", type=PATH, required=True, help="Vector file with polygons: GeoPackage, GeoJSON, Shapefile, Parquet, ...")
@_INPUT("--zone-id", help="Column with the names of the polygons [their number in the file].")
@_INPUT("--zones-layer", help="Layer of the file with polygons, if it has several.")
@_OUTPUT("--zones-out", type=PATH, help="Also write the polygons with these columns: .gpkg, .parquet, .geojson or .fgb.")
@_OUTPUT(
    "--overlap-rule", type=click.Choice(RULES), default="first", help="Case that counts where several share ground [first]."
)
def zones(output: str, zones: Path, zones_out: Path | None, **flags: Any) -> None:
    """Write zones.csv into OUTPUT, the folder of a run: the area of each class in each polygon.

    A polygon over several cases is one row. Ground that cases share counts once.
    """
    sys.exit(_guarded(lambda: _zones(output, zones, zones_out, flags), writes=True))


def _zones(output: str, path: Path, target: Path | None, flags: dict[str, Any]) -> int:
    from segpipe.api.zones import measure_zones
    from segpipe.vectors.file import Selection
    from segpipe.zones.stage import ZonesTask

    logging.basicConfig(level=logging.WARNING, handlers=[_plain_stderr()])
    task = ZonesTask(Selection(path, flags["zones_layer"], flags["zone_id"]), target, flags["overlap_rule"])
    for line in measure_zones(output, task):
        echo(printable(line))
    return 0


@main.command(cls=GroupedCommand, short_help="Write the masks of a run as polygons, one per connected region of a class.")
@click.argument("run_output", metavar="OUTPUT", default="segpipe-out")
@_OUTPUT("--output", "-o", type=PATH, required=True, help="The file to write: .parquet, .gpkg, .fgb or .geojson.")
@_OUTPUT("--crs", help="CRS of the file [that of the masks; GeoJSON has longitudes and latitudes].")
@_OUTPUT("--classes", help="Classes to take, by name or id, such as water,3 [all].")
@_OUTPUT("--min-area", help="Smallest polygon, such as 0.5ha, 400m2 or 9px; smaller ones are left out and counted [all].")
@_OUTPUT("--simplify", type=float, help="Move borders by about this many metres at most; neighbours keep theirs in common.")
@_OUTPUT("--connectivity", type=click.Choice(["4", "8"]), help="Whether pixels that touch at a corner belong together [4].")
def polygons(run_output: str, **flags: Any) -> None:
    """Write the masks in OUTPUT, the folder of a run, as polygons along pixel edges, with holes, class and area.

    The areas of the polygons of a class add up to its area in areas.csv.
    """
    sys.exit(_guarded(lambda: _polygons(run_output, **flags), writes=True))


def _polygons(place: str, **flags: Any) -> int:
    from segpipe.polygons.commands import polygons as command

    logging.basicConfig(level=logging.WARNING, handlers=[_plain_stderr()])
    return command(place, **flags)


@main.command(cls=GroupedCommand, short_help="Join the masks of a run to one map.")
@click.argument("run_output", metavar="OUTPUT", default="segpipe-out")
@_OUTPUT("--output", "-o", required=True, help="The map: a .tif file, or s3://bucket/name.tif.")
@_OUTPUT(
    "--overlap-rule", type=click.Choice(RULES), default="first", help="Case that counts where several share ground [first]."
)
@_OUTPUT("--crs", help="CRS of the map if masks are in several: a code such as EPSG:32633, or WKT [theirs].")
@_OUTPUT("--resolution", type=click.FloatRange(min=0, min_open=True), help="Pixel size in the unit of the CRS [theirs].")
def mosaic(run_output: str, output: str, **flags: Any) -> None:
    """Join the masks in OUTPUT, the folder of a run, to one map (COG), with an index of the masks beside it.

    Where cases share ground, one counts, as in the totals of the run. Areas are in areas.csv and run.json.
    """
    sys.exit(_guarded(lambda: _mosaic(run_output, output, flags), writes=True))


def _mosaic(run_output: str, target: str, flags: dict[str, Any]) -> int:
    from segpipe.api.mosaic import MosaicTask, make_mosaic
    from segpipe.overlap.frame import Wish

    logging.basicConfig(level=logging.WARNING, handlers=[_plain_stderr()])
    task = MosaicTask(target, flags["overlap_rule"], Wish(flags["crs"], flags["resolution"]))
    for line in make_mosaic(run_output, task):
        echo(printable(line))
    return 0


def _plain_stderr() -> logging.Handler:
    """Print warnings as lines on stderr."""
    handler = _Stderr()
    handler.setFormatter(_Words())
    return handler


@main.command(cls=GroupedCommand, short_help="Show what a model, a raster or a volume is, and what it would need.")
@click.argument("file")
@_INPUT("--bands", help="Bands of the raster for the model's channels, counted from 1, such as 4,3,2.")
@_INPUT("--nodata", help="Value of pixels without data, instead of the file's own; none: all pixels hold data.")
@_INPUT("--ignore-alpha/--no-ignore-alpha", default=None, help="Treat alpha bands as data, not as masks.")
@_INPUT("--crs", help="CRS if the file's own CRS is missing or wrong: a code such as EPSG:32633, or WKT.")
@_INPUT("--allow-remote-sources/--no-allow-remote-sources", default=None, help="Let local VRT files read from servers.")
@_MODEL("--model", "-m", type=PATH, multiple=True, help="ONNX model to check against the raster or volume; repeatable.")
@_MODEL("--contract", type=PATH, help="TOML file with the model's channels, scaling, tile and classes.")
@_TILES("--tile", help="Tile size in pixels [the contract's].")
@_TILES("--overlap", help="Minimum overlap of neighbouring tiles in pixels [the contract's].")
@_MORE("--json", is_flag=True, help="Print one JSON object.")
def inspect(file: str, json: bool, **flags: Any) -> None:
    """Show what a model, a raster or a volume is, and what it would need; nothing is written. FILE may be the folder of a
    DICOM series.

    Exits with 1 if segpipe run would refuse FILE: known facts are printed, and the reason on stderr.
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


@main.command(cls=GroupedCommand, short_help="Measure the time and labels of other tiles, overlaps, batches and precisions.")
@click.argument("model", type=PATH)
@_INPUT("--input", "-i", multiple=True, help="Scenes on which labels are compared, as --input of a run [noise]; repeatable.")
@_INPUT("--bands", help="Bands of the scenes for the model's channels, counted from 1, such as 4,3,2.")
@_INPUT(
    "--bands-from", help="Scenes with a file per band: '{case}_{band}.tif'; per date or input of the model: {date}, {input}."
)
@_INPUT(
    "--band-resampling",
    type=click.Choice(["bilinear", "nearest"]),
    help="Bands of scenes of many files that are coarser than the finest [bilinear].",
)
@_INPUT("--nodata", help="Value of pixels without data, instead of the scenes' own; none: all pixels hold data.")
@_INPUT("--ignore-alpha", is_flag=True, help="Treat alpha bands as data, not as masks.")
@_INPUT("--crs", help="CRS of files whose own CRS is missing or wrong: a code such as EPSG:32633, or WKT.")
@_INPUT("--resample", is_flag=True, help="Resample images whose pixel size differs from the model's, as a run does.")
@_MODEL("--also", multiple=True, type=PATH, help="Another file of the same network, such as int8; repeatable.")
@_MODEL("--contract", type=PATH, help="TOML file with the model's channels, scaling, tile and classes.")
@_TILES("--tile", "tiles", multiple=True, type=int, help="Tile size to measure [the contract's, double, half]; repeatable.")
@_TILES(
    "--overlap",
    "overlaps",
    multiple=True,
    type=int,
    help="Overlap to measure [1/4, 1/8, 1/16 and 0 of the tile]; repeatable.",
)
@_TILES("--batch", "batches", multiple=True, type=int, help="Batch to measure [1, 2, 4; on a GPU 8, 16, 32]; repeatable.")
@_TILES("--blend", type=click.Choice(BLENDS), help="How the weight of a tile falls towards its edges [gaussian].")
@_TILES(
    "--tta",
    type=click.Choice(["none", "flips"]),
    help="Average the scores of each tile over its flips, as a run does [none].",
)
@_WHERE("--device", metavar="NAME", help="Device for the model [that of a run, and openvino beside a CPU].")
@_WHERE(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(["fp32", "bf16", "int8"]),
    help="Precision to measure [the file's own, and bf16 with openvino]; repeatable.",
)
@_MORE("--seconds", type=float, help="Time to spend; choices that do not fit are left out [90].")
@_MORE("--min-agreement", type=float, help="Minimum share of equal labels of the recommended choice [0.99].")
@_MORE("--reference", type=PATH, help="True labels of the scenes, for mean IoU: a folder with a file per scene, or a file.")
@_MORE("--map-classes", type=PATH, help="TOML file: which values of the reference are which classes.")
@_MORE("--max-loss", type=float, help="Largest loss of mean IoU of the recommended choice, instead of --min-agreement.")
@_MORE("--json", is_flag=True, help="Print one JSON object.")
def tune(json: bool, **flags: Any) -> None:
    """Measure the time and the labels of other tiles, overlaps, batches and precisions of MODEL; nothing is written.

    Exits with 1 if no choice reaches the share of equal labels that --min-agreement asks for.
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


@main.command(cls=GroupedCommand, short_help="Draw a stratified random sample of a map, as points to be labelled.")
@click.argument("run_output", metavar="OUTPUT")
@_ESTIMATE("--size", type=int, help="Number of points.")
@_ESTIMATE("--standard-error", type=float, help="Of the overall accuracy, to be reached, such as 0.01; instead of --size.")
@_ESTIMATE("--expect", help="User's accuracy that is expected: 0.85, or 0.9,forest=0.7 [0.8].")
@_ESTIMATE(
    "--allocation",
    type=click.Choice(["rare", "proportional", "equal"]),
    help="A minimum for rare classes and the rest by pixels, all by pixels, or equal numbers [rare].",
)
@_ESTIMATE("--minimum", type=click.IntRange(min=0), help="Least number of points in each class, for rare [50].")
@_ESTIMATE("--seed", type=click.IntRange(min=0), help="Of the draw: the same seed draws the same points [0].")
@_OUTPUT("--output", "-o", type=PATH, required=True, help="The file of points: .gpkg or .geojson.")
@_OUTPUT(
    "--show-map", is_flag=True, help="Give the points the class of the map and their weight; labels are not blind then."
)
@_OUTPUT("--overwrite", is_flag=True, help="Replace points that are there, with their labels.")
def sample(run_output: str, **flags: Any) -> None:
    """Draw a stratified random sample of the map in OUTPUT, the folder of a run, as points to be labelled.

    The points say nothing of the map. A file beside them, for segpipe estimate, has strata, classes and weights.
    """
    from segpipe.accuracy.commands import sample as command

    sys.exit(_guarded(lambda: command(run_output, **flags), writes=True))


@main.command(cls=GroupedCommand, short_help="Estimate areas and accuracy of a map from a sample of it, with errors.")
@_INPUT("--matrix", type=PATH, help="CSV file: map classes in rows, reference in columns, mapped area.")
@_INPUT("--samples", type=PATH, help="Labelled points: GeoPackage, GeoJSON, ..., or CSV with the numbers of the points.")
@_INPUT("--reference", help="Column of the points with the labels [reference].")
@_INPUT(
    "--strata", type=PATH, help="CSV file with stratum, pixels and area, for samples in a CSV file with stratum and map."
)
@_INPUT("--map", help="Output folder of the run whose map is assessed [that of the sample].")
@_ESTIMATE("--design", type=click.Choice(["stratified", "simple"]), help="How the sample was drawn [stratified].")
@_ESTIMATE("--level", type=float, help="Confidence level of the intervals [0.95].")
@_ESTIMATE("--intervals", type=click.Choice(["auto", "normal"]), help="Exact intervals for few units, or none [auto].")
@_OUTPUT("--output", "-o", type=PATH, help="Folder for estimate.csv and estimate.json [none are written].")
@_MORE("--json", is_flag=True, help="Print one JSON object.")
def estimate(json: bool, **flags: Any) -> None:
    """Estimate areas, overall, user's and producer's accuracy of a map from a sample that somebody has labelled.

    Counting pixels of a map is biased; these areas are not, and have standard errors and confidence intervals.
    """
    from segpipe.accuracy.commands import estimate as command

    sys.exit(_guarded(lambda: command(json=json, **flags)))


@main.command(cls=GroupedCommand, short_help="Compare the masks of a run with reference masks: IoU, Dice, accuracy, kappa.")
@_INPUT("--labels", required=True, help="Output folder of the run.")
@_INPUT(
    "--reference",
    type=PATH,
    required=True,
    help="Folder with a reference per case, the one of the only case, polygons, or annotations.",
)
@_INPUT("--column", help="Column with the class of each polygon, if the reference is a vector file.")
@_INPUT("--map-classes", type=PATH, help="TOML file that says which values of references are which classes [the same].")
@_INPUT("--ignore", type=int, multiple=True, help="Value of references whose pixels do not count; repeatable.")
@_ESTIMATE(
    "--boundary", type=float, help="Also score boundaries, within this distance: m, of volumes mm, of pictures pixels."
)
@_ESTIMATE("--bootstrap", "draws", type=click.IntRange(min=0), help="Draws of the cases for intervals [1000].")
@_ESTIMATE("--seed", type=click.IntRange(min=0), help="Of these draws [0].")
@_OUTPUT("--output", "-o", type=PATH, help="Folder for evaluation.json, .csv and .svg [none are written].")
@_MORE("--json", is_flag=True, help="Print one JSON object.")
def evaluate(json: bool, **flags: Any) -> None:
    """Compare the masks of a run with reference masks on any grid: rasters, pictures or volumes with the names of the cases.

    Exits with 1 if a case could not be compared.
    """
    from segpipe.accuracy.commands import evaluate as command

    sys.exit(_guarded(lambda: command(json=json, **flags)))


@main.command(cls=GroupedCommand, short_help="Compare two runs: what changed into what, hectares, where, agreement.")
@click.argument("first", metavar="OUTPUT-A")
@click.argument("second", metavar="OUTPUT-B")
@_INPUT("--map-classes", type=PATH, help="TOML file that says which classes of B are which of A [those of equal names].")
@_OUTPUT("--output", "-o", type=PATH, help="Folder for change.csv, compare.json and maps of change [none are written].")
@_MORE("--json", is_flag=True, help="Print one JSON object.")
def compare(json: bool, **flags: Any) -> None:
    """Compare the masks of two runs, of two models or dates, case by case: areas that changed, and agreement.

    Exits with 1 if a case could not be compared.
    """
    from segpipe.accuracy.commands import compare as command

    sys.exit(_guarded(lambda: command(json=json, **flags), writes=True))


def _run(config: Path | None, dry_run: bool, flags: dict[str, Any]) -> int:
    from segpipe.jobs.worker_process import spare_worker

    settings = load_settings(config, flags)
    with nullcontext() if dry_run else spare_worker(settings):  # before anything heavy is imported here
        from segpipe.formats.veil import hidden_inputs

        with hidden_inputs(settings):
            return _run_with(settings, dry_run)


def _run_with(settings: Settings, dry_run: bool) -> int:
    from segpipe.api.running import Host, execute
    from segpipe.jobs.launch import prepare
    from segpipe.process.machine import age
    from segpipe.terminal import progress as terminal

    prepared = prepare(settings, look=dry_run, age=age())
    for line in terminal.settings_lines(prepared, everything=logging.getLogger("segpipe").isEnabledFor(logging.INFO)):
        echo(printable(line), err=True)
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
    main(prog_name="segpipe")

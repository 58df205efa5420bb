"""``segpipe run``: segment every case of the input."""

import logging
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from segpipe.choices import AUDITED, BLENDS, RULES, Executor, Precision, executor_of
from segpipe.commands.edge import NOT_STARTED, SOME_FAILED, system_failed
from segpipe.commands.options import (
    BAND_RESAMPLING,
    BANDS_FROM,
    CLUSTER,
    CONFIG,
    CONTRACT,
    INPUT,
    MODEL,
    MORE,
    OUTPUT,
    PATH,
    TILES,
    WHERE,
)
from segpipe.errors import SegpipeError
from segpipe.messages.console import echo
from segpipe.messages.printable import printable
from segpipe.process import signals
from segpipe.process.garbage import loading
from segpipe.terminal.log_lines import log_to_stderr
from segpipe.terminal.option_groups import GroupedCommand

if TYPE_CHECKING:  # importing pydantic takes longer than --help
    from segpipe.settings import Settings


@click.command(cls=GroupedCommand)
@INPUT(
    *("--input", "-i"),
    multiple=True,
    help="File, folder, glob pattern, list (.txt, .csv), /vsi... or s3:// path; repeatable.",
)
@INPUT("--bands", help="Bands of the file for the model's channels, counted from 1, such as 4,3,2.")
@INPUT("--channels", help="Volumes with a file per channel: 't1=*_t1.nii.gz,flair=*_flair.nii.gz' [NAME_0000, ...].")
@BANDS_FROM
@BAND_RESAMPLING
@INPUT("--nodata", help="Value of pixels without data, instead of the files' own; none: all pixels hold data.")
@INPUT("--ignore-alpha/--no-ignore-alpha", default=None, help="Treat alpha bands as data, not as masks.")
@INPUT("--crs", help="CRS of files whose own CRS is missing or wrong: a code such as EPSG:32633, or WKT.")
@INPUT("--resample/--no-resample", default=None, help="Resample images whose pixel size differs from the model's.")
@INPUT(
    "--validity",
    metavar="MASK[:VALUES]",
    help="Mask that comes with each scene: scl, udm2, qa-pixel, fmask or a pattern such as '{case}_SCL.tif:4-7,11'.",
)
@INPUT("--aoi", type=PATH, help="Polygons of the area of interest: what lies outside is not inferred, and is nodata.")
@INPUT("--aoi-layer", help="Layer of the file of --aoi, if it has several.")
@INPUT("--series", help="DICOM series to take: text in the description, a glob for all of it, number or UID [all].")
@INPUT(
    "--unusual-values",
    type=click.Choice(["fail", "allow"]),
    help="Cases whose pixels are far from what the model expects [fail].",
)
@INPUT("--verify-input/--no-verify-input", default=None, help="Check the checksums of all DEFLATE blocks.")
@INPUT("--allow-remote-sources/--no-allow-remote-sources", default=None, help="Let local VRT files read from servers.")
@MODEL("--model", "-m", type=PATH, multiple=True, help="The ONNX model; repeatable: the mean of scores. Or a .toml list.")
@CONTRACT
@TILES("--tile", help="Tile size in pixels [the contract's].")
@TILES("--overlap", help="Minimum overlap of neighbouring tiles in pixels [the contract's].")
@TILES("--blend", type=click.Choice(BLENDS), help="How the weight of a tile falls towards its edges [gaussian].")
@TILES("--blend-on", type=click.Choice(["logits", "probabilities"]), help="Scores to blend [logits].")
@TILES("--tta", type=click.Choice(["none", "flips"]), help="Average the scores of each tile over its flips [none].")
@TILES("--like", type=click.Choice(["nnunet"]), help="Read, tile and weight as nnU-Net's predictor does, to compare.")
@TILES("--batch", type=int, help="Tiles per call of the model [1 on the CPU, 8 on a GPU].")
@TILES("--parts", type=int, help="Parts into which each case is cut [chosen from workers and memory].")
@OUTPUT("--output", "-o", help="Folder or s3://bucket/prefix for masks and tables [./segpipe-out].")
@OUTPUT("--case-name", type=click.Choice(["path", "uid", "number"]), help="What masks are named after [path].")
@OUTPUT("--confidence/--no-confidence", default=None, help="Also write the probability of each label.")
@OUTPUT(
    "--lesions",
    is_flag=False,
    flag_value="*",
    metavar="[CLASSES]",
    help="Measure each component of these classes, such as tumour,cyst [all but the background], into lesions.csv.",
)
@OUTPUT("--min-size", type=float, help="Size below which components are not listed: mm3, on maps m2 [0].")
@OUTPUT("--instances/--no-instances", default=None, help="Also write the component of each voxel as a second mask.")
@OUTPUT("--per-class/--no-per-class", default=None, help="Also write a mask for each class: <case>.classes/<class>.")
@OUTPUT(
    "--seg",
    type=click.Choice(["binary", "labelmap", "none"]),
    help="DICOM SEG beside the mask of a series: a bit per class and voxel, a label per voxel, or none [binary].",
)
@OUTPUT("--report", type=click.Choice(["dicom"]), help="Also write a DICOM report and pictures of each series.")
@OUTPUT("--majority", type=int, help="First give each pixel the label most frequent in a window of N x N pixels.")
@OUTPUT("--sieve", metavar="SIZE", help="Then merge regions below this size into neighbours: pixels, or as 0.5ha, 200mm3.")
@OUTPUT(
    *("--audit", "audit"),
    is_flag=False,
    flag_value=AUDITED,
    type=int,
    metavar="[N]",
    help=f"List the N windows that are least sure, in audit.csv: where to look first [{AUDITED}].",
)
@OUTPUT("--style", type=click.Choice(["qgis"]), help="Also write a QGIS style (<case>.qml) beside each mask.")
@OUTPUT(
    "--overlap-rule",
    type=click.Choice(RULES),
    help="Case that counts where several share ground, in totals and zones [first].",
)
@OUTPUT("--zones", type=PATH, help="Polygons, such as fields: the area of each class in each of them, into zones.csv.")
@OUTPUT("--zone-id", help="Column with the names of the polygons [their number in the file].")
@OUTPUT("--zones-layer", help="Layer of the file with polygons, if it has several.")
@OUTPUT("--zones-out", type=PATH, help="Also write the polygons with these columns: .gpkg, .parquet, .geojson or .fgb.")
@OUTPUT("--overwrite/--no-overwrite", default=None, help="Redo cases that are already done.")
@WHERE("--device", metavar="NAME", help="auto, cpu, openvino, cuda or tensorrt; openvino:GPU for an Intel GPU [auto].")
@WHERE(
    "--precision", type=click.Choice(get_args(Precision)), help="What the network computes in; bf16 needs OpenVINO [auto]."
)
@WHERE("--min-agreement", type=float, help="Least share of labels equal to ONNX Runtime's on the CPU [0.99].")
@WHERE("--tf32/--no-tf32", default=None, help="Allow TF32 on a GPU: faster, less precise.")
@WHERE("--nhwc/--no-nhwc", default=None, help="Use channels-last convolutions on a GPU: faster for some networks.")
@WHERE(
    "--executor",
    type=click.Choice(get_args(Executor)),
    help="A loop in this process, worker processes, or workers of Dask [processes; on GPUs dask].",
)
@WHERE("--workers", type=int, help="Number of worker processes [one per processor, at most one per case].")
@WHERE("--threads", type=int, help="CPU threads per call of the model [the fastest in a short trial].")
@WHERE(
    "--memory",
    type=float,
    help="Memory limit of a worker in GB [its share of 80 % of the machine's; at most 8 if a tile's scores take 256 MiB].",
)
@CLUSTER("--scheduler", help="Address of a running Dask scheduler, such as tcp://10.0.0.1:8786.")
@CLUSTER("--cluster", type=PATH, help="TOML file that describes a batch system, such as configs/slurm.toml.")
@CLUSTER("--tls-ca", type=PATH, help="CA certificate for a tls:// scheduler.")
@CLUSTER("--tls-cert", type=PATH, help="Client certificate for a tls:// scheduler.")
@CLUSTER("--tls-key", type=PATH, help="Private key for a tls:// scheduler.")
@CLUSTER(
    "--dashboard",
    help="Address of Dask's dashboard, if bokeh is installed; implies --executor dask [127.0.0.1, any free port].",
)
@CONFIG
@MORE("--dry-run", is_flag=True, help="Print cases, windows, jobs, memory and problems; infer and write nothing.")
@MORE("--fail-fast/--no-fail-fast", default=None, help="Stop at the first case that fails.")
@MORE("--retries", type=int, help="Retries of a case after an input/output error, 1, 2, 4 ... s apart [4].")
@MORE("--job-timeout", type=float, help="Seconds after which a hanging job is stopped and retried [3600].")
@MORE("--grace", type=float, help="Seconds that running jobs get to finish after SIGTERM or Ctrl-C [20].")
@MORE("--log-file", type=PATH, help="Append events to this file as JSON lines.")
@MORE(
    *("--profile", "profile"),
    is_flag=False,
    flag_value="",
    metavar="[FILE]",
    help="Print where the time went, and write a trace for Perfetto [<output>/profile.json].",
)
@MORE("--verbose", "-v", count=True, help="Print all settings and more messages on stderr; -vv prints still more.")
def run(config: Path | None, dry_run: bool, verbose: int, **flags: Any) -> None:
    """Segment every case of the input with one model.

    Each case gets a mask on its own grid; areas.csv has the area of each class.
    """
    log_to_stderr([logging.ERROR, logging.INFO, logging.DEBUG][min(verbose, 2)])
    if not verbose:
        logging.getLogger("segpipe").setLevel(logging.WARNING)  # what is tried again, or done with less: not of libraries
    signals.leave_at_once()
    try:
        code = _run(config, dry_run, flags)
    except SegpipeError as error:
        echo(f"error: {error}", err=True)
        code = NOT_STARTED
    except OSError as error:
        code = system_failed(error)
    except KeyboardInterrupt:
        echo("interrupted: run the same command again to go on", err=True)
        code = signals.INTERRUPTED
    signals.end(code)
    sys.exit(code)


def _run(config: Path | None, dry_run: bool, flags: dict[str, Any]) -> int:
    with loading():
        from segpipe.jobs.worker_process import spare_worker

    with ExitStack() as workers:
        if config is None and not dry_run:  # before anything heavy is imported here
            workers.enter_context(spare_worker(executor_of({k: v for k, v in flags.items() if v is not None})))
        with loading():
            from segpipe.settings import load_settings

        settings = load_settings(config, flags)
        if config is not None and not dry_run:
            workers.enter_context(spare_worker(settings.runs_in))
        with loading():
            from segpipe.formats.redaction import hidden_inputs

        with hidden_inputs(settings):
            return _run_with(settings, dry_run)


def _run_with(settings: "Settings", dry_run: bool) -> int:
    with loading():
        from segpipe.api.list_runs import runs_of_list
        from segpipe.api.running import RunHost, execute
        from segpipe.jobs.prepare import prepare
        from segpipe.process.machine import age
        from segpipe.terminal.chosen import settings_lines
        from segpipe.terminal.plan import print_left_out, print_plan
        from segpipe.terminal.profile import print_profile
        from segpipe.terminal.progress import print_conclusion, watcher

    prepared = prepare(settings, open_all=dry_run, age=age())
    for line in settings_lines(prepared, everything=logging.getLogger("segpipe").isEnabledFor(logging.INFO)):
        echo(printable(line), err=True)
    if dry_run:
        plans = [*runs_of_list(prepared, open_all=True), (None, prepared)]
        for listed, own in plans:
            if listed is not None:
                echo(f"model {listed.name}, {listed.spec.title}")
            print_plan(own)
        print_left_out(prepared)
        return SOME_FAILED if any(own.plan.failed or own.problems for _, own in plans) else 0
    summary = execute(prepared, RunHost(watcher, lambda line: echo(line, err=True), signals.halting))
    print_conclusion(prepared, summary)
    print_left_out(prepared)
    print_profile(summary)
    if summary.interrupted:
        raise KeyboardInterrupt
    for problem in summary.problems:
        echo(f"error: {printable(problem)}", err=True)
    return SOME_FAILED if summary.failed or summary.problems else 0

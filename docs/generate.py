"""Write docs/reference/settings.md from the command line's options and the fields of Settings: python docs/generate.py"""

import re
from collections.abc import Iterator
from inspect import cleandoc
from itertools import groupby
from pathlib import Path
from typing import Any

import click
from annotated_types import Ge, Gt, Le

from segpipe.cli import main
from segpipe.commands.export import NETWORK
from segpipe.commands.lazy import LazyGroup
from segpipe.settings import Overlap, Settings, Tile

PAGE = Path(__file__).parent / "reference" / "settings.md"

HEAD = """# Settings and flags

*Made by `python docs/generate.py` from the code.*

Every setting of `segpipe run` is a flag, or a key of a TOML file for `--config`. The key is the flag's name with `_` for
`-`: `--blend-on` is `blend_on`. Flags win over the file. An unknown key is an error. `configs/crops.toml` in the repository
shows every key.

A flag such as `--confidence` has a counterpart `--no-confidence`, which switches off what the file switches on. `--config`,
`--dry-run` and `--verbose` are flags only.

Without a setting, the contract of the model or the machine decides, as the tables say. Values in brackets are defaults.
"""

MORE = {
    "input": "inputs.md#what-input-takes",
    "output": "outputs.md",
    "contract": "../contract.md",
    "bands": "inputs.md#how-bands-find-channels",
    "channels": "../howto/volumes.md#several-channels",
    "nodata": "../explanation/validity.md#invalid-pixels",
    "ignore_alpha": "../explanation/validity.md#invalid-pixels",
    "crs": "../explanation/areas.md#no-area",
    "resample": "inputs.md#pixel-size",
    "validity": "../howto/aoi.md#leave-out-clouds",
    "aoi": "../howto/aoi.md",
    "aoi_layer": "../howto/aoi.md",
    "allow_remote_sources": "inputs.md#vrts-and-other-servers",
    "overlap": "../explanation/seams.md",
    "blend": "../explanation/seams.md#the-weights",
    "blend_on": "../explanation/seams.md#the-weights",
    "model": "../howto/averaging.md",
    "tta": "../howto/averaging.md",
    "like": "../howto/nnunet.md#compare-with-nnu-net",
    "device": "../gpu.md",
    "tf32": "../gpu.md#settings",
    "nhwc": "../gpu.md#settings",
    "series": "../howto/series.md#choose-series",
    "case_name": "../howto/series.md#names-without-patients",
    "unusual_values": "../explanation/validity.md#pixels-in-other-units",
    "executor": "../howto/clusters.md",
    "scheduler": "../howto/clusters.md#an-existing-dask-cluster",
    "cluster": "../howto/clusters.md#slurm-workers-as-jobs",
    "threads": "../howto/speed.md#workers-and-threads",
    "workers": "../howto/speed.md#workers-and-threads",
    "parts": "../explanation/runs.md#large-cases-are-cut-into-parts",
    "job_timeout": "../explanation/runs.md#workers",
    "grace": "../explanation/runs.md#signals",
    "retries": "../explanation/runs.md#storage-that-fails",
    "verify_input": "inputs.md#damaged-files",
    "lesions": "lesions-csv.md",
    "min_size": "../howto/lesions.md#leave-out-the-small-ones",
    "instances": "../howto/lesions.md#a-volume-of-instances",
    "per_class": "outputs.md#a-mask-per-class",
    "audit": "../howto/audit.md",
    "majority": "../howto/cleaning.md#a-majority-filter",
    "sieve": "../howto/cleaning.md#a-minimum-mapping-unit",
    "zones": "../howto/zones.md",
    "zone_id": "../howto/zones.md#the-file-of-polygons",
    "zones_layer": "../howto/zones.md#the-file-of-polygons",
    "zones_out": "../howto/zones.md#the-polygons-with-the-columns",
    "overwrite": "../explanation/runs.md#a-second-run-does-only-what-is-missing",
    "log_file": "records.md#the-lines-of-a-log",
    "profile": "../howto/speed.md#see-where-the-time-goes",
    "dry_run": "../explanation/checks.md#all-of-this-without-a-run",
}
"""Where a setting of a run is explained."""


def commands(group: LazyGroup = main, words: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command with the words that follow ``segpipe``; ``export`` alone means its command for networks."""
    for name, command in group.loaded().items():
        if isinstance(command, LazyGroup):
            yield from commands(command, (*words, name))
        else:
            yield " ".join(words if name == NETWORK else (*words, name)), command


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(line for name, command in commands() for line in _section(name, command))])


def _section(name: str, command: click.Command) -> Iterator[str]:
    yield f"## segpipe {name}\n\n{_sentence(command)}\n"
    yield f"```text\n{_usage(name, command)}\n```\n"
    for title, options in groupby(_options(command), _group):
        yield from (f"### {title}\n",) if title else ()
        yield "| flag | value | meaning |\n| --- | --- | --- |"
        yield from (_row(option, keys=name == "run") for option in options)
        yield ""


def _sentence(command: click.Command) -> str:
    return cleandoc(command.help or "").split("\n\n")[0].replace("\n", " ")


def _usage(name: str, command: click.Command) -> str:
    with click.Context(command, info_name=f"segpipe {name}") as ctx:
        return f"segpipe {name} {' '.join(command.collect_usage_pieces(ctx))}"


def _options(command: click.Command) -> list[click.Option]:
    return [option for option in command.params if isinstance(option, click.Option) and not option.hidden]


def _group(option: click.Option) -> str:
    return str(getattr(option, "group", "") or "")


def _row(option: click.Option, *, keys: bool) -> str:
    meaning, default = _split(option.help or "")
    field = Settings.model_fields.get(str(option.name)) if keys else None
    values = f"{_values(option, field)}{_default(option, field, default)}"
    more = f" [More]({MORE[str(option.name)]})" if keys and option.name in MORE else ""
    return f"| {', '.join(f'`{name}`' for name in option.opts)} | {values} | {_cell(meaning)}{more} |"


def _split(text: str) -> tuple[str, str]:
    """
    >>> _split("Tile size in pixels [the contract's].")
    ('Tile size in pixels.', "the contract's")
    """
    found = re.fullmatch(r"(.*?) \[([^\]]*)\](.*)", text, re.DOTALL)
    return (found[1] + found[3], found[2]) if found else (text, "")


def _values(option: click.Option, field: Any) -> str:
    kind = option.type
    if option.count:
        return "may be repeated: `-vv`"
    if option.is_flag:
        return "on or off" if option.secondary_opts else "on"
    if isinstance(kind, click.Choice):
        return ", ".join(f"`{choice}`" for choice in kind.choices)
    if field is not None and field.annotation in (tuple[Tile, ...] | None, tuple[Overlap, ...] | None):
        return "whole number, or one per axis: `512,256`"
    name = kind.name.removesuffix(" range")
    return {"integer": "whole number", "float": "number", "path": "file"}.get(name, name) + _limits(field)


def _limits(field: Any) -> str:
    said = {type(limit): limit for limit in field.metadata} if field else {}
    low = f"{said[Ge].ge:,}" if Ge in said else f"above {said[Gt].gt:,}" if Gt in said else ""
    high = f"{said[Le].le:,}" if Le in said else ""
    return f", {low} to {high}" if low and high else ""


def _default(option: click.Option, field: Any, said: str) -> str:
    if said:
        return f" [{_cell(said)}]"
    if option.required:
        return "; required"
    return " [off]" if option.is_flag and (field is None or field.default is False) else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

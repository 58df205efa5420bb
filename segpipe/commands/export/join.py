"""``segpipe export join``: several ONNX models for parts of the classes, as one model of a run."""

from pathlib import Path

import click

from segpipe.commands.edge import guarded
from segpipe.commands.options import PATH
from segpipe.messages.console import echo
from segpipe.messages.printable import counted


@click.command()
@click.argument("models", type=PATH, nargs=-1, required=True)
@click.option("--output", "-o", type=PATH, required=True, help="The list to write, a .toml file.")
@click.option("--overwrite", is_flag=True, help="Replace an existing list.")
@guarded(writes=True)
def join(models: tuple[Path, ...], output: Path, overwrite: bool) -> int:
    """List MODELS, ONNX files for parts of the classes, whose label maps segpipe run then joins.

    Classes are numbered from 1, in the order of the models. Where two models claim a pixel, the later one wins.
    """
    from segpipe.export.model_list import ListedModel, check_list, write_list

    check_list(output, overwrite=overwrite)
    classes = write_list([ListedModel(path.stem, (path,)) for path in models], output)
    echo(f"{output}: {counted(len(models), 'model')}, {counted(len(classes), 'class')} besides the background")
    return 0

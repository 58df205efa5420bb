"""What commands that make ONNX files of trained networks share: missing packages, quiet libraries, and what they print."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from segpipe.commands.edge import SOME_FAILED
from segpipe.errors import DisagreementError, ExportError
from segpipe.messages.console import echo
from segpipe.process.extras import install

if TYPE_CHECKING:  # importing torch takes seconds
    from segpipe.export.make import Exported
    from segpipe.export.quiet import Say

Make = Callable[["Say"], Iterable["Exported"]]
"""Makes files one after the other; called with what prints a line per step."""


def print_made(load: Callable[[], Make], extra: str, *, verbose: bool) -> int:
    """Make ONNX files, print what was made, and return the exit code.

    Args:
        load: imports what makes the files.
        extra: the extra of segpipe that brings its packages.
        verbose: show what libraries print, too.

    Raises:
        ExportError: a package is missing, or a network cannot be exported.
    """
    from segpipe.export.quiet import quiet
    from segpipe.export.show import print_export

    try:
        make = load()
    except ModuleNotFoundError as error:
        raise ExportError(f"exporting needs {error.name}, which is not installed: {install(extra)}") from None
    try:
        with quiet(verbose) as say:
            made = list(make(say))
    except DisagreementError as error:
        echo(f"error: {error}", err=True)
        return SOME_FAILED
    for one in made:
        print_export(one)
    return 0

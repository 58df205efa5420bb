"""The checks of a run for one file: errors become facts; the model is tried; a contract takes any file."""

from collections.abc import Iterator
from contextlib import contextmanager

from segpipe.errors import case_errors
from segpipe.network.model_file import read_model
from segpipe.network.read import read_spec
from segpipe.network.spec import ModelSpec
from segpipe.pipeline.model_check import try_out
from segpipe.settings import Settings


@contextmanager
def noting(errors: list[str], file: str) -> Iterator[None]:
    """Add an error to ``errors``, with the message of a run, and continue with the next fact."""
    with case_errors(file) as failed:
        yield
    if failed.error is not None:
        errors.append(str(failed.error))


def spec_of(settings: Settings, errors: list[str]) -> ModelSpec | None:
    """The model after its trial; None, with the error in ``errors``, if a run would refuse it.

    Raises:
        ModelError: it is not an ONNX file.
    """
    for path in settings.model:
        read_model(path)
    with noting(errors, ", ".join(map(str, settings.model))):
        return try_out(read_spec(settings))
    return None

"""The error for a step that a contract cannot express."""

from pathlib import Path

from segpipe.errors import ExportError

OWN = "write the contract by hand: segpipe export attach MODEL.onnx --contract c.toml"


def refused(source: Path, name: str, why: str) -> ExportError:
    """The error that names a step of a package, the reason, and the ways out."""
    return ExportError(
        f"{source}: the step {name} {why}: --without {name} leaves it out, if the model may run without it; or {OWN}"
    )

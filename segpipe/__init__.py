"""Batch semantic segmentation of images and volumes too large for one forward pass.

Load a model and label arrays, or run it over files; ``segpipe run`` is the same on the command line::

    model = segpipe.load("unet.onnx")
    labels = model.predict(array)
    result = segpipe.run("scenes/", model, "out/")
    past = segpipe.open_run("out/")
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

from segpipe.process.deferred import defer

if TYPE_CHECKING:
    from segpipe.api import load, open_run, run
    from segpipe.contract import Contract
    from segpipe.errors import (
        ContractError,
        DeviceError,
        InputError,
        InstallationError,
        ModelError,
        OutputError,
        OverlapError,
        SegpipeError,
        SettingsError,
        SourceError,
        WorkerError,
        ZonesError,
    )

# ONNX Runtime 1.29 and later keep a device id and events with the model's name under ~/.cache, and send them to their
# maker, unless this is set before the first import, in every process: workers inherit it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

defer("boto3")  # rasterio imports it, which takes a quarter of the start, and only s3:// needs it

__version__ = "0.1.0"

__all__ = [
    "Contract",
    "ContractError",
    "DeviceError",
    "InputError",
    "InstallationError",
    "ModelError",
    "OutputError",
    "OverlapError",
    "SegpipeError",
    "SettingsError",
    "SourceError",
    "WorkerError",
    "ZonesError",
    "load",
    "open_run",
    "run",
]

_MODULES = {"load": "segpipe.api", "open_run": "segpipe.api", "run": "segpipe.api", "Contract": "segpipe.contract"}
"""Modules of the names that are not errors; each is imported at first use, so that ``import segpipe`` is quick."""

if not TYPE_CHECKING:  # a type checker would take any name for one of the module

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_MODULES.get(name, "segpipe.errors")), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

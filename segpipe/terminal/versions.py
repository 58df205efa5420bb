"""Versions of segpipe and of the libraries that decide what a run computes, for ``--version``."""

import platform
from importlib.metadata import PackageNotFoundError, version

from segpipe import __version__

RUNTIMES = ("onnxruntime-gpu", "onnxruntime")
"""Distributions of ONNX Runtime; its metadata is read, as importing it takes a second."""


def version_lines() -> list[str]:
    """The version of segpipe, then those of Python, ONNX Runtime, GDAL, and OpenVINO if it is installed."""
    return [f"segpipe {__version__}", f"Python {platform.python_version()}, {_runtime()}, GDAL {_gdal()}{_openvino()}"]


def _runtime() -> str:
    for name in RUNTIMES:
        try:
            return f"ONNX Runtime {version(name)} ({name})"
        except PackageNotFoundError:
            continue
    return "ONNX Runtime is not installed"


def _openvino() -> str:
    try:
        return f", OpenVINO {version('openvino')}"
    except PackageNotFoundError:
        return ""


def _gdal() -> str:
    try:
        from rasterio import __gdal_version__
    except ImportError as error:
        return f"cannot be loaded ({error})"
    return str(__gdal_version__)

"""What the bytes of masks depend on besides model and settings, and the versions of what made them."""

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnxruntime

from segpipe import __version__
from segpipe.network.device import gpu_facts, recorded_options
from segpipe.network.openvino_session import engine_version
from segpipe.network.spec import ModelSpec
from segpipe.results.schema import Values


def device_kind(model: ModelSpec) -> Values:
    """Everything besides model and settings that the bytes of masks depend on: equal values give equal bytes."""
    kind = {
        "device": model.device,
        "onnxruntime": str(onnxruntime.__version__),
        "processor": _processor(),
        "precision": model.input_dtype,
    }
    if model.engine is not None:
        engine = {"openvino": engine_version(), "place": model.engine.device, "precision": model.engine.precision}
        return kind | engine | {"instructions": _instructions()}
    if model.device == "cpu":
        return kind
    # a GPU may take another kernel for another batch
    return kind | {"gpu": gpu_facts(), "options": recorded_options(model.options), "batch": model.batch}


def device_facts(model: ModelSpec) -> Values:
    """``device_kind`` for a record, with the share of labels on trial tiles that agree with ONNX Runtime on the CPU."""
    if model.agreement is None:
        return device_kind(model)
    return device_kind(model) | {"agreement": round(model.agreement, 6), "min_agreement": model.min_agreement}


def versions() -> Values:
    """Versions of Python, segpipe and the libraries that touch pixels."""
    names = (
        "onnxruntime-gpu",
        "onnxruntime",
        "openvino",
        "torch",
        "onnx",
        "rasterio",
        "numpy",
        "pyproj",
        "dask",
        "distributed",
    )
    return {"segpipe": __version__, "python": platform.python_version(), **{n: v for n in names if (v := _version(n))}}


@cache
def _version(name: str) -> str | None:
    """Version of an installed package. Looked up once: the metadata of all ten takes 2 ms to parse, and a run asks twice."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def _processor() -> str:
    """Model and widest vector instructions of the CPU."""
    facts = _cpu_facts()
    if not facts:
        return platform.processor() or platform.machine()
    flags = facts.get("flags", "").split()
    widest = next((f for f in ("avx512_vnni", "avx512f", "avx2", "avx") if f in flags), platform.machine())
    return f"{facts.get('model name', platform.machine())} {widest}"


@cache
def _instructions() -> list[str]:
    """The vector instructions that OpenVINO chooses its kernels by."""
    flags = _cpu_facts().get("flags", "").split()
    return [
        flag
        for flag in ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
        if flag in flags
    ]


def _cpu_facts() -> dict[str, str]:
    """Facts about the last processor of ``/proc/cpuinfo``; empty where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}

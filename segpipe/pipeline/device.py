"""Where a model runs: what can be had, and ONNX Runtime sessions that run there or not at all."""

import ctypes
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import onnxruntime

from segpipe.pipeline.errors import DeviceError, ModelError

Kind = Literal["cpu", "cuda"]


def open_session(model: str | bytes, device: Kind, arena: bool, threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = arena
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device == "cuda":
        # without this, a missing library would mean a silent run on the CPU
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        providers = [("CUDAExecutionProvider", {"cudnn_conv_algo_search": "HEURISTIC"})]
    try:
        session = onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # noqa: BLE001 - onnxruntime raises classes of its own that share no base
        kind = DeviceError if device == "cuda" else ModelError
        raise kind(f"ONNX Runtime cannot load the model on {device}: {error}") from None
    if device == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise DeviceError(_NO_CUDA.format("ONNX Runtime did not take the CUDA provider"))
    return session


_NO_CUDA = "--device cuda needs CUDA, and {}: install segpipe[cuda] on a machine with an NVIDIA driver, or take --device cpu"


def resolve_device(device: str) -> tuple[Kind, str]:
    """Where to run, and why, in a few words. ``auto`` takes CUDA where a driver sees a GPU; ``cuda`` must be there."""
    if device == "cpu":
        return "cpu", "as asked"
    missing = _cuda_missing()
    if missing and device == "cuda":
        raise DeviceError(_NO_CUDA.format(missing))
    return ("cpu", missing) if missing else ("cuda", "as asked" if device == "cuda" else "the driver sees a GPU")


def _cuda_missing() -> str | None:
    """Why CUDA cannot be used, as far as that shows without a session; None if nothing speaks against it.

    ONNX Runtime's own list is no help: it names CUDA on machines without it.
    """
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this ONNX Runtime was built without it"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver is installed"
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "the NVIDIA driver sees no GPU"
    return None


def check_runtime() -> None:
    """Refuse an environment in which two packages have overwritten each other's files."""
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            version(name)
            found.append(name)
        except PackageNotFoundError:
            continue
    if len(found) > 1:
        raise DeviceError(
            "onnxruntime and onnxruntime-gpu overwrite each other in one environment, and both are installed: "
            "uninstall both, then install segpipe again"
        )

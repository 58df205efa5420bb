"""Devices: which are available, and ONNX Runtime sessions that run on the chosen one or fail."""

import ctypes
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import onnxruntime

from segpipe.errors import DeviceError, DeviceMemoryError, ModelError, SegpipeError, memory_errors, one_line
from segpipe.process.extras import install

LOG = logging.getLogger("segpipe")

Kind = Literal["cpu", "openvino", "cuda", "tensorrt", "cpu-tensors"]
"""``cpu-tensors`` runs the GPU code path on the CPU: torch tensors and I/O binding, for tests."""

Arena = Literal["own", "shared", "none"]
"""Where ONNX Runtime takes memory on the CPU: from an arena of the session, which keeps it between calls; from one that all
such sessions of the process share; or from the system at each call."""

ON_HOST: tuple[Kind, ...] = ("cpu", "openvino")
"""Kinds whose scores come back as NumPy arrays."""

PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider", "cpu-tensors": "CPUExecutionProvider"}


@contextmanager
def engine_errors(kind: type[SegpipeError], what: Callable[[], str]) -> Iterator[None]:
    """Turn any error of an engine into one of this kind that begins with ``what()``: their classes share no base."""
    try:
        yield
    except SegpipeError:
        raise
    except Exception as error:
        raise kind(f"{what()}: {one_line(error)}") from error


def failed_batch(path: Path, arrays: Iterable[Any]) -> str:
    """Name a model, and the shapes of the arrays on which it failed."""
    return f"{path} failed on a batch of shape {' and '.join(str(tuple(array.shape)) for array in arrays)}"


SILENT = 4
"""Log level FATAL: ONNX Runtime also logs what it raises, and much that it recovers from: 45 lines for an fp16 network
whose convolutions the first engine of cuDNN has no plan for. Why it cannot load a provider it only logs: ``_refused``."""


@dataclass(frozen=True, slots=True)
class Options:
    """Numerical options of a GPU. Output bytes may depend on them, so they are recorded."""

    tf32: bool = False
    """Whether matrix products may round their inputs to 10 bits."""
    nhwc: bool = False
    """Whether convolutions run with channels last."""


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Memory limits on a device, in bytes, found by a trial run."""

    limit: int
    """Most that ONNX Runtime may allocate."""
    strip: int
    """Left for the sums of overlapping windows."""


@dataclass(frozen=True, slots=True)
class SessionTerms:
    """Parameters of a session on a device."""

    device: Kind
    options: Options
    sizes: Mapping[str, int]
    """Sizes of the graph's free axes: with fixed sizes, ONNX Runtime folds away all shape computations."""
    stream: int | None = None
    """Handle of the CUDA stream that all work is queued on."""
    limit: int | None = None
    """Bytes of device memory that ONNX Runtime may allocate."""
    half: bool = False
    """Whether the graph computes in fp16."""
    engines: Path | None = None
    """Cache folder for TensorRT's engines of this model with these terms."""
    folder: Path | None = None
    """Folder with the external data of a graph that is given as bytes."""


def open_session(
    model: str | bytes, *, arena: Arena, threads: int = 1, folder: Path | None = None, patterns: bool = True
) -> onnxruntime.InferenceSession:
    """Open a session on the CPU.

    ``folder`` has the external data of a graph that is given as bytes. With ``patterns``, calls after the first take their
    intermediate arrays as one block, beside the memory of the first call: 1,229 instead of 615 MB for the last layers of a
    3-D U-Net (measured).
    """
    options = _session_options()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = arena != "none"
    options.enable_mem_pattern = patterns
    _add_folder(options, folder)
    with engine_errors(ModelError, lambda: "ONNX Runtime cannot load the model on cpu"):
        if arena == "shared":
            _make_shared_arena()
            options.add_session_config_entry("session.use_env_allocators", "1")
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _add_folder(options: onnxruntime.SessionOptions, folder: Path | None) -> None:
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))


@cache
def _make_shared_arena() -> None:
    """Register one arena for several sessions. An arena keeps what a call has used, and sessions that run one after the
    other need that only once: with four networks of 97 MB a call, 224 MB instead of 620 MB (measured)."""
    from onnxruntime.capi import _pybind_state as runtime

    place = runtime.OrtMemoryInfo("Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT)
    onnxruntime.create_and_register_allocator(place, onnxruntime.OrtArenaCfg({}))


def open_on_device(model: str | bytes, terms: SessionTerms) -> onnxruntime.InferenceSession:
    """Open a session whose inputs and outputs stay in device memory.

    Nodes without a kernel on the device run on the CPU, with a warning: each costs a copy in both directions.

    Raises:
        DeviceError: ONNX Runtime cannot use the device.
        DeviceMemoryError: the device has too little memory.
    """
    if terms.device == "tensorrt":
        if not terms.options.tf32:
            os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # TensorRT has no option for it
        _load_tensorrt()
    if terms.device != "cpu-tensors":
        _load_cuda()
    try:
        return _open(model, terms, strict=True)
    except DeviceMemoryError:
        raise
    except DeviceError:
        # a missing library and a node without a kernel give the same message: the providers in use distinguish them
        session = _open(model, terms, strict=False)
    LOG.warning("some nodes of the model have no kernel on %s and run on the CPU, which is slower", terms.device)
    return session


def _open(model: str | bytes, terms: SessionTerms, *, strict: bool) -> onnxruntime.InferenceSession:
    options = _session_options()
    _add_folder(options, terms.folder)
    for name, size in terms.sizes.items():
        options.add_free_dimension_override_by_name(name, size)
    if terms.device != "cpu-tensors":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1" if strict else "0")
    with engine_errors(DeviceError, lambda: f"ONNX Runtime cannot load the model on {terms.device}"), memory_errors():
        onnxruntime.set_default_logger_severity(SILENT)
        # without enable_fallback=0 it prints and continues with another provider
        session = onnxruntime.InferenceSession(model, options, providers=providers(terms), enable_fallback=0)
    if PROVIDERS[terms.device] not in session.get_providers():
        raise DeviceError(_MISSING.format(terms.device, _refused(terms.device), install(terms.device)))
    return session


def _session_options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = SILENT
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def providers(terms: SessionTerms) -> list[Any]:
    """Execution providers with their options; a single unknown key makes ONNX Runtime drop a provider."""
    if terms.device == "cpu-tensors":
        return ["CPUExecutionProvider"]
    cuda: dict[str, str] = {
        # the only search that neither benchmarks each new shape nor picks the slowest kernel
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": str(int(terms.options.tf32)),
        "prefer_nhwc": str(int(terms.options.nhwc)),
        "fuse_conv_bias": "0",  # not deterministic
        # torch allocates on the same device
        "arena_extend_strategy": "kSameAsRequested",
    }
    if terms.stream is not None:
        cuda["user_compute_stream"] = str(terms.stream)
    if terms.limit is not None:
        cuda["gpu_mem_limit"] = str(terms.limit)
    found: list[Any] = [(PROVIDERS["cuda"], cuda)]
    if terms.device == "tensorrt":
        found.insert(0, (PROVIDERS["tensorrt"], _tensorrt(terms)))
    return found


def _tensorrt(terms: SessionTerms) -> dict[str, str]:
    options = {"trt_fp16_enable": str(int(terms.half))}
    if terms.stream is not None:
        options["user_compute_stream"] = str(terms.stream)
    if terms.engines is not None:
        terms.engines.mkdir(parents=True, exist_ok=True)
        folder = str(terms.engines)
        options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": folder}
        options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": folder}
    return options


_MISSING = "--device {0} needs a GPU, and {1}: {2} on a machine with an NVIDIA driver, or take --device cpu"


def _refused(device: Kind) -> str:
    """Say that ONNX Runtime did not load a provider, and why: load its library the same way and report the error."""
    library = Path(onnxruntime.__file__).parent / "capi" / f"libonnxruntime_providers_{device}.so"
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return f"ONNX Runtime cannot load {PROVIDERS[device]} ({error})"
    return f"ONNX Runtime did not take {PROVIDERS[device]}"


def resolve_device(device: str) -> tuple[Kind, str]:
    """Choose the device; return it with a short reason.

    ``auto`` takes CUDA where a driver sees a GPU; a device given by name must be available.
    """
    if device in ("cpu", "cpu-tensors"):
        return ("cpu" if device == "cpu" else "cpu-tensors"), "as asked"
    if device.partition(":")[0] == "openvino":
        return "openvino", "as asked"
    missing = _cuda_missing()
    if device == "auto":
        return ("cpu", missing) if missing else ("cuda", "the driver sees a GPU")
    if missing:
        raise DeviceError(_MISSING.format(device, missing, install(device)))
    if device == "tensorrt":
        _load_tensorrt()
        return "tensorrt", "as asked"
    return "cuda", "as asked"


def _cuda_missing() -> str | None:
    """Why CUDA cannot be used, as far as that shows without a session; None if nothing speaks against it.

    ONNX Runtime's own list of providers is no help: it includes CUDA on machines without it.
    """
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this ONNX Runtime was built without it"
    driver = _driver()
    if driver is None:
        return "no NVIDIA driver is installed"
    if not _count(driver):
        return "the NVIDIA driver sees no GPU"
    if find_spec("torch") is None:
        return "torch is not installed"
    return None


def _driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def _count(driver: ctypes.CDLL) -> int:
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def gpus() -> list[str]:
    """The GPUs visible to this process, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    driver = _driver()
    count = 0 if driver is None else _count(driver)
    if named is None:
        return [str(i) for i in range(count)]
    return [name.strip() for name in named.split(",") if name.strip()][:count]


def gpu_facts() -> dict[str, str] | None:
    """Name and driver version of the first GPU; None where there is none."""
    driver, name, device = _driver(), ctypes.create_string_buffer(128), ctypes.c_int(0)
    if driver is None or not _count(driver):
        return None
    if driver.cuDeviceGet(ctypes.byref(device), 0) or driver.cuDeviceGetName(name, 128, device):
        return None
    try:
        release = Path("/sys/module/nvidia/version").read_text(encoding="ascii").strip()
    except OSError:
        release = "unknown"
    return {"name": name.value.decode(errors="replace"), "driver": release}


def engine_folder(key: str) -> Path:
    """Cache folder of TensorRT's engines for one model and one set of options, which TensorRT's own key does not cover."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "segpipe" / "tensorrt" / key


def recorded_options(options: Options) -> dict[str, Any]:
    """Options as written to a record."""
    return asdict(options)


def _load_cuda() -> None:
    """Load CUDA's libraries from torch, and those that ONNX Runtime needs beyond torch from pip's NVIDIA packages."""
    import torch  # noqa: F401 - loads cuDNN, cuBLAS and the CUDA runtime

    for name in ("libcurand.so.10", "libcufft.so.12", "libnvrtc.so.13"):
        _load(name, "nvidia")


def _load_tensorrt() -> None:
    if not _load("libnvinfer.so.10", "tensorrt_libs"):
        raise DeviceError(
            "--device tensorrt needs TensorRT 10, and libnvinfer.so.10 is not there: "
            f"{install('tensorrt')}, or take --device cuda"
        )


def _load(name: str, package: str) -> bool:
    """Load a library, from a package that contains it or from the system, for libraries that are loaded later."""
    spec = find_spec(package)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    found = [str(path) for folder in folders for path in sorted(Path(folder).rglob(name))]
    for candidate in (*found, name):
        try:
            ctypes.CDLL(candidate, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return True
    return False


def check_runtime() -> None:
    """Refuse an environment in which onnxruntime and onnxruntime-gpu have overwritten each other's files.

    Installed in separate folders, as where PYTHONPATH puts one first, they do not.
    """
    folders = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with suppress(PackageNotFoundError):
            folders.append(Path(str(distribution(name).locate_file(""))).resolve())
    if len(folders) > len(set(folders)):
        raise DeviceError(
            "onnxruntime and onnxruntime-gpu overwrite each other in one environment, and both are installed: "
            "uninstall both, then install segpipe again"
        )

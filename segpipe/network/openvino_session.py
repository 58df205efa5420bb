"""OpenVINO as the engine of a network on the host: its devices, the precision that it computes in, and its sessions."""

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import DeviceError, ModelError, one_line
from segpipe.process.extras import install
from segpipe.process.machine import processors

Precision = Literal["fp32", "bf16", "int8"]

HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""OpenVINO's type for layers that are not quantised."""
TELEMETRY = "openvino_telemetry"
"""A package that OpenVINO's converter imports: it writes files into the home folder, and sends what it counts."""


@dataclass(frozen=True, slots=True)
class Engine:
    """OpenVINO on one of its devices."""

    device: str
    """``CPU``, ``GPU``, ``GPU.1``: OpenVINO's name of the device."""
    precision: Precision

    def __str__(self) -> str:
        return f"OpenVINO on {self.device} in {self.precision}"


@cache
def runtime() -> Any:
    """Import OpenVINO without its telemetry: nothing is sent, and no file of it is left.

    Raises:
        DeviceError: OpenVINO is not installed.
    """
    try:
        with _without_telemetry():
            import openvino
    except ImportError as error:
        raise DeviceError(
            f"--device openvino needs OpenVINO, and it cannot be imported ({one_line(error)}): {install('openvino')}, "
            "or take --device cpu"
        ) from None
    return openvino


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Let imports of the telemetry fail, for which OpenVINO has a replacement that does nothing."""
    there = TELEMETRY in sys.modules
    if not there:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment] # what Python documents to stop an import
    try:
        yield
    finally:
        if not there:
            del sys.modules[TELEMETRY]


@cache
def _core() -> Any:
    return runtime().Core()


def resolve_engine(device: str, precision: Precision) -> Engine:
    """The engine, after checks that its device is there and computes in this precision.

    Raises:
        DeviceError: it does not.
    """
    devices = list(_core().available_devices)
    if device not in devices and f"{device}.0" not in devices:
        raise DeviceError(
            f"--device openvino:{device} needs this device, and OpenVINO sees {', '.join(devices) or 'none'}: take one of "
            "them, or install the driver"
        )
    if precision == "bf16" and not _computes_in_bf16(device):
        raise DeviceError(
            f"--precision bf16 needs a processor that computes in bf16 (AVX512-BF16 or AMX), and {device} does not: "
            "leave --precision out"
        )
    return Engine(device, precision)


def has_bf16(device: str) -> bool:
    """Whether OpenVINO computes in bf16 on a device, named as ``--device`` names it."""
    own = openvino_device(device)
    return own in _core().available_devices and _computes_in_bf16(own)


def openvino_device(device: str) -> str:
    """OpenVINO's own name of a device, from that of ``--device``.

    >>> openvino_device("openvino"), openvino_device("openvino:GPU.1")
    ('CPU', 'GPU.1')
    """
    return device.partition(":")[2] or "CPU"


def _computes_in_bf16(device: str) -> bool:
    return "BF16" in _core().get_property(device, "OPTIMIZATION_CAPABILITIES")


def engine_version() -> str:
    """Version and build of OpenVINO: kernels may differ between builds."""
    return str(runtime().get_version())


Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Name and shape of each input of a network."""


def _shapes(given: Mapping[str, NDArray[Any]]) -> Shapes:
    return tuple((name, array.shape) for name, array in given.items())


@dataclass(eq=False, slots=True)
class _Compiled:
    """A network for batches of one shape, and its requests, each for one call at a time."""

    network: Any
    inputs: Mapping[str, Any]
    """Port of each input: by name, a request searches for it in each call."""
    output: Any
    shape: tuple[int, ...] | None
    """Shape of the output, and below its type; None if the shape is free."""
    dtype: np.dtype[Any]
    free: list[Any] = field(default_factory=list)
    every: list[Any] = field(default_factory=list)

    def take(self) -> Any:
        """A request that no other call uses; appending to a list and popping from it are atomic."""
        with suppress(IndexError):
            return self.free.pop()
        request = self.network.create_infer_request()
        self.every.append(request)
        return request


class OpenVinoSession:
    """A network in OpenVINO, safe to call from several threads.

    A call waits for a stream, which runs in a thread of its own. A stream takes its memory at its first call, so it costs
    nothing to allow one for each processor.
    """

    def __init__(self, path: Path, engine: Engine, threads: int, scores: str) -> None:
        self._path, self._engine, self._threads = path, engine, threads
        self._scores = scores
        self._compiled: dict[Shapes, _Compiled] = {}
        self._lock = threading.Lock()
        with self._errors():
            self._network = _core().read_model(path)

    def prepare(self, given: Mapping[str, NDArray[Any]]) -> None:
        """Compile the network for batches of this shape, as the first of them would do."""
        self._for(_shapes(given))

    def run(self, given: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """The raw output for a batch; shape and type as the graph gives them."""
        compiled = self._for(_shapes(given))
        request = compiled.take()
        try:
            return self._infer(request, compiled, given)
        finally:
            compiled.free.append(request)

    def _infer(self, request: Any, compiled: _Compiled, given: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Infer from the arrays' own memory into an array's own; an output whose shape is free is copied.

        Without ``share_outputs``, OpenVINO would copy all outputs once more, for the dictionary that it returns.
        """
        tensor = runtime().Tensor
        for name, array in given.items():
            request.set_tensor(compiled.inputs[name], tensor(array, shared_memory=array.ndim > 0))
        if compiled.shape is None:
            request.infer(share_outputs=True)
            return np.array(request.get_tensor(compiled.output).data)
        scores = np.empty(compiled.shape, compiled.dtype)
        request.set_tensor(compiled.output, tensor(scores, shared_memory=True))
        request.infer(share_outputs=True)
        return scores

    def stop(self) -> None:
        for compiled in list(self._compiled.values()):
            for request in list(compiled.every):
                request.cancel()

    def _for(self, shape: Shapes) -> _Compiled:
        """The network for batches of a shape: with fixed sizes, a call computes no shapes."""
        with self._lock:
            if shape not in self._compiled:
                self._compiled[shape] = self._ports(self._compile(shape), [name for name, _ in shape])
            return self._compiled[shape]

    def _ports(self, network: Any, names: Sequence[str]) -> _Compiled:
        """A compiled network with what each call asks of it."""
        output = network.output(self._scores)
        shape, dtype = output.get_partial_shape(), output.get_element_type().to_dtype()
        fixed = tuple(shape.to_shape()) if shape.is_static else None
        return _Compiled(network, {name: network.input(name) for name in names}, output, fixed, np.dtype(dtype))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot load {self._path}: {one_line(error)}: take --device cpu") from None

    def _compile(self, shapes: Shapes) -> Any:
        with self._errors():
            network = self._network.clone()
            network.reshape({name: list(shape) for name, shape in shapes})
            compiled = _core().compile_model(network, self._engine.device, self._options())
        self._check_precision(compiled)
        return compiled

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": HINTS[self._engine.precision]}
        if self._engine.device == "CPU":
            streams = max(1, processors() // self._threads)
            options |= {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": streams * self._threads}
            options |= {"ENABLE_CPU_PINNING": False}  # workers of one machine would be pinned to the same processors
        return options

    def _check_precision(self, compiled: Any) -> None:
        """Check that the engine computes in the requested precision: to OpenVINO, it is only a hint."""
        there = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        wanted = {"f32": "f32", "bf16": "bf16"}[HINTS[self._engine.precision]]
        if there != wanted:
            raise DeviceError(
                f"--precision {self._engine.precision} needs a device that computes in it, and {self._engine.device} takes "
                f"{there}: leave --precision out"
            )

"""Device arrays through torch: one stream for work, one for uploads, and copies through pinned memory.

The host waits for the device only in ``Upload.send``, for a buffer still in transfer, and at the end of ``fetch``. On
the CPU torch's streams and events do nothing, so that the same code runs there; CUDA differs by the device's name only.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpipe.errors import memory_errors
from segpipe.geometry.weighting import Weights
from segpipe.network.scaling import Scaling
from segpipe.timing.spans import count, profiled, span, waiting

BUFFERS = 2
"""Pinned buffers for uploads: one is filled while the other is in transfer."""

COPIERS = 4
"""Threads that fill a buffer."""

CONSTANTS = 64
"""Small arrays cached on a device. Scaling by a case's own statistics adds new ones with every case."""


class DeviceStreams:
    """A device and its two streams: one for work, in the order in which the host queues it, and one for uploads."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self._module = torch.get_device_module(self.device)
        self.pinned = self.device.type != "cpu"
        # not the default stream: its handle is 0, which ONNX Runtime takes for no stream, and does not wait for
        self.work = self._module.Stream()
        self.uploads = self._module.Stream()
        self._timed: deque[tuple[str, Any, Any]] = deque()
        self._working = threading.Lock()

    @property
    def handle(self) -> int | None:
        """Handle of the work stream; None where the device has none."""
        handle: int | None = getattr(self.work, "cuda_stream", None)
        return handle

    def event(self) -> Any:
        """A new event, with which one stream waits for another."""
        return self._module.Event()

    @contextmanager
    def timed(self, stage: str, stream: Any = None) -> Iterator[None]:
        """Measure for the profile how long the device takes for work queued inside the block on a stream (default: work)."""
        if not (self.pinned and profiled()):
            yield
            return
        start, stop = (self._module.Event(enable_timing=True) for _ in range(2))
        with self._alone(stage) if stream is None else nullcontext():
            stream = self.work if stream is None else stream
            start.record(stream)
            yield
            stop.record(stream)
        self._timed.append((stage, start, stop))

    @contextmanager
    def _alone(self, stage: str) -> Iterator[None]:
        """Admit one thread at a time: everything that any thread queues on the stream lies between the two events."""
        with waiting(stage):
            self._working.acquire()
        try:
            yield
        finally:
            self._working.release()

    def report_timings(self) -> None:
        """Report all finished timed work to the profile."""
        while self._timed and self._timed[0][-1].query():
            stage, start, stop = self._timed.popleft()
            count(stage, start.elapsed_time(stop) / 1e3)

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """Context in which torch queues work on a stream."""
        context: AbstractContextManager[Any] = self._module.stream(stream)
        return context

    def wait(self) -> None:
        """Wait until the device has finished all queued work."""
        self._module.synchronize()

    def free(self) -> int | None:
        """Free bytes of device memory after torch has released its cache; None on the CPU."""
        if not self.pinned:
            return None
        self._module.synchronize()
        self._module.empty_cache()
        return int(self._module.mem_get_info()[0])


class DeviceArrays:
    """Torch tensors on a device."""

    xp: Any = torch
    at_once = 2**62  # all: each call takes the host's time

    def __init__(self, streams: DeviceStreams, lag: int) -> None:
        self.streams, self.lag = streams, lag
        self._weights: WeakKeyDictionary[Weights, Weights] = WeakKeyDictionary()
        self._values: dict[tuple[str, bytes], Tensor] = {}

    @contextmanager
    def here(self) -> Iterator[None]:
        with memory_errors(), self.streams.on(self.streams.work):
            yield

    def zeros(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=self.streams.device)

    def within(self, values: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        del values, shape
        return None  # torch keeps the memory of small arrays

    def weights(self, weights: Weights) -> Weights:
        """Weights on the device; profiles are copied once per case."""
        there = self._weights.get(weights)
        if there is None:
            there = self._weights[weights] = weights.moved(self.put)
        return there

    def put(self, values: NDArray[Any]) -> Tensor:
        """Copy a small host array to the device, through pinned memory: otherwise the host would wait for all work."""
        host = torch.tensor(values)
        return host.pin_memory().to(self.streams.device, non_blocking=True) if self.streams.pinned else host

    def pick(self, values: Tensor, index: Tensor, axis: int) -> Tensor:
        return torch.index_select(values, axis, index)

    def constant(self, values: NDArray[Any]) -> Tensor:
        """``put`` with a bounded cache of equal values; safe for two threads."""
        key = (values.dtype.str, values.tobytes())
        there = self._values.get(key)
        if there is None:
            if len(self._values) >= CONSTANTS:
                self._values.clear()
            there = self._values[key] = self.put(values)
        return there

    def most_likely(self, sums: Tensor, dtype: np.dtype[Any]) -> tuple[Tensor, Tensor]:
        del dtype  # positions stay int64 until they are cast
        best, winner = torch.max(sums, dim=0)
        return winner, best

    def take(self, values: NDArray[Any], index: Tensor) -> Tensor:
        return self.constant(values.astype(np.int64))[index]

    def fill(self, values: Tensor, where: Tensor, value: float) -> None:
        values.masked_fill_(where, value)

    def cast(self, values: Tensor, dtype: np.dtype[Any]) -> Tensor:
        return values.to(torch_type(dtype))

    def fetch(self, *arrays: Tensor | None) -> Callable[[], list[Any]]:
        """Queue the copies behind the work that makes the arrays; torch reuses the pinned memory once they are done."""
        with span("download"):
            pairs = [None if array is None else (self._pinned(array), array) for array in arrays]
            with self.streams.timed("download"):
                copies = [None if pair is None else pair[0].copy_(pair[1], non_blocking=True) for pair in pairs]
        arrived = self.streams.event()
        arrived.record(self.streams.work)

        def wait() -> list[Any]:
            arrived.synchronize()
            self.streams.report_timings()
            return [None if copy is None else copy.numpy() for copy in copies]

        return wait

    def _pinned(self, array: Tensor) -> Tensor:
        return torch.empty(array.shape, dtype=array.dtype, pin_memory=self.streams.pinned)


def torch_type(dtype: np.dtype[Any]) -> torch.dtype:
    """Type of torch with the name of NumPy's."""
    found: torch.dtype = getattr(torch, dtype.name)
    return found


class Upload:
    """Uploads of pixels and masks in their own type, through pinned buffers that take turns."""

    def __init__(self, streams: DeviceStreams) -> None:
        self._streams = streams
        copiers = ThreadPoolExecutor(COPIERS, "segpipe-copy")
        self._buffers = [_Buffer(streams, copiers) for _ in range(BUFFERS)]
        self._turn = 0

    @contextmanager
    def send(self, arrays: Sequence[NDArray[Any]]) -> Iterator[Tensor]:
        """Stack arrays of one type and shape on the device; the result is valid inside the block, for work queued there."""
        buffer = self._buffers[self._turn]
        self._turn = (self._turn + 1) % BUFFERS
        with span("upload"):
            sent = buffer.send(arrays)
        yield sent
        buffer.used.record(self._streams.work)


class _Buffer:
    """A pinned host buffer and a device buffer of the same size."""

    def __init__(self, streams: DeviceStreams, copiers: ThreadPoolExecutor) -> None:
        self._streams, self._copiers = streams, copiers
        self._host = torch.empty(0, dtype=torch.uint8)
        self._there = torch.empty(0, dtype=torch.uint8)
        self._sent, self.used = streams.event(), streams.event()

    def send(self, arrays: Sequence[NDArray[Any]]) -> Tensor:
        streams, size = self._streams, sum(array.nbytes for array in arrays)
        self._sent.synchronize()  # before its memory is written again
        if size > len(self._host):
            self.used.synchronize()  # before its memory is given back
            host = torch.empty(size, dtype=torch.uint8, pin_memory=streams.pinned)
            there = torch.empty(size, dtype=torch.uint8, device=streams.device)
            self._host, self._there = host, there  # assign both or none: either allocation may fail
            streams.uploads.wait_stream(streams.work)  # work may still read the old buffer
        dtype, shape = arrays[0].dtype, (len(arrays), *arrays[0].shape)
        self._gather(arrays, self._host[:size].numpy().view(dtype).reshape(shape))
        with streams.on(streams.uploads):
            self.used.wait(streams.uploads)
            with streams.timed("upload", streams.uploads):
                self._there[:size].copy_(self._host[:size], non_blocking=True)
            self._sent.record(streams.uploads)
        self._sent.wait(streams.work)
        return self._there[:size].view(torch_type(dtype)).view(shape)

    def _gather(self, arrays: Sequence[NDArray[Any]], out: NDArray[Any]) -> None:
        """Fill the buffer in parallel: one core copies 2 GB/s, 0.9 s for 120 Mpx in 4 bands (measured)."""
        share = -(-len(arrays) // COPIERS)
        starts = range(0, len(arrays), share)
        copies = [self._copiers.submit(np.stack, arrays[k : k + share], out=out[k : k + share]) for k in starts]
        wait(copies)  # for all copies: none may still write into the buffer after one has failed
        for copy in copies:
            copy.result()


def scaled(stored: Tensor, scaling: Scaling, invalid: Tensor | None, arrays: DeviceArrays) -> Tensor:
    """Do what ``Scaling`` does on the host, operation by operation, for pixels ``(tiles, channels, *tile)``.

    Multiplication and addition are two steps, as on the host: a fused one rounds once and would give other bytes.
    """
    single = stored.dtype.itemsize <= 2 or stored.dtype == torch.float32
    kind = np.dtype(np.float32 if single else np.float64)

    def column(values: NDArray[np.float64]) -> Tensor:
        return arrays.constant(values.astype(kind)).view(-1, *[1] * (stored.ndim - 2))

    x = stored.to(torch_type(kind), copy=True)
    x *= column(scaling.gain)
    x += column(scaling.bias)
    if scaling.low is not None and scaling.high is not None:
        x = torch.clamp(x, column(scaling.low), column(scaling.high))
    if scaling.blank is not None:
        x = torch.where(stored.to(torch_type(kind)) == column(scaling.blank), torch.zeros_like(x), x)
    if invalid is not None:
        fill = column(np.zeros(len(scaling.gain)) if scaling.fill is None else scaling.fill)
        x = torch.where(invalid[:, None], fill, x)
    return x.to(torch.float32)

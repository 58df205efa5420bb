"""One ONNX model at work: from a batch of tiles to class scores at full resolution, on the host or on a device."""

import logging
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from onnxruntime import RunOptions

from segpipe.errors import ModelError, one_line
from segpipe.network.activation import by_class
from segpipe.network.arrays import HOST, Array, Arrays
from segpipe.network.device import open_session
from segpipe.network.neighbours import batch_tiles, depends_on_batch, one_by_one
from segpipe.network.output_graph import tail_of
from segpipe.network.outputs import check_output
from segpipe.network.spec import ModelSpec, by, check_unchanged
from segpipe.pipeline.memory import refuse_large_tile
from segpipe.pipeline.read import Tile
from segpipe.process.machine import forget_most_resident, memory, most_resident, resident

LOG = logging.getLogger("segpipe")

TRIAL_SECONDS = 600.0
"""That a trial on the CPU may take, with the opening of the model. On a device, engines may be built for longer."""

ANNOUNCED = 2**21
"""Pixels of a batch above which it is said that the model is tried."""


class Model(Protocol):
    """A network that can be run, and where its scores are."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def arrays(self) -> Arrays: ...

    def score(self, tiles: Sequence[Tile]) -> Array:
        """Scores ``(tiles, classes, *tile)`` of at most a batch of tiles that have pixels.

        Here ``tile`` is the network's: of a network of images, without the axis of length 1 that slices of a volume have.
        """

    def shrink(self) -> bool:
        """Go on with half the batch, as ``spec`` then says; False where that is no help."""


def try_out(spec: ModelSpec) -> ModelSpec:
    """Run one batch of noise: what the model really gives is checked, and the memory that it took is noted.

    Raises:
        ModelError, ContractError, DeviceError: it does not run, or its scores are not what the contract says.
    """
    refuse_large_tile(spec, memory())
    if spec.batch * math.prod(spec.tiling.tile) > ANNOUNCED:
        LOG.warning("trying %s on a tile of %s, which may take a while", spec.path, by(spec.tiling.tile))
    try:
        return _in_time(_try_host if spec.device == "cpu" else _try_device, spec)
    except MemoryError:
        raise ModelError(f"a tile of {by(spec.tiling.tile)} does not fit into memory: lower --tile or --batch") from None


def _in_time(trial: Callable[[ModelSpec, RunOptions], ModelSpec], spec: ModelSpec) -> ModelSpec:
    """Run a trial in a thread, since the main one answers signals only between calls.

    Raises:
        ModelError: it does not end, as where a loop of the graph is endless.
    """
    ended: SimpleQueue[ModelSpec | BaseException] = SimpleQueue()
    options = RunOptions()

    def run() -> None:
        try:
            ended.put(trial(spec, options))
        except BaseException as error:  # noqa: BLE001 - whatever it is, the thread that waits raises it
            ended.put(error)

    thread = threading.Thread(target=run, name="segpipe-trial", daemon=True)
    thread.start()
    try:
        found = ended.get(timeout=TRIAL_SECONDS if spec.device == "cpu" else None)
    except KeyboardInterrupt:
        _end(thread, options)
        raise
    except Empty:
        _end(thread, options)
        raise ModelError(
            f"{spec.path} must score a batch of {spec.batch} tiles of {by(spec.tiling.tile)} within {TRIAL_SECONDS:g} s, "
            "and does not: lower --tile or --batch; a graph with an endless loop never ends"
        ) from None
    if isinstance(found, BaseException):
        raise found
    return found


def _end(trial: threading.Thread, options: RunOptions) -> None:
    """Python must not end while a call goes on: it would be aborted."""
    options.terminate = True
    trial.join(TRIAL_SECONDS)


def _try_host(spec: ModelSpec, options: RunOptions) -> ModelSpec:
    tiles = batch_tiles(spec)
    before = resident()
    model = HostModel(spec, arena=False, trial=tiles, options=options)
    assert model.trial is not None
    opened = max(before, model.opened)
    spec = replace(spec, weights_mb=(opened - before) / 1e6, network_mb=max(0, most_resident() - opened) / 1e6)
    check_output(spec, by_class(model.trial, spec), model.raw)
    if spec.batch == 1 or not depends_on_batch(model.raw, tiles, model.trial, alone=not spec.batch_is_fixed):
        return spec
    return one_by_one(spec)


def _try_device(spec: ModelSpec, options: RunOptions) -> ModelSpec:
    from segpipe.pipeline.gpu_check import try_device

    del options  # it has no limit of time
    before = resident()
    forget_most_resident()
    spec = try_device(spec)
    return replace(spec, network_mb=max(0, most_resident() - before) / 1e6)


def load(spec: ModelSpec) -> Model:
    """The model that a run was planned with.

    Raises:
        ModelError: the file is another one by now.
    """
    try:
        if spec.device == "cpu":
            return HostModel(spec)
        from segpipe.pipeline.infer_gpu import load_bound

        return load_bound(spec)
    finally:
        check_unchanged(spec)


class HostModel:
    """An ONNX Runtime session on the CPU with what comes after it; safe to call from several threads."""

    arrays: Arrays = HOST

    trial: NDArray[Any] | None = None
    """What the network gave for the batch that it was tried on, without what comes behind it."""

    opened: int = 0
    """Bytes of the process when the network was loaded, before it was tried."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        arena: bool = True,
        trial: NDArray[Any] | None = None,
        options: RunOptions | None = None,
    ) -> None:
        self.spec, self._options = spec, options
        self._session = open_session(str(spec.path), "cpu", arena, spec.threads)
        if trial is not None:
            self.opened = resident()
            forget_most_resident()
        self._dtype = np.dtype(spec.input_dtype)
        # one batch, empty or of a trial: the shape of what comes decides what is needed to bring it to full size
        found = self.raw(np.zeros(spec.batch_shape, self._dtype) if trial is None else trial)
        tail = tail_of(spec, found.shape)
        self.trial = None if trial is None else found
        self._tail = None if tail is None else open_session(tail, "cpu", True)

    def score(self, tiles: Sequence[Tile]) -> NDArray[np.float32]:
        """A short batch is filled up, so that the network sees one shape."""
        size, shape = self.spec.batch, self.spec.batch_shape[1:]
        pixels = [tile.pixels.reshape(shape) for tile in tiles if tile.pixels is not None]
        if len(pixels) == 1 == size:
            return self(pixels[0][None])
        batch = np.zeros(self.spec.batch_shape, np.float32)
        np.stack(pixels, out=batch[: len(pixels)])
        return self(batch)[: len(pixels)]

    def shrink(self) -> bool:
        return False

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Scores ``(batch, classes, *tile)`` of scaled tiles ``(batch, channels, *tile)``."""
        scores = self.raw(batch)
        if len(scores) != len(batch):
            raise ModelError(
                f"{self.spec.path} must give scores for each of {len(batch)} tiles, got {len(scores)}: check its batch axis"
            )
        scores = np.asarray(scores, np.float32)
        if self._tail is not None:
            (scores,) = self._tail.run(None, {"scores": scores})
        return scores

    def raw(self, batch: NDArray[Any]) -> NDArray[Any]:
        """The network's own output, whatever comes behind it."""
        batch = np.ascontiguousarray(batch.transpose(self.spec.contract.layout.from_first), dtype=self._dtype)
        try:
            (scores,) = self._session.run([self.spec.output], {self.spec.input: batch}, self._options)
        except Exception as error:  # noqa: BLE001 - onnxruntime raises classes of its own that share no base
            raise ModelError(f"{self.spec.path} failed on a batch of shape {batch.shape}: {one_line(error)}") from None
        return scores  # type: ignore[no-any-return]

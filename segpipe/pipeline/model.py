"""One ONNX model at work: from a batch of tiles to class scores at full resolution, on the host or on a device."""

import resource
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segpipe.pipeline.arrays import HOST, Array, Arrays
from segpipe.pipeline.batches import Tile
from segpipe.pipeline.device import open_session
from segpipe.pipeline.errors import ModelError
from segpipe.pipeline.spec import ModelSpec, by, check_unchanged
from segpipe.pipeline.tail import tail_of


class Model(Protocol):
    """A network that can be run, and where its scores are."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def arrays(self) -> Arrays: ...

    def score(self, tiles: Sequence[Tile]) -> Array:
        """Scores ``(tiles, classes, *tile)`` of at most a batch of tiles that have pixels."""

    def shrink(self) -> bool:
        """Go on with half the batch, as ``spec`` then says; False where that is no help."""


def try_out(spec: ModelSpec) -> ModelSpec:
    """Run one empty batch: what the model really gives is checked, and the memory that it took is noted.

    Raises:
        ModelError, ContractError, DeviceError: it does not run, or its scores are not what the contract says.
    """
    before = _peak_mb()
    try:
        if spec.device == "cpu":
            HostModel(spec, arena=False)
        else:
            from segpipe.pipeline.gate import try_device

            spec = try_device(spec)
    except MemoryError:
        raise ModelError(f"a tile of {by(spec.tiling.tile)} does not fit into memory: lower --tile or --batch") from None
    return replace(spec, network_mb=_peak_mb() - before)


def load(spec: ModelSpec) -> Model:
    """The model that a run was planned with.

    Raises:
        ModelError: the file is another one by now.
    """
    try:
        if spec.device == "cpu":
            return HostModel(spec)
        from segpipe.pipeline.bound import load_bound

        return load_bound(spec)
    finally:
        check_unchanged(spec)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class HostModel:
    """An ONNX Runtime session on the CPU with what comes after it; safe to call from several threads."""

    arrays: Arrays = HOST

    def __init__(self, spec: ModelSpec, *, arena: bool = True) -> None:
        self.spec = spec
        self._session = open_session(str(spec.path), "cpu", arena, spec.threads)
        self._layout_last = spec.contract.layout == "NHWC"
        self._dtype = np.dtype(spec.input_dtype)
        # one empty batch: the shape of what comes decides what is needed to bring it to full size
        tail = tail_of(spec, self._raw(np.zeros(spec.batch_shape, self._dtype)).shape)
        self._tail = None if tail is None else open_session(tail, "cpu", True)

    def score(self, tiles: Sequence[Tile]) -> NDArray[np.float32]:
        """A short batch is filled up, so that the network sees one shape."""
        pixels, size = [tile.pixels for tile in tiles], self.spec.batch
        if len(pixels) == 1 == size and pixels[0] is not None:
            return self(pixels[0][None])
        batch = np.zeros(self.spec.batch_shape, np.float32)
        np.stack([own for own in pixels if own is not None], out=batch[: len(pixels)])
        return self(batch)[: len(pixels)]

    def shrink(self) -> bool:
        return False

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Scores ``(batch, classes, *tile)`` of scaled tiles ``(batch, channels, *tile)``."""
        scores = self._raw(batch)
        if len(scores) != len(batch):
            raise ModelError(
                f"{self.spec.path} must give scores for each of {len(batch)} tiles, got {len(scores)}: check its batch axis"
            )
        scores = np.asarray(scores, np.float32)
        if self._tail is not None:
            (scores,) = self._tail.run(None, {"scores": scores})
        return scores

    def _raw(self, batch: NDArray[Any]) -> NDArray[Any]:
        if self._layout_last:
            batch = np.moveaxis(batch, 1, -1)
        batch = np.ascontiguousarray(batch, dtype=self._dtype)
        try:
            (scores,) = self._session.run([self.spec.output], {self.spec.input: batch})
        except Exception as error:  # noqa: BLE001 - onnxruntime raises classes of its own that share no base
            raise ModelError(f"{self.spec.path} failed on a batch of shape {batch.shape}: {error}") from None
        return scores  # type: ignore[no-any-return]

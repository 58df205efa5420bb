"""Run batches of tiles through the model, several at a time, and weight the scores; the model on the CPU."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import ModelError, foreseen
from segpipe.formats.source import Invalid
from segpipe.geometry.windows import Tiling
from segpipe.network.arrays import HOST, Array, Arrays
from segpipe.network.averaging import mean_scores
from segpipe.network.device import Arena, open_session
from segpipe.network.openvino_session import OpenVinoSession
from segpipe.network.output_graph import output_graph_for
from segpipe.network.read import check_unchanged
from segpipe.network.session import Session, has_large_scores, keep_open, open_on_host, raw_scores
from segpipe.network.spec import ModelSpec
from segpipe.pipeline.memory import waiting_batches
from segpipe.pipeline.read import Failed
from segpipe.pipeline.tiles import Batch, Patch, Scored, Tile
from segpipe.process.machine import forget_most_resident, resident
from segpipe.timing.spans import span, waiting

Results = list[Scored | Failed]


class LoadedModel(Protocol):
    """A loaded network, and the memory that holds its scores."""

    @property
    def spec(self) -> ModelSpec:
        """The model as it was loaded; ``shrink`` changes its batch."""
        ...

    @property
    def arrays(self) -> Arrays:
        """Arrays on the device of the scores."""
        ...

    def score(self, patches: Sequence[Patch]) -> tuple[Array, Sequence[Array | None]]:
        """Scores ``(patches, classes, *tile)`` of at most one batch, and the invalid masks, both on the model's device.

        ``tile`` has the network's axes: a network of images lacks the axis of length 1 that slices of a volume have.
        """

    def shrink(self) -> bool:
        """Halve the batch, as ``spec`` then shows; False if that does not help."""


def infer(model: LoadedModel, batches: Iterable[Batch], calls: int) -> Generator[Scored | Failed, None, None]:
    """Yield the same windows in the same order, with weighted scores instead of pixels.

    ``calls`` batches are in the model at once and one more waits, so that the model never waits for the consumer of its
    results; none waits if its scores are large. A device has one stream, and one call. If a batch fails, every case with a
    tile in it fails.
    """
    calls = 1 if model.arrays.lag else calls
    most = calls + waiting_batches(model.spec)
    running: deque[Future[Results]] = deque()
    with ThreadPoolExecutor(calls, thread_name_prefix="segpipe-model") as pool:
        try:
            for batch in batches:
                running.append(pool.submit(_scored, model, batch))
                if len(running) > most:
                    yield from _next(running)
            while running:
                yield from _next(running)
        finally:
            for future in running:
                future.cancel()


def _next(running: deque[Future[Results]]) -> Iterator[Scored | Failed]:
    with waiting("infer"):
        results = deque(running.popleft().result())
    while results:
        yield results.popleft()  # no reference remains here: scores may be large


def _scored(model: LoadedModel, batch: Batch) -> Results:
    """Score a batch; if it fails, every case with pixels in it fails."""
    filled = [(tile, tile.patch) for tile in batch if isinstance(tile, Tile) and tile.patch is not None]
    try:
        with model.arrays.here():
            found: Iterator[Scored | Failed] = iter(_through(model, filled) if filled else ())
    except Exception as error:  # noqa: BLE001 - a bad batch costs only its cases
        found = iter([_failed(tile, error) for tile, _ in filled])
    return [_result(tile, found) for tile in batch]


def _through(model: LoadedModel, filled: Sequence[tuple[Tile, Patch]]) -> list[Scored]:
    first, _ = filled[0]
    with span("infer", first.case.name, first.index):
        scores, masks = model.score([patch for _, patch in filled])
    found = []
    for (tile, _), own, invalid in zip(filled, scores, masks, strict=True):
        with span("weight", tile.case.name, tile.index):
            scored = weighted(own, tile, model.arrays)
        found.append(
            Scored(
                case=tile.case,
                info=tile.info,
                index=tile.index,
                scores=scored,
                invalid=invalid,
                own_invalid=tile.own_invalid,
            )
        )
    return found


def _failed(tile: Tile, error: Exception) -> Failed:
    tile.info.abandoned.set()  # reading and inferring the rest of the case would be useless
    return Failed(tile.case, foreseen(error, tile.case.path))


def _result(tile: Tile | Failed, found: Iterator[Scored | Failed]) -> Scored | Failed:
    """The result of a tile: the next one of ``found`` if the tile has pixels."""
    if isinstance(tile, Failed):
        return tile
    if tile.patch is None:
        return Scored(tile.case, tile.info, tile.index, own_invalid=tile.own_invalid)
    return next(found)


def weighted(scores: Array, tile: Tile, arrays: Arrays) -> Array:
    """Multiply scores by the weights of their window, in place; shape ``(classes, *tile)`` of the case's tiling.

    This runs in the threads of the model, in parallel.
    """
    weights = arrays.weights(tile.info.weights).of(tile.index)
    scores = scores.reshape(len(scores), *weights.shape)
    scores *= weights
    return scores


def load_model(spec: ModelSpec) -> LoadedModel:
    """Load the model that a run was planned with.

    Raises:
        ModelError: the file has changed.
    """
    try:
        if spec.listed:
            return NoModel(spec)
        if spec.on_host:
            model = HostModel(spec)
            model.warm()
            return model
        from segpipe.pipeline.infer_gpu import load_on_device

        return load_on_device(spec)
    finally:
        check_unchanged(spec)


SMALL = 2**28
"""Most bytes of files of a model that is loaded ahead, while the first process may have it in memory, too."""


def load_ahead(spec: ModelSpec) -> None:
    """Open a model before it is known whether a run uses it, if that takes little memory.

    OpenVINO compiles a network at its first call, for as long as it then needs for two tiles.

    Raises:
        ModelError, DeviceError: the engine cannot load it, or is not there; or the file has changed.
    """
    files = {file for member in spec.members for file in member.files}
    if not spec.on_host or has_large_scores(spec) or sum(file.stat().st_size for file in files) > SMALL:
        return
    arena = _arena(spec)
    sessions = [open_on_host(member, arena) for member in spec.members]
    check_unchanged(spec)
    for member, session in zip(spec.members, sessions, strict=True):
        keep_open(member, session, arena)
    if spec.engine is not None:
        HostModel(spec)  # without a trial, it scores an empty batch


def _arena(spec: ModelSpec) -> Arena:
    """Networks that run one after the other share an arena."""
    return "shared" if spec.folds else "own"


@dataclass(frozen=True)
class NoModel:
    """Takes the place of a model where the labels of several are joined, and nothing is inferred."""

    spec: ModelSpec
    arrays: Arrays = HOST

    def score(self, patches: Sequence[Patch]) -> tuple[Array, Sequence[Array | None]]:
        raise NotImplementedError(f"{len(patches)} tiles for a list of models, which infers nothing")

    def shrink(self) -> bool:
        return False


class HostModel:
    """Networks on the CPU, one after the other, and the mean of their scores; safe to call from several threads."""

    arrays: Arrays = HOST

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._networks = [HostNetwork(member, arena=_arena(spec)) for member in spec.members]

    def score(self, patches: Sequence[Patch]) -> tuple[NDArray[np.float32], list[Invalid | None]]:
        """Score patches; a short batch is filled up, so that the network sees one shape."""
        return self._scores(patches), [_scored_only(patch.invalid, self.spec.tiling) for patch in patches]

    def _scores(self, patches: Sequence[Patch]) -> NDArray[np.float32]:
        size, shape = self.spec.batch, self.spec.batch_shape[1:]
        pixels = [patch.pixels.reshape(shape) for patch in patches]
        if len(pixels) == 1 == size:
            return self(pixels[0][None])
        batch = np.zeros(self.spec.batch_shape, np.float32)
        np.stack(pixels, out=batch[: len(pixels)])
        return self(batch)[: len(pixels)]

    def warm(self) -> None:
        """Do now what an engine does at its first call: better before a case is opened than while it is read."""
        for network in self._networks:
            network.warm()

    def keep_open(self) -> None:
        """Let the next model of the same networks take over their sessions."""
        for network in self._networks:
            network.keep_open()

    def shrink(self) -> bool:
        return False

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Scores ``(batch, classes, *tile)`` of scaled tiles ``(batch, channels, *tile)``."""
        scores: NDArray[np.float32] = mean_scores(self._networks, batch, self.spec.flips, np)
        return scores


def _scored_only(invalid: Invalid | None, tiling: Tiling) -> Invalid | None:
    """A mask without the margin, which has no scores; with the axis of length 1 that slices of a volume have."""
    inner: Any = (..., *tiling.middle)
    return invalid if invalid is None else invalid[inner]


class HostNetwork:
    """A session on the host with its output graph; safe to call from several threads."""

    trial: NDArray[Any] | None = None
    """Raw output for the trial's batch, before the output graph."""

    opened: int = 0
    """Memory of the process in bytes after loading the network, before its trial."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        arena: Arena = "own",
        trial: NDArray[Any] | None = None,
        on_open: Callable[[Session], None] = lambda _: None,
    ) -> None:
        self.spec = spec
        self._session = open_on_host(spec, arena)
        on_open(self._session)
        if trial is not None:
            self.opened = resident()
            forget_most_resident()
            self.trial = self.raw(trial)
        graph = output_graph_for(spec, self._output_shape())
        self._output_graph = None if graph is None else open_session(graph, arena="shared" if arena == "shared" else "own")

    def _output_shape(self) -> tuple[int, ...]:
        """Shape of the raw output, which determines the output graph: of the trial, or else of an empty batch."""
        if self.trial is not None:
            return self.trial.shape
        return self.spec.output_shape or self.raw(self._empty()).shape

    def warm(self) -> None:
        """Let OpenVINO compile the network, as it does at its first call; ONNX Runtime has nothing to do."""
        if isinstance(self._session, OpenVinoSession):
            self._session.prepare(self.spec.given(self._empty()))

    def keep_open(self) -> None:
        """Let the next model of the same network take over the session."""
        keep_open(self.spec, self._session)

    def _empty(self) -> NDArray[Any]:
        return np.zeros(self.spec.batch_shape, self.spec.input_dtype)

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Scores ``(batch, classes, *tile)`` of scaled tiles ``(batch, channels, *tile)``."""
        scores = self.raw(batch)
        if len(scores) != len(batch):
            raise ModelError(
                f"{self.spec.path} must give scores for each of {len(batch)} tiles, got {len(scores)}: check its batch axis"
            )
        scores = np.asarray(scores, np.float32)
        if self._output_graph is not None:
            (scores,) = self._output_graph.run(None, {"scores": scores})
        return scores

    def raw(self, batch: NDArray[Any]) -> NDArray[Any]:
        """The network's raw output, before the output graph."""
        return raw_scores(self._session, self.spec, batch)

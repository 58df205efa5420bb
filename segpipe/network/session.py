"""Sessions on the host: one network, opened by ONNX Runtime or OpenVINO, that gives raw scores of a batch."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import RunOptions

from segpipe.errors import ModelError
from segpipe.network.conversion import model_for
from segpipe.network.device import Arena, engine_errors, failed_batch, open_session
from segpipe.network.openvino_session import OpenVinoSession

if TYPE_CHECKING:
    from segpipe.network.spec import ModelSpec


Given = Mapping[str, NDArray[Any]]
"""What a network gets: an array for the name of each input."""


LARGE = 2**28
"""Bytes of a batch's scores that decide how much memory a worker takes: few of them may be in memory at once."""

FLOAT = 4


class Session(Protocol):
    """An opened network; several threads may call it at once."""

    def run(self, given: Given) -> NDArray[Any]:
        """The raw output for the inputs of a batch, contiguous, in the network's own layout and types.

        Raises:
            Exception: the engine's own.
        """

    def stop(self) -> None:
        """End the calls in progress, from another thread; the session must not be used after that."""


class RuntimeSession:
    """A session of ONNX Runtime on the CPU."""

    def __init__(self, session: onnxruntime.InferenceSession, scores: str) -> None:
        self._session, self._scores = session, scores
        self._options = RunOptions()

    def run(self, given: Given) -> NDArray[Any]:
        if (shape := self._large(given)) is not None:
            return self._run_into(given, np.empty(shape, np.float32))
        (scores,) = self._session.run([self._scores], given, self._options)
        return scores  # type: ignore[no-any-return]

    def _large(self, given: Given) -> tuple[int, ...] | None:
        """Shape of the scores, if they are large and the graph fixes it."""
        (output,) = (output for output in self._session.get_outputs() if output.name == self._scores)
        shape = (len(next(iter(given.values()))), *output.shape[1:])
        if output.type != "tensor(float)" or not all(isinstance(n, int) for n in shape):
            return None
        return shape if FLOAT * math.prod(shape) >= LARGE else None

    def _run_into(self, given: Given, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fill an array of our own. In ONNX Runtime's arena, small arrays would settle where large scores were, and the next
        large ones need new memory."""
        binding = self._session.io_binding()
        for name, array in given.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        binding.bind_output(self._scores, "cpu", 0, np.float32, scores.shape, scores.ctypes.data)
        self._session.run_with_iobinding(binding, self._options)
        return scores

    def stop(self) -> None:
        self._options.terminate = True


def open_on_host(spec: "ModelSpec", arena: Arena = "own") -> Session:
    """Open a network with its engine; the arena is ONNX Runtime's.

    Raises:
        ModelError, DeviceError: the engine cannot load the network, or is not there.
    """
    if (session := _OPENED.get(_key(spec, arena))) is not None:
        return session
    if spec.engine is not None:
        return OpenVinoSession(spec.path, spec.engine, spec.threads, spec.output)
    patterns = not has_large_scores(spec)
    session = open_session(model_for(spec), arena=arena, threads=spec.threads, folder=spec.folder, patterns=patterns)
    return RuntimeSession(session, spec.output)


_OPENED: dict[tuple[object, ...], Session] = {}
"""Sessions that were opened ahead, by all that their scores and their memory depend on."""


def _key(spec: "ModelSpec", arena: Arena) -> tuple[object, ...]:
    memory = (arena, has_large_scores(spec)) if spec.engine is None else None
    return spec.path, spec.sha256, spec.engine, spec.threads, spec.output, memory


def keep_open(spec: "ModelSpec", session: Session, arena: Arena = "own") -> None:
    """Let the next calls of ``open_on_host`` for this network return a session that is open already."""
    _OPENED[_key(spec, arena)] = session


def close_kept() -> None:
    """Forget the sessions that were kept open; each is closed when no model uses it."""
    _OPENED.clear()


def has_large_scores(spec: "ModelSpec") -> bool:
    """Whether the scores of a batch are so large that few of them may be in memory at once."""
    return FLOAT * spec.batch * math.prod(spec.tiling.tile) * spec.contract.scores >= LARGE


def raw_scores(session: Session, spec: "ModelSpec", batch: NDArray[Any]) -> NDArray[Any]:
    """Scores of a batch ``(batch, channels, *tile)`` as the network gives them.

    Raises:
        ModelError: the engine failed; the message has its reason.
    """
    given = spec.given(batch)
    with engine_errors(ModelError, lambda: failed_batch(spec.path, given.values())):
        return session.run(given)

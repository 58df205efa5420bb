"""Sessions on the host: one network, opened by ONNX Runtime or OpenVINO, that gives raw scores of a batch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import onnxruntime
from numpy.typing import NDArray
from onnxruntime import RunOptions

from segpipe.errors import ModelError, one_line
from segpipe.network.device import open_session
from segpipe.network.newer import model_for
from segpipe.network.openvino_session import OpenVinoSession

if TYPE_CHECKING:
    from segpipe.network.spec import ModelSpec


Given = Mapping[str, NDArray[Any]]
"""What a network gets: an array for the name of each input."""


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
        (scores,) = self._session.run([self._scores], given, self._options)
        return scores  # type: ignore[no-any-return]

    def stop(self) -> None:
        self._options.terminate = True


def open_on_host(spec: "ModelSpec", *, arena: bool = True, shared: bool = False) -> Session:
    """Open a network with its engine. ``arena`` and ``shared`` are ONNX Runtime's, as in ``open_session``.

    Raises:
        ModelError, DeviceError: the engine cannot load the network, or is not there.
    """
    if spec.engine is not None:
        return OpenVinoSession(spec.path, spec.engine, spec.threads, spec.output)
    return RuntimeSession(
        open_session(model_for(spec), "cpu", arena, spec.threads, shared=shared, folder=spec.folder), spec.output
    )


def raw_scores(session: Session, spec: "ModelSpec", batch: NDArray[Any]) -> NDArray[Any]:
    """Scores of a batch ``(batch, channels, *tile)`` as the network gives them.

    Raises:
        ModelError: the engine failed; the message has its reason.
    """
    given = spec.given(batch)
    try:
        return session.run(given)
    except Exception as error:  # noqa: BLE001 - engines raise classes of their own, which share no base
        shapes = " and ".join(str(array.shape) for array in given.values())
        raise ModelError(f"{spec.path} failed on a batch of shape {shapes}: {one_line(error)}") from None

"""Decode frames in a process of its own: GDCM aborts its process at some damaged files, and alone decodes JPEG Lossless."""

import atexit
import os
import pickle
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any

from numpy.typing import NDArray

SERVE = "import sys; sys.path[:] = sys.argv[1:]; from segpipe.formats.dicom.decoder_process import serve; serve()"

BYTES = 2**27
"""Memory of the process beside the frame that it decodes."""


class DecodingError(RuntimeError):
    """Another process could not decode a frame, or ended."""


class _Decoder:
    """The process that decodes for this one; it ends with it."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE, *sys.path], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL
        )

    def ask(self, request: tuple[str, int, bool]) -> Any:
        """The answer to a request: pixels, or the text of an error.

        Raises:
            DecodingError: the process has ended.
        """
        asked, answered = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answered is not None
        try:
            pickle.dump(request, asked)
            asked.flush()
            return pickle.load(answered)
        except (EOFError, OSError, pickle.UnpicklingError):
            self.end()
            raise DecodingError(f"the decoder ended with {_ending(self._process.returncode)}") from None

    def end(self) -> None:
        """Close its input, at which it ends by itself, and stop it if it does not."""
        if self.owner != os.getpid():
            return
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(OSError):  # it has ended
                stream.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


class _Decoders:
    """The decoder of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._decoder: _Decoder | None = None

    def ask(self, request: tuple[str, int, bool]) -> Any:
        with self._lock:
            if self._decoder is None or self._decoder.owner != os.getpid():
                self._decoder = _Decoder()
            try:
                return self._decoder.ask(request)
            except DecodingError:
                self._decoder = None
                raise
            except BaseException:  # as an interrupt: the answer to this request must not be taken for that to the next
                self._decoder.end()
                self._decoder = None
                raise

    def release(self) -> None:
        with self._lock:
            if self._decoder is not None:
                self._decoder.end()
            self._decoder = None


_DECODERS = _Decoders()


def decode_in_process(path: str, number: int, alone: bool) -> NDArray[Any]:
    """Decode the stored pixels of a frame in the decoder of this process, which is started on demand.

    Raises:
        DecodingError: they cannot be decoded, or the decoder crashed.
    """
    answer = _DECODERS.ask((path, number, alone))
    if isinstance(answer, str):
        raise DecodingError(answer)
    return answer  # type: ignore[no-any-return]


def release() -> None:
    """Stop the decoder of this process."""
    _DECODERS.release()


atexit.register(release)


def serve() -> None:
    """Answer requests from standard input until it ends. A signal to all processes leaves that to the parent."""
    from segpipe.formats.dicom.stored import UNDECODABLE, Reader, error_text

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # GDCM writes there
    reader = Reader()
    while (request := _next(requests)) is not None:
        path, number, alone = request
        try:
            answer: Any = reader.read(path, number, alone=alone)
        except UNDECODABLE as error:
            answer = error_text(error)
        pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()


def _next(requests: Any) -> Any:
    try:
        return pickle.load(requests)
    except EOFError:
        return None

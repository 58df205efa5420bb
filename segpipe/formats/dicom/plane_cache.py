"""Decoded planes of a series, each decoded once per process and kept in a file in TMPDIR without a name.

Memory holds one plane, whatever the orientation in which the model reads. The last series is kept for its next opening, as
by the next part of a case; its file disappears with its last user.
"""

import math
import os
import threading
import weakref
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import SourceError
from segpipe.formats.dicom.pixels import Decoder
from segpipe.formats.dicom.series import Frame
from segpipe.formats.volume.scratch import file_state, scratch_error, scratch_file
from segpipe.formats.volume.voxels import Voxels
from segpipe.geometry.windows import Window

Key = tuple[Any, ...]

DONE = "decoded"


class PlaneCache:
    """The planes of one series, ``(planes, rows, columns)``; several threads may read at once."""

    def __init__(self, path: str, frames: tuple[Frame, ...], dtype: np.dtype[Any]) -> None:
        """Reserve the space of all planes; none is decoded yet.

        Raises:
            SourceError: TMPDIR has no space for them.
        """
        self._path, self._frames = path, frames
        self._alone = {name for name, count in Counter(frame.path for frame in frames).items() if count == 1}
        self._decoder, self._lock = Decoder(dtype), threading.Lock()
        self._done = np.zeros(len(frames), bool)
        shape = (len(frames), *frames[0].shape)
        self._voxels = Voxels(scratch_file(path, math.prod(shape) * dtype.itemsize, DONE), shape, dtype)
        weakref.finalize(self, _close, self._voxels.file, self._decoder)

    def _failed(self, error: OSError) -> SourceError:
        return scratch_error(error, self._path, self._voxels.end, DONE)

    def read(self, box: Window) -> NDArray[Any]:
        """The values of a box; planes are decoded on first use.

        Raises:
            SourceError: a plane cannot be decoded, or TMPDIR is full.
        """
        with self._lock:
            for plane in range(box.start[0], box.stop[0]):
                if not self._done[plane]:
                    self._decode(plane)
        try:
            return self._voxels.read(box)
        except OSError as error:
            raise self._failed(error) from error

    def _decode(self, plane: int) -> None:
        frame = self._frames[plane]
        values = self._decoder.plane(frame, alone=frame.path in self._alone)
        try:
            self._voxels.write(Window((plane, 0, 0), (plane + 1, *frame.shape)), values[None])
        except OSError as error:
            raise self._failed(error) from error
        self._done[plane] = True


def _close(file: int, decoder: Decoder) -> None:
    os.close(file)
    decoder.close()


class _LastCache:
    """The planes of the last series of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: Key | None = None
        self._last: PlaneCache | None = None

    def of(self, path: str, frames: tuple[Frame, ...], dtype: np.dtype[Any]) -> PlaneCache:
        with self._lock:
            key = (str(dtype), frames, *map(file_state, dict.fromkeys(frame.path for frame in frames)))
            if self._last is None or key != self._key:
                self._last = self._key = None
                self._last, self._key = PlaneCache(path, frames, dtype), key
            return self._last

    def release(self) -> None:
        with self._lock:
            self._last = self._key = None


_LAST = _LastCache()


def plane_cache_of(path: str, frames: tuple[Frame, ...], dtype: np.dtype[Any]) -> PlaneCache:
    """The planes of a series as its files are now, shared by all openings in this process.

    Raises:
        SourceError: a file is gone, or TMPDIR has no space.
    """
    return _LAST.of(path, frames, dtype)


def release() -> None:
    """Free the space of the last series, as soon as no open source uses it."""
    _LAST.release()

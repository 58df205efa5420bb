"""Read and write whole buffers at offsets of an open file, whatever the position of other threads in it."""

import errno
import os


def read_at(file: int, buffer: memoryview, offset: int) -> None:
    """Fill a buffer of bytes from an offset of a file, given by its descriptor.

    Raises:
        OSError: the file ends before, or cannot be read.
    """
    while buffer:
        count = os.preadv(file, [buffer], offset)
        if not count:
            raise OSError(errno.EIO, "it has become shorter while it was read")
        buffer, offset = buffer[count:], offset + count


def write_at(file: int, data: memoryview, offset: int) -> None:
    """Write all bytes to an offset of a file, given by its descriptor.

    Raises:
        OSError: they cannot be written.
    """
    while data:
        count = os.pwrite(file, data, offset)
        data, offset = data[count:], offset + count

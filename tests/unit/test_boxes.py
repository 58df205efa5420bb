"""Parts of masks on disk: boxes of any dimension come back as they were written, or not at all."""

import errno
import io
import os
import zipfile
import zlib
from itertools import pairwise, product

import numpy as np
import pytest

from segpipe.errors import DamagedPartError, OutputError
from segpipe.geometry.windows import Window
from segpipe.results.boxes import BoxSink, read_boxes
from segpipe.storage.folder import Folder


def boxes_of(shape, bands, dtype, seed=0):
    """Boxes that a case of this shape is cut into, each with random values, in no order."""
    rng = np.random.default_rng(seed)
    cuts = [sorted({0, n, *rng.integers(1, max(2, n), 2).tolist()} - {-1}) for n in shape]
    spans = [list(pairwise(cut)) for cut in cuts]
    windows = [Window(tuple(a for a, _ in box), tuple(b for _, b in box)) for box in product(*spans)]
    rng.shuffle(windows)
    top = np.iinfo(dtype).max
    return [(window, rng.integers(0, top, (bands, *window.shape), dtype=dtype, endpoint=True)) for window in windows]


@pytest.mark.parametrize("shape", [(7,), (40, 53), (11, 1, 30), (4, 5, 6, 7)])
@pytest.mark.parametrize(("bands", "dtype"), [(1, "uint8"), (3, "uint8"), (1, "uint16")])
def test_boxes_come_back_one_by_one_in_their_places(shape, bands, dtype, tmp_path):
    output, written = Folder(tmp_path), boxes_of(shape, bands, dtype)
    sink = BoxSink(output, "parts/a.boxes")
    for window, values in written:
        sink.write(window, np.asfortranarray(values))
        assert not output.has("parts/a.boxes")
    digest = sink.finish()
    found = list(read_boxes(output, "parts/a.boxes", digest))
    assert [window for window, _ in found] == [window for window, _ in written]
    for (_, before), (_, after) in zip(written, found, strict=True):
        assert after.dtype == before.dtype
        np.testing.assert_array_equal(after, before)


def test_the_file_is_a_zip_archive_of_packed_npy_files(tmp_path):
    output = Folder(tmp_path)
    sink = BoxSink(output, "a.boxes")
    sink.write(Window((0, 8), (4, 12)), np.full((1, 4, 4), 3, np.uint8))
    sink.finish()
    with zipfile.ZipFile(tmp_path / "a.boxes") as archive:
        assert archive.testzip() is None
        array = np.load(io.BytesIO(zlib.decompress(archive.read("0_8.npy.zlib"))))
    assert array.tolist() == np.full((1, 4, 4), 3).tolist()


def test_a_part_without_boxes_is_a_part(tmp_path):
    output = Folder(tmp_path)
    digest = BoxSink(output, "a.boxes").finish()
    assert list(read_boxes(output, "a.boxes", digest)) == []


@pytest.mark.parametrize("at", [0, 40, 0.5, -30, -1])
def test_one_changed_bit_anywhere_is_damage(at, tmp_path):
    output = Folder(tmp_path)
    sink = BoxSink(output, "a.boxes")
    sink.write(*boxes_of((300,), 1, "uint8")[0])
    digest = sink.finish()
    data = bytearray((tmp_path / "a.boxes").read_bytes())
    data[int(len(data) * at) if isinstance(at, float) else at] ^= 1
    (tmp_path / "a.boxes").write_bytes(data)
    with pytest.raises(DamagedPartError, match=r"a\.boxes is damaged: its content has changed since it was written"):
        next(read_boxes(output, "a.boxes", digest))


def test_what_did_not_reach_the_disk_is_damage(tmp_path):
    """The digest is of what was written, not of what a failing disk made of it."""
    output = Folder(tmp_path)
    sink = BoxSink(output, "a.boxes")
    sink.write(*boxes_of((300,), 1, "uint8")[0])
    sink._archive.close()
    sink._stream.flush()
    os.truncate(sink._draft, 20)
    digest = sink.finish()
    with pytest.raises(DamagedPartError):
        next(read_boxes(output, "a.boxes", digest))


def test_a_missing_file_is_damage_and_one_that_cannot_be_read_is_not(tmp_path, monkeypatch):
    output = Folder(tmp_path)
    with pytest.raises(DamagedPartError, match="is missing"):
        next(read_boxes(output, "a.boxes", ""))

    def unreadable(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Folder, "local", unreadable)
    with pytest.raises(OutputError, match="cannot be read: Input/output error"):
        next(read_boxes(output, "a.boxes", ""))


@pytest.mark.parametrize("when", ["write", "finish"])
def test_a_full_disk_is_told_and_nothing_is_left(when, tmp_path, monkeypatch):
    output, full = Folder(tmp_path), [False]
    sink = BoxSink(output, "a.boxes")
    write = sink._hashed.write

    def limited(data):
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(data)

    monkeypatch.setattr(sink._hashed, "write", limited)
    box = boxes_of((300,), 1, "uint8")[0]
    if when == "finish":
        sink.write(*box)
    full[0] = True
    with pytest.raises(OutputError, match=r"a\.boxes cannot be written: No space left on device"):
        sink.finish() if when == "finish" else sink.write(*box)
    sink.discard()
    sink.discard()
    assert not list(tmp_path.rglob("*.boxes*"))


def test_discarding_a_finished_file_leaves_it(tmp_path):
    output = Folder(tmp_path)
    sink = BoxSink(output, "a.boxes")
    digest = sink.finish()
    sink.discard()
    assert list(read_boxes(output, "a.boxes", digest)) == []

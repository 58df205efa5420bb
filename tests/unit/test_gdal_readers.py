"""What GDAL's own threads say while several threads read is said of the case that is damaged, and of no other."""

import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import rasterio
from mutants import write
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioIOError

from segpipe.contract import parse_contract
from segpipe.errors import SourceError
from segpipe.formats.raster.dataset_files import files_now
from segpipe.formats.raster.gdal import gdal_options, source_errors
from segpipe.formats.raster.gdal_readers import UnattributedError
from segpipe.formats.raster.source import RasterSource
from segpipe.geometry.windows import Window

PIXELS = np.random.default_rng(0).integers(0, 255, (1, 256, 256), np.uint8)
CONTRACT = parse_contract(
    {"version": 1, "channels": 1, "normalize": "none", "activation": "none", "classes": [{"id": 0, "name": "a"}]}, "x"
)
WHOLE = Window((0, 0), PIXELS.shape[1:])


@pytest.fixture(autouse=True)
def several_decoders(monkeypatch):
    monkeypatch.setenv("GDAL_NUM_THREADS", "2")


@pytest.fixture
def good(tmp_path) -> Path:
    return jpeg_2000(tmp_path / "good.jp2")


@pytest.fixture
def bad(tmp_path) -> Path:
    """A file whose damage only GDAL's own threads tell."""
    path = jpeg_2000(tmp_path / "bad.jp2")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"\x55\xaa\x12\x34" + data[len(data) // 2 :])
    return path


def jpeg_2000(path: Path) -> Path:
    return write(path, PIXELS, "JP2OpenJPEG", quality="100", reversible="yes", blockxsize=64, blockysize=64)


def read(path: Path) -> None:
    with gdal_options(), source_errors(f"{path} cannot be read", ()), rasterio.open(path) as dataset:
        dataset.read()


class Neighbour:
    """Reads a file in another thread, once, while whoever calls it waits."""

    def __init__(self, path: Path) -> None:
        self._path, self.errors, self.calls = path, [], 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == 1:
            thread = threading.Thread(target=self._read)
            thread.start()
            thread.join()

    def _read(self) -> None:
        try:
            read(self._path)
        except (SourceError, UnattributedError) as error:
            self.errors.append(error)


def read_beside(path: Path, neighbour: Neighbour, monkeypatch) -> np.ndarray:
    """Pixels of a file, while whose window is read the neighbour reads its own."""
    pixels_of = RasterSource._pixels

    def pixels(self, where):
        pixels = pixels_of(self, where)
        neighbour()
        return pixels

    with gdal_options():
        source = RasterSource(str(path), CONTRACT)
        monkeypatch.setattr(RasterSource, "_pixels", pixels)
        try:
            return source.read(WHOLE)[0]
        finally:
            source.close()


def test_damage_of_a_neighbour_does_not_fail_a_good_case(good, bad, monkeypatch):
    neighbour = Neighbour(bad)
    np.testing.assert_array_equal(read_beside(good, neighbour, monkeypatch), PIXELS)
    assert isinstance(neighbour.errors[0], UnattributedError)  # it reads beside another, and does not read again
    assert neighbour.calls == 2


def test_damage_is_found_beside_a_good_neighbour(good, bad, monkeypatch):
    neighbour = Neighbour(good)
    with pytest.raises(SourceError, match=r"bad\.jp2 cannot be read.*GDAL says"):
        read_beside(bad, neighbour, monkeypatch)
    assert neighbour.calls == 2


def test_good_neighbours_read_once(good, monkeypatch):
    neighbour = Neighbour(good)
    np.testing.assert_array_equal(read_beside(good, neighbour, monkeypatch), PIXELS)
    assert (neighbour.errors, neighbour.calls) == ([], 1)


def test_damage_is_its_own_where_one_thread_reads(bad):
    with pytest.raises(SourceError, match="GDAL says"):
        read(bad)


def test_files_and_descriptions_are_read_again_too(good, bad, monkeypatch):
    neighbour = Neighbour(bad)
    for module in ("dataset_files", "source"):
        monkeypatch.setattr(
            f"segpipe.formats.raster.{module}.files_of", lambda dataset, look=None: neighbour() or [dataset.name]
        )
    assert files_now(str(good)) == [str(good)]
    neighbour.calls = 0
    with gdal_options():
        RasterSource(str(good), CONTRACT).close()
    assert neighbour.calls == 2


def test_notes_of_alpha_are_read_again_too(bad, tmp_path, monkeypatch):
    neighbour, pixels = Neighbour(bad), np.tile(PIXELS, (2, 1, 1))
    path = write(tmp_path / "good.tif", pixels, "GTiff", alpha="unspecified", photometric="minisblack")
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = (ColorInterp.gray, ColorInterp.alpha)
    unreadable = RasterSource._unreadable

    @contextmanager
    def heard(self, window):
        with unreadable(self, window):
            yield
            neighbour()

    monkeypatch.setattr(RasterSource, "_unreadable", heard)
    with gdal_options():
        source = RasterSource(str(path), CONTRACT)
        assert any("alpha" in note for note in source.notes)
        source.close()
    assert neighbour.calls > 1


def test_threads_that_read_good_and_damaged_files_side_by_side(good, bad):
    messages = {good: [], bad: []}

    def work(path):
        with gdal_options():
            for _ in range(10):
                try:
                    source = RasterSource(str(path), CONTRACT)
                    np.testing.assert_array_equal(source.read(WHOLE)[0], PIXELS)
                    source.close()
                except SourceError as error:
                    messages[path].append(str(error))

    threads = [threading.Thread(target=work, args=(path,)) for path in (good, bad, good)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not messages[good]
    assert len(messages[bad]) == 10
    assert all("bad.jp2" in text and "GDAL says" in text for text in messages[bad])


def failing_first(monkeypatch, place, name, times):
    """Let a function of GDAL fail the first times with a message of GDAL; return the calls."""
    asked, calls = getattr(place, name), []

    def answer(*words, **options):
        calls.append(1)
        if len(calls) <= times:
            raise RasterioIOError("TIFFReadEncodedStrip:Read error at scanline 4294967295")
        return asked(*words, **options)

    monkeypatch.setattr(place, name, answer)
    return calls


@pytest.mark.parametrize(
    ("place", "name"), [(RasterSource, "_open"), (RasterSource, "_pixels"), (RasterSource, "_describe")]
)
def test_a_fault_that_has_passed_is_no_damage(place, name, good, monkeypatch):
    """GDAL does not pass on the number of an error, and the file can be read by now."""
    failing_first(monkeypatch, place, name, 1)
    with gdal_options():
        source = RasterSource(str(good), CONTRACT)
        np.testing.assert_array_equal(source.read(WHOLE)[0], PIXELS)
        source.close()


def test_damage_is_read_twice_and_told(good, monkeypatch):
    with gdal_options():
        source = RasterSource(str(good), CONTRACT)
        calls = failing_first(monkeypatch, RasterSource, "_pixels", 1000)
        with pytest.raises(SourceError, match=r"good\.jp2 cannot be read at row 0.*Read error"):
            source.read(WHOLE)
        source.close()
    assert len(calls) == 2


def test_a_refusal_is_not_tried_again(good, monkeypatch):
    calls = []

    def refuse(*_):
        calls.append(1)
        raise SourceError("bands must be intensities")

    monkeypatch.setattr(RasterSource, "_describe", refuse)
    with gdal_options(), pytest.raises(SourceError, match="must be intensities"):
        RasterSource(str(good), CONTRACT)
    assert len(calls) == 1

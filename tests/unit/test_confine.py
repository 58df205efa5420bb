"""What GDAL may open: no server while a local file is read, in this thread alone, and no driver that asks one."""

import threading
from zipfile import ZipFile

import pytest
import rasterio
from rasterio._env import get_gdal_config

from segpipe.formats.raster import confine
from segpipe.formats.raster.confine import LOCAL, NETWORK, allow_drivers, confined, read_start

OPTION = "CPL_VSIL_CURL_ALLOWED_FILENAME"


def test_a_thread_is_confined_until_its_last_block_ends():
    seen = []
    with confined(True):
        with confined(True), confined(False):
            seen.append(get_gdal_config(OPTION))
        seen.append(get_gdal_config(OPTION))
        other = threading.Thread(target=lambda: seen.append(get_gdal_config(OPTION)))
        other.start()
        other.join()
    seen.append(get_gdal_config(OPTION))
    assert seen == ["none", "none", None, None]


def test_an_error_within_frees_the_thread():
    with pytest.raises(KeyError), confined(True):
        raise KeyError
    assert get_gdal_config(OPTION) is None


def test_drivers_that_ask_servers_are_there_only_if_allowed():
    before = confine._registered
    try:
        for remote in (True, False, True):
            allow_drivers(remote=remote)
            with rasterio.Env() as environment:
                names = set(environment.drivers())
            assert names <= LOCAL | NETWORK
            assert {"GTiff", "PNG", "JPEG", "VRT"} <= names
            assert ("WMS" in names) == remote
    finally:
        allow_drivers(remote=bool(before))


def test_the_start_of_a_file_of_any_file_system(tmp_path):
    data = bytes(range(256)) * 10
    (tmp_path / "a").write_bytes(data)
    with ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("inner", data)
    for path in (tmp_path / "a", f"/vsizip/{tmp_path}/a.zip/inner"):
        assert read_start(str(path), 300) == data[:300]
        assert read_start(str(path), 10_000) == data
    assert read_start(str(tmp_path / "absent"), 5) == b""

"""A file of this machine reads this machine alone, whatever is written in it; a VRT on a server reads that server."""

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from networks import contract, pixelwise
from rasterio.io import DatasetReader
from scenes import Silent

from segpipe.contract import Contract
from segpipe.errors import SourceError
from segpipe.formats.raster.gdal import gdal_options, open_raster
from segpipe.formats.raster.source import RasterSource
from segpipe.geometry.windows import Window
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import prepare
from segpipe.settings import load_settings

SERVER = """
import http.server, os, sys

class Handler(http.server.SimpleHTTPRequestHandler):
    def do_HEAD(self):
        self.note(); super().do_HEAD()
    def do_GET(self):
        self.note(); super().do_GET()
    def note(self):
        with open(sys.argv[1], "a") as log:
            log.write(self.command + " " + self.path + "\\n")
    def log_message(self, *values): pass

os.chdir(sys.argv[2])
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""

SHAPE = (3, 40, 40)

SITES = {"curl": "/vsicurl/{url}/a.tif", "streaming": "/vsicurl_streaming/{url}/a.tif", "query": "/vsicurl?url={url}/a.tif"}
SITES |= {kind: f"/vsi{kind}/bucket/a.tif" for kind in ("s3", "s3_streaming", "gs", "az", "adls", "oss", "swift")}
SITES |= {"webhdfs": "/vsiwebhdfs/{url}/webhdfs/v1/a.tif", "http": "{url}/a.tif", "vrt": "vrt:///vsicurl/{url}/a.tif"}
SITES |= {"zip": "/vsizip//vsicurl/{url}/a.zip/a.tif", "part": "/vsisubfile/0_100,/vsicurl/{url}/a.tif"}
SITES |= {
    "cached": "/vsicached?file=/vsicurl/{url}/a.tif",
    "netCDF": 'NETCDF:"{url}/a.nc":b',
    "Zarr": 'ZARR:"/vsicurl/{url}/z"',
}
SITES |= {"WMS": "WMS:{url}/w?layers=a&amp;srs=EPSG:4326&amp;bbox=0,0,1,1", "WCS": "WCS:{url}/w?coverage=a"}
SITES |= {"WMTS": "WMTS:{url}/w.xml", "STACTA": 'STACTA:"{url}/a.json"', "GTI": "GTI:/vsicurl/{url}/a.gpkg"}

TMS = """<GDAL_WMS><Service name="TMS"><ServerUrl>{url}/${{z}}.png</ServerUrl></Service>
<DataWindow><UpperLeftX>0</UpperLeftX><UpperLeftY>40</UpperLeftY><LowerRightX>40</LowerRightX><LowerRightY>0</LowerRightY>
<SizeX>40</SizeX><SizeY>40</SizeY><TileLevel>0</TileLevel></DataWindow>
<BlockSizeX>40</BlockSizeX><BlockSizeY>40</BlockSizeY><BandsCount>3</BandsCount></GDAL_WMS>"""


def band(number: int, inside: str, kind: str = "") -> str:
    return f'<VRTRasterBand dataType="Byte" band="{number}" {kind}>{inside}</VRTRasterBand>'


def whole(bands: str) -> str:
    return f'<VRTDataset rasterXSize="40" rasterYSize="40">{bands}</VRTDataset>'


def mosaic(name: str, relative: int = 0) -> str:
    """A VRT over three bands of a file."""
    source = '<SimpleSource><SourceFilename relativeToVRT="{}">{}</SourceFilename><SourceBand>{}</SourceBand></SimpleSource>'
    return whole("".join(band(n, source.format(relative, name, n)) for n in (1, 2, 3)))


def raw(name: str, attributes: str = "") -> str:
    place = f"<SourceFilename {attributes}>{name}</SourceFilename><PixelOffset>1</PixelOffset><LineOffset>40</LineOffset>"
    return whole("".join(band(n, place, 'subClass="VRTRawRasterBand"') for n in (1, 2, 3)))


class Site:
    """A web server of a folder, and what it was asked for."""

    def __init__(self, url: str, folder: Path, log: Path) -> None:
        self.url, self.folder, self.log = url, folder, log

    @property
    def asked(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def site(tmp_path, raster, monkeypatch) -> Iterator[Site]:
    """A server that has a scene; every store that GDAL knows leads to it."""
    folder, log = tmp_path / "site", tmp_path / "asked"
    raster("site/a.tif", np.full(SHAPE, 9, np.uint8))
    log.write_text("")
    command = [sys.executable, "-c", SERVER, str(log), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        host = f"127.0.0.1:{int(process.stdout.readline())}"
        stores = {"AWS_S3_ENDPOINT": host, "AWS_NO_SIGN_REQUEST": "YES", "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "NO"}
        stores |= {"CPL_GS_ENDPOINT": f"http://{host}/", "GS_NO_SIGN_REQUEST": "YES", "WEBHDFS_USERNAME": "a"}
        account = f"DefaultEndpointsProtocol=http;AccountName=a;AccountKey=YQ==;BlobEndpoint=http://{host}/a"
        stores |= {"AZURE_STORAGE_CONNECTION_STRING": account, "OSS_ENDPOINT": host, "OSS_HTTPS": "NO"}
        stores |= {"OSS_ACCESS_KEY_ID": "a", "OSS_SECRET_ACCESS_KEY": "b", "OSS_VIRTUAL_HOSTING": "NO"}
        stores |= {"SWIFT_STORAGE_URL": f"http://{host}/v1", "SWIFT_AUTH_TOKEN": "a", "GDAL_VRT_ENABLE_PYTHON": "YES"}
        for key, value in stores.items():
            monkeypatch.setenv(key, value)
        yield Site(f"http://{host}", folder, log)
        process.kill()


@pytest.fixture
def run(tmp_path, raster, monkeypatch):
    """A run over the folder ``in``, or what is named; errors by case come back. One case of it is good."""
    raster("in/good.tif", np.full(SHAPE, 9, np.uint8))
    pixelwise(tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)

    def carried(*inputs: str, **more: object) -> dict[str, str]:
        fixed = {"input": inputs or (str(tmp_path / "in"),), "model": tmp_path / "m.onnx", "output": tmp_path / "out"}
        fixed |= {"executor": "serial", "device": "cpu", "retries": 0, "overwrite": True}
        summary = carry_out(prepare(load_settings(None, fixed | more)), Silent())
        if not inputs:
            assert "good" in summary.done
        return {failure.case.name: failure.error for failure in summary.failed}

    return carried


@pytest.fixture(autouse=True)
def _back(monkeypatch):
    monkeypatch.chdir(Path.cwd())


def pixels(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read()


def refused(errors: dict[str, str], *names: str) -> None:
    assert sorted(errors) == sorted(names)
    assert all("--allow-remote-sources" in error and "\n" not in error for error in errors.values()), errors


def test_no_vrt_of_this_machine_asks_a_server(site, run, tmp_path):
    for kind, name in SITES.items():
        (tmp_path / "in" / f"{kind}.vrt").write_text(mosaic(name.format(url=site.url)))
    refused(run(), *SITES)
    assert site.asked == []


def test_with_the_flag_it_may(site, run, tmp_path):
    for kind in ("curl", "http"):
        (tmp_path / "in" / f"{kind}.vrt").write_text(mosaic(SITES[kind].format(url=site.url)))
    assert run(allow_remote_sources=True) == {}
    assert site.asked
    masks = [pixels(tmp_path / "out" / f"{name}.tif") for name in ("good", "curl", "http")]
    assert (masks[0] == masks[1]).all()
    assert (masks[0] == masks[2]).all()
    site.log.write_text("")
    refused(run(), "curl", "http")
    assert site.asked == []


def test_names_are_found_wherever_gdal_looks(site, run, tmp_path):
    name, folder = f"/vsicurl/{site.url}/a.tif", tmp_path / "in"
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "inner").write_text(mosaic(name))
    (folder / "nested.vrt").write_text(mosaic("../far/inner", relative=1))
    (folder / "renamed.tif").write_text(mosaic(name))
    (tmp_path / "far" / "tiles.tif").write_text(TMS.format(url="http://h"))
    (folder / "service.vrt").write_text(mosaic("../far/tiles.tif", relative=1))
    attribute = f'<SimpleSource sourcefilename="{name}" sourceband="1"/>'
    (folder / "attribute.vrt").write_text(whole("".join(band(n, attribute) for n in (1, 2, 3))))
    (folder / "named.vrt").write_text(mosaic(f"vrt://{tmp_path}/far/inner?bands=1"))
    inline = mosaic(name).replace("<", "&lt;").replace('"', "&quot;")
    (folder / "inline.vrt").write_text(mosaic(inline))
    masked = f"<MaskBand>{band(1, attribute)}</MaskBand></VRTDataset>"
    (folder / "mask.vrt").write_text(mosaic(str(folder / "good.tif")).replace("</VRTDataset>", masked))
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as packed:
        packed.writestr("x.vrt", mosaic(name))
    (folder / "packed.vrt").write_text(mosaic(f"/vsizip/{tmp_path}/packed.zip/x.vrt"))
    refused(run(), "nested", "renamed", "attribute", "named", "inline", "mask", "packed", "service")
    refused(run(f"/vsizip/{tmp_path}/packed.zip/x.vrt"), "x")
    refused(run(f"vrt://{tmp_path}/far/inner"), "inner")
    assert site.asked == []


def test_names_beside_a_raster_are_found_too(site, run, tmp_path):
    folder = tmp_path / "in"
    for kind in ("tif.msk", "tif.ovr"):
        shutil.copy(folder / "good.tif", folder / f"{kind[4:]}.tif")
        (folder / f"{kind[4:]}.{kind}").write_text(mosaic(f"/vsicurl/{site.url}/a.tif"))
    shutil.copy(folder / "good.tif", folder / "pam.tif")
    item = f'<MDI key="OVERVIEW_FILE">/vsicurl/{site.url}/a.tif</MDI>'
    (folder / "pam.tif.aux.xml").write_text(f'<PAMDataset><Metadata domain="OVERVIEWS">{item}</Metadata></PAMDataset>')
    refused(run(), "msk", "ovr", "pam")
    assert site.asked == []


def test_no_driver_that_asks_servers_is_there_whatever_a_file_is_called(site, run, tmp_path, monkeypatch):
    """Without a name of a server in the VRT, its head says what it is, and GDAL's list of drivers says no."""
    monkeypatch.setattr("segpipe.formats.raster.references.SERVICE", re.compile(rb"nothing"))
    (tmp_path / "tiles.tif").write_text(TMS.format(url=site.url))
    (tmp_path / "in" / "tiles.vrt").write_text(mosaic("../tiles.tif", relative=1))
    assert list(run()) == ["tiles"]
    assert site.asked == []
    run(allow_remote_sources=True)
    assert any(".png" in line for line in site.asked)
    site.log.write_text("")
    # another file: GDAL may hold the first one open while any VRT of the process is open, and then asks nobody for it
    (tmp_path / "again.tif").write_text(TMS.format(url=site.url))
    (tmp_path / "in" / "tiles.vrt").write_text(mosaic("../again.tif", relative=1))
    assert list(run()) == ["tiles"]
    assert site.asked == []


def test_gdal_opens_nothing_of_a_server_though_no_name_was_seen(site, run, tmp_path, monkeypatch):
    monkeypatch.setattr("segpipe.formats.raster.gdal.check_references", lambda path, remote: None)
    for kind in SITES.keys() - {"swift", "netCDF", "Zarr"}:  # which ask before GDAL's switch
        (tmp_path / "x.vrt").write_text(mosaic(SITES[kind].format(url=site.url)))
        with gdal_options(), pytest.raises(SourceError):
            RasterSource(str(tmp_path / "x.vrt"), Contract.model_validate(contract(3))).read(Window((0, 0), (40, 40)))
    assert site.asked == []


def test_what_only_describes_may_name_servers(run, tmp_path):
    words = '<Metadata><MDI key="made by">https://example.com, from /vsis3/bucket/a.tif</MDI></Metadata>'
    (tmp_path / "in" / "told.vrt").write_text(mosaic("good.tif", relative=1).replace('40">', f'40">{words}', 1))
    assert run() == {}


def test_raw_bands_come_from_beside_the_vrt(run, tmp_path, monkeypatch):
    folder = tmp_path / "in"
    (folder / "below").mkdir()
    monkeypatch.chdir(folder / "below")
    for place in (folder / "raw.bin", folder / "below" / "raw.bin", tmp_path / "raw.bin"):
        place.write_bytes(bytes(1600))
    (folder / "link.bin").symlink_to("/etc/passwd")
    good = {"beside": ("raw.bin",), "below": ("below/raw.bin", 'relativeToVRT="1"'), "whole": (str(folder / "raw.bin"),)}
    bad = {"passwd": ("/etc/passwd",), "zero": ("/etc/passwd", 'relativeToVRT="0"'), "up": ("../raw.bin",)}
    bad |= {"spaced": ("../raw.bin", 'relativeToVRT=" 0"')}
    bad |= {"link": ("link.bin",), "stays": ("../../raw.bin", 'relativeToVRT="0"')}
    for name, attributes in (good | bad).items():
        (folder / f"{name}.vrt").write_text(raw(*attributes))
    (folder / "within.vrt").write_text(mosaic(raw("/etc/passwd").replace("<", "&lt;").replace('"', "&quot;")))
    errors = run()
    assert errors.keys() == {*bad, "within"}
    for name in bad:
        assert "raw bands of a VRT must come from a file beside or below it, got" in errors[name]
        assert "\n" not in errors[name]
    assert run(allow_remote_sources=True).keys() == {*bad, "within"}


def test_the_first_attribute_says_what_a_raw_band_is_relative_to(run, tmp_path, monkeypatch):
    """As for GDAL, for which attributes of any case are one."""
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path / "in" / "raw.bin", tmp_path / "raw.bin"):
        place.write_bytes(bytes(1600))
    (tmp_path / "in" / "here.vrt").write_text(raw("raw.bin", 'relativeToVRT="0" RELATIVETOVRT="1"'))
    (tmp_path / "in" / "beside.vrt").write_text(raw("raw.bin", 'RELATIVETOVRT="1" relativeToVRT="0"'))
    assert list(run()) == ["here"]


def test_pixels_are_not_computed_in_python(site, run, tmp_path):
    code = f"<![CDATA[\ndef f(i, o, *a, **k):\n    open({str(tmp_path / 'ran')!r}, 'w').close()\n]]>"
    function = "<PixelFunctionType>f</PixelFunctionType><PixelFunctionLanguage>Python</PixelFunctionLanguage>"
    function += f"<PixelFunctionCode>{code}</PixelFunctionCode>"
    text = mosaic("good.tif", relative=1).replace("<SimpleSource>", f"{function}<SimpleSource>")
    (tmp_path / "in" / "python.vrt").write_text(
        text.replace("<VRTRasterBand ", '<VRTRasterBand subClass="VRTDerivedRasterBand" ')
    )
    assert list(run()) == ["python"]
    assert list(run(allow_remote_sources=True)) == ["python"]
    assert not (tmp_path / "ran").exists()


def test_a_vrt_on_a_server_reads_that_server_alone(site, run, tmp_path):
    other = site.url.replace("127.0.0.1", "127.0.0.2")
    texts = {"own": mosaic("a.tif", relative=1), "whole": mosaic(f"/vsicurl/{site.url}/a.tif")}
    bad = {"other": mosaic(f"/vsicurl/{other}/a.tif"), "local": mosaic(str(tmp_path / "in" / "good.tif"))}
    bad |= {
        "raw": raw("/etc/passwd"),
        "up": mosaic("../../../../etc/passwd", relative=1),
        "bucket": mosaic("/vsis3/b/a.tif"),
    }
    bad |= {"deep": mosaic("other.vrt", relative=1)}
    for name, text in (texts | bad).items():
        (site.folder / f"{name}.vrt").write_text(text)
    (site.folder / "odd.tif").write_text(bad["other"])
    errors = run(*(f"{site.url}/{name}.vrt" for name in texts | bad), f"{site.url}/odd.tif", f"{site.url}/a.tif")
    assert "raw bands of a VRT" in errors.pop("raw")
    assert "cannot be opened" in errors.pop("odd")  # a VRT on a server is one by its name
    refused(errors, *bad.keys() - {"raw"})
    assert run(f"{site.url}/local.vrt", allow_remote_sources=True) == {}
    assert list(run(f"{site.url}/raw.vrt", allow_remote_sources=True)) == ["raw"]


def test_names_of_this_machine_as_urls_are_looked_into(site, run, tmp_path):
    vrt = tmp_path / "in" / "asks.vrt"
    vrt.write_text(mosaic(f"/vsicurl/{site.url}/a.tif"))
    with zipfile.ZipFile(tmp_path / "asks.zip", "w") as archive:
        archive.write(vrt, "zipped.vrt")
    names = (f"file://{vrt}", f"zip://{tmp_path}/asks.zip!/zipped.vrt", f"zip+file://{tmp_path}/asks.zip!/zipped.vrt")
    for name in names:
        with pytest.raises(SourceError, match="--allow-remote-sources"), gdal_options():
            open_raster(name)
    assert site.asked == []


def test_a_vrt_in_another_encoding_is_read(run, tmp_path, raster):
    raster("in/good2.tif", np.full(SHAPE, 9, np.uint8))
    text = mosaic("good2.tif", relative=1).replace("<VRTDataset", "<!-- \xe9 --><VRTDataset", 1)
    (tmp_path / "in" / "latin.vrt").write_bytes(text.encode("latin-1"))
    assert run() == {}


def test_a_raster_on_a_server_is_asked_for_no_oftener_than_by_gdal_itself(site, tmp_path):
    name = f"/vsicurl/{site.url}/a.tif"
    with gdal_options():
        DatasetReader(name, driver=["GTiff"], sharing=False).close()
        alone = len(site.asked)
        open_raster(name).close()
    assert len(site.asked) == 2 * alone

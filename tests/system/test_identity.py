"""A case is done exactly when what would be read now is what was read then."""

import json
import os
import shutil
import socket
import struct
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import rasterio
from networks import contract, pixelwise
from rasterio.abc import FileContainer
from rasterio.control import GroundControlPoint
from rasterio.shutil import copy
from rasterio.transform import from_origin
from scenes import Silent
from web_server import serving

from segpipe.contract import Contract
from segpipe.errors import SourceError
from segpipe.formats.case import Case
from segpipe.formats.cases import find_cases
from segpipe.formats.identity import FolderListings, _names, identities, owners_of
from segpipe.formats.raster import dataset_files
from segpipe.formats.raster.dataset_files import files_of
from segpipe.formats.raster.gdal import gdal_options
from segpipe.formats.raster.source import RasterSource
from segpipe.geometry.windows import Cover
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import prepare
from segpipe.network.read import read_spec
from segpipe.results.done import done_cases
from segpipe.results.parts import kept_cut, write_cut
from segpipe.results.run import Run
from segpipe.settings import load_settings
from segpipe.storage.web import state_of

TIME = 1_700_000_000_000_000_000
SHAPE = (40, 50)
PLACED = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_400_000, 10, 10)}
DRIVERS = {"tif": "GTiff", "png": "PNG", "jpg": "JPEG", "bmp": "BMP", "jp2": "JP2OpenJPEG", "img": "HFA", "webp": "WEBP"}


def scene(path, seed=0, **profile):
    """Files of one size and one time, whatever they show."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(1, 255, (3, *SHAPE), dtype=np.uint8)
    kind = {"driver": DRIVERS[path.suffix[1:]], "count": 3, "height": SHAPE[0], "width": SHAPE[1], "dtype": "uint8"}
    with rasterio.open(path, "w", **{**kind, **profile}) as dataset:
        dataset.write(pixels)
    os.utime(path, ns=(TIME, TIME))
    return path


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run over inputs; names that were done come back."""
    model = pixelwise(tmp_path / "m.onnx")

    def run(*inputs, cwd=tmp_path):
        monkeypatch.chdir(cwd)
        flags = {"input": tuple(map(str, inputs)), "model": model, "output": tmp_path / "out"}
        summary = carry_out(prepare(load_settings(None, flags | {"executor": "serial", "device": "cpu"})), Silent())
        assert summary.failed == []
        return summary.done

    return run


def labels(path):
    with rasterio.open(path) as mask:
        return mask.read(1)


@pytest.mark.parametrize("given", ["path", "folder"])
def test_another_file_of_one_name_size_and_time_is_another_input(given, run, tmp_path):
    for seed, day in enumerate(("d1", "d2")):
        scene(tmp_path / day / "s.tif", seed, **PLACED)
    what = (lambda day: tmp_path / day / "s.tif") if given == "path" else (lambda day: tmp_path / day)
    assert run(what("d1")) == ["s"]
    first = labels(tmp_path / "out" / "s.tif")
    assert run(what("d2")) == ["s"]
    assert (labels(tmp_path / "out" / "s.tif") != first).any()
    assert run(what("d2")) == []
    assert run(what("d1")) == ["s"]
    np.testing.assert_array_equal(labels(tmp_path / "out" / "s.tif"), first)


def test_one_relative_path_from_two_folders_is_two_inputs(run, tmp_path):
    for seed, day in enumerate(("d1", "d2")):
        scene(tmp_path / day / "in" / "s.tif", seed, **PLACED)
    assert run("in", cwd=tmp_path / "d1") == ["s"]
    assert run("in", cwd=tmp_path / "d2") == ["s"]


def test_the_spelling_of_a_path_is_not_the_input(run, tmp_path):
    scene(tmp_path / "d1" / "s.tif", **PLACED)
    (tmp_path / "link").symlink_to(tmp_path / "d1")
    (tmp_path / "other").mkdir()
    assert run("d1/s.tif") == ["s"]
    assert run("./other/../d1") == []
    assert run(tmp_path / "d1") == []
    assert run(tmp_path / "link" / "s.tif") == []
    assert run("s.tif", cwd=tmp_path / "d1") == []


def test_a_link_that_leads_elsewhere_is_another_input(run, tmp_path):
    for seed, day in enumerate(("d1", "d2")):
        scene(tmp_path / day / "s.tif", seed, **PLACED)
    (tmp_path / "latest").symlink_to("d1")
    assert run("latest") == ["s"]
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").symlink_to("d2")
    assert run("latest") == ["s"]


def test_the_source_of_a_done_vrt_is_not_done_itself(run, tmp_path):
    scene(tmp_path / "d2" / "s.tif", **PLACED)
    (tmp_path / "d1").mkdir()
    copy(tmp_path / "d2" / "s.tif", tmp_path / "d1" / "s.vrt", driver="VRT")
    assert run("d1/s.vrt") == ["s"]
    assert run("d1/s.vrt") == []
    assert run("d2/s.tif") == ["s"]


def test_two_members_of_one_archive_are_two_inputs(run, tmp_path):
    for seed, day in enumerate(("d1", "d2")):
        scene(tmp_path / "in" / day / "s.tif", seed, **PLACED)
    archive = shutil.make_archive(tmp_path / "a", "zip", tmp_path / "in")
    assert run(f"/vsizip/{archive}/d1/s.tif") == ["s"]
    assert run("/vsizip/a.zip/d1/s.tif") == []
    assert run(f"/vsizip/{archive}/d2/s.tif") == ["s"]


def test_a_record_of_another_form_is_not_believed(run, tmp_path):
    """Records once had the path as it was given, which does not say which of its files is the case's own."""
    scene(tmp_path / "d1" / "s.tif", **PLACED)
    run("d1")
    record = json.loads((tmp_path / "out" / "s.json").read_text())
    assert record["input"]["path"] == str(tmp_path / "d1" / "s.tif")
    for changed in ({"path": "d1/s.tif"}, {"path": None}, {"files": []}, {"files": None}, {}):
        kept = {key: value for key, value in record["input"].items() if key not in ("path", "files") or changed}
        (tmp_path / "out" / "s.json").write_text(json.dumps(record | {"input": kept | changed}))
        assert run("d1") == ["s"]


@pytest.mark.parametrize("scheme", ["", "/vsicurl/"])
def test_two_urls_of_one_base_name_and_a_file_that_changes_behind_one(scheme, run, tmp_path):
    for seed, day in enumerate(("d1", "d2")):
        scene(tmp_path / "in" / day / "s.tif", seed, **PLACED)
    with serving(tmp_path / "in") as server:
        url = f"{scheme}{server}"
        assert run(f"{url}/d1/s.tif") == ["s"]
        assert run(f"{url}/d1/s.tif") == []
        assert run(f"{url}/d2/s.tif") == ["s"]
        first = labels(tmp_path / "out" / "s.tif")
        os.utime(scene(tmp_path / "in" / "d2" / "s.tif", 7, **PLACED), ns=(TIME + 10**10, TIME + 10**10))
        assert run(f"{url}/d2/s.tif") == ["s"]
        assert (labels(tmp_path / "out" / "s.tif") != first).any()


def test_a_server_that_tells_no_state_is_noted(run, tmp_path):
    scene(tmp_path / "in" / "s.tif", **PLACED)
    with serving(tmp_path / "in", "Last-Modified", "ETag") as server:
        assert run(f"{server}/s.tif") == ["s"]
    record = json.loads((tmp_path / "out" / "s.json").read_text())
    assert record["input"]["files"] == [{"path": f"{server}/s.tif"}]
    assert any("only the path tells" in note and server in note for note in record["notes"])


def aux(path):
    path.write_text("<PAMDataset><PAMRasterBand band='1'><NoDataValue>9</NoDataValue></PAMRasterBand></PAMDataset>")


def rpc(path):
    keys = {"LINE_OFF": 20, "SAMP_OFF": 25, "LAT_OFF": 50, "LONG_OFF": 15, "HEIGHT_OFF": 100}
    lines = [f"{key}: {value}" for key, value in keys.items()]
    lines += [f"{key.replace('OFF', 'SCALE')}: {value}" for key, value in keys.items()]
    lines += [
        f"{part}_COEFF_{n}: {1.0 if n in (1, 2) else 0.0}"
        for part in ("LINE_NUM", "LINE_DEN", "SAMP_NUM", "SAMP_DEN")
        for n in range(1, 21)
    ]
    path.write_text("\n".join(lines) + "\n")


def msk(path):
    with rasterio.open(path, "w", driver="GTiff", count=1, height=SHAPE[0], width=SHAPE[1], dtype="uint8") as mask:
        mask.write(np.zeros((1, *SHAPE), np.uint8))
        mask.update_tags(INTERNAL_MASK_FLAGS_1="2")


def world(path):
    path.write_text("10\n0\n0\n-10\n500000\n5400000\n")


def tab(path):
    """A place as MapInfo has it."""
    corners = [(500_000 + 10 * x, 5_400_000 - 10 * y, x, y) for x, y in ((0, 0), (50, 0), (50, 40), (0, 40))]
    points = ",\n".join(f'  ({a},{b}) ({x},{y}) Label "{n}"' for n, (a, b, x, y) in enumerate(corners))
    head = '!table\n!version 300\n!charset WindowsLatin1\nDefinition Table\n  File "s"\n  Type "RASTER"\n'
    path.write_text(f'{head}{points}\n  CoordSys Earth Projection 8, 104, "m", 15, 0, 0.9996, 500000, 0\n  Units "m"\n')


def overview(path):
    with rasterio.open(path, "w", driver="GTiff", count=3, height=20, width=25, dtype="uint8") as dataset:
        dataset.write(np.ones((3, 20, 25), np.uint8))


SIDECARS = {
    "s_RPC.TXT": ("tif", rpc),
    "s_rpc.txt": ("tif", rpc),
    "s.tfw": ("tif", world),
    "s.tifw": ("tif", world),
    "s.TFW": ("tif", world),
    "s.wld": ("tif", world),
    "s.tif.aux.xml": ("tif", aux),
    "s.tif.msk": ("tif", msk),
    "s.tif.ovr": ("tif", overview),
    "s.tab": ("tif", tab),
    "s.pgw": ("png", world),
    "s.png.msk": ("png", msk),
    "s.jgw": ("jpg", world),
    "s.bpw": ("bmp", world),
    "s.j2w": ("jp2", world),
    "s.jp2.aux.xml": ("jp2", aux),
}


@pytest.mark.parametrize("name", SIDECARS)
def test_a_sidecar_that_appears_changes_or_goes_makes_a_case_anew(name, run, tmp_path):
    suffix, write = SIDECARS[name]
    scene(tmp_path / "in" / f"s.{suffix}")
    sidecar = tmp_path / "in" / name
    assert run("in") == ["s"]
    write(sidecar)
    assert run("in") == ["s"]
    files = json.loads((tmp_path / "out" / "s.json").read_text())["input"]["files"]
    assert sidecar.name in [Path(file["path"]).name for file in files]
    assert run("in") == []
    os.utime(sidecar, ns=(TIME, TIME))
    assert run("in") == ["s"]
    sidecar.unlink()
    assert run("in") == ["s"]
    assert run("in") == []


def test_what_lies_beside_a_raster_and_is_not_read_changes_nothing(run, tmp_path):
    scene(tmp_path / "in" / "s.tif", **PLACED)
    scene(tmp_path / "in" / "t.png")
    assert run("in") == ["s", "t"]
    for name in ("s.txt", "s.json", "s.xml", "t.txt", "t.geojson", "s_notes.txt", "readme.txt", "s.tif.md5"):
        (tmp_path / "in" / name).write_text("not GDAL's")
    assert run("in") == []


@pytest.mark.parametrize("name", ["s.png.msk", "s.png.aux.xml", "s.pgw"])
def test_a_damaged_sidecar_that_appears_is_not_passed_over(name, run, tmp_path):
    scene(tmp_path / "in" / "s.png")
    assert run("in") == ["s"]
    (tmp_path / "in" / name).write_text("nothing that GDAL can use")
    with pytest.raises(AssertionError, match=name):
        run("in")


def mosaic(path, *sources, mask=None):
    """A VRT over whole sources, as they are written in it."""
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}">'
        + "".join(
            f'<SimpleSource><SourceFilename relativeToVRT="{int(":" not in source)}">{source}</SourceFilename>'
            f"<SourceBand>{band}</SourceBand></SimpleSource>"
            for source in sources
        )
        + "</VRTRasterBand>"
        for band in (1, 2, 3)
    )
    masked = (
        '<MaskBand><VRTRasterBand dataType="Byte"><SimpleSource>'
        f'<SourceFilename relativeToVRT="1">{mask}</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand></MaskBand>"
    )
    rows, cols = SHAPE
    path.write_text(f'<VRTDataset rasterXSize="{cols}" rasterYSize="{rows}">{bands}{masked if mask else ""}</VRTDataset>')


@pytest.mark.parametrize("touched", ["a.tif", "mask.tif", "pages.tif", "inner", "a.tif.aux.xml", "a.tif.msk"])
def test_all_that_a_vrt_is_made_of_belongs_to_it(touched, run, tmp_path):
    """GDAL lists neither the source of its mask nor a file of which it takes a subdataset, nor what lies beside a source."""
    parts, pages = tmp_path / "parts", tmp_path / "parts" / "pages.tif"
    parts.mkdir()
    scene(parts / "a.tif")
    msk(parts / "mask.tif")
    scene(pages)
    with rasterio.open(f"GTIFF_DIR:1:{pages}") as one:  # the name that a VRT may use
        assert one.count == 3
    mosaic(parts / "inner", "a.tif")
    mosaic(parts / "s.vrt", "inner", f"GTIFF_DIR:1:{pages}", mask="mask.tif")
    assert run("parts/s.vrt") == ["s"]
    assert run("parts/s.vrt") == []
    if touched.endswith((".xml", ".msk")):
        {".xml": aux, ".msk": msk}[Path(touched).suffix](parts / touched)
    else:
        os.utime(parts / touched, ns=(TIME + 5, TIME + 5))
    assert run("parts/s.vrt") == ["s"]
    assert run("parts/s.vrt") == []


@pytest.mark.parametrize("named", ["{0}", 'ZARR:"{0}":/a'])
def test_a_chunk_of_a_zarr_store_belongs_to_the_vrt_that_reads_it(named, run, tmp_path):
    with rasterio.open(scene(tmp_path / "rgb.tif")) as rgb:
        profile, pixels = {**rgb.profile, "count": 1}, rgb.read(1)
    with rasterio.open(tmp_path / "a.tif", "w", **profile) as file:
        file.write(pixels, 1)
    copy(tmp_path / "a.tif", tmp_path / "a.zarr", driver="Zarr")
    source = named.format(tmp_path / "a.zarr").replace('"', "&quot;")
    band = (
        '<VRTRasterBand dataType="Byte" band="{}"><SimpleSource>'
        f'<SourceFilename relativeToVRT="0">{source}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
    )
    bands, (rows, cols) = "".join(map(band.format, (1, 2, 3))), SHAPE
    (tmp_path / "s.vrt").write_text(f'<VRTDataset rasterXSize="{cols}" rasterYSize="{rows}">{bands}</VRTDataset>')
    assert run("s.vrt") == ["s"]
    assert run("s.vrt") == []
    os.utime(tmp_path / "a.zarr" / "a" / "0.0", ns=(TIME, TIME))
    assert run("s.vrt") == ["s"]
    assert run("s.vrt") == []


def test_a_header_of_raw_pixels_belongs_to_the_vrt_that_reads_them(run, tmp_path):
    copy(scene(tmp_path / "a.tif"), tmp_path / "a.dat", driver="ENVI")
    mosaic(tmp_path / "s.vrt", "a.dat")
    assert run("s.vrt") == ["s"]
    before = labels(tmp_path / "out" / "s.tif")
    assert run("s.vrt") == []
    header = tmp_path / "a.hdr"
    text = header.read_text()
    header.write_text(text.replace("interleave = bip", "interleave = bsq"))
    assert header.read_text() != text
    assert run("s.vrt") == ["s"]
    assert (labels(tmp_path / "out" / "s.tif") != before).any()


def test_images_behind_the_metadata_of_a_product_belong_to_the_vrt_that_reads_them(run, tmp_path):
    rows, cols = SHAPE
    image = scene(tmp_path / "p" / "imagery.tif")
    size = f"<NCOLS>{cols}</NCOLS><NROWS>{rows}</NROWS><NBANDS>3</NBANDS>"
    form = '<Metadata_Id><METADATA_FORMAT version="1.1">DIMAP</METADATA_FORMAT></Metadata_Id>'
    data = '<Data_Access><Data_File><DATA_FILE_PATH href="imagery.tif"/></Data_File></Data_Access>'
    text = f"<Dimap_Document>{form}<Raster_Dimensions>{size}</Raster_Dimensions>{data}</Dimap_Document>"
    (tmp_path / "p" / "metadata.dim").write_text(text)
    mosaic(tmp_path / "s.vrt", "p/metadata.dim")
    assert run("s.vrt") == ["s"]
    before = labels(tmp_path / "out" / "s.tif")
    assert run("s.vrt") == []
    scene(tmp_path / "new.tif", seed=1).replace(image)
    os.utime(image, ns=(TIME + 1, TIME + 1))
    assert run("s.vrt") == ["s"]
    assert (labels(tmp_path / "out" / "s.tif") != before).any()
    assert run("s.vrt") == []


def test_a_source_of_a_vrt_is_opened_once_before_and_after_gdal_and_a_damaged_one_is_named(tmp_path, monkeypatch):
    scene(tmp_path / "a.tif", nodata=0)
    scene(tmp_path / "b.tif")
    mosaic(tmp_path / "inner", "b.tif")
    mosaic(tmp_path / "s.vrt", "a.tif", "inner")
    opened, really = [], Path.open
    monkeypatch.setattr(Path, "open", lambda path, *args, **kw: opened.append(path.name) or really(path, *args, **kw))
    contracted = Contract.model_validate(contract(3))
    with gdal_options():
        RasterSource(str(tmp_path / "s.vrt"), contracted).close()
        assert sorted(opened) == sorted(2 * ["a.tif", "b.tif", "inner", "s.vrt"])
        data = (tmp_path / "a.tif").read_bytes()
        (tmp_path / "a.tif").write_bytes(data.replace(struct.pack("<HH", 42113, 2), struct.pack("<HH", 42113, 3)))
        with pytest.raises(SourceError, match=r"a.tif is damaged: its tag 42113, GDAL_NODATA"):
            RasterSource(str(tmp_path / "s.vrt"), contracted).close()


@FileContainer.register
class Watched:
    """The folders of this machine, and what GDAL asked of them."""

    def __init__(self):
        self.asked = set()

    def open(self, path, mode="rb", **options):
        self.asked.add(path)
        return Path(path).open(mode)

    def isfile(self, path):
        self.asked.add(path)
        return Path(path).is_file()

    def isdir(self, path):
        return Path(path).is_dir()

    def ls(self, path):
        return []

    def mtime(self, path):
        return int(Path(path).stat().st_mtime)

    def size(self, path):
        return Path(path).stat().st_size


@pytest.mark.parametrize("name", [*(f"scene_B4.{suffix}" for suffix in DRIVERS), "IMG_x_B2.tif", "IMG-HH-ALOS.tif"])
def test_every_name_that_gdal_asks_for_is_known(name, tmp_path):
    """Without a listing of the folder GDAL asks for each name that it would look for in one."""
    path = scene(tmp_path / name)
    for left in tmp_path.glob("*.aux.xml"):
        left.unlink()
    watched = Watched()
    with (
        rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="YES"),
        rasterio.open(str(path), opener=watched) as dataset,
    ):
        _ = dataset.files, dataset.crs, dataset.gcps, dataset.rpcs, dataset.read_masks(), dataset.overviews(1)
        _ = [dataset.tags(ns=domain) for domain in (None, "RPC", "IMD", "GEOLOCATION")]
    asked = {Path(found).name for found in watched.asked} - {name}
    assert len(asked) > 5
    unknown = [found for found in asked if _names(name).isdisjoint(owners_of(found))]
    assert unknown == []


@pytest.mark.parametrize(
    ("raster", "sidecar"),
    [
        ("LC08_B4.TIF", "LC08_MTL.txt"),
        ("IMG_PHR1A_R1C1.TIF", "RPC_PHR1A_R1C1.XML"),
        ("IMG_PHR1A_R1C1.TIF", "DIM_PHR1A_R1C1.XML"),
        ("a.aux.tif", "a.aux.tfw"),
        ("a.tif", "a.tif.msk.ovr"),
        ("a.tif", "A.TIF.OVR"),
        ("a.img", "a.ige"),
        ("x.tif", "metadata.dim"),
    ],
)
def test_sidecars_of_other_names(raster, sidecar, tmp_path):
    (tmp_path / raster).touch()
    (tmp_path / sidecar).touch()
    assert FolderListings().sidecars(str(tmp_path / raster)) == [str(tmp_path / sidecar)]
    (tmp_path / "another.tif").touch()
    if sidecar != "metadata.dim":
        assert FolderListings().sidecars(str(tmp_path / "another.tif")) == []


def test_a_folder_is_listed_once_for_all_its_cases(run, tmp_path, monkeypatch):
    for number in range(20):
        scene(tmp_path / "in" / f"{number:02}.png")
    assert len(run("in")) == 20
    settings = load_settings(None, {"input": (str(tmp_path / "in"),), "model": tmp_path / "m.onnx", "device": "cpu"})
    settings = settings.model_copy(update={"output": str(tmp_path / "out")})
    listed, listing = [], os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder=".": listed.append(str(folder)) or listing(folder))
    assert len(done_cases(find_cases(settings.input), Run(read_spec(settings), settings))) == 20
    assert [folder for folder in listed if folder.startswith(str(tmp_path))] == [str(tmp_path / "in")]


def test_parts_of_another_place_or_of_what_tells_no_state_are_made_again(run, tmp_path):
    for seed, day in enumerate(("d1", "d2")):
        scene(tmp_path / day / "s.tif", seed, **PLACED)
    link = tmp_path / "latest"
    link.symlink_to("d1")
    case = Case("s", str(link / "s.tif"))
    pixelwise(tmp_path / "m.onnx")
    flags = {"input": (str(link),), "model": tmp_path / "m.onnx", "device": "cpu", "output": str(tmp_path / "out")}
    settings = load_settings(None, flags)
    run_ = Run(read_spec(settings), settings)
    files, parts = identities(case.path, [case.path]), (Cover(SHAPE, run_.model.tiling).whole,)
    run_.output.make()
    write_cut(case, run_, files, SHAPE, parts)
    assert kept_cut(case, run_, files, SHAPE) == parts
    link.unlink()
    link.symlink_to("d2")
    assert identities(case.path, [case.path]) == files  # of one size and time
    assert kept_cut(case, run_, files, SHAPE) is None
    untold = [{"path": case.path}]
    write_cut(case, run_, untold, SHAPE, parts)
    assert kept_cut(case, run_, untold, SHAPE) is None


def test_ground_control_points_are_not_forgotten(tmp_path):
    """A sidecar may hold the place alone."""
    path = scene(tmp_path / "s.png")
    before = identities(str(path), [str(path)])
    with rasterio.open(path, "r+") as dataset:
        dataset.gcps = (
            [GroundControlPoint(0, 0, 1, 2), GroundControlPoint(9, 0, 3, 4), GroundControlPoint(0, 9, 5, 6)],
            "EPSG:4326",
        )
    assert FolderListings().sidecars(str(path)) == [f"{path}.aux.xml"]
    assert len(before) == 1


@contextmanager
def answering(banner):
    """The port of a server that says the same to everybody, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with suppress(OSError):
                while True:
                    with server.accept()[0] as asked:
                        asked.recv(2**12)
                        asked.sendall(banner)

        Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


@pytest.mark.parametrize("end", ["", "/a b.tif", "/ä.tif", "x/a.tif"])
def test_an_url_or_a_server_that_python_cannot_talk_to_tells_no_state(end):
    """An address with a space, letters of other alphabets, a port that is none; and a server of another protocol."""
    with answering(b"SSH-2.0-OpenSSH_9.6\r\n") as port:
        url = f"http://127.0.0.1:{port}{end}"
        assert state_of(url) == {}
        assert FolderListings().identity(url) == {"path": url}


def test_a_server_that_hangs_up_may_answer_later():
    with answering(b"") as port, pytest.raises(OSError, match=r"closed|reset"):
        state_of(f"http://127.0.0.1:{port}/a.tif")


@pytest.mark.parametrize("name", ["s.bpw", "s.BPW", "s.bmpw", "s.wld", "s.WLD", "s.txt", "t.bpw"])
def test_the_place_of_a_bmp_is_found_without_a_listing(name, tmp_path, monkeypatch):
    path = scene(tmp_path / "s.bmp")
    world(tmp_path / name)
    monkeypatch.setattr(os, "listdir", None)
    with rasterio.open(path) as dataset:
        assert (tmp_path / name in map(Path, files_of(dataset))) is not dataset.transform.is_identity


KOMPSAT = 'AUX_SATELLITE_NAME\t"KOMPSAT-2"\n'
ISD = "<?xml version='1.0'?>\n<isd><IMD><IMAGE><SATID>QB02</SATID></IMAGE></IMD></isd>\n"
READ = {
    "DigitalGlobe's XML": ("tif", {"s.xml": ISD}),
    "DigitalGlobe's XML of a JPEG 2000": ("jp2", {"s.XML": ISD}),
    "Resurs-DK1": ("tif", {"s.xml": "<MSP_ROOT><Normal>a = 1</Normal></MSP_ROOT>"}),
    "KOMPSAT": ("tif", {"s.rpc": rpc, "s.txt": KOMPSAT}),
    "DigitalGlobe": ("tif", {"s.IMD": "BEGIN_GROUP = IMAGE_1\nEND_GROUP = IMAGE_1\nEND;\n", "s.XML": "<a/>"}),
}


@pytest.mark.parametrize("kind", READ)
def test_what_a_sensor_has_beside_a_raster_is_seen_when_it_appears(kind, run, tmp_path):
    """One after the other; GDAL says whether it read each."""
    suffix, files = READ[kind]
    path = scene(tmp_path / "in" / f"s.{suffix}")
    assert run("in") == ["s"]
    for name, content in files.items():
        sidecar = tmp_path / "in" / name
        content(sidecar) if callable(content) else sidecar.write_text(content)
        with rasterio.open(path) as dataset:
            assert str(sidecar) in dataset.files
        assert run("in") == ["s"]
        assert run("in") == []


@pytest.mark.parametrize("suffix", ["tif", "png", "jpg", "jp2"])
def test_labels_beside_pictures_do_not_open_them(suffix, run, tmp_path, monkeypatch):
    """YOLO has a text for each picture, VOC an XML file."""
    path = scene(tmp_path / "in" / f"s.{suffix}")
    assert run("in") == ["s"]
    (tmp_path / "in" / "s.txt").write_text("0 0.5 0.5 0.1 0.2\n")
    (tmp_path / "in" / "s.xml").write_text("<annotation><folder>in</folder></annotation>")
    with rasterio.open(path) as dataset:
        assert not [name for name in dataset.files if name.endswith((".txt", "s.xml"))]
    monkeypatch.setattr(dataset_files, "files_now", None)
    assert run("in") == []
    (tmp_path / "in" / "s.xml").write_text(ISD)
    with pytest.raises(TypeError):  # GDAL is asked
        run("in")

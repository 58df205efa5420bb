"""Files that cannot be taken: what they are, by content, and what to do with them."""

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import socket
import struct
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import tifffile
from networks import contract, pixelwise
from PIL import Image
from rasterio.transform import from_origin
from scenes import PATIENCE

from segpipe.contract import parse_contract
from segpipe.errors import ModelError, SourceError
from segpipe.formats.file_endings import missing
from segpipe.formats.raster.gdal import gdal_options
from segpipe.formats.raster.source import RasterSource
from segpipe.geometry.windows import Window
from segpipe.network.model_file import read_model
from segpipe.overrides import Overrides
from segpipe.storage.content import describe

PIXELS = np.random.default_rng(0).integers(1, 255, (3, 64, 80), dtype=np.uint8)


def nifti(head=b""):
    return head + b"\0" * (344 - len(head)) + b"n+1\0" + b"\0" * 100


def zipped(**files):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), data)
    return stream.getvalue()


def tarred():
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.tif"), io.BytesIO())
    return stream.getvalue()


def gif():
    stream = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(stream, "GIF")
    return stream.getvalue()


SAFETENSORS = struct.pack("<Q", 2) + b"{}" + b"\0" * 20
CONTENT = {
    "empty": (b"", r"is empty \(0 bytes\)"),
    "gif": (gif(), "is a GIF: convert it: gdal_translate"),
    "nifti": (nifti(), "is a NIfTI volume: rename it so that its name ends with .nii"),
    "nifti gz": (gzip.compress(nifti()), "is a NIfTI volume"),
    "dicom": (b"\0" * 128 + b"DICM" + b"\0" * 99, "is DICOM: rename it so that its name ends with .dcm"),
    "mha": (b"ObjectType = Image\nNDims = 3\n", "is a MetaImage volume"),
    "nrrd": (b"NRRD0004\ntype: float\n", "is an NRRD volume: rename it so that its name ends with .nrrd"),
    "zip": (zipped(a_dot_tif=b"x"), "is a zip archive: unpack it, or name a raster inside as /vsizip/"),
    "tar": (tarred(), "is a tar archive: unpack it"),
    "tgz": (gzip.compress(tarred()), "is a packed tar archive: unpack it"),
    "gz": (gzip.compress(b"II*\0"), "is packed with gzip: unpack it"),
    "netcdf": (b"CDF\x01\0\0\0\0", "is NetCDF: take a variable out"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 99, "is HDF5: take a variable out"),
    "jpeg xl": (b"\xff\x0a" + bytes(9), "is JPEG XL: convert it: djxl .*bad.* out.png"),
    "jpeg xl in boxes": (b"\0\0\0\x0cJXL \r\n\x87\n", "is JPEG XL: convert it: djxl"),
    "jpeg xr": (b"II\xbc\x01" + bytes(9), "is JPEG XR: convert it"),
    "unfinished tiff": (b"II*\0\0\0\0\0", "its header refers to no image, as while a program writes it"),
    "unfinished bigtiff": (b"II+\0\x08\0\0\0" + bytes(8), "its header refers to no image"),
    "esri grid": (b"ncols 2\nnrows 1\n1 2\n", "where gdalinfo .*bad.* shows a raster, convert it: gdal_translate .*bad"),
    "grib": (b"GRIB\0\0\0\2", "is GRIB: convert it: gdal_translate"),
    "shapefile": (b"\0\0\x27\x0a" + b"\0" * 99, "is a shapefile: vectors hold no pixels"),
    "geojson": (json.dumps({"type": "FeatureCollection", "features": []}).encode(), "is GeoJSON: it holds no pixels"),
    "pdf": (b"%PDF-1.7\n", "is a PDF: convert a page"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "is a web page"),
    "s3 error": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "error message of object storage"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of Git LFS.*git lfs pull"),
    "npy": (b"\x93NUMPY\x01\0", "is a NumPy array"),
}

MODELS = {
    "checkpoint": (zipped(m__data_dot_pkl=b"x"), "is a PyTorch checkpoint: .*segpipe export .*bad"),
    "old checkpoint": (b"\x80\x02}q\0.", "is a pickle, as old PyTorch checkpoints are: .*segpipe export"),
    "torchscript": (zipped(m__data_dot_pkl=b"x", m__code__a_dot_py=b"x"), "is a TorchScript program: .*segpipe export"),
    "safetensors": (SAFETENSORS, "is a safetensors file of weights: .*segpipe export"),
    "keras h5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 99 + b"keras_version", "is a Keras model: .*tf2onnx"),
    "keras": (zipped(model_dot_weights_dot_h5=b"x"), "is a Keras model: .*tf2onnx"),
    "tflite": (b"\x1c\0\0\0TFL3" + b"\0" * 9, "is a TensorFlow Lite model"),
    "html": (CONTENT["html"][0], "is a web page"),
    "lfs": (CONTENT["lfs"][0], "is a pointer of Git LFS"),
    "empty": (b"", r"is empty \(0 bytes\)"),
}


def opened(path, channels=3, **overrides):
    terms = parse_contract(contract(channels, 3), "test")
    with gdal_options():
        source = RasterSource(str(path), terms, Overrides(**overrides))
        source.close()


@pytest.mark.parametrize("kind", CONTENT)
@pytest.mark.parametrize("suffix", [".tif", ".png", ""])
def test_an_input_is_recognised_by_its_content(kind, suffix, tmp_path):
    data, words = CONTENT[kind]
    (tmp_path / f"bad{suffix}").write_bytes(data)
    with pytest.raises(SourceError, match=words):
        opened(tmp_path / f"bad{suffix}")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress], ids=["gzip", "bzip2", "xz"])
@pytest.mark.parametrize("packing", ["", ".gz", ".bz2", ".xz"])
def test_the_command_that_unpacks_a_file_makes_one_that_opens(pack, packing, raster, tmp_path, monkeypatch):
    """Whatever the name: gunzip and unxz refuse files without their suffix."""
    whole = raster("whole.tif", np.ones((3, 8, 8), "u1")).read_bytes()
    monkeypatch.chdir(tmp_path)
    path = Path(f"a.tif{packing}")
    path.write_bytes(pack(whole))
    with pytest.raises(SourceError) as caught:
        opened(path)
    subprocess.run(str(caught.value).partition("unpack it: ")[2], shell=True, check=True)
    assert Path("out.tif").read_bytes() == whole
    opened("out.tif")


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_is_recognised_by_its_content(kind, tmp_path):
    data, words = MODELS[kind]
    (tmp_path / "bad.onnx").write_bytes(data)
    with pytest.raises(ModelError, match=words):
        read_model(tmp_path / "bad.onnx")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("config.json", "is a folder of transformers: make an ONNX file of it: segpipe export"),
        ("saved_model.pb", "is a TensorFlow SavedModel: convert it"),
        ("other", "must be an ONNX file, got the folder"),
    ],
)
def test_a_folder_given_as_a_model(name, words, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / name).touch()
    with pytest.raises(ModelError, match=words):
        read_model(tmp_path / "m")


def test_a_folder_of_segmentation_models_pytorch_given_as_a_model(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text('{"_model_class": "Unet"}')
    mend = "segpipe export .*m --classes classes.toml --bands NAMES --tile 512 --output model.onnx"
    with pytest.raises(ModelError, match=f"is a folder of segmentation-models-pytorch: make an ONNX file of it: {mend}"):
        read_model(tmp_path / "m")


def test_what_is_good_is_not_recognised_as_something_else(tmp_path, raster):
    assert describe(pixelwise(tmp_path / "m.onnx")) is None
    for name in ("a.tif", "a.png", "a.jpg"):
        assert describe(raster(name, PIXELS)) is None
        assert missing(raster(name, PIXELS)) is None


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True], ids=["classic", "big"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_where_the_rest_of_a_tiff_should_be(order, big, compression, tmp_path):
    """Written by tifffile: the directory comes first, so that pixels reach to the end."""
    path = tmp_path / "a.tif"
    options = {"compression": compression, "rowsperstrip": 16, "photometric": "rgb"}
    tifffile.imwrite(path, np.moveaxis(PIXELS, 0, -1), byteorder=order, bigtiff=big, **options)
    assert missing(path) is None
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        end = max(a + b for a, b in zip(page.dataoffsets, page.databytecounts, strict=True))
    data = path.read_bytes()
    path.write_bytes(data[: end - 10])
    assert f"it has {end - 10:,} bytes, and what it names reaches to byte" in missing(path)
    for cut in range(8, 200, 7):
        path.write_bytes(data[:cut])
        assert missing(path) is not None


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_picture_without_its_end(name, raster):
    path = raster(name, PIXELS)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert f"it has {len(data) // 2:,} bytes and no end" in missing(path)


@pytest.mark.parametrize("damage", ["cut", "inserted", "no longer recognised"])
def test_a_damaged_jpeg_2000_is_no_vector(damage, tmp_path):
    """Its head holds its place as GML."""
    path, place = tmp_path / "a.jp2", from_origin(500000, 5000000, 10, 10)
    profile = {"driver": "JP2OpenJPEG", "width": 80, "height": 64, "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, crs="EPSG:32633", transform=place) as dataset:
        dataset.write(PIXELS)
    data = path.read_bytes()
    assert b"<gml" in data[:1024]
    middle = len(data) // 2
    damaged = {"cut": data[: data.index(b"jp2c") + 20], "inserted": data[:middle] + b"\xff\x93\1\2" + data[middle:]}
    path.write_bytes(damaged.get(damage, data[:4] + b"xxxx" + data[8:]))
    with pytest.raises(SourceError, match=r"a\.jp2 cannot be (opened|read)") as caught:
        read(path)
    assert "vectors" not in str(caught.value)


def read(path):
    with gdal_options():
        source = RasterSource(str(path), parse_contract(contract(3, 3), "test"))
        source.read(Window((0, 0), source.grid.shape))


def test_what_gdal_opens_is_not_said_to_be_another_thing(tmp_path):
    path, place = tmp_path / "a.vrt", '<Metadata domain="xml:GML" format="xml"><gml/></Metadata>'
    band = "".join(
        f'<VRTRasterBand dataType="Byte" band="{n}"><SimpleSource><SourceFilename>{tmp_path}/gone.tif</SourceFilename>'
        f"<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
        for n in (1, 2, 3)
    )
    path.write_text(f'<VRTDataset rasterXSize="80" rasterYSize="64">{place}{band}</VRTDataset>')
    with pytest.raises(SourceError, match=r"gone\.tif"):
        read(path)


@pytest.mark.parametrize("kind", [3, 4])
@pytest.mark.parametrize("big", [False, True])
def test_a_directory_that_names_more_than_memory_holds(kind, big, tmp_path):
    path, count = tmp_path / "a.tif", 2**40 if big else 2**31 - 1
    entry, head = (
        ("<HHQQ", struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, 1))
        if big
        else ("<HHII", struct.pack("<2sHIH", b"II", 42, 8, 1))
    )
    for place in (8, 2 ** (64 if big else 32) - 1):
        path.write_bytes(head + struct.pack(entry, 273, kind, count, place) + bytes(8))
        assert f"what it names reaches to byte {place + count * (2 if kind == 3 else 4):,}" in missing(path)


def test_a_tiff_whose_codec_gdal_lacks(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.moveaxis(PIXELS, 0, -1), compression="jpegxl", photometric="rgb")
    with pytest.raises(SourceError, match=r"missing codec .*; write it with another .*COMPRESS=DEFLATE .*a\.tif"):
        opened(path)


def test_a_cut_tiff_that_gdal_does_not_open(tmp_path, raster):
    path = raster("a.tif", PIXELS)
    data = path.read_bytes()
    (at,) = struct.unpack("<I", data[4:8])
    path.write_bytes(data[: at // 2 if at > 100 else 60])
    with pytest.raises(SourceError, match=r"it has .* bytes"):
        opened(path)


@pytest.mark.parametrize(("name", "description"), [("a.svs", ""), ("a.ndpi", ""), ("a.tif", "Aperio Image Library v11")])
def test_a_slide_is_refused_with_a_mend_that_works(name, description, tmp_path):
    path = tmp_path / name
    with tifffile.TiffWriter(path) as file:
        for size in (64, 32):
            options = {"description": description, "photometric": "rgb", "metadata": None, "tile": (16, 16)}
            file.write(np.moveaxis(PIXELS[:, :size, :size], 0, -1), subfiletype=int(size < 64), **options)
    with pytest.raises(SourceError, match="is a slide, which is not supported yet: take a level out, as with rio convert"):
        opened(path)
    with rasterio.open(path) as slide:  # what rio convert does
        rasterio.shutil.copy(slide, tmp_path / "level0.tif", driver="GTiff")
    opened(tmp_path / "level0.tif")


def test_a_tiff_of_several_images(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.stack([np.moveaxis(PIXELS, 0, -1)] * 3), photometric="rgb")
    with pytest.raises(SourceError, match=r"must hold one image, got 3 images: .*gdal_translate 'GTIFF_DIR:1:"):
        opened(path)


@pytest.mark.parametrize(
    ("kind", "channels", "words", "bands"),
    [
        ("RGBA", 4, "alpha counts, such as --bands 1,2,3,4", (1, 2, 3, 4)),
        ("LA", 2, "alpha counts, such as --bands 1,2", (1, 2)),
        ("L", 3, "give it for each with --bands 1,1,1", (1, 1, 1)),
        ("LA", 3, "give it for each with --bands 1,1,1", (1, 1, 1)),
        ("RGB", 1, "such as --bands 1", (1,)),
        ("RGB", 5, "it takes a file with 5", None),
    ],
)
def test_the_bands_that_are_advised_work(kind, channels, words, bands, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.moveaxis(PIXELS, 0, -1)).convert(kind).save(path)
    with pytest.raises(SourceError, match=words):
        opened(path, channels)
    if bands is not None:
        opened(path, channels, bands=bands)


@pytest.mark.shared_data
def test_real_slides_are_refused(shared, tmp_path):
    slides = [path for path in sorted((shared / "medical" / "slides").rglob("*.svs")) if path.stat().st_size > 1000]
    assert slides
    for path in slides:
        shutil.copy(path, tmp_path / path.name)
        with pytest.raises(SourceError, match=r"slide|cannot be opened"):
            opened(tmp_path / path.name)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(kind, tmp_path):
    path = tmp_path / "a.tif"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(SourceError, match="an input must be a regular file, and it is a pipe, a socket or a device"):
        RasterSource(str(path), parse_contract(contract(3), "test"))


@pytest.mark.parametrize("name", ["a.tif.aux.xml", "a.tif.msk", "a.tif.ovr", "a.tfw", "a.wld"])
def test_a_pipe_beside_a_raster_is_refused_and_not_waited_for(name, raster, tmp_path):
    raster("a.tif", PIXELS)
    os.mkfifo(tmp_path / name)
    with pytest.raises(SourceError, match=f"{name}: an input must be a regular file"):
        RasterSource(str(tmp_path / "a.tif"), parse_contract(contract(3), "test"))


def test_a_pipe_among_the_sources_of_a_vrt_is_refused(raster, tmp_path):
    raster("a.tif", PIXELS)
    rasterio.shutil.copy(tmp_path / "a.tif", tmp_path / "a.vrt", driver="VRT")
    (tmp_path / "a.tif").unlink()
    os.mkfifo(tmp_path / "a.tif")
    with pytest.raises(SourceError, match=r"a\.tif: an input must be a regular file"):
        RasterSource(str(tmp_path / "a.vrt"), parse_contract(contract(3), "test"))


def test_inspect_does_not_wait_for_a_pipe(segpipe, tmp_path):
    os.mkfifo(tmp_path / "a.tif")
    done = segpipe("inspect", "a.tif", timeout=PATIENCE)
    assert done.returncode == 2
    assert "a.tif" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_pipe_in_a_folder_costs_only_itself(raster, segpipe, tmp_path):
    raster("in/good.tif", PIXELS)
    os.mkfifo(tmp_path / "in" / "pipe.tif")
    pixelwise(tmp_path / "m.onnx")
    dry = segpipe("run", "-i", "in", "-m", "m.onnx", "--dry-run", timeout=PATIENCE)
    assert "problem  pipe: in/pipe.tif: an input must be a regular file" in dry.stdout
    done = segpipe("run", "-i", "in", "-m", "m.onnx", "--executor", "serial", timeout=PATIENCE)
    assert done.returncode == 1
    assert "failed  pipe: in/pipe.tif: an input must be a regular file" in done.stdout
    assert (tmp_path / "segpipe-out" / "good.tif").exists()


def test_a_volume_under_its_own_name_is_not_to_be_renamed(tmp_path):
    for name, data in (("a.nii", nifti()), ("b.NII.gz", gzip.compress(nifti()))):
        (tmp_path / name).write_bytes(data)
        assert describe(tmp_path / name).endswith(
            "is a NIfTI volume: segpipe run labels it, and segpipe inspect shows what it is"
        )


def test_the_voxels_of_a_nifti_pair_are_known_by_the_header_beside_them(tmp_path):
    voxels = tmp_path / "a.img"
    voxels.write_bytes(bytes(range(1, 200)))
    assert describe(voxels) is None
    (tmp_path / "a.hdr").write_bytes(bytes(344) + b"ni1\0")
    assert f"{voxels} is half of a NIfTI pair: convert both files to one .nii, as with nibabel" in str(describe(voxels))
    (tmp_path / "a.hdr").write_text("ENVI\nsamples = 4\n")
    assert describe(voxels) is None

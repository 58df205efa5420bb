"""Recognise files that segpipe does not accept, by their content, and say what to do with them."""

import gzip
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from segpipe.storage.existence import is_file, is_folder

HEAD = 1024

NEITHER = "this version takes rasters, pictures, and volumes as NIfTI, NRRD or DICOM series"
NAMED = "rename it so that its name ends with .nii, or with .nii.gz where it is packed"
TAKEN = "segpipe run labels it, and segpipe inspect shows what it is"
NAMED_NRRD = "rename it so that its name ends with .nrrd, or with .nhdr where its voxels lie in another file"
NAMED_DICOM = "rename it so that its name ends with .dcm"
PAIRED = "convert both files to one .nii, as with nibabel.save(nibabel.load('FILE'), 'out.nii')"
VOLUME = f"which is not supported yet: {NEITHER}; convert it to .nii.gz, as with dcm2niix or SimpleITK"
TRANSLATE = "convert it: gdal_translate FILE out.tif"
SUBDATASET = "take a variable out: gdalinfo FILE lists them, then gdal_translate {}:FILE:VARIABLE out.tif"
NAMES = "--classes classes.toml --bands NAMES --tile 512 --output model.onnx"
EXPORT = f"make an ONNX file of it: segpipe export FILE --arch NAME {NAMES}"
TF2ONNX = "convert it: python -m tf2onnx.convert --{} FILE --output model.onnx, then segpipe export attach"
JPEG_XL = "convert it: djxl FILE out.png"
UNPACK = "unpack it, or name a raster inside as /vsi{}/FILE/name.tif"

PACKED = frozenset({".gz", ".bz2", ".xz", ".zst"})
"""Suffixes of packed files."""

SUFFIXES = {NAMED: (".nii", ".nii.gz"), NAMED_DICOM: (".dcm", ".dicom", ".ima")}
"""Name endings with which a file of that kind needs no renaming."""

MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"GIF8", "a GIF", "convert it: gdal_translate -expand rgb FILE out.png"),
    (0, b"%PDF-", "a PDF", "convert a page: gdal_translate FILE out.tif, or export the picture from it"),
    (0, b"8BPS", "a Photoshop file", "export it as TIFF or PNG"),
    (0, b"CDF\x01", "NetCDF", SUBDATASET.format("NETCDF")),
    (0, b"CDF\x02", "NetCDF", SUBDATASET.format("NETCDF")),
    (0, b"CDF\x05", "NetCDF", SUBDATASET.format("NETCDF")),
    (0, b"\x0e\x03\x13\x01", "HDF4", "take a part out: gdalinfo FILE lists them, then gdal_translate PART out.tif"),
    (0, b"GRIB", "GRIB", TRANSLATE),
    (0, b"NITF", "NITF", TRANSLATE),
    (0, b"SIMPLE  =", "FITS", TRANSLATE),
    (0, b"msid", "MrSID", TRANSLATE),
    (0, b"\x76\x2f\x31\x01", "OpenEXR", TRANSLATE),
    (0, b"\x93NUMPY", "a NumPy array", "write it as GeoTIFF with rasterio"),
    (0, b"\x00\x00\x27\x0a", "a shapefile", "vectors hold no pixels: name the raster"),
    (0, b"SQLite format 3\0", "a GeoPackage or another SQLite database", f"where it holds a raster, {TRANSLATE}"),
    (0, b"PAR1", "Parquet", "vectors and tables hold no pixels: name the raster"),
    (0, b"fgb\x03", "FlatGeobuf", "vectors hold no pixels: name the raster"),
    (0, b"LASF", "a point cloud", "grid it to a raster first, as with pdal"),
    (0, b"NRRD000", "an NRRD volume", NAMED_NRRD),
    (0, b"ObjectType = Image", "a MetaImage volume", VOLUME),
    (128, b"DICM", "DICOM", NAMED_DICOM),
    (344, b"n+1\0", "a NIfTI volume", NAMED),
    (344, b"ni1\0", "half of a NIfTI pair", PAIRED),
    (4, b"n+2\0", "a NIfTI volume", NAMED),
    (4, b"ni2\0", "half of a NIfTI pair", PAIRED),
    (0, b"ZISRAWFILE", "a Zeiss microscope image", f"which is not supported yet: {NEITHER}; export it as TIFF"),
    (0, b"\xda\xce\xbe\x0a", "a Nikon microscope image", f"which is not supported yet: {NEITHER}; export it as TIFF"),
    (257, b"ustar", "a tar archive", UNPACK.format("tar")),
    (0, b"BZh", "packed with bzip2", "unpack it: bunzip2 -c FILE > OUT"),
    (0, b"\xfd7zXZ\0", "packed with xz", "unpack it: unxz -c FILE > OUT"),
    (0, b"\x28\xb5\x2f\xfd", "packed with zstd", "unpack it: unzstd -c FILE > OUT"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it: 7z x FILE"),
    (0, b"Rar!\x1a\x07", "a RAR archive", "unpack it: unrar x FILE"),
    (0, b"\xff\x0a", "JPEG XL", JPEG_XL),
    (4, b"JXL \r\n\x87\n", "JPEG XL", JPEG_XL),
    (0, b"II\xbc\x01", "JPEG XR", "convert it to PNG or TIFF"),
    (4, b"ftypavif", "AVIF", "convert it to PNG"),
    (4, b"ftypheic", "HEIC", "convert it to PNG"),
    (4, b"ftyp", "a video", "take frames out: ffmpeg -i FILE frame%05d.png"),
    (4, b"TFL3", "a TensorFlow Lite model", TF2ONNX.format("tflite")),
    (4, b"ORTM", "a model in ONNX Runtime's own format", "take the ONNX file that it was made of"),
    (0, b"ptrt", "a TensorRT engine", "take the ONNX file that it was built of, with --device tensorrt"),
    (0, b"ftrt", "a TensorRT engine", "take the ONNX file that it was built of, with --device tensorrt"),
    (0, b"GGUF", "a GGUF file of weights", "it holds no network for images"),
    (0, b"MATLAB 5.0", "a MATLAB file", "write its array as GeoTIFF with rasterio"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, and not the file itself", "fetch it: git lfs pull"),
    (0, b"/annex/objects/", "a pointer of git-annex, and not the file itself", "fetch it: git annex get FILE"),
)
"""(offset, bytes, description, mend); FILE in a mend stands for the path, OUT for a new one without its packing."""

MARKED: tuple[tuple[str, str, str], ...] = (
    (r"<!doctype html|<html", "a web page, as a server sends it for an error or a login", "download it again"),
    (r"<error><code>|<error>\s*<code>", "an error message of object storage", "download it again"),
    (r"<kml|<gml|<gpx", "vectors", "vectors hold no pixels: name the raster"),
    (
        r'^\s*\{.*"type"\s*:\s*"(featurecollection|feature|topology|\w*polygon)"',
        "GeoJSON",
        "it holds no pixels: name the raster",
    ),
    (r"<svg", "SVG", "convert it to PNG"),
)
"""(pattern of a text's beginning in lower case, description, mend)."""

MEMBERS: tuple[tuple[str, str, str], ...] = (
    (r"/code/|constants\.pkl$", "a TorchScript program", EXPORT.replace("--arch NAME ", "")),
    (r"data\.pkl$", "a PyTorch checkpoint", EXPORT),
    (r"^model\.weights", "a Keras model", TF2ONNX.format("keras")),
    (r"\.npy$", "NumPy arrays", "write them as GeoTIFF with rasterio"),
    (
        r"\.zarray$|\.zgroup$|zarr\.json$",
        "a zipped Zarr store",
        "unpack it, then gdal_translate 'ZARR:\"FOLDER\":/ARRAY' out.tif",
    ),
    ("", "a zip archive", UNPACK.format("zip")),
)
"""(pattern of a member's name in a zip, description, mend)."""

HDF5 = b"\x89HDF\r\n\x1a\n"


def describe(path: str | Path) -> str | None:
    """Describe a local file or folder by its content and say what to do with it; None where it is not recognised."""
    path = Path(path)
    if is_folder(path):
        found = _folder(path)
    elif not is_file(path):
        return None
    elif not path.stat().st_size:
        return f"{path} is empty (0 bytes): copy it again"
    else:
        found = _file(path)
    if found is None:
        return None
    mend = TAKEN if path.name.lower().endswith(SUFFIXES.get(found[1], ())) else found[1]
    return f"{path} is {found[0]}: {mend.replace('OUT', _unpacked_name(path)).replace('FILE', str(path))}"


def _unpacked_name(path: Path) -> str:
    """Name for a file's content after unpacking, which may lack the suffix that its tool wants.

    >>> _unpacked_name(Path("a.tif.gz")), _unpacked_name(Path("a.tif"))
    ('out.tif', 'out.tif')
    """
    inside = path.with_suffix("") if path.suffix.lower() in PACKED else path
    return f"out{inside.suffix}"


Kind = tuple[str, str]


def _file(path: Path) -> Kind | None:
    with path.open("rb") as stream:
        head = stream.read(HEAD)
    looks: Iterable[Callable[[Path, bytes], Kind | None]] = (_packed, _zipped, _hdf5, _weights, _by_magic, _by_text, _paired)
    return next((kind for look in looks if (kind := look(path, head)) is not None), None)


def _by_magic(path: Path, head: bytes) -> Kind | None:
    del path
    return next(((what, mend) for at, magic, what, mend in MAGIC if head[at : at + len(magic)] == magic), None)


def _by_text(path: Path, head: bytes) -> Kind | None:
    del path
    if b"\0" in head:
        return None  # a picture may contain text, as JPEG 2000 contains GML
    text = head.decode("utf-8", "replace").lower()
    return next(((what, mend) for pattern, what, mend in MARKED if re.search(pattern, text, re.DOTALL)), None)


def _paired(path: Path, head: bytes) -> Kind | None:
    """Recognise the voxels of a NIfTI pair, which have no signature, by the header beside them."""
    del head
    header = path.with_suffix(".hdr")
    if path.suffix != ".img" or not is_file(header):
        return None
    kind = _file(header)
    return kind if kind is not None and kind[1] == PAIRED else None


def _packed(path: Path, head: bytes) -> Kind | None:
    if not head.startswith(b"\x1f\x8b"):
        return None
    try:
        with gzip.open(path) as stream:
            inside = stream.read(HEAD)
    except (OSError, EOFError, zlib.error):
        inside = b""
    if (kind := _by_magic(path, inside)) is not None and kind[1] in (VOLUME, NAMED, NAMED_NRRD, PAIRED):
        return kind
    if inside[257:262] == b"ustar":
        return "a packed tar archive", UNPACK.format("tar")
    return "packed with gzip", "unpack it: gunzip -c FILE > OUT"


def _zipped(path: Path, head: bytes) -> Kind | None:
    if not head.startswith(b"PK\x03\x04"):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "a zip archive that is damaged or cut", "copy it again"
    return next(((what, mend) for pattern, what, mend in MEMBERS if any(re.search(pattern, name) for name in names)), None)


def _hdf5(path: Path, head: bytes) -> Kind | None:
    if not head.startswith(HDF5):
        return None
    with path.open("rb") as stream:
        content = stream.read(2**20)
    if b"keras_version" in content or b"model_config" in content or b"layer_names" in content:
        return "a Keras model", TF2ONNX.format("keras")
    netcdf = b"_NCProperties" in content or b"DIMENSION_SCALE" in content
    return (
        ("NetCDF", SUBDATASET.format("NETCDF")) if netcdf else ("HDF5", SUBDATASET.format("HDF5").replace(":VAR", "://VAR"))
    )


def _weights(path: Path, head: bytes) -> Kind | None:
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "a pickle, as old PyTorch checkpoints are", EXPORT
    if len(head) > 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < path.stat().st_size:
        return "a safetensors file of weights", EXPORT
    return None


def _saved(config: Path) -> Kind:
    """Kind of a folder written by ``save_pretrained`` of transformers or segmentation-models-pytorch."""
    with config.open("rb") as stream:
        smp = b"_model_class" in stream.read(65_536)
    if smp:
        return "a folder of segmentation-models-pytorch", f"make an ONNX file of it: segpipe export FILE {NAMES}"
    return "a folder of transformers", "make an ONNX file of it: segpipe export FILE --tile 512 --output model.onnx"


def _folder(path: Path) -> Kind | None:
    names = {entry.name for entry in path.iterdir()}
    if "saved_model.pb" in names:
        return "a TensorFlow SavedModel", TF2ONNX.format("saved-model")
    if "config.json" in names:
        return _saved(path / "config.json")
    if names & {".zarray", ".zgroup", "zarr.json"}:
        return (
            "a Zarr store",
            "take an array out: gdalinfo FILE lists them, then gdal_translate 'ZARR:\"FILE\":/ARRAY' out.tif",
        )
    return None

"""Rasters of every codec and layout, seeded damage to their bytes, and readers that share no code with GDAL."""

import io
import logging
import struct
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import rasterio
import tifffile
from PIL import Image
from rasterio.transform import from_origin

SHAPE = (90, 130)

Files = dict[str, bytes]
"""Name to content; the first is the case."""


@dataclass(frozen=True)
class Read:
    """What a reader gets: pixels ``(bands, rows, columns)``, where they are invalid, and the place if it can tell."""

    pixels: np.ndarray
    invalid: np.ndarray
    place: dict[str, Any] = field(default_factory=dict)


class UnreadableError(Exception):
    """A reader refuses a file, or warns of it."""


Reader = Callable[[Path], Read]


@dataclass(frozen=True)
class Base:
    """A file that is whole, and what reads it."""

    name: str
    files: Files
    target: str
    """The file that is damaged."""
    reader: Reader
    tolerance: int = 0
    """Digital numbers by which two decoders of a lossy codec may differ."""


def picture(bands: int, dtype: str) -> np.ndarray:
    """Smooth and a little noisy; 0 in a corner, nowhere else."""
    rng = np.random.default_rng(bands)
    rows, cols, k = np.ogrid[: SHAPE[0], : SHAPE[1], :bands]
    waves = 110 + 60 * np.sin(cols / 17 + k) + 40 * np.cos(rows / 11 * (k + 1)) + rng.normal(0, 2, (*SHAPE, bands))
    pixels = np.moveaxis(waves, -1, 0).clip(1, 250) * (1 if dtype == "uint8" else 37)
    pixels[:, :20, :30] = 0
    return pixels.astype(dtype)


# --- files that are whole -------------------------------------------------------------------------------------------------

TILED = {"tiled": True, "blockxsize": 64, "blockysize": 64}
CODECS = {
    "none": {},
    "lzw": {"compress": "lzw"},
    "deflate": {"compress": "deflate"},
    "zstd": {"compress": "zstd"},
    "packbits": {"compress": "packbits"},
    "lzma": {"compress": "lzma"},
    "lerc": {"compress": "lerc"},
    "lerc-zstd": {"compress": "lerc_zstd"},
    "jpeg": {"compress": "jpeg", "jpeg_quality": 90},
    "webp": {"compress": "webp", "webp_lossless": True},
}
LAYOUTS = {
    "strips": {"blockysize": 16, "interleave": "pixel"},
    "tiles": {**TILED, "interleave": "pixel"},
    "planar": {**TILED, "interleave": "band"},
    "big": {**TILED, "interleave": "pixel", "bigtiff": "yes"},
}


def write(path: Path, pixels: np.ndarray, driver: str, **profile: Any) -> Path:
    count, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver=driver, count=count, height=height, width=width, dtype=pixels.dtype, **profile
    ) as dataset:
        dataset.write(pixels)
    return path


def georeference(name: str) -> dict[str, Any]:
    """Of each kind its own: a run compares each mask with all that share its ground, and here are hundreds."""
    return {
        "crs": "EPSG:32633",
        "transform": from_origin(300_000 + zlib.crc32(name.encode()) % 200 * 2_000, 5_400_000, 10, 10),
    }


def content(folder: Path, first: str) -> Files:
    names = sorted((path.name for path in folder.iterdir()), key=lambda name: (name != first, name))
    return {name: (folder / name).read_bytes() for name in names}


def bases(root: Path) -> list[Base]:
    """Every kind of file, made below a folder."""
    return [*geotiffs(root), *pictures(root), *codestreams(root), *vrts(root), *sidecars(root)]


def _folder(root: Path, name: str) -> Path:
    (root / name).mkdir(parents=True)
    return root / name


def geotiffs(root: Path) -> Iterator[Base]:
    kinds: dict[str, tuple[str, int, dict[str, Any]]] = {}
    for codec, options in CODECS.items():
        for layout, form in LAYOUTS.items():
            if codec == "webp" and layout == "planar":
                continue
            kinds[f"{codec}-{layout}"] = ("uint8", 1 if codec == "jpeg" else 3, {**options, **form})
    for codec in ("lzw", "deflate", "zstd"):
        kinds[f"{codec}-predictor2"] = ("uint16", 3, {**CODECS[codec], **LAYOUTS["tiles"], "predictor": 2})
        kinds[f"{codec}-predictor3"] = ("float32", 1, {**CODECS[codec], **LAYOUTS["strips"], "predictor": 3})
    for name, (dtype, bands, options) in kinds.items():
        folder = _folder(root, name)
        valid = {} if "jpeg" in name else {"nodata": 0}  # where two decoders may take 0 and 1 for each other
        write(folder / "a.tif", picture(bands, dtype), "GTiff", **valid, **georeference(name), **options)
        yield Base(name, content(folder, "a.tif"), "a.tif", read_tiff, 3 if "jpeg" in name else 0)
    for order, layout in (("<", {}), (">", {"tile": (64, 64)})):
        for codec in ("none", "deflate", "lzw"):
            name = f"tifffile-{codec}-{'little' if order == '<' else 'big'}"
            pixels = np.moveaxis(picture(3, "uint16"), 0, -1)
            kind = {"photometric": "rgb", "compression": codec, "byteorder": order, "metadata": None}
            tifffile.imwrite(_folder(root, name) / "a.tif", pixels, **kind, **layout)
            yield Base(name, content(root / name, "a.tif"), "a.tif", read_tiff)
    folder = _folder(root, "inner-mask")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = write(
            folder / "a.tif",
            picture(3, "uint8"),
            "GTiff",
            **georeference("inner-mask"),
            **LAYOUTS["tiles"],
            compress="deflate",
        )
        with rasterio.open(path, "r+") as dataset:
            dataset.write_mask(np.where(dataset.read(1) == 0, 0, 255).astype(np.uint8))
    yield Base("inner-mask", content(folder, "a.tif"), "a.tif", read_tiff)


def pictures(root: Path) -> Iterator[Base]:
    kinds: dict[str, tuple[str, str, dict[str, Any]]] = {
        "rgb.png": ("RGB", "PNG", {}),
        "rgba.png": ("RGBA", "PNG", {}),
        "grey.png": ("L", "PNG", {}),
        "grey16.png": ("I;16", "PNG", {}),
        "rgb.jpg": ("RGB", "JPEG", {"quality": 90, "subsampling": 0}),
        "grey.jpg": ("L", "JPEG", {"quality": 90}),
        "progressive.jpg": ("L", "JPEG", {"quality": 90, "progressive": True}),
        "restarts.jpg": ("L", "JPEG", {"quality": 90, "restart_marker_rows": 1}),
        "rgb.webp": ("RGB", "WEBP", {"lossless": True}),
        "rgb.bmp": ("RGB", "BMP", {}),
    }
    for name, (mode, kind, options) in kinds.items():
        folder, stream = _folder(root, name), io.BytesIO()
        _image(mode).save(stream, kind, **options)
        (folder / f"a.{name.rsplit('.', 1)[1]}").write_bytes(stream.getvalue())
        first = next(folder.iterdir()).name
        yield Base(name, content(folder, first), first, read_picture, 3 if kind == "JPEG" else 0)


def _image(mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(picture(1, "uint16")[0])
    if mode == "L":
        return Image.fromarray(picture(1, "uint8")[0])
    pixels = picture(3, "uint8")
    if mode == "RGBA":
        pixels = np.concatenate([pixels, np.where(pixels[:1] == 0, 0, 255).astype(np.uint8)])
    return Image.fromarray(np.moveaxis(pixels, 0, -1).copy(), mode)


def codestreams(root: Path) -> Iterator[Base]:
    lossless = {"quality": "100", "reversible": "yes"}
    kinds = {
        "lossless.jp2": lossless,
        "tiles.jp2": {**lossless, "blockxsize": 64, "blockysize": 64},
        "lossy.jp2": {"quality": "30"},
    }
    for name, options in kinds.items():
        folder = _folder(root, name)
        write(folder / "a.jp2", picture(3, "uint8"), "JP2OpenJPEG", **options)
        yield Base(name, content(folder, "a.jp2"), "a.jp2", read_codestream)


def vrts(root: Path) -> Iterator[Base]:
    folder = _folder(root, "vrt")
    write(folder / "source.dat", picture(3, "uint8"), "GTiff", **georeference("vrt"))
    with rasterio.open(folder / "source.dat") as source:
        bands = "".join(
            f'  <VRTRasterBand dataType="Byte" band="{b}">\n    <NoDataValue>0</NoDataValue>\n    <SimpleSource>\n'
            f'      <SourceFilename relativeToVRT="1">source.dat</SourceFilename>\n'
            f"      <SourceBand>{b}</SourceBand>\n    </SimpleSource>\n  </VRTRasterBand>\n"
            for b in (1, 2, 3)
        )
        place = ", ".join(map(str, source.transform.to_gdal()))
        text = (
            f'<VRTDataset rasterXSize="{SHAPE[1]}" rasterYSize="{SHAPE[0]}">\n  <SRS>EPSG:32633</SRS>\n'
            f"  <GeoTransform>{place}</GeoTransform>\n{bands}</VRTDataset>\n"
        )
    (folder / "a.vrt").write_text(text)
    yield Base("vrt", content(folder, "a.vrt"), "a.vrt", read_vrt)


def sidecars(root: Path) -> Iterator[Base]:
    folder = _folder(root, "aux.xml")
    write(folder / "a.png", picture(3, "uint8"), "PNG", nodata=0, **georeference("aux.xml"))
    text = (folder / "a.png.aux.xml").read_text()
    assert "<NoDataValue>" in text or "<SRS" in text
    bands = "".join(
        f'  <PAMRasterBand band="{b}">\n    <NoDataValue>0</NoDataValue>\n  </PAMRasterBand>\n' for b in (1, 2, 3)
    )
    if "<NoDataValue>" not in text:
        (folder / "a.png.aux.xml").write_text(text.replace("</PAMDataset>", f"{bands}</PAMDataset>"))
    yield Base("aux.xml", content(folder, "a.png"), "a.png.aux.xml", read_with_aux)
    for name, options in {"msk": {}, "msk-deflate": {"compress": "deflate"}}.items():
        folder, pixels = _folder(root, name), picture(3, "uint8")
        write(folder / "a.tif", pixels, "GTiff", **georeference(name), **LAYOUTS["strips"])
        mask = write(folder / "a.tif.msk", np.where(pixels[:1] == 0, 0, 255).astype(np.uint8), "GTiff", **options)
        with rasterio.open(mask, "r+") as dataset:
            dataset.update_tags(INTERNAL_MASK_FLAGS_1=2)
        yield Base(name, content(folder, "a.tif"), "a.tif.msk", read_with_msk)
    folder = _folder(root, "ovr")
    path = write(folder / "a.tif", picture(3, "uint8"), "GTiff", nodata=0, **georeference("ovr"), **LAYOUTS["strips"])
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4])
    assert (folder / "a.tif.ovr").exists()
    yield Base("ovr", content(folder, "a.tif"), "a.tif.ovr", read_tiff)
    folder = _folder(root, "world file")
    _image("RGB").save(folder / "a.png")
    (folder / "a.pgw").write_text("10.0\n0.0\n0.0\n-10.0\n500005.0\n5399995.0\n")
    yield Base("world file", content(folder, "a.png"), "a.pgw", read_with_world_file)


# --- readers --------------------------------------------------------------------------------------------------------------


class _Warned(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextmanager
def _strictly() -> Iterator[None]:
    """Whatever a reader raises or warns of makes a file unreadable."""
    warned, logger = _Warned(), tifffile.logger()
    logger.addHandler(warned)
    propagate, logger.propagate = logger.propagate, False
    try:
        yield
    except Exception as error:
        raise UnreadableError(f"{type(error).__name__}: {error}") from error
    finally:
        logger.removeHandler(warned)
        logger.propagate = propagate
    if warned.texts:
        raise UnreadableError(warned.texts[0])


def _bands_first(page: tifffile.TiffPage) -> np.ndarray:
    pixels = page.asarray()
    axes = page.axes
    if axes == "YX":
        return pixels[None]
    if axes == "YXS":
        return np.moveaxis(pixels, -1, 0)
    assert axes == "SYX", axes
    return pixels


def read_tiff(path: Path) -> Read:
    with _strictly(), tifffile.TiffFile(path) as file:
        page = file.pages[0]
        pixels = _bands_first(page)
        nodata = page.tags.get(42113)
        invalid = np.zeros(pixels.shape[1:], bool)
        if nodata is not None:
            invalid |= (pixels == float(str(nodata.value))).any(axis=0)
        for other in list(file.pages)[1:]:
            if int(other.subfiletype) & 4 and not int(other.subfiletype) & 1:
                invalid |= other.asarray() == 0
        return Read(pixels, invalid, _place(page))


def _place(page: tifffile.TiffPage) -> dict[str, Any]:
    scale, tie = page.tags.get(33550), page.tags.get(33922)
    place: dict[str, Any] = {"transform": None, "epsg": None}
    if scale is not None and tie is not None:
        (dx, dy, _), (i, j, _, x, y, _) = scale.value, tie.value
        place["transform"] = (dx, 0.0, x - i * dx, 0.0, -dy, y + j * dy)
    keys = page.tags.get(34735)
    if keys is not None:
        found = {keys.value[n]: keys.value[n + 3] for n in range(4, len(keys.value), 4)}
        place["epsg"] = found.get(3072) or found.get(2048)
    return place


def read_picture(path: Path) -> Read:
    with _strictly(), Image.open(path) as image:
        image.load()
        pixels = np.asarray(image)
        pixels = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
        if image.mode == "RGBA":
            return Read(pixels[:3], pixels[3] == 0)
        return Read(pixels, np.zeros(pixels.shape[1:], bool))


def read_codestream(path: Path) -> Read:
    with _strictly():
        pixels = np.moveaxis(imagecodecs.jpeg2k_decode(path.read_bytes()), -1, 0)
        return Read(pixels, np.zeros(pixels.shape[1:], bool))


def read_vrt(path: Path) -> Read:
    """The few elements of VRT that the file here has; any other is not understood."""
    with _strictly():
        root = ET.parse(path).getroot()
        assert root.tag == "VRTDataset"
        assert set(root.attrib) == {"rasterXSize", "rasterYSize"}
        shape = int(root.attrib["rasterYSize"]), int(root.attrib["rasterXSize"])
        bands, invalid = [], np.zeros(shape, bool)
        assert [child.tag for child in root] == ["SRS", "GeoTransform", *["VRTRasterBand"] * 3]
        for n, band in enumerate(root.findall("VRTRasterBand"), 1):
            assert band.attrib == {"dataType": "Byte", "band": str(n)}
            assert [child.tag for child in band] == ["NoDataValue", "SimpleSource"]
            source = band[1]
            assert [child.tag for child in source] == ["SourceFilename", "SourceBand"]
            assert source[0].attrib == {"relativeToVRT": "1"}
            stored = read_tiff(path.parent / str(source[0].text)).pixels[int(str(source[1].text)) - 1]
            pixels = np.zeros(shape, np.uint8)
            rows, cols = min(shape[0], stored.shape[0]), min(shape[1], stored.shape[1])
            pixels[:rows, :cols] = stored[:rows, :cols]
            nodata = float(str(band[0].text))
            if shape != stored.shape:
                raise UnreadableError("a source of another size")
            invalid |= pixels == nodata
            bands.append(pixels)
        x, dx, a, y, b, dy = map(float, str(root[1].text).split(","))
        return Read(np.stack(bands), invalid, {"transform": (dx, a, x, b, dy, y), "epsg": str(root[0].text)})


def read_with_aux(path: Path) -> Read:
    read = read_picture(path)
    with _strictly():
        root = ET.parse(f"{path}.aux.xml").getroot()
        assert root.tag == "PAMDataset"
        invalid = np.zeros(read.invalid.shape, bool)
        for band in root.findall("PAMRasterBand"):
            value = band.find("NoDataValue")
            if value is not None:
                invalid |= read.pixels[int(band.attrib["band"]) - 1] == float(str(value.text))
        place = {"transform": None}
        if (found := root.find("GeoTransform")) is not None:
            x, dx, a, y, b, dy = map(float, str(found.text).split(","))
            place["transform"] = (dx, a, x, b, dy, y)
        return Read(read.pixels, invalid, place)


def read_with_msk(path: Path) -> Read:
    read = read_tiff(path)
    with _strictly():
        mask = tifffile.imread(f"{path}.msk")
        return Read(read.pixels, (mask == 0) if mask.ndim == 2 else (mask[..., 0] == 0), read.place)


def read_with_world_file(path: Path) -> Read:
    read = read_picture(path)
    with _strictly():
        dx, b, a, dy, x, y = map(float, path.with_suffix(".pgw").read_text().split())
        place = {"transform": (dx, a, x - dx / 2 - a / 2, b, dy, y - b / 2 - dy / 2)}
        return Read(read.pixels, read.invalid, place)


# --- damage ---------------------------------------------------------------------------------------------------------------


def flip(data: bytearray, rng: np.random.Generator, share: float = 1.0) -> None:
    at = int(rng.integers(max(1, int(len(data) * share))))
    data[at] ^= 1 << int(rng.integers(8))


def flip_early(data: bytearray, rng: np.random.Generator) -> None:
    """In what describes the pixels, which stands at the beginning of most files."""
    flip(data, rng, min(1.0, 500 / len(data)))


def insert(data: bytearray, rng: np.random.Generator) -> None:
    at = int(rng.integers(len(data)))
    data[at:at] = rng.integers(256, size=int(rng.integers(1, 5)), dtype=np.uint8).tobytes()


def delete(data: bytearray, rng: np.random.Generator) -> None:
    at = int(rng.integers(len(data)))
    del data[at : at + int(rng.integers(1, 5))]


def truncate(data: bytearray, rng: np.random.Generator) -> None:
    del data[int(len(data) * rng.uniform(0, 1)) :]


def zero(data: bytearray, rng: np.random.Generator) -> None:
    at = int(rng.integers(len(data)))
    end = min(at + 60, len(data))
    data[at:end] = bytes(end - at)


def overwrite(data: bytearray, rng: np.random.Generator) -> None:
    at = int(rng.integers(len(data)))
    end = min(at + 8, len(data))
    data[at:end] = rng.integers(256, size=end - at, dtype=np.uint8).tobytes()


def tag(data: bytearray, rng: np.random.Generator) -> None:
    """Another type, count or value in an entry of a TIFF's first directory."""
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
    (at,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, 8 if big else 4)
    (count,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", data, at)
    entry = at + (8 if big else 2) + int(rng.integers(count)) * (20 if big else 12)
    what = rng.choice(["type", "count", "value"])
    if what == "type":
        struct.pack_into(f"{order}H", data, entry + 2, int(rng.choice([0, 1, 2, 3, 4, 5, 7, 9, 11, 12, 13, 16, 17])))
        return
    form, place = (
        (f"{order}Q", entry + (4 if what == "count" else 12))
        if big
        else (f"{order}I", entry + (4 if what == "count" else 8))
    )
    (value,) = struct.unpack_from(form, data, place)
    other = int(rng.choice([0, 1, value + 1, max(0, value - 1), value * 2, int(rng.integers(2**31))]))
    struct.pack_into(form, data, place, other % (2**64 if big else 2**32))


DAMAGES = (flip, flip, flip_early, insert, delete, truncate, zero, overwrite)


def damaged(base: Base, rng: np.random.Generator) -> tuple[str, Files]:
    """What was done to a base, and its files then."""
    data = bytearray(base.files[base.target])
    tiff = data[:2] in (b"II", b"MM")
    damage = DAMAGES[int(rng.integers(len(DAMAGES)))] if not tiff or rng.random() < 0.65 else tag
    damage(data, rng)
    return damage.__name__, {**base.files, base.target: bytes(data)}

"""Small products of Sentinel-2, Landsat and HLS; images are real, and folders, names and metadata as in the real ones."""

import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin

SHAPE = (180, 240)
"""Rows and columns at 10 m; both can be divided by 6."""

SIZES = {"B01": 60, "B02": 10, "B03": 10, "B04": 10, "B05": 20, "B08": 10, "B8A": 20, "B11": 20, "B12": 20}
IDS = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"]

NEW = "S2B_MSIL2A_20240615T095549_N0510_R122_T33UXP_20240615T123456"
OLD = "S2A_MSIL2A_20190615T095549_N0212_R122_T33UXP_20190615T123456"
NEW_1C = "S2B_MSIL1C_20240615T095549_N0510_R122_T33UXP_20240615T112233"
LANDSAT = "LC08_L2SP_191027_20240615_20240620_02_T1"
HLS = {"S30": "HLS.S30.T33UXP.2024167T095549.v2.0", "L30": "HLS.L30.T33UXP.2024167T094500.v2.0"}

CORNER = (600_000.0, 5_300_040.0)

Bands = Mapping[str, NDArray[Any]]


def bands(names: Sequence[str] = tuple(SIZES), seed: int = 0, *, shift: int = 0) -> dict[str, NDArray[Any]]:
    """Smooth pixels of each band on its own grid; the upper left of all bands is nodata."""
    rng = np.random.default_rng(seed)
    found = {}
    for name in names:
        step = SIZES[name] // 10
        rows, cols = SHAPE[0] // step, SHAPE[1] // step
        values = np.kron(rng.integers(200, 4000, (SHAPE[0] // 60 + 1, SHAPE[1] // 60 + 1)), np.ones((60, 60)))
        noise = rng.integers(0, 400, (rows, cols))
        pixels = (values[: SHAPE[0] : step, : SHAPE[1] : step] + noise + shift).astype(np.uint16)
        pixels[: 60 // step, : 60 // step] = 0
        found[name] = pixels
    return found


def write(path: Path, pixels: NDArray[Any], size: float, **more: Any) -> Path:
    """One image: JPEG 2000 without loss, or a GeoTIFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    jp2 = {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES", "YCBCR420": "NO"}
    kind = jp2 if path.suffix == ".jp2" else {"driver": "GTiff", "tiled": True, "blockxsize": 64, "blockysize": 64}
    rows, cols = pixels.shape
    grid = {"crs": "EPSG:32633", "transform": from_origin(*CORNER, size, size), "width": cols, "height": rows, "count": 1}
    scale, offset, tags = more.pop("scale", None), more.pop("offset", None), more.pop("tags", {})
    with rasterio.open(path, "w", dtype=pixels.dtype, **kind, **grid, **more) as dataset:
        dataset.write(pixels, 1)
        dataset.update_tags(**tags)
        if scale is not None:
            dataset.scales, dataset.offsets = [scale], [offset or 0.0]
    return path


def metadata(level: str, title: str, offset: int | None, quantification: int = 10_000) -> str:
    """MTD_MSIL1C.xml or MTD_MSIL2A.xml."""
    kind, tag = ("BOA", "BOA_QUANTIFICATION_VALUE") if level == "2A" else ("RADIO", "QUANTIFICATION_VALUE")
    offsets = "".join(f'<{kind}_ADD_OFFSET band_id="{n}">{offset}</{kind}_ADD_OFFSET>' for n in range(13))
    offsets = f"<Offsets>{offsets}</Offsets>" if offset is not None else ""
    spectral = "".join(
        f'<Spectral_Information bandId="{n}" physicalBand="B{name[1:].lstrip("0")}"/>' for n, name in enumerate(IDS)
    )
    more = "<AOT_QUANTIFICATION_VALUE>1000.0</AOT_QUANTIFICATION_VALUE>" if level == "2A" else ""
    return f"""<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<n1:Level-{level}_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-{level}.xsd">
  <n1:General_Info>
    <Product_Info>
      <PRODUCT_START_TIME>2024-06-15T09:55:49.024Z</PRODUCT_START_TIME>
      <PRODUCT_URI>{title}.SAFE</PRODUCT_URI>
      <PROCESSING_BASELINE>05.10</PROCESSING_BASELINE>
      <Datatake><SPACECRAFT_NAME>Sentinel-2B</SPACECRAFT_NAME></Datatake>
    </Product_Info>
    <Product_Image_Characteristics>
      <Special_Values><SPECIAL_VALUE_TEXT>NODATA</SPECIAL_VALUE_TEXT><SPECIAL_VALUE_INDEX>0</SPECIAL_VALUE_INDEX></Special_Values>
      <{tag} unit="none">{quantification}</{tag}>{more}{offsets}{spectral}
    </Product_Image_Characteristics>
  </n1:General_Info>
  <n1:Quality_Indicators_Info><Cloud_Coverage_Assessment>12.5</Cloud_Coverage_Assessment></n1:Quality_Indicators_Info>
</n1:Level-{level}_User_Product>
"""


def safe(root: Path, pixels: Bands, title: str = NEW, *, offset: int | None = -1000, **more: Any) -> Path:
    """A ``.SAFE`` folder below ``root``, with masks, a preview and auxiliary files as in a real one."""
    level = title[8:10]
    product = root / f"{title}.SAFE"
    granule = product / "GRANULE" / f"L{level}_T33UXP_A038012_20240615T095952"
    for name, values in pixels.items():
        size = SIZES[name]
        stem = f"T33UXP_20240615T095549_{name}"
        inside = f"R{size}m/{stem}_{size}m.jp2" if level == "2A" else f"{stem}.jp2"
        write(granule / "IMG_DATA" / inside, values, size)
        if level == "2A" and size == 10:  # coarser copies, which nobody asks for
            write(granule / f"IMG_DATA/R20m/{stem}_20m.jp2", values[::2, ::2], 20)
    (product / f"MTD_MSIL{level}.xml").write_text(metadata(level, title, offset, **more))
    write(granule / "QI_DATA" / "MSK_CLDPRB_20m.jp2", np.ones((90, 120), np.uint8), 20)
    write(granule / "IMG_DATA" / ("R10m/T33UXP_TCI_10m.jp2" if level == "2A" else "T_TCI.jp2"), np.ones(SHAPE, np.uint8), 10)
    (granule / "AUX_DATA").mkdir()
    (granule / "AUX_DATA" / "AUX_ECMWFT").write_bytes(b"GRIB")
    (granule / "MTD_TL.xml").write_text("<tile/>")
    (product / "manifest.safe").write_text("<manifest/>")
    return product


def zipped(product: Path, target: Path | None = None, **more: Any) -> Path:
    """The archive of a product."""
    target = target or product.with_suffix(".zip")
    with zipfile.ZipFile(target, "w", **more) as archive:
        for file in sorted(product.rglob("*")):
            if file.is_file():
                archive.write(file, f"{product.name}/{file.relative_to(product)}")
    return target


MTL = """GROUP = LANDSAT_METADATA_FILE
  GROUP = PRODUCT_CONTENTS
    LANDSAT_PRODUCT_ID = "{title}"
  END_GROUP = PRODUCT_CONTENTS
  GROUP = IMAGE_ATTRIBUTES
    SPACECRAFT_ID = "LANDSAT_8"
    DATE_ACQUIRED = 2024-06-15
    SUN_ELEVATION = 61.5
  END_GROUP = IMAGE_ATTRIBUTES
  GROUP = LEVEL2_SURFACE_REFLECTANCE_PARAMETERS
    REFLECTANCE_MULT_BAND_3 = 2.75e-05
    REFLECTANCE_MULT_BAND_4 = 2.75e-05
    REFLECTANCE_MULT_BAND_5 = 2.75e-05
    REFLECTANCE_ADD_BAND_3 = -0.2
    REFLECTANCE_ADD_BAND_4 = -0.2
    REFLECTANCE_ADD_BAND_5 = -0.2
  END_GROUP = LEVEL2_SURFACE_REFLECTANCE_PARAMETERS
  GROUP = LEVEL2_SURFACE_TEMPERATURE_PARAMETERS
    TEMPERATURE_MULT_BAND_ST_B10 = 0.00341802
    TEMPERATURE_ADD_BAND_ST_B10 = 149.0
  END_GROUP = LEVEL2_SURFACE_TEMPERATURE_PARAMETERS
  GROUP = LEVEL1_RADIOMETRIC_RESCALING
    REFLECTANCE_MULT_BAND_4 = 2.0000E-05
    REFLECTANCE_ADD_BAND_4 = -0.100000
    RADIANCE_MULT_BAND_10 = 3.3420E-04
    RADIANCE_ADD_BAND_10 = 0.10000
  END_GROUP = LEVEL1_RADIOMETRIC_RESCALING
END_GROUP = LANDSAT_METADATA_FILE
END
"""


def landsat(folder: Path, pixels: Bands, title: str = LANDSAT, *, mtl: bool = True) -> Path:
    """The files of a product of Landsat in a folder; ``pixels`` by SR_B4, ST_B10, QA_PIXEL ..."""
    for name, values in pixels.items():
        nodata = 1 if name == "QA_PIXEL" else 0
        write(folder / f"{title}_{name}.TIF", values, 30, nodata=nodata, tags={"AREA_OR_POINT": "Point"})
    if mtl:
        (folder / f"{title}_MTL.txt").write_text(MTL.format(title=title))
    (folder / f"{title}_ANG.txt").write_text("angles")
    (folder / f"{title}_thumb_small.jpeg").write_bytes(b"no jpeg")
    return folder


def tarred(folder: Path, target: Path, **more: Any) -> Path:
    """The files of a folder as an archive without folders, as USGS gives them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target, "w", **more) as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, file.name)
    return target


def hls(folder: Path, pixels: Bands, kind: str) -> Path:
    """The files of a product of HLS in a folder; as some of them, with scale_factor in place of GDAL's own tags."""
    for name, values in pixels.items():
        tags = {} if name == "Fmask" else {"scale_factor": "0.0001", "add_offset": "0.0"}
        nodata = 255 if name == "Fmask" else -9999
        write(folder / f"{HLS[kind]}.{name}.tif", values, 30, nodata=nodata, tags=tags)
    return folder

"""Read what a case says of its files: the product, and all files of it."""

import os

from segpipe.errors import SourceError
from segpipe.formats.case import Case, SceneFiles
from segpipe.formats.scenes import hls, landsat, sentinel2
from segpipe.formats.scenes.product import BandFile, Product


def index_of(case: Case) -> SceneFiles:
    """What the search knows of a case."""
    if not isinstance(case.index, SceneFiles):
        raise SourceError(f"{case.path} must be a scene of many files, such as a .SAFE folder")
    return case.index


def product_of(case: Case) -> Product:
    """What the metadata of a scene say: its layers, their files and their scaling.

    Raises:
        SourceError: it is damaged or incomplete.
    """
    index = index_of(case)
    if index.kind == "sentinel-2":
        return sentinel2.read_product(index.root)
    if index.kind == "landsat":
        return landsat.read_product(index.root, index.files, index.title)
    if index.kind == "hls":
        return hls.read_product(index.root, index.files, index.title)
    bands = zip(index.bands, index.files, strict=True)
    return Product(tuple(BandFile(name, path) for name, path in bands), own_tags=True, parts=index.kind == "parts")


def files_found(case: Case) -> tuple[str, ...]:
    """Paths of the files that the search found; the path of a folder or an archive that holds one product."""
    if not isinstance(index := case.index, SceneFiles) or not index.files:
        return (case.path,)
    names = index.files
    return names if index.kind in ("bands", "parts") else tuple(os.path.join(index.root, name) for name in names)  # noqa: PTH118

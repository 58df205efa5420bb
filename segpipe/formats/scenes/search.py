"""Find scenes of many files among folders and files; nothing is opened but the head of an archive."""

import os
from collections.abc import Sequence

from segpipe.formats.case import SCENE, Case, SceneFiles
from segpipe.formats.scenes.container import holds_product
from segpipe.formats.scenes.names import SAFE, TAR, is_product, is_sentinel, part_of, product_name, products_in
from segpipe.formats.scenes.tar import first_member
from segpipe.storage.existence import ABSENT, is_file, is_folder

METADATA = "mtd_msil"
"""Beginning, in lower case, of the metadata of a product of Sentinel-2."""


def name_of(path: str) -> str:
    """Name of a folder or a file, also where the path is ``.`` or ends with ``..``."""
    name = os.path.basename(path)  # noqa: PTH119 - called for each folder
    return os.path.basename(os.path.realpath(path)) if name in ("", ".", "..") else name  # noqa: PTH119


def is_safe(path: str) -> bool:
    """Whether a folder is a product of Sentinel-2; it then holds no other cases.

    Raises:
        OSError: it cannot be read.
    """
    name = name_of(path)
    if not name.lower().endswith(SAFE):
        return False
    return is_sentinel(name) or any(file.lower().startswith(METADATA) for file in _names_in(path))


def is_safe_folder(path: str) -> bool:
    """Whether a folder has the suffix of a product, whatever it holds."""
    return os.path.isdir(path) and name_of(path).lower().endswith(SAFE)  # noqa: PTH112 - accepts text of any length


def _names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - only names are needed
    except OSError as error:
        if error.errno not in ABSENT:
            raise
        return []


def is_archive(path: str) -> bool:
    """Whether a file is the archive of a product of Sentinel-2 or Landsat: by its name, or by that of its first member.

    Raises:
        OSError: it cannot be read.
    """
    name = os.path.basename(path)  # noqa: PTH119
    if name.lower().endswith(TAR):
        return _title_in(path) is not None
    return name.lower().endswith(".zip") and (is_sentinel(name) or holds_product(path))


def _title_in(path: str) -> str | None:
    """Name of the product of Landsat in a tar archive; None if it holds none."""
    title = product_name(name_of(path))
    if is_product(title) and title[:1] in "Ll":
        return title if is_file(path) else None
    first = first_member(path)
    part = None if first is None else part_of(first)
    return part.product if part is not None and part.family == "landsat" else None


def is_scene(path: str) -> bool:
    """Whether a folder or a file that the user names is one scene.

    Raises:
        OSError: it cannot be read.
    """
    if not is_folder(path):
        return is_archive(path)
    return is_safe(path) or (is_product(name := name_of(path)) and name in products_in(_names_in(path))[0])


def scene_at(name: str, path: str) -> Case:
    """The case of a folder or an archive for which ``is_scene`` is true; ``name`` is its path below a root."""
    title = name_of(path)
    if title.lower().endswith(TAR):
        title = _title_in(path) or product_name(title)
        return Case(product_name(name), path, SCENE, SceneFiles("landsat", path, title=title))
    if is_product(title) and not is_archive(path):
        products, _ = products_in(sorted(_names_in(path)))
        return Case(name, path, SCENE, SceneFiles(products[title].family, path, tuple(products[title].files), title=title))
    return Case(product_name(name), path, SCENE, SceneFiles("sentinel-2", path, title=product_name(title)))


def products_of(below: str, folder: str, names: Sequence[str]) -> tuple[list[Case], list[str]]:
    """The cases among the files of a folder, and the names of the other files.

    Args:
        below: name of the folder below a root, with a slash at its end; empty for the root.
        folder: its path.
        names: names of its files.
    """
    products, others = products_in(names)
    return [
        Case(*_place(below, folder, title), SCENE, SceneFiles(parts.family, folder, tuple(parts.files), title=title))
        for title, parts in products.items()
    ], others


def _place(below: str, folder: str, title: str) -> tuple[str, str]:
    """Name and path of a product: those of its folder if that is named after it."""
    own = name_of(folder) == title
    if own and below:
        return below.rstrip("/"), folder
    return below + title, folder if own else os.path.join(folder, title)  # noqa: PTH118

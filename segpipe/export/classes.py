"""The classes of public data sets, with the official names, ids and colours, for networks that were trained on them.

Where each table comes from stands at its head, in ``tables/<name>.toml``.
"""

import tomllib
from importlib.resources import files
from typing import Any

from segpipe.errors import ExportError

TABLES: tuple[str, ...] = ("voc", "cityscapes", "ade20k", "coco-stuff")


def class_table(name: str) -> list[dict[str, Any]]:
    """The key ``classes`` of a contract: ``id``, ``name`` and ``color`` of each channel of the output, in its order."""
    if name not in TABLES:
        raise ExportError(f"a class table must be one of {', '.join(TABLES)}, got {name!r}: name one of them")
    text = files("segpipe.export").joinpath("tables", f"{name}.toml").read_text(encoding="utf-8")
    classes: list[dict[str, Any]] = tomllib.loads(text)["classes"]
    return classes

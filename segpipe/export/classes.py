"""Class tables of public data sets, with official names, ids and colours, for networks trained on them.

Each table names its source at its head, in ``tables/<name>.toml``.
"""

import tomllib
from importlib.resources import files
from typing import Any

from segpipe.errors import ExportError

TABLES: tuple[str, ...] = ("voc", "cityscapes", "ade20k", "coco-stuff")


def class_table(name: str) -> list[dict[str, Any]]:
    """The contract key ``classes``: ``id``, ``name`` and ``color`` of each output channel, in order."""
    if name not in TABLES:
        raise ExportError(f"a class table must be one of {', '.join(TABLES)}, got {name!r}: name one of them")
    text = files("segpipe.export").joinpath("tables", f"{name}.toml").read_text(encoding="utf-8")
    classes: list[dict[str, Any]] = tomllib.loads(text)["classes"]
    return classes

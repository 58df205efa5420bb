"""Which values of a reference are which classes, from a TOML file and flags."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segpipe.accuracy.confusion import ClassMap
from segpipe.errors import SettingsError
from segpipe.storage.documents import DocumentError, read_toml
from segpipe.storage.invalid import readable


class ClassTable(BaseModel):
    """Values and the classes that they are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ignore: list[int | str] = Field(default_factory=list)
    """Values of rasters and polygons, or labels of annotations."""
    classes: dict[str, int | str] = Field(min_length=1)
    """By value of the reference: name or id of the class."""


def class_map(ids: Mapping[int, str], path: Path | None, ignore: Iterable[int]) -> ClassMap:
    """Map the values of masks and references to classes.

    Args:
        ids: name of each class of the masks, by its id.
        path: of the file; None: references have the ids of masks.
        ignore: more values of the reference whose pixels do not count.

    Raises:
        SettingsError: the file cannot be read, or names no class.
    """
    if path is None:
        return ClassMap(tuple(ids), tuple(ids.values()), {}, frozenset(ignore))
    found = read_classes(path)
    values = {_value(path, value): class_position(path, name, ids) for value, name in found.classes.items()}
    left_out = [_value(path, str(value)) for value in found.ignore]
    return ClassMap(tuple(ids), tuple(ids.values()), values, frozenset([*left_out, *ignore]))


def label_map(ids: Mapping[int, str], path: Path) -> dict[str, int | None]:
    """The class of each label of annotations: its id, or None for labels that do not count.

    Raises:
        SettingsError: the file cannot be read, or names no class.
    """
    found, known = read_classes(path), list(ids)
    classes = {label: known[class_position(path, name, ids)] for label, name in found.classes.items()}
    return {**classes, **{str(label): None for label in found.ignore}}


def read_classes(path: Path) -> ClassTable:
    """The file of ``--map-classes``.

    Raises:
        SettingsError: it cannot be read.
    """
    try:
        return ClassTable.model_validate(read_toml(path))
    except DocumentError as error:
        raise SettingsError(f"--map-classes {path} {error}") from None
    except ValidationError as error:
        raise SettingsError(f"--map-classes {path}: {readable(error)}") from None


def _value(path: Path, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise SettingsError(f"--map-classes {path}: keys of classes must be values of the reference, got {text!r}") from None


def class_position(path: Path, name: Any, ids: Mapping[int, str]) -> int:
    """Position of a class, by its name or id."""
    known = list(ids)
    for k, class_id in enumerate(known):
        if name == ids[class_id] or (isinstance(name, int) and name == class_id):
            return k
    listed = ", ".join(f"{class_id} {text}" for class_id, text in ids.items())
    raise SettingsError(f"--map-classes {path}: {name!r} must be a class of the map: {listed}")

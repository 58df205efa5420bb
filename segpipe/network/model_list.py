"""A list of models for parts of the classes, whose label maps are joined: the TOML file, checked against itself."""

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from segpipe.contract.keys import SegmentationClass, duplicates
from segpipe.errors import SettingsError
from segpipe.storage.documents import DocumentError, read_toml, shortened
from segpipe.storage.invalid import readable

SUFFIX = ".toml"

BACKGROUND = "background"
"""Name of the class that claims no voxel, and that a class gets which is left out."""

FORMS = {"file": "the path of an ONNX file, or a list of several whose scores are averaged"}

MOST_MODELS = 100

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
"""A name of a model, which is that of a folder, too."""


class ListEntry(BaseModel):
    """One entry of a list: the ONNX files of a model, and what its classes are called in the joined map."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    """Paths relative to the list; several are averaged."""
    name: str | None = None
    """Name in records and messages; None: the file's name without suffix."""
    classes: dict[str, str] = Field(default_factory=dict)
    """Name in the joined map for a class of the model; empty: the class is left out."""

    @field_validator("file", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("name")
    @classmethod
    def _for_a_folder(cls, value: str | None) -> str | None:
        if value is not None and not NAME.fullmatch(value):
            raise ValueError("must be up to 100 letters, digits, dots, dashes and underscores, letter or digit first")
        return value

    @property
    def title(self) -> str:
        """The name; made of the file's, it is one that a folder may have."""
        return self.name or (re.sub(r"[^A-Za-z0-9_.-]", "_", Path(self.file[0]).stem).lstrip("._-")[:100] or "model")

    def joined(self, name: str) -> str:
        """Name in the joined map of a class of the model; ``BACKGROUND`` if it claims nothing."""
        renamed = self.classes.get(name)
        return BACKGROUND if is_background(name if renamed is None else renamed) else (renamed or name)


class ModelList(BaseModel):
    """The models, in the order in which their labels are laid over each other, and the classes of the joined map."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: list[ListEntry] = Field(min_length=1, max_length=MOST_MODELS)
    classes: list[SegmentationClass] = Field(default_factory=list)
    """Empty: numbered from 1, in the order of the models and of their own classes."""


def is_background(name: str) -> bool:
    """
    >>> is_background("Background"), is_background(""), is_background("liver")
    (True, True, False)
    """
    return name.strip(" _").casefold() in (BACKGROUND, "")


def is_list(models: Sequence[Path]) -> bool:
    """Whether ``--model`` names a list of models.

    Raises:
        SettingsError: it names others, too.
    """
    lists = [path for path in models if path.suffix.lower() == SUFFIX]
    if lists and len(models) > 1:
        raise SettingsError(
            f"a list of models must be the only --model, got {', '.join(map(str, models))}: name the others in {lists[0]}"
        )
    return bool(lists)


def read_list(path: Path) -> ModelList:
    """Read a TOML file that lists several models, whose labels are joined into one mask.

    Raises:
        SettingsError: it cannot be read, or contradicts itself.
    """
    try:
        values = read_toml(path)
    except DocumentError as error:
        raise SettingsError(f"the list of models {shortened(path)} {error}") from None
    if "models" not in values:
        raise SettingsError(
            f"{path} must be a list of models, with a table [[models]] for each, and has none: see segpipe export join"
            + (", or give it as --contract" if "channels" in values else "")
        )
    try:
        models = ModelList.model_validate(values)
    except ValidationError as error:
        raise SettingsError(f"{path}: {readable(error, FORMS)}") from None
    _check_names(path, models)
    _check_ids(path, models.classes)
    return models


def _check_names(path: Path, models: ModelList) -> None:
    if twice := duplicates([entry.title.casefold() for entry in models.models]):
        raise SettingsError(
            f'{path}: names of models must differ, got "{twice[0]}" more than once: give each model another name = "..."'
        )


def _check_ids(path: Path, classes: Sequence[SegmentationClass]) -> None:
    for what, values in (("ids", [c.id for c in classes]), ("names", [c.name for c in classes])):
        if twice := duplicates(values):
            raise SettingsError(f"{path}: {what} of [[classes]] must differ, got {twice[0]} more than once: change one")
    for one in classes:
        if (one.id == 0) != is_background(one.name):
            raise SettingsError(
                f"{path}: id 0 is the background's, which every voxel gets that no model claims, got id {one.id} for "
                f'"{one.name}": give it another id'
            )
        if one.index is not None:
            raise SettingsError(
                f'{path}: a class of a joined map has no index, got index {one.index} for "{one.name}": leave it out'
            )


def nearest(name: str, names: Iterable[str]) -> str:
    """A question after the name that was probably meant, for a message; empty if none is near."""
    near = difflib.get_close_matches(name, list(names), 1)
    return f' (did you mean "{near[0]}"?)' if near else ""

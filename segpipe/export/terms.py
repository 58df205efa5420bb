"""Contract of an export: from the user, the network's own files, and measurements."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segpipe.contract import Contract, parse_contract
from segpipe.errors import ContractError, ExportError, correct_path
from segpipe.export.classes import TABLES, class_table
from segpipe.export.merge import groups_of
from segpipe.export.settings import ExportSettings
from segpipe.storage.documents import DocumentError, read_toml
from segpipe.storage.existence import exists, is_folder

IMAGENET = {
    "scale": 1 / 255,
    "offset": 0.0,
    "normalize": "fixed",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


@dataclass(frozen=True)
class Terms:
    """Contract keys given by the user, by flag or file."""

    values: Mapping[str, Any]

    @property
    def classes(self) -> list[Any] | None:
        """The classes, if they are given."""
        return self.values.get("classes")

    @property
    def scores(self) -> int:
        """Output channels that the network must have."""
        if not self.classes:
            raise ExportError(_NOT_NAMED["classes"])
        return 1 if self.values.get("task") == "binary" else len(self.classes)

    @property
    def channel_count(self) -> int:
        """Number of channels of the image."""
        channels = self.values.get("channels")
        if channels is None:
            raise ExportError(_NOT_NAMED["channels"])
        return channels if isinstance(channels, int) else len(channels)


def read_terms(settings: ExportSettings) -> Terms:
    """Read the user's keys; a flag takes precedence over the file of ``--classes``."""
    values = _from_classes(settings.classes)
    if settings.imagenet:
        values |= IMAGENET
        if not is_folder(settings.weights):  # its own files are more reliable
            values.setdefault("channels", ["red", "green", "blue"])
    if settings.bands:
        values["channels"] = list(settings.bands)
    for key in ("tile", "overlap"):
        if getattr(settings, key):
            values[key] = list(getattr(settings, key))
    return Terms(values)


def _from_classes(classes: str | None) -> dict[str, Any]:
    if classes is None:
        return {}
    if classes in TABLES:
        return {"classes": class_table(classes)}
    path = Path(classes)
    if not exists(path):
        known = ", ".join(TABLES)
        raise ExportError(
            f"--classes must be {known} or a TOML file, got {classes}, which does not exist: {correct_path(classes)}"
        )
    try:
        return _of_types(read_toml(path), path)
    except DocumentError as error:
        raise ContractError(f"--classes {path} {error}") from None


def _of_types(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Check the types of keys that are used before the contract is complete."""
    for key, form in _FORMS.items():
        value = values.get(key, [])
        numbers = value if key in ("tile", "overlap") and isinstance(value, list) else []
        if not isinstance(value, form) or any(type(n) is not int for n in numbers):
            raise ContractError(f"{path}: {key} must be {_FORMS_WORDS[key]}, got {value!r}")
    classes = values.get("classes", [])
    if all(isinstance(one, dict) for one in classes) and groups_of(classes):
        raise ContractError(
            f"{path}: the classes of an export must be all outputs of its network, and index names some, "
            "or several for one: export it with all its classes, then combine them by segpipe export attach"
        )
    return values


_FORMS: dict[str, Any] = {"classes": list, "channels": int | list, "tile": int | list, "overlap": int | list}
_FORMS_WORDS = {
    "classes": "tables, [[classes]], each with id and name",
    "channels": "a list of names, or their number",
    "tile": "one or two whole numbers",
    "overlap": "one or two whole numbers",
}


def _check_raw(values: Mapping[str, Any]) -> None:
    """Check that scaling can be part of the graph, whose constants are the same for all files.

    Raises:
        ExportError: the scaling depends on the file.
    """
    normalize, pixel = values["normalize"], values.get("pixel", "stored")
    if normalize in ("zscore", "minmax") or pixel == "physical":
        raise ExportError(
            f'--raw needs scaling that is the same for all files, got normalize = "{normalize}", pixel = "{pixel}": '
            "leave --raw out"
        )


def draw_up(terms: Terms, known: Mapping[str, Any], settings: ExportSettings) -> Contract:
    """The whole contract except for measured keys; the user's keys take precedence over the network's files.

    Raises:
        ExportError: scaling, classes or tile are not given.
        ContractError: the keys contradict each other.
    """
    values = {**_without_contradicted(known, terms.values), **terms.values}
    if "channels" in values:
        values["channels"] = _checked_order(known.get("channels"), values["channels"])
    values = {"version": 1, "task": "multiclass", **values}
    values.setdefault("activation", "softmax" if values["task"] == "multiclass" else "sigmoid")
    check_named(values)
    if settings.raw:
        _check_raw(values)
        values["scaling"] = "graph"
    return parse_contract(_spread(values), f"the contract of the export (--classes {settings.classes or 'not given'})")


def check_named(values: Mapping[str, Any], *before: str) -> None:
    """Check that all keys are given that weights do not contain; ``before`` lists what else is missing.

    Raises:
        ExportError: something is missing; the message lists all of it, one per line.
    """
    missing = [*before, *(text for key, text in _NOT_NAMED.items() if not values.get(key))]
    if missing:
        raise ExportError("\n".join(missing))


def _without_contradicted(known: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Known keys without scaling if the user gives ``normalize``: scaling comes from one place as a whole."""
    scaling = {"scale", "offset", "clip", "normalize", "mean", "std"}
    return {k: v for k, v in known.items() if not ("normalize" in given and k in scaling)}


def _checked_order(known: Any, given: Any) -> Any:
    """The user's channels, checked against the order of the network's files.

    Raises:
        ExportError: the same channels come in another order.
    """
    if not isinstance(known, list):
        return given
    if given == len(known):
        return known
    if not isinstance(given, list) or given == known:
        return given
    colours = [_COLOURS.get(str(name).casefold(), str(name)) for name in given]
    if sorted(colours) == sorted(known) and colours != known:
        raise ExportError(
            f"the image processor gives the network its channels as {', '.join(known)}, got --bands {','.join(given)}: "
            f"give --bands {','.join(given[colours.index(name)] for name in known)}"
        )
    return given


_COLOURS = {"r": "red", "g": "green", "b": "blue", "red": "red", "green": "green", "blue": "blue"} | {
    **{"b04": "red", "b03": "green", "b02": "blue"},  # Sentinel-2
}


def _spread(values: Mapping[str, Any]) -> dict[str, Any]:
    """Expand one number to both axes, and set a default overlap."""
    values = dict(values)
    for key in ("tile", "overlap"):
        if isinstance(values.get(key), int):
            values[key] = [values[key]]
        if key in values and len(values[key]) == 1:
            values[key] = list(values[key]) * 2
    values.setdefault("overlap", [size // 4 for size in values["tile"]])
    return values


_NO_SCALING = """\
nothing says how pixels are scaled, and it is not guessed: add it to the file of --classes, as the network was trained:
  scale = 0.0001             # x = pixel * scale + offset
  normalize = "fixed"        # (x - mean) / std; or "zscore", "minmax", "none"
  mean = [0.1, 0.1, 0.1, 0.3]
  std = [0.05, 0.05, 0.05, 0.1]
or give --imagenet for pixels of 0 to 255 and the mean and deviation of ImageNet"""

_NOT_NAMED = {
    "channels": "the network's channels must be named: give --bands, such as red,green,blue or B04,B03,B02,B08",
    "classes": "the classes must be named: give --classes with one of the built-in tables, or a TOML file",
    "tile": "the tile must be named: give --tile, the size in pixels that the network was trained on",
    "normalize": _NO_SCALING,
}

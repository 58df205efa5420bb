"""Which classes of one run are which of another: by name, or as a TOML file says."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.accuracy.class_map import class_position, read_classes
from segpipe.accuracy.population import positions
from segpipe.errors import InputError, SettingsError

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Pairing:
    """The classes of two runs in one list, that of the first."""

    ids: tuple[int, ...]
    """Id of each class in the masks of the first run."""
    names: tuple[str, ...]
    others: Mapping[int, int]
    """Position of each class of the second run, by its id; -1: its pixels count as unseen."""

    @property
    def unseen(self) -> int:
        """Position of pixels without a class."""
        return len(self.ids)

    def of_first(self, labels: NDArray[np.integer]) -> Positions:
        """Position of each label of the first run."""
        return self._or_unseen(positions(labels, self.ids))

    def of_second(self, labels: NDArray[np.integer], valid: NDArray[np.bool_] | None) -> Positions:
        """Position of each label of the second run, where it is valid; None: everywhere."""
        known = np.array([*self.others.values(), -1])
        found = known[positions(labels, tuple(self.others))]
        return self._or_unseen(found if valid is None else np.where(valid, found, -1))

    def _or_unseen(self, found: Positions) -> Positions:
        return np.where(found < 0, self.unseen, found)


def pairing(first: Mapping[int, str], second: Mapping[int, str], path: Path | None) -> Pairing:
    """Match the classes of two runs.

    Args:
        first: name of each class of the first run, by id.
        second: the same of the second run.
        path: TOML file that says which classes of the second run are which of the first; None: those of equal names.

    Raises:
        InputError: classes do not match.
        SettingsError: the file cannot be used.
    """
    by_name = {name: k for k, name in enumerate(first.values())}
    others = {one: by_name[name] for one, name in second.items() if name in by_name}
    if path is not None:
        others |= _mapped(first, second, path)
    lacking = [f"{one} {name}" for one, name in second.items() if one not in others]
    alone = [f"{one} {name}" for k, (one, name) in enumerate(first.items()) if k not in others.values()]
    alone = alone if path is None else []  # a file may merge classes
    if lacking or alone:
        raise InputError(_message(lacking, alone))
    return Pairing(tuple(first), tuple(first.values()), others)


def _mapped(first: Mapping[int, str], second: Mapping[int, str], path: Path) -> dict[int, int]:
    """Position of each class of the second run that the file names."""
    file = read_classes(path)
    found = {_second(path, name, second): class_position(path, to, first) for name, to in file.classes.items()}
    return found | {_second(path, str(one), second): -1 for one in file.ignore}


def _second(path: Path, text: str, second: Mapping[int, str]) -> int:
    """Id of a class of the second run, from its name or id."""
    for one, name in second.items():
        if text in (name, str(one)):
            return one
    listed = ", ".join(f"{one} {name}" for one, name in second.items())
    raise SettingsError(f"--map-classes {path}: {text!r} must be a class of the second run: {listed}")


def _message(lacking: list[str], alone: list[str]) -> str:
    parts = [f"only the {which} has {', '.join(few)}" for which, few in (("second", lacking), ("first", alone)) if few]
    return (
        f"classes of both runs must have the same names, and {' and '.join(parts)}: name with --map-classes the "
        "class of the first run that each of the second is"
    )

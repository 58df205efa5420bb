"""The rule that selects the components that a run lists as lesions."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from segpipe.contract import Contract
from segpipe.errors import SettingsError
from segpipe.process.extras import install
from segpipe.settings import Settings
from segpipe.storage.documents import shortened

INSTANCES = ".instances"
"""Text between the name of a case and the suffix of its instances."""


@dataclass(frozen=True, slots=True)
class LesionRule:
    """Which components are listed; recorded, because a run with another rule measures its cases again."""

    classes: tuple[int, ...]
    """Ids of the classes."""
    min_size: float
    """In mm3 for volumes, m2 for rasters with a place on the Earth, else in pixels."""
    instances: bool

    def as_json(self) -> dict[str, Any]:
        return {"classes": list(self.classes), "min_size": self.min_size, "instances": self.instances}


def rule_of(settings: Settings, contract: Contract) -> LesionRule | None:
    """The rule of a run; None if it measures no lesions.

    Raises:
        SettingsError: a class is not in the contract, or the library for components is not installed.
    """
    if settings.lesions is False:
        return None
    if find_spec("cc3d") is None:
        raise SettingsError(f"--lesions needs connected-components-3d, which is not installed: run {install('medical')}")
    names = () if settings.lesions is True else settings.lesions
    classes = [_class_id(contract, name) for name in names] or list(_foreground(contract))
    if not classes:
        raise SettingsError("--lesions needs a class beside the background, and the contract has none: name one")
    return LesionRule(tuple(sorted(set(classes))), float(settings.min_size), settings.instances)


def _foreground(contract: Contract) -> Iterator[int]:
    """Yield ids of all classes except the background: class 0 of exclusive classes, or a class of this name."""
    for c in contract.mask_classes:
        if c.name.strip(" _").casefold() != "background" and (c.id or contract.task == "multilabel"):
            yield c.id


def _class_id(contract: Contract, name: str) -> int:
    found = [c for c in contract.mask_classes if name in (c.name, str(c.id))]
    if len(found) > 1:
        both = " and ".join(f"{c.id} {c.name}" for c in found)
        raise SettingsError(f"--lesions must name one class each, got {shortened(name)}, which is {both}: rename one")
    if found:
        return found[0].id
    known = ", ".join(f"{c.id} {c.name}" for c in contract.mask_classes[:20])
    raise SettingsError(f"--lesions must name classes of the contract, got {shortened(name)}: its classes are {known}")

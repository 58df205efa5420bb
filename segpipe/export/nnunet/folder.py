"""The folder that nnU-Net leaves for a trained configuration: its documents and the checkpoints of its folds."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segpipe.errors import ExportError, correct_path
from segpipe.storage.documents import DocumentError, read_json
from segpipe.storage.existence import exists, is_file, is_folder

MOST_JSON = 2**26
"""Largest size of ``plans.json`` in bytes; those of nnU-Net have some tens of kB."""

FOLD = re.compile(r"fold_(all|\d{1,3})")


@dataclass(frozen=True)
class TrainedFolder:
    """A folder such as ``nnUNetTrainer__nnUNetPlans__3d_fullres``; its documents are parsed, its weights are not read."""

    path: Path
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    checkpoint_name: str

    @property
    def configuration_name(self) -> str | None:
        """The configuration in the folder's name, as ``TRAINER__PLANS__CONFIGURATION``; None if it is named otherwise."""
        parts = self.path.resolve().name.split("__")
        return parts[2] if len(parts) == 3 else None

    @property
    def trained_folds(self) -> list[str]:
        """Folds with a checkpoint, in order: numbers, then ``all``."""
        names = [match[1] for path in self.path.iterdir() if (match := FOLD.fullmatch(path.name))]
        return sorted((n for n in names if is_file(self.checkpoint(n))), key=lambda n: (n == "all", n.zfill(3)))

    def checkpoint(self, fold: str) -> Path:
        """Path of the weights of a fold."""
        return self.path / f"fold_{fold}" / self.checkpoint_name

    def chosen(self, folds: Sequence[str]) -> list[str]:
        """The folds to export: those asked for, else all numbered ones, or ``all`` if it is the only one.

        Raises:
            ExportError: a fold has no checkpoint.
        """
        trained = self.trained_folds
        numbered = [fold for fold in trained if fold != "all"]
        wanted = list(dict.fromkeys(folds)) or numbered or trained
        missing = [fold for fold in wanted if fold not in trained]
        if missing or not wanted:
            asked = f"fold {', '.join(missing)}" if missing else "any fold"
            raise ExportError(
                f"{self.path} must hold fold_N/{self.checkpoint_name} for {asked}, and has {self._has(trained)}: "
                "correct --fold or --checkpoint"
            )
        return wanted

    def _has(self, trained: Sequence[str]) -> str:
        if trained:
            return f"it for fold {', '.join(trained)}"
        others = sorted({path.name for path in self.path.glob("fold_*/*.pth")})
        return f"only {', '.join(others)}" if others else "no checkpoint"


def open_folder(path: Path, checkpoint_name: str) -> TrainedFolder:
    """Read the documents of a trained folder.

    Raises:
        ExportError: it is no such folder, or a document is missing or damaged.
    """
    if not is_folder(path):
        raise ExportError(
            f"nnU-Net's results must be a folder such as nnUNetTrainer__nnUNetPlans__3d_fullres, got {path}"
            + ("" if exists(path) else f", which does not exist: {correct_path(path)}")
        )
    return TrainedFolder(path, _document(path, "plans.json"), _document(path, "dataset.json"), checkpoint_name)


def _document(folder: Path, name: str) -> Mapping[str, Any]:
    if not exists(folder / name):
        raise ExportError(f"{folder} must hold {name}, and does not: {_inside(folder, name)}")
    try:
        content = read_json(folder / name, most=MOST_JSON)
    except DocumentError as error:
        raise ExportError(f"{folder / name} {error}: copy it again") from None
    if not isinstance(content, dict):
        raise ExportError(f"{folder / name} must be a JSON object, got {type(content).__name__}: copy it again")
    return content


def _inside(folder: Path, name: str) -> str:
    """The mend: the trained folder inside this one or around it, or where nnU-Net keeps the document."""
    around = [folder.parent] if is_file(folder.parent / name) else []
    found = [*around, *sorted(path.parent for path in folder.glob(f"*/{name}"))]
    if found:
        return f"give {' or '.join(map(str, found[:3]))}"
    return f"copy {name} from the results of nnUNetv2_train, or give the folder that holds it"

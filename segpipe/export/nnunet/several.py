"""Export several trained folders, each for a part of the classes, and list them."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from segpipe.errors import ExportError
from segpipe.export.make import Exported, Say
from segpipe.export.model_list import ListedModel, check_list, write_list
from segpipe.export.nnunet.folder import TrainedFolder, open_folder
from segpipe.export.nnunet.make import export_nnunet
from segpipe.export.nnunet.settings import NnunetSettings
from segpipe.messages.printable import counted
from segpipe.network.model_list import is_background


def export_list(each: Sequence[NnunetSettings], output: Path, say: Say) -> Iterator[Exported]:
    """Export folder after folder, and at the end the list of all; yield each file when it is verified.

    Raises:
        SegpipeError: a folder cannot be exported; files of earlier ones stay.
    """
    check_list(output, overwrite=each[0].overwrite)
    folders = [open_folder(settings.folder, settings.checkpoint) for settings in each]
    _check_classes(folders)
    entries = []
    for settings, name in zip(each, names_of(folders), strict=True):
        own = settings.model_copy(update={"output": output.with_name(f"{output.stem}-{name}.onnx")})
        made = []
        for one in export_nnunet(own, say):
            made.append(one.path)
            yield one
        entries.append(ListedModel(name, tuple(made)))
    classes = write_list(entries, output)
    say(f"{output}: {counted(len(entries), 'model')}, {counted(len(classes), 'class')}")


def names_of(folders: Sequence[TrainedFolder]) -> list[str]:
    """A name for each folder: that of its dataset, with the configuration where two are of one dataset."""
    datasets = [_dataset(folder) for folder in folders]
    names = [
        f"{name}-{folder.configuration_name}" if datasets.count(name) > 1 else name
        for folder, name in zip(folders, datasets, strict=True)
    ]
    for name in names:
        if names.count(name) > 1:
            raise ExportError(f"folders of a list must be of different trainings, and {name} is there twice: leave one out")
    return names


def _dataset(folder: TrainedFolder) -> str:
    """The dataset's name without its number: that of the plans, else that of the folder around this one.

    It is part of file names, so other characters than letters, digits, dots, dashes and underscores are replaced.
    """
    stated = folder.plans.get("dataset_name")
    name = stated if isinstance(stated, str) else folder.path.resolve().parent.name
    return re.sub(r"[^A-Za-z0-9_.-]", "_", re.sub(r"^Dataset\d+_", "", name)).lstrip("._-")[:60] or "model"


def _check_classes(folders: Sequence[TrainedFolder]) -> None:
    """Refuse classes that two folders have, before anything is exported."""
    given: dict[str, Path] = {}
    for folder in folders:
        labels = folder.dataset.get("labels")
        for name in labels if isinstance(labels, dict) else ():
            if name == "ignore" or is_background(name):
                continue
            if (other := given.setdefault(name, folder.path)) != folder.path:
                raise ExportError(
                    f'folders of a list must have different classes, and {other} and {folder.path} both have "{name}": '
                    "export each on its own, and write a list that renames it"
                )

"""Write a list of models whose label maps are joined: which files, and a table of all their classes, numbered from 1."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from segpipe.contract import Contract
from segpipe.errors import ExportError, OutputError
from segpipe.export.file import spec_of
from segpipe.network.model_list import SUFFIX, is_background
from segpipe.storage.existence import is_taken
from segpipe.storage.folder import Folder

HEAD = """\
# Models whose label maps segpipe run joins: where several claim a pixel, the last one below wins.
# classes = { "name of its own" = "other name" } under a model renames a class, and "" leaves it out.
# The table of classes then has the other name, or lacks the class. Ids may be any, and differ.
"""


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model of a list."""

    name: str
    files: tuple[Path, ...]
    """Files whose scores are averaged, or the only one."""


def check_list(output: Path, *, overwrite: bool) -> None:
    """Check that a list may be written, before models are exported for hours.

    Raises:
        OutputError: it is no ``.toml``, or exists.
    """
    if output.suffix.lower() != SUFFIX:
        raise OutputError(f"a list of models must be a {SUFFIX} file, got {output}: name it {output.with_suffix(SUFFIX)}")
    if is_taken(output) and not overwrite:
        raise OutputError(f"{output} exists: name another file with --output, or give --overwrite")


def write_list(entries: Sequence[ListedModel], output: Path) -> list[str]:
    """Write a list beside which the files may be moved; return the names of the classes in the order of their ids, from 1.

    Raises:
        ExportError: two models have a class of one name.
        ModelError, ContractError: a file is no model that segpipe can run.
    """
    contracts = [spec_of(entry.files[0]).contract for entry in entries]
    names = class_names([entry.name for entry in entries], contracts)
    Folder(output.parent).write(output.name, "".join(_lines(entries, names, output)).encode())
    return names


def class_names(titles: Sequence[str], contracts: Sequence[Contract]) -> list[str]:
    """Names of the classes of all models but the background, in order.

    Raises:
        ExportError: two models have a class of one name.
    """
    given: dict[str, str] = {}
    for title, contract in zip(titles, contracts, strict=True):
        for name in (one.name for one in contract.mask_classes if not is_background(one.name)):
            if (other := given.setdefault(name, title)) != title:
                raise ExportError(
                    f'models of a list must have different classes, and {other} and {title} both have "{name}": leave one '
                    f'model out, or write a list that renames the class, with classes = {{ "{name}" = "other name" }}'
                )
    return list(given)


def _lines(entries: Sequence[ListedModel], names: Sequence[str], output: Path) -> Iterator[str]:
    yield HEAD
    yield "classes = [\n"
    yield from (f"  {{ id = {number}, name = {_quoted(name)} }},\n" for number, name in enumerate(names, 1))
    yield "]\n"
    for entry in entries:
        files = [_quoted(_beside(file, output)) for file in entry.files]
        yield f"\n[[models]]\nname = {_quoted(entry.name)}\n"
        yield f"file = {files[0] if len(files) == 1 else '[' + ', '.join(files) + ']'}\n"


def _beside(file: Path, output: Path) -> str:
    """Path of a file as seen from the list, if it lies below the folder of the list."""
    own, folder = file.resolve(), output.parent.resolve()
    return str(own.relative_to(folder) if own.is_relative_to(folder) else own)


def _quoted(text: str) -> str:
    """A basic string of TOML, whose escapes are those of JSON."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")

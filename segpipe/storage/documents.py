"""TOML and JSON that anybody may have written: read within limits, with one kind of error."""

import json
import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from segpipe.errors import one_line

MOST_BYTES = 2**22
"""Of a document that a person or an exporter writes: a contract with 20,000 classes, each with a long name and a colour,
takes 3 MB, and tomllib some seconds for it."""

MOST_LEVELS = 64
"""Of nesting. No document of segpipe's has ten; what checks and prints values recurses, and Python allows about 1,000."""

WIDEST = 200
"""Characters of a value in a message."""

_LONG_KEY = re.compile(r"(?m)(?:^|[\[{,])[ \t]*+(?:[\w\"'-]++[ \t]*+\.[ \t]*+)" + f"{{{MOST_LEVELS}}}")
"""Dotted keys nest tables, too, for which tomllib takes time that grows with the square of their number."""


def _text(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("must be text")
    os.fsencode(value)  # raises a ValueError for halves of characters, which are no bytes of a file name either
    return value


Text = Annotated[Any, AfterValidator(_text)]
"""A field of text, which may hold bytes of a file name that are no UTF-8: pydantic's own takes none."""


class DocumentError(ValueError):
    """A document that cannot be read: what it is or must be, to stand behind its name."""


def parse_json(data: bytes | str, *, most: int | None = None) -> Any:
    """The value of a JSON text.

    Raises:
        DocumentError: it is not JSON, nested too deeply, or longer than ``most`` bytes.
    """
    _check_size(data, most)
    try:
        value = json.loads(data)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # text that is not Unicode, and numbers of thousands of digits, included
        raise DocumentError(f"is not JSON: {shortened(error)}") from None
    if _brackets(data) > MOST_LEVELS:  # few brackets cannot nest deeply; most of 100,000 records have few
        _check_levels(value)
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises:
        DocumentError: it is not TOML, nested too deeply, or longer than ``MOST_BYTES``.
    """
    _check_size(text, MOST_BYTES)
    if _LONG_KEY.search(text):
        raise _too_deep()
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise DocumentError(f"is not TOML: {shortened(error)}") from None
    _check_levels(values)
    return values


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        DocumentError: as ``parse_toml``, or it is no regular file.
        OSError: it cannot be read.
    """
    if "\0" in str(path):
        raise DocumentError("must be a path without NUL characters")
    path.stat()  # says what is wrong with a path that leads nowhere
    if not path.is_file():
        raise DocumentError(f"must be a file, and is {'a folder' if path.is_dir() else 'something else'}")
    with path.open("rb") as stream:
        data = stream.read(MOST_BYTES + 1)
    _check_size(data, MOST_BYTES)
    try:
        return parse_toml(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DocumentError(f"is not TOML, which is UTF-8: {shortened(error)}") from None


def shortened(value: object) -> str:
    """Text for a message: one line of at most ``WIDEST`` characters."""
    text = one_line(value)
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 4]} ..."


def _check_size(data: bytes | str, most: int | None) -> None:
    if most is not None and len(data) > most:
        raise DocumentError(f"must not be larger than {most / 1e6:.0f} MB, and is")


def _too_deep() -> DocumentError:
    return DocumentError(f"must not be nested in more than {MOST_LEVELS} levels, and is")


def _brackets(data: bytes | str) -> int:
    """Upper limit of the number of arrays and objects in a JSON text."""
    return data.count("[") + data.count("{") if isinstance(data, str) else data.count(b"[") + data.count(b"{")


def _check_levels(value: Any) -> None:
    """Level by level, without recursion."""
    level: list[Any] = [value]
    for _ in range(MOST_LEVELS + 1):
        if not level:
            return
        level = [inner for outer in level for inner in _within(outer)]
    raise _too_deep()


def _within(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()

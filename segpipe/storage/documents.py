"""Read TOML and JSON from untrusted sources: within limits, with one error type."""

import json
import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from segpipe.errors import correct_path, of_system, one_line
from segpipe.storage.existence import is_file, is_folder

MOST_BYTES = 2**22
"""Largest document that a person or an exporter writes, in bytes: a contract with 20,000 classes, each with a long name
and a colour, is 3 MB, and tomllib takes some seconds for it."""

MOST_LEVELS = 64
"""Deepest nesting. segpipe's own documents stay below ten; checking and printing recurse, and Python allows about 1,000."""

WIDEST = 200
"""Longest value in a message, in characters."""

_LONG_KEY = re.compile(r"(?m)(?:^|[\[{,])[ \t]*+(?:[\w\"'-]++[ \t]*+\.[ \t]*+)" + f"{{{MOST_LEVELS}}}")
"""Dotted keys also nest tables, and tomllib's time grows with the square of their number."""


def _text(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("must be text")
    os.fsencode(value)  # raises ValueError for lone surrogates that stand for no byte of a file name
    return value


Text = Annotated[Any, AfterValidator(_text)]
"""A text field that may contain undecodable bytes of file names (surrogates), which pydantic's ``str`` rejects."""


class DocumentError(ValueError):
    """A document that cannot be read; the message continues a sentence that begins with the document's name."""


def parse_json(data: bytes | str, *, most: int | None = None) -> Any:
    """Parse a JSON text.

    Raises:
        DocumentError: the text is not JSON, nested too deeply, or longer than ``most`` bytes.
    """
    check_size(data, most)
    try:
        value = json.loads(data)
    except RecursionError:
        raise too_deep() from None
    except ValueError as error:  # includes text that is not Unicode, and numbers of thousands of digits
        raise DocumentError(f"is not JSON: {shortened(error)}") from None
    if _brackets(data) > MOST_LEVELS:  # few brackets cannot nest deeply, and most records have few
        check_levels(value)
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """Parse a TOML text.

    Raises:
        DocumentError: the text is not TOML, nested too deeply, or longer than ``MOST_BYTES``.
    """
    check_size(text, MOST_BYTES)
    if _LONG_KEY.search(text):
        raise too_deep()
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise too_deep() from None
    except ValueError as error:
        raise DocumentError(f"is not TOML: {shortened(error)}: correct it there") from None
    check_levels(values)
    return values


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        DocumentError: as ``read_text`` and ``parse_toml``.
    """
    return parse_toml(read_text(path))


def read_json(path: Path, *, most: int = MOST_BYTES) -> Any:
    """Read a JSON file.

    Raises:
        DocumentError: as ``read_text`` and ``parse_json``.
    """
    return parse_json(read_text(path, most=most))


def read_text(path: Path, *, most: int = MOST_BYTES) -> str:
    """Read a UTF-8 file, without a byte order mark.

    Raises:
        DocumentError: it does not exist, is not a regular file, cannot be read, is larger than ``most`` bytes, or not UTF-8.
    """
    try:
        data = _content(path, most)
    except FileNotFoundError:
        raise DocumentError(f"must exist, and does not: {correct_path(path)}") from None
    except OSError as error:
        raise DocumentError(f"cannot be read: {of_system(error)}") from None
    check_size(data, most)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(f"must be UTF-8: {shortened(error)}: save it as UTF-8") from None


def _content(path: Path, most: int) -> bytes:
    """One byte more than ``most`` of a longer file."""
    if "\0" in str(path):
        raise DocumentError("must be a path without NUL characters")
    path.stat()  # raises a precise error for a path that does not exist
    if not is_file(path):
        raise DocumentError(f"must be a file, and is {'a folder' if is_folder(path) else 'something else'}: name the file")
    with path.open("rb") as stream:
        return stream.read(most + 1)


def shortened(value: object) -> str:
    """Text for a message: one line of at most ``WIDEST`` characters."""
    text = one_line(value)
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 4]} ..."


def check_size(data: bytes | str, most: int | None) -> None:
    """Check that a document is not longer than ``most`` bytes."""
    if most is not None and len(data) > most:
        raise DocumentError(f"must not be larger than {most / 1e6:.0f} MB, and is")


def too_deep() -> DocumentError:
    """The error of a document that is nested too deeply."""
    return DocumentError(f"must not be nested in more than {MOST_LEVELS} levels, and is")


def _brackets(data: bytes | str) -> int:
    """Upper bound of the number of arrays and objects in a JSON text."""
    return data.count("[") + data.count("{") if isinstance(data, str) else data.count(b"[") + data.count(b"{")


def check_levels(value: Any) -> None:
    """Check the nesting level by level, without recursion.

    Raises:
        DocumentError: it is deeper than ``MOST_LEVELS``.
    """
    level: list[Any] = [value]
    for _ in range(MOST_LEVELS + 1):
        if not level:
            return
        level = [inner for outer in level for inner in _within(outer)]
    raise too_deep()


def _within(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()

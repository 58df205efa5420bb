"""Make text from outside safe to print: one line, no terminal control, no secrets."""

import re
from collections.abc import Iterable, Sequence
from itertools import islice

from segpipe.messages.redaction import without_paths
from segpipe.messages.url_secrets import without_secrets

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")
"""C0, DEL and C1; bidirectional embeddings, overrides and isolates, which disguise text; line and paragraph separators."""

BREAKING = re.compile(f"{CONTROL.pattern}|[\\ud800-\\udfff]")
"""Control characters, and surrogates that stand for undecodable bytes of a name."""

ESCAPED = re.compile(r"\\(?:[tnr]|x[0-9a-f]{2}|u[0-9a-f]{4})")
"""What ``one_row`` makes of them."""


def printable(text: str) -> str:
    """Escape everything unprintable: control characters, line ends, undecodable bytes; cut secrets of URLs and hidden paths.

    >>> printable("a\\x1b[31m\\n\\udcff.tif")
    'a\\\\x1b[31m\\\\n\\\\udcff.tif'
    """
    text = without_paths(without_secrets(text, pieces=True))
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_few(names: Iterable[object], most: int = 3) -> str:
    """The first names of many for a message, with dots if there are more.

    >>> first_few(["a", "b", "c", "d"])
    'a, b, c, ...'
    """
    first = list(islice(names, most + 1))
    return ", ".join(printable(str(name)) for name in first[:most]) + ", ..." * (len(first) > most)


def counted(number: int, noun: str) -> str:
    """A number of things, for a message.

    >>> counted(1, "case"), counted(1200, "class")
    ('1 case', '1,200 classes')
    """
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def and_more(names: Sequence[str], most: int) -> str:
    """The first of many names, and how many more there are, for a message; empty without names.

    >>> and_more(["a", "b", "c", "d"], 3)
    'a, b, c and 1 more'
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def dims(sizes: Iterable[object]) -> str:
    """Sizes for a message.

    >>> dims((256, 512))
    '256 x 512'
    """
    return " x ".join(map(str, sizes))


def one_row(text: str) -> str:
    r"""Escape only what would break a line or a program that reads it; different texts stay different.

    >>> [one_row(text) for text in ("a\n\u3000b", "a\\n", "a\\b")] == ["a\\n\u3000b", "a\\\\n", "a\\b"]
    True
    """
    text = without_paths(without_secrets(text))
    if ESCAPED.search(text) or BREAKING.search(text):
        text = BREAKING.sub(lambda found: found[0].encode("unicode_escape").decode(), text.replace("\\", r"\\"))
    return text


def printable_lines(text: str) -> str:
    """Apply ``printable`` to each line of a text."""
    return "\n".join(map(printable, text.split("\n")))


def printable_json(text: str) -> str:
    """Equivalent JSON without control characters other than line ends."""
    return CONTROL.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)

"""Text from outside, as one line that does nothing to a terminal and gives access to nothing."""

import re

from segpipe.messages.redact import without_secrets

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")
"""C0, DEL and C1; embeddings, overrides and isolates, which show another text; ends of lines and paragraphs."""

BREAKING = re.compile(f"{CONTROL.pattern}|[\\ud800-\\udfff]")
"""These, and what stands for bytes of a name that are no text."""


def printable(text: str) -> str:
    """The same text with everything escaped that is not to be seen: control characters, line ends, bytes that are no text.

    Secrets of URLs are cut.

    >>> printable("a\\x1b[31m\\n\\udcff.tif")
    'a\\\\x1b[31m\\\\n\\\\udcff.tif'
    """
    text = without_secrets(text, pieces=True)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_row(text: str) -> str:
    """The same name with what would break a line or a program that reads it escaped, and nothing else.

    >>> one_row("a\\n\\u3000b")
    'a\\\\n\\u3000b'
    """
    return BREAKING.sub(lambda found: found[0].encode("unicode_escape").decode(), without_secrets(text))


def printable_lines(text: str) -> str:
    """The same of a text whose lines stay."""
    return "\n".join(map(printable, text.split("\n")))


def printable_json(text: str) -> str:
    """JSON that says the same with no control character but the ends of its lines."""
    return CONTROL.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)

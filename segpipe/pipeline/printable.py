"""Text from outside, as one line that does nothing to a terminal."""


def printable(text: str) -> str:
    """The same text with everything escaped that is not to be seen: control characters, line ends, bytes that are no text.

    >>> printable("a\\x1b[31m\\n\\udcff.tif")
    'a\\\\x1b[31m\\\\n\\\\udcff.tif'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

"""Parse the XML of a product, which is not trusted: no document type, so no entities; of bounded size."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator

from segpipe.errors import SourceError
from segpipe.formats.scenes.names import MEND


class _Tree(ET.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        del pubid, system
        raise ET.ParseError(f"a document type, {name}, which may declare entities, is not read")


def parsed(place: str, data: bytes) -> ET.Element:
    """The root of an XML document from outside, which must not declare a document type.

    Args:
        place: where it lies, for messages.
        data: all of it, of bounded size.

    Raises:
        SourceError: it is not well formed, or declares a document type.
    """
    try:
        return ET.fromstring(data, ET.XMLParser(target=_Tree()))
    except (ET.ParseError, ValueError, LookupError) as error:
        raise SourceError(f"{place} must be well-formed XML without a document type: {error}: {MEND}") from error


def elements(root: ET.Element, name: str) -> Iterator[ET.Element]:
    """Yield the elements of a name, whatever their namespace."""
    for element in root.iter():
        if element.tag.rpartition("}")[2] == name:
            yield element


def text_of(root: ET.Element, *names: str) -> str | None:
    """Text of the first element of the first of several names that exists; None if there is none."""
    found = (element.text for name in names for element in elements(root, name))
    return next((text.strip() for text in found if text and text.strip()), None)


def number(place: str, what: str, text: str | None) -> float:
    """A finite number in metadata.

    Raises:
        SourceError: the text is none.
    """
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SourceError(f"{place}: {what} must be a number, got {(text or '')[:40]!r}: {MEND}")
    return value

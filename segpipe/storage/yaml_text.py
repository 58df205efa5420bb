"""Read YAML from untrusted sources: plain values, within limits."""

from pathlib import Path
from typing import Any

import yaml

from segpipe.storage.documents import DocumentError, check_levels, check_size, read_text, shortened, too_deep

MOST_BYTES = 2**20
"""Largest text. Descriptions of models take some 10 kB, and PyYAML some seconds for 1 MB."""

MOST_ALIASES = 100
"""Most values that are repeated by an alias: each repeats what its anchor holds."""


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc] # yaml has no annotations
    """Builds plain values only. Aliases inside of anchors, by which a short text grows without end, are refused."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._anchors = self._aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            self._aliases += 1
            if self._anchors or self._aliases > MOST_ALIASES:
                raise DocumentError(
                    f"must not repeat repeated values, or more than {MOST_ALIASES}, by an alias, and does in line "
                    f"{event.start_mark.line + 1}: write the value out"
                )
            return super().compose_node(parent, index)
        anchored = event.anchor is not None
        self._anchors += anchored
        node = super().compose_node(parent, index)
        self._anchors -= anchored
        return node


def read_yaml(path: Path) -> Any:
    """Read a YAML file of one document.

    Raises:
        DocumentError: as ``read_text`` and ``parse_yaml``.
    """
    return parse_yaml(read_text(path, most=MOST_BYTES))


def parse_yaml(text: str) -> Any:
    """Parse a YAML text of one document.

    Raises:
        DocumentError: the text is not YAML of plain values, nested too deeply, or longer than ``MOST_BYTES``.
    """
    check_size(text, MOST_BYTES)
    try:
        value = yaml.load(text, _PlainLoader)
    except DocumentError:
        raise
    except RecursionError:
        raise too_deep() from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        raise DocumentError(f"is not YAML: {shortened(error)}") from None
    check_levels(value)
    return value

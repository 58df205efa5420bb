"""Scene metadata in the record of a case."""

import re

from segpipe.formats.source import Scene

BRIEF = re.compile(r"date|time|satellite|platform|spacecraft|constellation|sensor|instrument|mission|cloud", re.IGNORECASE)
MOST_BRIEF, BRIEF_CHARACTERS = 12, 100


def brief(scene: Scene) -> dict[str, str]:
    """The scene metadata that a record holds: acquisition time and sensor."""
    tags = {key: value for domain in scene.values() for key, value in domain.items()}
    short = {key: value for key, value in sorted(tags.items()) if BRIEF.search(key) and len(value) <= BRIEF_CHARACTERS}
    return dict(list(short.items())[:MOST_BRIEF])

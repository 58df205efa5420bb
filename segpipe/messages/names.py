"""Find values by names that people write, in another case or Unicode form, if that is unambiguous."""

import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Names:
    """Values by name."""

    _exact: Mapping[str, int]
    _folded: Mapping[str, int]

    @classmethod
    def of(cls, values: Mapping[str, int], others: Mapping[Any, int] | None = None) -> "Names":
        """Values by name, and by others, such as ids, which count where they are no names."""
        more = {str(name): value for name, value in (others or {}).items()}
        exact = {**values, **{name: value for name, value in more.items() if name not in values}}
        return cls(exact, {name: exact[one] for name, one in _clear(exact).items()})

    def find(self, text: str) -> int | None:
        """The value of a name; None if there is no such name, or if several differ from it in case alone."""
        text = text.strip()
        return self._exact[text] if text in self._exact else self._folded.get(folded(text))

    def __iter__(self) -> Iterator[str]:
        return iter(self._exact)


def folded(name: str) -> str:
    """The same for names that differ in case, or in composed and decomposed letters, as those of macOS do."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name.strip()).casefold())


def _clear(names: Iterable[str]) -> dict[str, str]:
    """The name for each folded name that only one has."""
    found = dict[str, list[str]]()
    for name in names:
        found.setdefault(folded(name), []).append(name)
    return {one: own[0] for one, own in found.items() if len(own) == 1}

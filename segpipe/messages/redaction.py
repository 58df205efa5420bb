"""Hide names of inputs in text for people and for files: folders and files may be named after patients."""

import hashlib
import html
import json
import os
import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from unicodedata import normalize
from urllib.parse import quote

DIGITS = 12
"""Digits of the SHA-256 that stands for a path or a name."""

HIDDEN = re.compile(rf"\[(?:path|name) ([0-9a-f]{{{DIGITS}}})\]")
"""Text that stands for a path, or for the name of a file or folder without its place."""

COMMON = frozenset(
    re.findall(
        r"\w+",
        """
        area areas axial box case cases channel channels class classes coronal data dicom dicoms done error failed file files
        folder folders image images img imgs input inputs label labels lesion lesions mask masks model name none note output
        part parts path pixel pixels problem read sagittal scan scans series size skipped slice slices study test time value
        values volume volumes voxel voxels warning with world
        """,
    )
)
"""Words of messages, and usual names of folders, that name nobody."""

SPELLINGS: tuple[Callable[[str], str], ...] = (
    lambda text: repr(text)[1:-1],
    quote,
    partial(html.escape, quote=False),
    lambda text: json.dumps(text)[1:-1],
    lambda text: normalize("NFC", text),
    lambda text: normalize("NFD", text),
)
"""How libraries spell a name besides as it is: in quotes, in URLs, in XML, in JSON, and with other forms of accents."""

SEPARATOR = re.compile(r"(?:/|\\/|%2[Ff])+")
TOKEN = re.compile(r"[^\s'\"<>`|,;()\[\]]*")
ENDS = ".,:;!?"


def digest(text: str) -> str:
    """The digits that stand for a path or a name: the same in each run; a guess of the text can be confirmed."""
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:DIGITS]


def path_digest(path: str) -> str:
    """The digits that stand for a path, which is made absolute first; a URL is taken as it is."""
    return digest(path if "://" in path else os.path.abspath(path))  # noqa: PTH100


def spellings(text: str) -> set[str]:
    """A text and its other spellings."""
    return {text, *(spell(text) for spell in SPELLINGS)} if not text.isascii() or not text.isalnum() else {text}


@dataclass(frozen=True)
class HiddenNames:
    """Names of many files, as sorted hashes: a million names would take more memory than all else known about a run."""

    hashes: "array[int]" = field(default_factory=lambda: array("q"))
    lengths: tuple[int, ...] = ()
    """Of all names, the largest first."""

    @classmethod
    def of(cls, names: Iterable[str]) -> "HiddenNames":
        """Names that could name a person, in all spellings."""
        hashes, lengths = set[int](), set[int]()
        for name in names:
            for one in spellings(name) if _is_telling(name) else ():
                hashes.add(hash(one))
                lengths.add(len(one))
        return cls(array("q", sorted(hashes)), tuple(sorted(lengths, reverse=True)))

    def __or__(self, other: "HiddenNames") -> "HiddenNames":
        lengths = sorted({*self.lengths, *other.lengths}, reverse=True)
        return HiddenNames(array("q", sorted({*self.hashes, *other.hashes})), tuple(lengths))

    def __contains__(self, name: object) -> bool:
        number = hash(name)
        at = bisect_left(self.hashes, number)
        return at < len(self.hashes) and self.hashes[at] == number

    def longest(self, text: str, start: int) -> int:
        """End of the longest name that begins at ``start`` and ends with a word; ``start`` if there is none."""
        for length in self.lengths:
            end = start + length
            if end <= len(text) and _ends_word(text, end) and text[start:end] in self:
                return end
        return start


def _is_telling(name: str) -> bool:
    """Whether a name without its place is hidden: others would hide the words and numbers of messages."""
    digits = sum(map(str.isdigit, name))
    return name.casefold() not in COMMON and (digits >= 5 or len(name) - digits >= 3)


def _ends_word(text: str, end: int) -> bool:
    return end == len(text) or not (text[end].isalnum() and text[end - 1].isalnum())


def _begins_word(text: str, start: int) -> bool:
    return start == 0 or not (text[start].isalnum() and text[start - 1].isalnum())


class Redactor:
    """Puts hashes in place of paths below the inputs of a run, and of the names of its files."""

    def __init__(self, roots: tuple[str, ...], keep: Iterable[str] = (), names: Iterable[str] = ()) -> None:
        """Args:
        roots: inputs as the user gave them: folders, files, globs, URLs.
        keep: paths that are no inputs, although they may lie below one, such as the output.
        names: names of files and folders, and of cases, which messages may have without their place.
        """
        self._roots = _table(roots, os.getcwd(), state_of("."))  # noqa: PTH109
        self._lengths = sorted({len(root) for root in self._roots}, reverse=True)
        self._keep = sorted({form for path in keep for form, _ in _forms(path)}, key=len, reverse=True)
        self.names = HiddenNames.of(names)

    def message(self, text: str) -> str:
        """A message without paths below the inputs and without names of their files."""
        return self._without_names(self.paths(text))

    def paths(self, text: str) -> str:
        """A text without paths below the inputs."""
        if len(self._roots) <= FEW and not any(root in text for root in self._roots):
            return text
        found, at, done = [], 0, 0
        while at < len(text):
            end, hidden = self._hidden(text, at)
            if end > at:
                found += [text[done:at], hidden]
                at = done = end
            else:
                at += 1
        return "".join([*found, text[done:]]) if found else text

    def _hidden(self, text: str, at: int) -> tuple[int, str]:
        """End of the path that begins at ``at``, and what stands for it; ``at`` if none begins there."""
        if not (_begins_word(text, at) or text[at] == "/") or (at and text[at - 1] in "/-_." and text[at] != "/"):
            return at, ""
        for length in self._lengths:
            root, end = text[at : at + length], at + length
            place = self._roots.get(root)
            if place is None or len(root) < length or not self._ends_root(text, at, end):
                continue
            if (past := self._past(text, at)) >= end:
                return past, text[at:past]
            end, place = self._walk(text, end, place)
            return end, f"[path {path_digest(place)}]"
        return at, ""

    def _ends_root(self, text: str, at: int, end: int) -> bool:
        """Whether a root ends here: before a separator, or as a whole if it is not a usual word."""
        if SEPARATOR.match(text, end) or (at == 0 and end == len(text)):
            return True
        root = text[at:end]
        return root.endswith("/") or (_ends_path(text, end) and ("/" in root or _is_telling(root)))

    def _walk(self, text: str, end: int, place: str) -> tuple[int, str]:
        """Follow a path below a folder, name by name, as far as the text goes."""
        while True:
            between = SEPARATOR.match(text, end)
            after = between.end() if between else end
            if between is None and not (end and text[end - 1] == "/"):
                return end, place
            stop, name = self._entry(text, after, place)
            if stop == after:
                return (end if between is None else after), place
            end, place = stop, os.path.join(place, name)  # noqa: PTH118

    def _entry(self, text: str, at: int, folder: str) -> tuple[int, str]:
        """End and name of the entry of a folder that the text names at ``at``; an unknown name ends with its word."""
        there = _entries(folder)
        best = max(
            (name for name in there if text.startswith(name, at) and _ends_word(text, at + len(name))), key=len, default=""
        )
        if best:
            return at + len(best), best
        for name in there if len(there) <= MOST_SPELLED else ():
            for one in spellings(name):
                if text.startswith(one, at) and _ends_word(text, at + len(one)):
                    return at + len(one), name
        end = max(self.names.longest(text, at), at + _cut(text, at, there))
        token = TOKEN.match(text, at)
        word = at + len(token[0].rstrip(ENDS)) if token else at
        return max(end, word), text[at : max(end, word)]

    def _past(self, text: str, at: int) -> int:
        """End of what begins at ``at`` and has no names: a hash, or a path that is no input; 0 if neither does."""
        if hidden := HIDDEN.match(text, at):
            return hidden.end()
        return next(
            (at + len(path) for path in self._keep if text.startswith(path, at) and _ends_path(text, at + len(path))), 0
        )

    def _without_names(self, text: str) -> str:
        if not self.names.lengths:
            return text
        found, at, done = [], 0, 0
        while at < len(text):
            if past := self._past(text, at):
                at = past
                continue
            end = self.names.longest(text, at) if _begins_word(text, at) else at
            if end > at:
                found += [text[done:at], f"[name {digest(text[at:end])}]"]
                at = done = end
            else:
                at += 1
        return "".join([*found, text[done:]]) if found else text


FEW = 64
"""Roots up to which a search for each is faster than a look at each place of a text."""

MOST_SPELLED = 20_000
"""Entries of a folder up to which other spellings of their names are tried."""


def _ends_path(text: str, end: int) -> bool:
    return _ends_word(text, end) and not re.match(r"[-_^]|\.\w", text[end : end + 2])


def _entries(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - only names are needed
    except (OSError, ValueError):
        return []


def _cut(text: str, at: int, names: list[str]) -> int:
    """Length of the longest beginning of a name that a text has at ``at``: messages of libraries are cut."""
    common = (len(os.path.commonprefix([name, text[at : at + len(name)]])) for name in names)  # noqa: RUF071
    longest = max(common, default=0)
    return longest if longest >= LEAST_CUT else 0


LEAST_CUT = 4
"""Least number of characters that a name and a text must have in common."""


def state_of(path: str) -> tuple[int, int] | None:
    """Time of the last change in nanoseconds, and size in bytes; None where there is no file or folder of the path."""
    try:
        found = os.stat(path)  # noqa: PTH116 - also a URL or a pattern
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size


@lru_cache(4)
def _table(roots: tuple[str, ...], folder: str, state: object) -> dict[str, str]:
    """The texts by which roots are named in the current folder, whose entries they may be, and their paths."""
    del folder, state
    table: dict[str, str] = {}
    for root in roots:
        for text, place in _forms(root):
            for one in spellings(text):
                table.setdefault(one, place)
    return table


def _forms(path: str) -> Iterator[tuple[str, str]]:
    """The texts by which a path is named, and the path to which each leads."""
    if "://" in path or path.startswith("/vsi"):
        plain = path.split("?", maxsplit=1)[0].rstrip("/") if "://" in path else path.rstrip("/")
        yield from ((text, plain) for text in {path, path.rstrip("/"), plain, *_of_gdal(plain)})
        return
    whole, real = os.path.abspath(path), os.path.realpath(path)  # noqa: PTH100
    plain = os.path.normpath(path)
    if plain == ".":
        yield from ((name, os.path.join(whole, name)) for name in _entries(whole))  # noqa: PTH118
    for text, place in ((path, whole), (path.rstrip("/"), whole), (plain, whole), (whole, whole), (real, real)):
        if text and text not in (".", "./"):
            yield text, place
            yield f"./{text}", place


def _of_gdal(url: str) -> Iterator[str]:
    scheme, _, rest = url.partition("://")
    kinds = {"s3": "vsis3", "gs": "vsigs", "az": "vsiaz"}
    if scheme in kinds:
        yield f"/{kinds[scheme]}/{rest}"
        yield rest
    if scheme in ("http", "https"):
        yield f"/vsicurl/{url}"


_REDACTORS: list[Redactor] = []
"""The redactors of the runs of this process."""


def redact_also(names: Iterable[str]) -> None:
    """Hide these names in messages of the runs of this process from now on."""
    found = HiddenNames.of(names)
    for redactor in _REDACTORS:
        redactor.names |= found


def is_redacting() -> bool:
    """Whether a run of this process hides the names of its inputs."""
    return bool(_REDACTORS)


def without_paths(text: str) -> str:
    """A text without the paths that the runs of this process hide."""
    for redactor in tuple(_REDACTORS):
        text = redactor.paths(text)
    return text


def without_names(text: str) -> str:
    """A message without the paths and names that the runs of this process hide."""
    for redactor in tuple(_REDACTORS):
        text = redactor.message(text)
    return text


def without_quotes(text: str) -> str:
    """The message of a library without its quotations, which may be values of a patient.

    >>> without_quotes("could not convert string to float: 'DOE^JOHN'")
    "could not convert string to float: '...'"
    """
    return re.sub(r"(?<!\w)(['\"`]).*(?:\1|$)", r"\1...\1", text)


@contextmanager
def redacting(redactor: Redactor | None) -> Iterator[None]:
    """Hide names of inputs while the block runs, in all threads of the process."""
    if redactor is None:
        yield
        return
    _REDACTORS.append(redactor)
    try:
        yield
    finally:
        _REDACTORS.remove(redactor)

"""URLs on their way to whoever reads what is written: without what gives access to them."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import unquote

T = TypeVar("T")

URL = re.compile(r"(?P<scheme>(?:https?|ftp)://)(?P<rest>(?:[^\s/@?]*@)?[^\s'\"<>`]*)", re.IGNORECASE)
"""In which a query may give access, and so may what stands before the host."""

ENCODED = re.compile(r"/vsicurl(?:_streaming)?\?[^\s'\"<>`]*", re.IGNORECASE)
"""GDAL's other form of a URL, which has its own in the query, per cent encoded."""

CUT, CUT_USER = "?...", "...@"
"""What stands for a query, and for name and password."""

TOKEN = re.compile(
    r"x-(amz|goog|oss|ms|cos|obs)-.*|awsaccesskeyid|ossaccesskeyid|googleaccessid|signature|sig|key-pair-id"
    r"|.*(token|secret|passw|credential|api.?key).*|o?auth([_-]?key)?|authorization|jwt|hmac|hdn\w*",
    re.IGNORECASE,
)
"""Parameters that say who asks; all others say which object is asked for."""

SIGNATURE = re.compile(r"sig|signature", re.IGNORECASE)

SIGNED = re.compile(
    r"expires?|policy|s[evrptks]|spr|sip|srt|sdd|ses|sk(oid|tid|t|e|s|v)|s(aoid|uoid|cid)|st",
    re.IGNORECASE,
)
"""Parameters that, beside a signature, say for how long and for what it holds; alone, they may mean anything."""

LOOSE = re.compile(
    r"(?P<key>(?<![\w/.,-])(?:sig|signature|x-(?:amz|goog|oss)-(?:signature|credential|security-token)|(?:access_)?token|api_?key|password)"
    r"(?:=|%3D))[^&\s'\"<>]+",
    re.IGNORECASE,
)
"""Secrets in a piece of a URL, such as the line of a request; no part of a file name, such as ``/sig=2/a.tif``."""

ENDS = ".,:;)]}!?"
"""What ends a sentence rather than a URL."""


def without_secrets(text: str, *, pieces: bool = False) -> str:
    """A text whose URLs have no query, user and password.

    Args:
        text: any.
        pieces: whether secrets go in pieces of URLs, too: for words of libraries, and for no text that is read back.

    Where a query says which object is meant, a digest of that stands for it, so that two objects stay apart; one object
    has the same text whatever token gives access to it.

    >>> without_secrets("https://me:pw@host/a.tif?sig=abc&se=2026 is damaged")
    'https://...@host/a.tif?... is damaged'
    """
    if "://" not in text and "vsicurl" not in text and "=" not in text and "%3" not in text:
        return text
    text = ENCODED.sub(lambda found: _encoded(found[0]), text)
    text = URL.sub(_cut, text)
    return LOOSE.sub(lambda found: f"{found['key']}...", text) if pieces else text


def _encoded(text: str) -> str:
    options = text.partition("?")[2].split("&")
    url = next((unquote(option[4:]) for option in options if option.lower().startswith("url=")), "")
    return f"/vsicurl/{url}"


def _cut(found: re.Match[str]) -> str:
    rest = found["rest"].rstrip(ENDS)
    end = found["rest"][len(rest) :]
    place, _, query = rest.partition("?")
    host, slash, path = place.partition("/")
    _, at, host = host.rpartition("@")
    return f"{found['scheme']}{CUT_USER * bool(at)}{host}{slash}{path.partition('#')[0]}{_marked(query)}{end}"


def _marked(query: str) -> str:
    if not query:
        return ""
    parameters = [part for part in query.partition("#")[0].split("&") if part.strip()]
    names = [unquote(part.partition("=")[0]) for part in parameters]
    signed = any(map(SIGNATURE.fullmatch, names))
    told = sorted(
        part
        for part, name in zip(parameters, names, strict=True)
        if not (TOKEN.fullmatch(name) or (signed and SIGNED.fullmatch(name)))
    )
    if query == CUT[1:] or re.fullmatch(r"\.\.\.[0-9a-f]{12}", query):
        return f"?{query}"  # cut already
    return CUT + hashlib.sha256("&".join(told).encode(errors="surrogateescape")).hexdigest()[:12] if told else CUT


def is_cut(name: str) -> bool:
    """Whether a name has lost what it takes to be asked for."""
    return "://" in name and (CUT in name or f"://{CUT_USER}" in name)


def cleaned(value: T) -> T:
    """Values for JSON without secrets in any of their texts, keys included."""
    result: Any = value
    if isinstance(value, str):
        result = without_secrets(value)
    elif isinstance(value, Mapping):
        result = {cleaned(key): cleaned(item) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        result = [cleaned(item) for item in value]
    return result  # type: ignore[no-any-return]

"""Remove secrets from URLs in text for people."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import unquote

from segpipe.messages.redaction import without_paths

T = TypeVar("T")

URL = re.compile(r"(?P<scheme>(?:https?|ftp)://)(?P<rest>(?:[^\s/@?]*@)?[^\s'\"<>`]*)", re.IGNORECASE)
"""A URL, whose query and user information may contain secrets."""

ENCODED = re.compile(r"/vsicurl(?:_streaming)?\?[^\s'\"<>`]*", re.IGNORECASE)
"""GDAL's other form of a URL, percent-encoded in a query."""

CUT, CUT_USER = "?...", "...@"
"""Replacements for a query, and for user name and password."""

TOKEN = re.compile(
    r"x-(amz|goog|oss|ms|cos|obs)-.*|awsaccesskeyid|ossaccesskeyid|googleaccessid|signature|sig|key-pair-id"
    r"|.*(token|secret|passw|credential|api.?key).*|o?auth([_-]?key)?|authorization|jwt|hmac|hdn\w*",
    re.IGNORECASE,
)
"""Parameters that identify the requester; all others identify the object."""

SIGNATURE = re.compile(r"sig|signature", re.IGNORECASE)

SIGNED = re.compile(
    r"expires?|policy|s[evrptks]|spr|sip|srt|sdd|ses|sk(oid|tid|t|e|s|v)|s(aoid|uoid|cid)|st",
    re.IGNORECASE,
)
"""Parameters that limit the duration and scope of a signature; without a signature, they may mean anything."""

LOOSE = re.compile(
    r"(?P<key>(?<![\w/.,-])(?:sig|signature|x-(?:amz|goog|oss)-(?:signature|credential|security-token)|(?:access_)?token|api_?key|password)"
    r"(?:=|%3D))[^&\s'\"<>]+",
    re.IGNORECASE,
)
"""Secrets in a fragment of a URL, such as a request line; not in a file name, such as ``/sig=2/a.tif``."""

ENDS = ".,:;)]}!?"
"""Characters that end a sentence rather than a URL."""


def without_secrets(text: str, *, pieces: bool = False) -> str:
    """Text with URLs that have no query, user or password.

    Args:
        text: any text.
        pieces: also remove secrets in fragments of URLs: for messages of libraries, not for text that is read back.

    Where a query identifies the object, a digest replaces it, so that different objects stay distinct, and one object has
    the same text with any token.

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
    kept = sorted(
        part
        for part, name in zip(parameters, names, strict=True)
        if not (TOKEN.fullmatch(name) or (signed and SIGNED.fullmatch(name)))
    )
    if query == CUT[1:] or re.fullmatch(r"\.\.\.[0-9a-f]{12}", query):
        return f"?{query}"  # already cut
    return CUT + hashlib.sha256("&".join(kept).encode(errors="surrogateescape")).hexdigest()[:12] if kept else CUT


def is_redacted(name: str) -> bool:
    """Whether a name has lost its query or credentials, without which it cannot be requested."""
    return "://" in name and (CUT in name or f"://{CUT_USER}" in name)


def cleaned(value: T) -> T:
    """Remove secrets, and paths that a run hides, from all texts in a JSON value, keys included."""
    result: Any = value
    if isinstance(value, str):
        result = without_paths(without_secrets(value))
    elif isinstance(value, Mapping):
        result = {cleaned(key): cleaned(item) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        result = [cleaned(item) for item in value]
    return result  # type: ignore[no-any-return]

"""Check whether a URL is well formed, without contacting a server."""

from urllib.parse import urlsplit

from segpipe.storage.paths import SCHEME, canonical
from segpipe.storage.web import plain_url

HOSTS = {"http": "host", "https": "host", "ftp": "host", "s3": "bucket", "gs": "bucket", "oss": "bucket", "az": "container"}
"""Meaning of the first part of a URL, by scheme."""

ARCHIVES = frozenset({"zip", "tar", "gzip"})
"""Schemes that may precede another one, as in ``zip+s3://``."""

KNOWN = frozenset({*HOSTS, *ARCHIVES, "file", "vrt"})


def malformed(path: str) -> str | None:
    """Why a text cannot name a file; None for well-formed URLs, plain paths and GDAL's own paths."""
    url = plain_url(canonical(path))
    scheme, mark, _ = url.partition("://")
    if not mark or url.startswith("/vsi"):
        return None
    try:
        url.encode()
    except UnicodeEncodeError:
        return f"a URL must be UTF-8, got {path!r}: write its other bytes as in %FF"
    *archives, scheme = scheme.lower().split("+")
    if scheme not in KNOWN or not ARCHIVES.issuperset(archives):
        return f"a URL must begin with one of {', '.join(sorted(KNOWN - {'vrt'}))} and ://, got {path}"
    if scheme in HOSTS and not archives and not _host(url):
        example = f"{SCHEME}bucket/scenes/" if scheme == "s3" else f"{scheme}://{HOSTS[scheme]}/a.tif"
        return f"a URL must name a {HOSTS[scheme]}, as {example} does, got {path}"
    return None


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError:  # such as brackets around no address
        return ""

"""State of a file on a web server: size and time of change; what speaks HTTP is imported for the first URL."""

import base64
import errno
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from urllib.request import OpenerDirector

SCHEMES = ("http://", "https://")
GDAL_SCHEME = "/vsicurl/"

SECONDS = 20.0


def on_web(path: str) -> bool:
    """Whether a path names a file that GDAL reads by HTTP."""
    return plain_url(path).startswith(SCHEMES)


def plain_url(path: str) -> str:
    """The URL of a file, with or without GDAL's prefix."""
    return path.removeprefix(GDAL_SCHEME) if path.startswith(tuple(GDAL_SCHEME + scheme for scheme in SCHEMES)) else path


def state_of(path: str) -> dict[str, Any]:
    """Size and time of change of a file, or its ETag where there is no time; empty where the server gives neither.

    The request asks for one byte, because a signed URL is often valid for GET only.

    Raises:
        OSError: the server cannot be reached at present.
    """
    import urllib.error
    import urllib.request
    from http.client import HTTPException
    from ssl import SSLError

    try:
        url, user = _asked(plain_url(path))
        request = urllib.request.Request(url, headers={"Range": "bytes=0-0", "Accept-Encoding": "identity"} | user)
        with _opener().open(request, timeout=SECONDS) as answer:
            return _state(answer.headers, ranged=answer.status == 206)
    except urllib.error.HTTPError as error:
        if error.code == 429 or error.code >= 500:
            raise OSError(errno.EAGAIN, f"HTTP {error.code}", path) from error
        return {}  # such as a server that asks for a password, which GDAL may know
    except urllib.error.URLError as error:
        if isinstance(error.reason, SSLError):
            return {}
        raise OSError(errno.ECONNRESET, str(error.reason), path) from error
    except OSError as error:
        raise OSError(errno.ETIMEDOUT, str(error), path) from error
    except (HTTPException, ValueError):
        return {}  # a URL or an answer that Python cannot parse, but perhaps GDAL


def _asked(url: str) -> tuple[str, dict[str, str]]:
    """Split a URL into the URL without credentials and a header with them: Python would take the password for a port."""
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    user, at, host = place.rpartition("@")
    header = {"Authorization": f"Basic {base64.b64encode(unquote(user).encode()).decode()}"} if at else {}
    return f"{scheme}://{host}{slash}{path}", header


def _opener() -> "OpenerDirector":
    from urllib.request import ProxyHandler, build_opener

    proxy = os.environ.get("GDAL_HTTP_PROXY")
    own = {scheme: f"http://{proxy.rpartition('://')[2]}" for scheme in ("http", "https")} if proxy else None
    return build_opener(ProxyHandler(own))


def _state(headers: Mapping[str, str], *, ranged: bool) -> dict[str, Any]:
    """State from headers. Servers behind one name may each have their own ETags, but share the file's time: time first."""
    size = headers.get("Content-Range", "").rpartition("/")[2] if ranged else headers.get("Content-Length", "")
    known: dict[str, Any] = {"size": int(size)} if size.isdigit() else {}
    for key, header in (("modified", "Last-Modified"), ("etag", "ETag")):
        if value := headers.get(header):
            return known | {key: value}
    return {}

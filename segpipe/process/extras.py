"""Optional dependencies: the command that installs an extra, from the same origin as segpipe."""

import json
from importlib.metadata import Distribution, distributions
from typing import Any
from urllib.parse import unquote, urlsplit


def install(extra: str) -> str:
    """Command that adds an extra to this installation: from the checkout, the repository, or the package index."""
    # the .egg-info of a checkout that Python runs in does not tell where segpipe was installed from
    installed = next((found for found in distributions(name="segpipe") if found.read_text("METADATA")), None)
    if installed is None:
        return f"pip install '.[{extra}]' in the checkout of segpipe"
    return _command(extra, _origin(installed))


def _origin(installed: Distribution) -> dict[str, Any]:
    """Origin that pip recorded for an installation from outside an index (PEP 610)."""
    found: dict[str, Any] = json.loads(installed.read_text("direct_url.json") or "{}")
    return found


def _command(extra: str, origin: dict[str, Any]) -> str:
    """The command that installs an extra from where segpipe was installed.

    >>> _command("s3", {})
    "pip install 'segpipe[s3]'"
    >>> _command("s3", {"url": "file:///home/a%20b/segpipe", "dir_info": {"editable": True}})
    "pip install -e '/home/a b/segpipe[s3]'"
    >>> _command("s3", {"url": "https://host/segpipe.git", "vcs_info": {"vcs": "git", "commit_id": "0a1b"}})
    "pip install 'segpipe[s3] @ git+https://host/segpipe.git@0a1b'"
    """
    url = origin.get("url")
    if not url:
        return f"pip install 'segpipe[{extra}]'"
    if "dir_info" in origin:
        editable = "-e " if origin["dir_info"].get("editable") else ""
        return f"pip install {editable}'{unquote(urlsplit(url).path)}[{extra}]'"
    vcs = origin.get("vcs_info")
    source = f"{vcs['vcs']}+{url}@{vcs['commit_id']}" if vcs else url
    return f"pip install 'segpipe[{extra}] @ {source}'"

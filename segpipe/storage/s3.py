"""Objects of S3-compatible storage: the client, its faults as ``OSError``, and objects as input."""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from segpipe.errors import InputError, SettingsError
from segpipe.process.extras import install
from segpipe.storage.paths import SCHEME, canonical

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

ATTEMPTS = 5
"""Attempts per request, by boto3, with waits of up to 1, 2, 4 and 8 s."""

NOT_IMPLEMENTED = 501
"""HTTP status of a server that does not know a request: no later one helps."""

GONE = ("404", "NoSuchKey", "NoSuchBucket", "NotFound")
DENIED = ("403", "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch")
SLOW = ("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestTimeout", "InternalError")
"""Codes of faults: there is no such object, it is not allowed, and try again later."""


def bucket_and_key(path: str) -> tuple[str, str]:
    """Split a path into bucket and key."""
    bucket, _, key = canonical(path).removeprefix(SCHEME).partition("/")
    return bucket, key


def client() -> Any:
    """The client shared by all threads of the process; boto3 finds credentials and endpoint as usual."""
    return _client_of(endpoint())


@cache
def _client_of(server: str | None) -> Any:
    try:
        from boto3 import client as make_client  # import a name: the bare module exists before it has finished loading
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ModuleNotFoundError:
        raise SettingsError(f"s3:// needs boto3, which is not installed: {install('s3')}") from None
    options: dict[str, Any] = {"retries": {"mode": "standard", "total_max_attempts": ATTEMPTS}, "connect_timeout": 10}
    if os.environ.get("AWS_NO_SIGN_REQUEST", "NO").upper() in ("YES", "TRUE", "1"):  # the values that GDAL accepts
        options["signature_version"] = UNSIGNED
    if server is not None:  # as for GDAL: most self-hosted servers have no host names for buckets
        options["s3"] = {"addressing_style": "path"}
    region = os.environ.get("AWS_REGION")
    try:
        return make_client("s3", config=Config(**options), region_name=region, endpoint_url=server)
    except (BotoCoreError, ValueError) as error:  # a missing profile, or an endpoint that is not a URL
        raise SettingsError(f"s3:// cannot be reached with the settings of the AWS tools: {_line(error)}") from None


def endpoint() -> str | None:
    """URL of the S3 server; None for Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def gdal_endpoint() -> dict[str, str]:
    """GDAL options for boto3's endpoint, without those already set in the environment."""
    url = endpoint()
    if url is None:
        return {}
    scheme, _, host = url.rpartition("://")
    options = {
        "AWS_S3_ENDPOINT": host.rstrip("/"),
        "AWS_HTTPS": "NO" if scheme == "http" else "YES",
        "AWS_VIRTUAL_HOSTING": "NO",
    }
    return {key: value for key, value in options.items() if key not in os.environ}


@contextmanager
def as_os_errors(path: str) -> Iterator[None]:
    """Turn boto3's errors into the equivalent ``OSError``, each with a one-line message.

    Raises:
        SettingsError: boto3 is not installed, or its settings are unusable.
    """
    client()
    from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

    try:
        yield
    except ClientError as error:
        raise _os_error(error, path) from error
    except (ConnectionError, HTTPClientError) as error:
        raise OSError(errno.ECONNRESET, _line(error), path) from error
    except BotoCoreError as error:  # no credentials, no region
        raise OSError(errno.EPROTO, _line(error), path) from error


def _line(error: Exception) -> str:
    """boto3's message on one line; for missing credentials, with the mend."""
    said = " ".join(str(error).split())
    mend = ": set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket AWS_NO_SIGN_REQUEST=YES"
    return said + mend * ("credentials" in said)


def _os_error(error: "ClientError", path: str) -> OSError:
    code, status = error.response.get("Error", {}).get("Code", ""), status_of(error)
    if code in GONE:
        return FileNotFoundError(errno.ENOENT, "there is no such object or bucket", path)
    if code in DENIED:
        return PermissionError(errno.EACCES, _line(error), path)
    passing = code in SLOW or status >= 500 or status == 429
    return OSError(errno.EAGAIN if passing and status != NOT_IMPLEMENTED else errno.EPROTO, _line(error), path)


def status_of(error: "ClientError") -> int:
    """HTTP status of a refused request; 0 if there was no answer."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


Listed = dict[str, Any]
"""An entry of a listing: ``Key``, ``Size``, ``ETag`` and ``LastModified`` of an object."""


def _listed(bucket: str, prefix: str) -> Iterator[Listed]:
    with as_os_errors(f"{SCHEME}{bucket}/{prefix}"):
        for page in client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            yield from page.get("Contents", [])


def find_objects(text: str, wanted: Callable[[str], bool], others: list[str]) -> Iterator[tuple[str, str]]:
    """Yield name and path of each object of an input: the named object, or the wanted objects below a prefix.

    Other objects below the prefix are appended to ``others``.

    Raises:
        InputError: the bucket cannot be listed, or the object does not exist.
    """
    bucket, key = bucket_and_key(text)
    try:
        if key and not key.endswith("/"):
            if any(found["Key"] == key for found in first_object(bucket, key)):
                yield PurePosixPath(key).name, canonical(text)
                return
            key += "/"
        found = False
        for entry in _listed(bucket, key):
            found, name = True, entry["Key"].removeprefix(key)
            path = PurePosixPath(name)
            if name.endswith("/") or any(part.startswith(".") and part != ".." for part in path.parts):
                continue
            if wanted(path.name):
                yield name, f"{SCHEME}{bucket}/{entry['Key']}"
            else:
                others.append(f"{SCHEME}{bucket}/{entry['Key']}")
    except OSError as error:
        raise InputError(f"the input cannot be listed: {text}: {error.strerror}") from error
    if not found:
        raise InputError(f"the input must exist, got {text}: correct the path")


def first_object(bucket: str, prefix: str) -> list[Listed]:
    """The first object of a prefix, which is the object with exactly that key if it exists."""
    with as_os_errors(f"{SCHEME}{bucket}/{prefix}"):
        answer = client().list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
    return list(answer.get("Contents", []))


LISTED_AT_ONCE = 1000

SENSOR_FILES = ("HDR", "RPC", "DIM")
"""Prefixes of the sensor files' names of an image whose own name begins with IMG."""


def objects_near(path: str) -> dict[str, dict[str, Any]]:
    """Size, ETag and modification time of an object and of every object whose name marks it as a sidecar, by path.

    Takes one request, unless more than a thousand keys begin with the object's stem.
    """
    bucket, key = bucket_and_key(path)
    found = {}
    for prefix in _prefixes(key):
        with as_os_errors(path):
            answer = client().list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=LISTED_AT_ONCE)
        entries = answer.get("Contents", [])
        if answer["IsTruncated"]:
            entries = [entry for end in ("", ".", "_") for entry in _starting(bucket, prefix + end, end)]
        for entry in entries:
            if entry["Key"] == key or entry["Key"].startswith((f"{prefix}.", f"{prefix}_")):  # scene.tfw, scene_RPC.TXT
                name, modified = f"{SCHEME}{bucket}/{entry['Key']}", entry["LastModified"].isoformat()
                found[name] = {"path": name, "size": entry["Size"], "etag": entry["ETag"].strip('"'), "modified": modified}
    return found


def _starting(bucket: str, prefix: str, end: str) -> Iterable[Listed]:
    return _listed(bucket, prefix) if end else first_object(bucket, prefix)


def _prefixes(key: str) -> list[str]:
    """Prefixes of the keys of an object and of its sidecars."""
    path = PurePosixPath(key)
    own = [str(path.with_suffix("")) if path.suffix else key]
    if path.name.upper().startswith("IMG"):
        own += [str(path.with_name(f"{kind}{path.stem[3:]}")) for kind in SENSOR_FILES]
    return own


def read_range(path: str, start: int, size: int) -> bytes:
    """Read a range of bytes of an object; fewer where it ends."""
    bucket, key = bucket_and_key(path)
    with as_os_errors(path):
        answer = client().get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{start + size - 1}")
        data: bytes = answer["Body"].read()
    return data


def is_lonely(path: str) -> bool:
    """Whether an object has no sidecars: then GDAL need not list the whole folder for every raster."""
    # *_MTL.txt and metadata.dim do not count: GDAL reads no pixels, validity or georeferencing from them
    return list(objects_near(path)) == [canonical(path)]

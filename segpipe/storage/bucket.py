"""S3-compatible object storage: a prefix of a bucket as a store, and objects as input."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from segpipe.errors import InputError, OutputError, SettingsError
from segpipe.process.extras import install
from segpipe.storage import Store, check_name
from segpipe.storage.files import draft_name, output_errors, partial, unlinked

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

SCHEME, GDAL_SCHEME = "s3://", "/vsis3/"

ATTEMPTS = 5
"""Attempts per request, by boto3, with waits of up to 1, 2, 4 and 8 s."""

NOT_FOUND, CONFLICT, PRECONDITION_FAILED, NOT_IMPLEMENTED = 404, 409, 412, 501
GONE = ("404", "NoSuchKey", "NoSuchBucket", "NotFound")
DENIED = ("403", "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch")
SLOW = ("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestTimeout", "InternalError")


def is_remote(path: str) -> bool:
    """Whether a path is resolved by GDAL, not by the operating system."""
    return path.startswith("/vsi") or "://" in path


def plain_path(path: str) -> str:
    """Path of a local file in a form that GDAL takes as a plain path, whatever the file's name.

    GDAL and rasterio interpret prefixes: ``GTIFF_DIR:1:a.tif`` is a part of a.tif, ``zip:a.tif`` a member of an
    archive, and so is ``/vsizip/a.tif``.
    """
    if path.startswith("/vsi"):
        return f"/.{path}"
    # a VRT's relative sources are resolved against its path
    interpreted = any(sign in path for sign in ":<{") or ("/" not in path and path.endswith(".vrt"))
    return f"./{path}" if interpreted and not path.startswith(("/", "./")) else path


def in_bucket(path: str) -> bool:
    return path.startswith((SCHEME, GDAL_SCHEME))


def canonical(path: str) -> str:
    """``s3://bucket/key``, whichever way an object is named."""
    return SCHEME + path.removeprefix(GDAL_SCHEME) if path.startswith(GDAL_SCHEME) else path


def _split(path: str) -> tuple[str, str]:
    """Split a path into bucket and key."""
    bucket, _, key = canonical(path).removeprefix(SCHEME).partition("/")
    return bucket, key


def _client() -> Any:
    """The client shared by all threads of the process; boto3 finds credentials and endpoint as usual."""
    return _client_of(endpoint())


@cache
def _client_of(server: str | None) -> Any:
    try:
        from boto3 import client  # import a name: the bare module exists before it has finished loading
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
        return client("s3", config=Config(**options), region_name=region, endpoint_url=server)
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
def _as_os_errors(path: str) -> Iterator[None]:
    """Turn boto3's errors into the equivalent ``OSError``, each with a one-line message.

    Raises:
        SettingsError: boto3 is not installed, or its settings are unusable.
    """
    _client()
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
    code, status = error.response.get("Error", {}).get("Code", ""), _status(error)
    if code in GONE:
        return FileNotFoundError(errno.ENOENT, "there is no such object or bucket", path)
    if code in DENIED:
        return PermissionError(errno.EACCES, _line(error), path)
    passing = code in SLOW or status >= 500 or status == 429
    return OSError(errno.EAGAIN if passing and status != NOT_IMPLEMENTED else errno.EPROTO, _line(error), path)


def _status(error: "ClientError") -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


Listed = dict[str, Any]
"""An entry of a listing: ``Key``, ``Size``, ``ETag`` and ``LastModified`` of an object."""


def _listed(bucket: str, prefix: str) -> Iterator[Listed]:
    with _as_os_errors(f"{SCHEME}{bucket}/{prefix}"):
        for page in _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            yield from page.get("Contents", [])


def find_objects(text: str, wanted: Callable[[str], bool], others: list[str]) -> Iterator[tuple[str, str]]:
    """Yield name and path of each object of an input: the named object, or the wanted objects below a prefix.

    Other objects below the prefix are appended to ``others``.

    Raises:
        InputError: the bucket cannot be listed, or the object does not exist.
    """
    bucket, key = _split(text)
    try:
        if key and not key.endswith("/"):
            if any(found["Key"] == key for found in _first(bucket, key)):
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
        raise InputError(f"the input must exist, got {text}")


def _first(bucket: str, prefix: str) -> list[Listed]:
    """The first object of a prefix, which is the object with exactly that key if it exists."""
    with _as_os_errors(f"{SCHEME}{bucket}/{prefix}"):
        answer = _client().list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
    return list(answer.get("Contents", []))


LISTED_AT_ONCE = 1000

SENSOR_FILES = ("HDR", "RPC", "DIM")
"""Prefixes of the sensor files' names of an image whose own name begins with IMG."""


def objects_near(path: str) -> dict[str, dict[str, Any]]:
    """Size, ETag and modification time of an object and of every object whose name marks it as a sidecar, by path.

    Takes one request, unless more than a thousand keys begin with the object's stem.
    """
    bucket, key = _split(path)
    found = {}
    for prefix in _prefixes(key):
        with _as_os_errors(path):
            answer = _client().list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=LISTED_AT_ONCE)
        entries = answer.get("Contents", [])
        if answer["IsTruncated"]:
            entries = [entry for end in ("", ".", "_") for entry in _starting(bucket, prefix + end, end)]
        for entry in entries:
            if entry["Key"] == key or entry["Key"].startswith((f"{prefix}.", f"{prefix}_")):  # scene.tfw, scene_RPC.TXT
                name, modified = f"{SCHEME}{bucket}/{entry['Key']}", entry["LastModified"].isoformat()
                found[name] = {"path": name, "size": entry["Size"], "etag": entry["ETag"].strip('"'), "modified": modified}
    return found


def _starting(bucket: str, prefix: str, end: str) -> Iterable[Listed]:
    return _listed(bucket, prefix) if end else _first(bucket, prefix)


def _prefixes(key: str) -> list[str]:
    """Prefixes of the keys of an object and of its sidecars."""
    path = PurePosixPath(key)
    own = [str(path.with_suffix("")) if path.suffix else key]
    if path.name.upper().startswith("IMG"):
        own += [str(path.with_name(f"{kind}{path.stem[3:]}")) for kind in SENSOR_FILES]
    return own


def read_range(path: str, start: int, size: int) -> bytes:
    """Read a range of bytes of an object; fewer where it ends."""
    bucket, key = _split(path)
    with _as_os_errors(path):
        answer = _client().get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{start + size - 1}")
        data: bytes = answer["Body"].read()
    return data


def is_lonely(path: str) -> bool:
    """Whether an object has no sidecars: then GDAL need not list the whole folder for every raster."""
    # *_MTL.txt and metadata.dim do not count: GDAL reads no pixels, validity or georeferencing from them
    return list(objects_near(path)) == [canonical(path)]


@dataclass(frozen=True, slots=True)
class Bucket(Store):
    """Store in a bucket: a file is written locally and uploaded in one request, so that it appears whole or not at all."""

    bucket: str
    prefix: str
    """Empty, or ending with a slash."""

    @classmethod
    def at(cls, text: str) -> "Bucket":
        bucket, key = _split(text)
        if not bucket:
            raise OutputError(f"the output must name a bucket, as s3://bucket/prefix, got {text}")
        _client()  # fail here, at once, where boto3 is missing
        return cls(bucket, f"{key.strip('/')}/" if key.strip("/") else "")

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/")

    def check_name(self, name: str) -> str:
        """Check a name, which must be UTF-8, as all keys are."""
        try:
            check_name(name).encode()
        except UnicodeEncodeError:
            raise OutputError(f"names in {self} must be UTF-8, got {name!r}") from None
        return name

    def path(self, name: str) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix}{name}"

    def aliases(self, name: str) -> set[str]:
        return {self.path(name)}

    def settled(self) -> "Bucket":
        return self

    def is_inside(self, root: str) -> bool:
        bucket, key = _split(root) if in_bucket(root) else ("", "")
        return bucket == self.bucket and self.prefix.startswith(f"{key.strip('/')}/".lstrip("/"))

    def beside(self, files: Iterable[tuple[str, str]], stem: Callable[[str], str]) -> str | None:
        for path, name in files:
            if in_bucket(path) and PurePosixPath(stem(canonical(path))) == PurePosixPath(self.path(name)):
                return path
        return None

    def check(self) -> None:
        try:
            _first(self.bucket, self.prefix)
        except FileNotFoundError:
            raise OutputError(f"the output must be in a bucket that exists, got {self.bucket}") from None
        except OSError as error:
            raise OutputError(f"the output cannot be reached: {self}: {error.strerror}") from error

    def make(self) -> None:
        """Do nothing: a prefix exists once it holds an object."""

    def read(self, name: str) -> bytes:
        with self._errors(name):
            body: bytes = _client().get_object(**self._key(name))["Body"].read()
            return body

    def size(self, name: str) -> int | None:
        try:
            with self._errors(name):
                return int(_client().head_object(**self._key(name))["ContentLength"])
        except FileNotFoundError:
            return None

    def is_blank(self, name: str) -> bool:
        del name  # object storage verifies checksums
        return False

    def below(self, folder: str) -> Iterator[str]:
        for page in self._pages(folder):
            yield from (found["Key"].removeprefix(self.prefix) for found in page.get("Contents", []))

    def folders(self, folder: str) -> Iterator[str]:
        for page in self._pages(folder):
            yield from (found["Prefix"].removeprefix(self.prefix).rstrip("/") for found in page.get("CommonPrefixes", []))

    def _pages(self, folder: str) -> Iterator[dict[str, Any]]:
        with self._errors(folder):
            pages = _client().get_paginator("list_objects_v2")
            prefix = f"{self.prefix}{folder}/" if folder else self.prefix
            yield from pages.paginate(Bucket=self.bucket, Prefix=prefix, Delimiter="/")

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        copy = self.draft(f"{name}.{os.getpid()}")
        try:
            with self._errors(name):
                _client().download_file(self.bucket, self.prefix + name, str(copy))
            yield copy
        finally:
            copy.unlink(missing_ok=True)

    def write(self, name: str, data: bytes, *, flush: bool = True) -> None:
        del flush  # an object that exists is durable
        with output_errors(self.path(name)), self._errors(name):
            _client().put_object(**self._key(name), Body=data)

    def draft(self, name: str) -> Path:
        path = self._drafts() / draft_name(check_name(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        return unlinked(partial(path))

    def _drafts(self) -> Path:
        """Private folder for this store's drafts, closed to other users."""
        digest = hashlib.sha256(str(self).encode()).hexdigest()[:12]
        folder = Path(tempfile.gettempdir(), f"segpipe-{os.getuid()}-{digest}")
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.lstat().st_uid != os.getuid():
            raise PermissionError(errno.EACCES, "the folder for drafts is another user's: set TMPDIR", str(folder))
        return folder

    def disk(self) -> Path:
        return Path(tempfile.gettempdir())

    def publish(self, draft: Path, name: str, *, flush: bool = True) -> None:
        del flush
        with self._errors(name), draft.open("rb") as stream:
            _client().put_object(**self._key(name), Body=stream)
        draft.unlink()

    def remove(self, name: str) -> None:
        with self._errors(name):
            _client().delete_object(**self._key(name))

    def remove_folder(self, folder: str) -> None:
        for name in list(self.below(folder)):
            self.discard(name)

    def sweep(self) -> None:
        with suppress(OSError):
            shutil.rmtree(self._drafts(), ignore_errors=True)

    def create(self, name: str, data: bytes) -> bool:
        return self._put_if(name, data, IfNoneMatch="*")

    def replace(self, name: str, was: bytes, data: bytes) -> bool:
        try:
            with self._errors(name):
                answer = _client().get_object(**self._key(name))
                same = answer["Body"].read() == was
        except FileNotFoundError:
            return self.create(name, data)
        return same and self._put_if(name, data, IfMatch=answer["ETag"])

    def _put_if(self, name: str, data: bytes, **condition: str) -> bool:
        from botocore.exceptions import ClientError

        with self._errors(name):
            try:
                _client().put_object(**self._key(name), Body=data, **condition)
            except ClientError as error:
                if _status(error) not in (PRECONDITION_FAILED, CONFLICT, NOT_FOUND):
                    raise
        # some stores ignore conditions; and where an answer was lost, the retry finds the object of the first attempt
        with suppress(FileNotFoundError):
            return self.read(name) == data
        return False

    def leftovers(self, name: str) -> list[str]:
        del name
        return []

    def touch(self, name: str, data: bytes) -> None:
        self.replace(name, data, data)

    def age(self, name: str) -> float:
        """Age by the store's own clock: both times are the server's."""
        with self._errors(name):
            answer = _client().head_object(**self._key(name))
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return float((now - answer["LastModified"]).total_seconds())

    def _key(self, name: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.prefix + self.check_name(name)}

    def _errors(self, name: str) -> Any:
        return _as_os_errors(self.path(name))

"""Store below a prefix of a bucket of S3-compatible storage."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import Any

from segpipe.errors import OutputError
from segpipe.storage import Store, check_name
from segpipe.storage.files import draft_name, output_errors, partial, unlinked
from segpipe.storage.paths import SCHEME, canonical, in_bucket
from segpipe.storage.s3 import as_os_errors, bucket_and_key, client, first_object, status_of

NOT_FOUND, CONFLICT, PRECONDITION_FAILED = 404, 409, 412


@dataclass(frozen=True, slots=True)
class Bucket(Store):
    """Store in a bucket: a file is written locally and uploaded in one request, so that it appears whole or not at all."""

    bucket: str
    prefix: str
    """Empty, or ending with a slash."""

    @classmethod
    def at(cls, text: str) -> "Bucket":
        """The store of an ``s3://`` URL; raises ``OutputError`` if it names no bucket."""
        bucket, key = bucket_and_key(text)
        if not bucket:
            raise OutputError(f"the output must name a bucket, as s3://bucket/prefix, got {text}")
        client()  # fail here, at once, where boto3 is missing
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
        bucket, key = bucket_and_key(root) if in_bucket(root) else ("", "")
        return bucket == self.bucket and self.prefix.startswith(f"{key.strip('/')}/".lstrip("/"))

    def beside(self, files: Iterable[tuple[str, str]], stem: Callable[[str], str]) -> str | None:
        for path, name in files:
            if in_bucket(path) and PurePosixPath(stem(canonical(path))) == PurePosixPath(self.path(name)):
                return path
        return None

    def check(self) -> None:
        try:
            first_object(self.bucket, self.prefix)
        except FileNotFoundError:
            raise OutputError(f"the output must be in a bucket that exists, got {self.bucket}") from None
        except OSError as error:
            raise OutputError(f"the output cannot be reached: {self}: {error.strerror}") from error

    def make(self) -> None:
        """Do nothing: a prefix exists once it holds an object."""

    def read(self, name: str) -> bytes:
        with self._errors(name):
            body: bytes = client().get_object(**self._key(name))["Body"].read()
            return body

    def size(self, name: str) -> int | None:
        try:
            with self._errors(name):
                return int(client().head_object(**self._key(name))["ContentLength"])
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
            pages = client().get_paginator("list_objects_v2")
            prefix = f"{self.prefix}{folder}/" if folder else self.prefix
            yield from pages.paginate(Bucket=self.bucket, Prefix=prefix, Delimiter="/")

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        copy = self.draft(f"{name}.{os.getpid()}")
        try:
            with self._errors(name):
                client().download_file(self.bucket, self.prefix + name, str(copy))
            yield copy
        finally:
            copy.unlink(missing_ok=True)

    def write(self, name: str, data: bytes, *, flush: bool = True) -> None:
        del flush  # an object that exists is durable
        with output_errors(self.path(name)), self._errors(name):
            client().put_object(**self._key(name), Body=data)

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
            client().put_object(**self._key(name), Body=stream)
        draft.unlink()

    def remove(self, name: str) -> None:
        with self._errors(name):
            client().delete_object(**self._key(name))

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
                answer = client().get_object(**self._key(name))
                same = answer["Body"].read() == was
        except FileNotFoundError:
            return self.create(name, data)
        return same and self._put_if(name, data, IfMatch=answer["ETag"])

    def _put_if(self, name: str, data: bytes, **condition: str) -> bool:
        from botocore.exceptions import ClientError

        with self._errors(name):
            try:
                client().put_object(**self._key(name), Body=data, **condition)
            except ClientError as error:
                if status_of(error) not in (PRECONDITION_FAILED, CONFLICT, NOT_FOUND):
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
            answer = client().head_object(**self._key(name))
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return float((now - answer["LastModified"]).total_seconds())

    def _key(self, name: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.prefix + self.check_name(name)}

    def _errors(self, name: str) -> Any:
        return as_os_errors(self.path(name))

"""A real S3 endpoint on loopback, in a process of its own: moto's server, which can be told to fail."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import boto3

BUCKET = "scenes"


def environment(port: int, temporary: Path) -> dict[str, str]:
    """All that segpipe is told; the rest it has to find out."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "TMPDIR": str(temporary),
    }


@dataclass(frozen=True)
class Endpoint:
    """A server with one bucket, and what was asked of it."""

    root: Path
    client: Any

    @property
    def requests(self) -> list[str]:
        return (self.root / "server" / "requests.log").read_text().splitlines()

    def forget(self) -> None:
        (self.root / "server" / "requests.log").write_text("")

    def fail(self, faults: dict[str, int]) -> None:
        """Answer 503 to as many requests of a pattern."""
        file = self.root / "server" / "faults.json"
        file.with_suffix(".new").write_text(json.dumps(faults))
        file.with_suffix(".new").replace(file)  # at once: a request may come meanwhile

    def put_folder(self, folder: Path, prefix: str) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                self.client.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(folder).as_posix()}")

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=data)

    def objects(self, prefix: str) -> dict[str, bytes]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
        keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
        return {
            key.removeprefix(f"{prefix}/"): self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys
        }


@contextmanager
def serving(folder: Path) -> Iterator[int]:
    """The port of an endpoint that keeps its log in a folder."""
    command = [sys.executable, str(Path(__file__).with_name("flaky_s3.py")), str(folder)]
    with (folder / "server.log").open("w") as log, _listening(command, log) as port:
        yield port


@contextmanager
def _listening(command: list[str], log: IO[str]) -> Iterator[int]:
    """The port on which a server says that it listens: one that was chosen for it could be another's by then."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, Path(log.name).read_text()
            yield int(line)
        finally:
            process.kill()


def open_endpoint(root: Path) -> Endpoint:
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    client.create_bucket(Bucket=BUCKET)
    endpoint = Endpoint(root, client)
    endpoint.put_folder(root / "in", "in")
    return endpoint

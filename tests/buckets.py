"""A real S3 endpoint on loopback, in processes of its own: moto's server, and before it one that can be told to fail."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

BUCKET = "scenes"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


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
        (self.root / "server" / "faults.json").write_text(json.dumps(faults))

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
    ports = free_port(), free_port()
    commands = [
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(ports[1])],
        [sys.executable, str(Path(__file__).with_name("flaky_s3.py")), str(ports[0]), str(ports[1]), str(folder)],
    ]
    with (folder / "server.log").open("w") as log:
        processes = [subprocess.Popen(command, stdout=log, stderr=log) for command in commands]
    try:
        for port in ports:
            await_port(port)
        yield ports[0]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def await_port(port: int, seconds: float = 90) -> None:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"nothing listens on port {port}")


def open_endpoint(root: Path) -> Endpoint:
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    client.create_bucket(Bucket=BUCKET)
    endpoint = Endpoint(root, client)
    endpoint.put_folder(root / "in", "in")
    return endpoint

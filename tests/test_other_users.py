"""Another user of the machine: neither runs code through a run's workers, nor has files written elsewhere."""

import os
import subprocess
import sys

import numpy as np
import psutil
import pytest
from scenes import arguments, begin, make_model, wait_until

pytestmark = [pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user"), pytest.mark.slow]

NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]

INTRUDER = """
import asyncio, os, sys
from distributed import Security
from distributed.comm import connect

async def talk(port, scheme, keys):
    try:
        terms = keys.get_connection_args("client") if keys else {}
        comm = await connect(f"{scheme}://127.0.0.1:{port}", timeout=3, **terms)
        await comm.write({"op": "identity", "reply": True})
        print("got in:", port, scheme, await asyncio.wait_for(comm.read(), 3), flush=True)
    except Exception as error:
        print("refused:", port, scheme, type(error).__name__, flush=True)

async def main():
    ways = [("tcp", None), ("tls", Security.temporary())]
    await asyncio.gather(*(talk(port, *way) for port in sys.argv[1:] for way in ways))
    os._exit(0)

asyncio.run(main())
"""
"""What answers to this takes functions to run, too."""


@pytest.fixture
def root(tmp_path, raster):
    pixels = np.random.default_rng(0).integers(1, 256, (3, 1200, 1600), dtype=np.uint8)
    raster("in/large.tif", pixels)
    make_model(tmp_path / "plain.onnx")
    return tmp_path


def ports(process):
    """On which a process and its children listen."""
    listening = set()
    for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        listening |= {c.laddr for c in one.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    return listening


def test_nobody_else_talks_to_the_scheduler_or_a_worker(root):
    process = begin(root, arguments("plain", root / "out", "--executor dask --workers 2 --parts 40"), root / "log")
    try:
        wait_until(lambda: len(list((root / "out").glob(".parts/*/*.npz"))) > 0, process)
        addresses = ports(process)
        assert len(addresses) >= 5  # the scheduler, two nannies and two workers
        assert {address.ip for address in addresses} == {"127.0.0.1"}
        numbers = [str(address.port) for address in addresses]
        command = [*NOBODY, sys.executable, "-c", INTRUDER, *numbers]
        tried = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True, cwd="/")
        assert process.poll() is None, "the run has ended before anybody could try"
        assert "got in" not in tried.stdout
        assert tried.stdout.count("refused") == 2 * len(numbers)
        assert process.wait(200) == 0
    finally:
        process.kill()
        process.wait()

"""Faults of storage that pass by themselves are waited for, whole case or part anew; all others are told at once."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
from networks import contract
from scenes import ONE_PROCESS, SEGPIPE, SERIAL, Fork, begin, files, nothing, wait

from segpipe.contract import parse_contract
from segpipe.errors import OutputError, SourceError, foreseen
from segpipe.formats.raster.gdal import gdal_options
from segpipe.formats.raster.source import RasterSource
from segpipe.geometry.windows import Window
from segpipe.storage.retry import is_passing, persistently

pytestmark = pytest.mark.slow

AGAIN = "tried again in"


@pytest.fixture
def root(endpoint, monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.01")  # as often as ever, but not for half a second and longer each
    return endpoint.root


def run(root, source, out, more, watch=nothing):
    """Exit code, what was said, and the messages of the JSON log."""
    (root / "log.jsonl").unlink(missing_ok=True)
    command = ["run", "-i", source, "-m", "plain.onnx", "-o", out, "--device", "cpu", "--log-file", "log.jsonl"]
    code = wait(Fork(root, [*command, *more.split()], root / "run.log", forked=1), watch)
    lines = [json.loads(line) for line in (root / "log.jsonl").read_text().splitlines()]
    return code, (root / "run.log").read_text(), [line["message"] for line in lines if line["event"] == "log"]


def assert_masks(found, whole):
    expected = {name: path.read_bytes() for name, path in files(whole).items() if path.suffix in {".tif", ".csv", ".xml"}}
    assert {name: data for name, data in found.items() if not name.endswith(".json")} == expected


@pytest.mark.parametrize("executor", [SERIAL, ONE_PROCESS], ids=["serial", "processes"])
def test_reads_and_writes_that_a_server_refuses_for_a_while_are_done_anew(executor, root, endpoint):
    prefix = f"refused-{len(executor)}"
    endpoint.fail(
        {
            r"GET /scenes/in/a\.tif": 12,  # more than GDAL asks for in one go
            rf"PUT /scenes/{prefix}/b\.tif$": 7,  # more than boto3 does
            rf"PUT /scenes/{prefix}/\.parts/large\.\w+/000002\.npz": 7,
        }
    )
    code, output, logged = run(root, "s3://scenes/in/", f"s3://scenes/{prefix}", f"{executor} --parts 6")
    assert code == 0, output
    for words in ("in/a.tif", f"{prefix}/b.tif", "000002.npz"):
        assert any(words in message and AGAIN in message and "503" in message for message in logged), logged
    assert_masks(endpoint.objects(prefix), root / "whole-plain")


def test_what_is_tried_again_is_said_without_a_log_and_without_verbose(root, endpoint):
    endpoint.fail({r"GET /scenes/in/a\.tif": 12})
    command = [
        *SEGPIPE,
        "run",
        "-i",
        "s3://scenes/in/a.tif",
        "-m",
        "plain.onnx",
        "-o",
        "s3://scenes/said",
        "--device",
        "cpu",
    ]
    assert wait(begin(root, [*command, *SERIAL.split()], root / "run.log"), nothing) == 0
    assert AGAIN in (root / "run.log").read_text()


def test_a_server_that_stays_away_fails_the_case_alone_and_a_second_run_completes(root, endpoint):
    endpoint.fail({r"GET /scenes/in/b\.tif": 10_000})
    code, output, logged = run(root, "s3://scenes/in/", "s3://scenes/away", f"{SERIAL} --retries 1")
    assert code == 1, output
    assert "failed  b: s3://scenes/in/b.tif cannot be opened: HTTP response code: 503" in output
    assert [AGAIN in message for message in logged] == [True]
    endpoint.fail({})
    assert run(root, "s3://scenes/in/", "s3://scenes/away", SERIAL)[0] == 0
    assert_masks(endpoint.objects("away"), root / "whole-plain")


def test_a_request_that_fails_is_never_taken_for_zeros(root, endpoint):
    """GDAL reads where blocks lie when they are asked for, and takes a block without a place for an empty one."""
    bands = parse_contract(contract(3, 2), "")
    window = Window((150, 100), (300, 400))
    with gdal_options():
        endpoint.fail({"large": 100})
        with pytest.raises(SourceError, match="503"):
            RasterSource("s3://scenes/in/large.tif", bands)
        endpoint.fail({})
        source = RasterSource("s3://scenes/in/large.tif", bands)
        endpoint.fail({"large": 10_000})
        with pytest.raises(SourceError, match="503") as caught:
            source.read(window)
        assert is_passing(caught.value)
        source.close()
        endpoint.fail({})
        source, local = (RasterSource(f"{place}/in/large.tif", bands) for place in ("s3://scenes", root))
        np.testing.assert_array_equal(source.read(window)[0], local.read(window)[0])


@pytest.mark.parametrize("executor", [SERIAL, ONE_PROCESS], ids=["serial", "processes"])
def test_an_input_output_error_of_a_disk_is_waited_for(executor, root, tmp_path):
    """The kernel's own: a process's memory is a file, and reading it where nothing lies is EIO."""
    shutil.copytree(root / "in", tmp_path / "in")
    shutil.copy2(root / "plain.onnx", tmp_path)
    case = tmp_path / "in" / "a.tif"
    case.rename(tmp_path / "kept.tif")
    case.symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match="Input/output error"):
        case.read_bytes()

    def mend():
        if case.is_symlink() and AGAIN in (tmp_path / "log.jsonl").read_text():
            (tmp_path / "kept.tif").replace(case)  # at once: it must not be missing

    code, output, logged = run(tmp_path, "in", "out", executor, lambda: (tmp_path / "log.jsonl").exists() and mend())
    assert code == 0, output
    # once; more often where this process has to wait for a processor longer than that one for the file
    said = f"in/a.tif cannot be opened: Input/output error: check the disk: {AGAIN}"
    assert logged == [f"{said} {2**n} s" for n in range(len(logged))]
    assert logged
    assert_masks({n: p.read_bytes() for n, p in files(tmp_path / "out").items() if p.is_file()}, root / "whole-plain")


def test_what_does_not_pass_is_told_at_once(root, tmp_path):
    shutil.copytree(root / "in", tmp_path / "in")
    shutil.copy2(root / "plain.onnx", tmp_path)
    os.truncate(tmp_path / "in" / "large.tif", 200_000)
    (tmp_path / "in" / "a.tif").write_bytes(b"no raster")
    code, output, logged = run(tmp_path, "in", "out", SERIAL)
    assert (code, logged) == (1, []), output
    assert "failed  large:" in output
    assert "failed  a:" in output


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (TimeoutError(errno.ETIMEDOUT, "timed out"), True),
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (OSError(errno.EROFS, "Read-only file system"), False),
        (FileNotFoundError(errno.ENOENT, "gone"), False),
        (PermissionError(errno.EACCES, "denied"), False),
        (SourceError("bands must be the model's channels"), False),
        (ValueError("no such thing"), False),
    ],
)
def test_what_passes(error, passing):
    assert is_passing(error) is passing
    assert is_passing(foreseen(error, "a.tif")) is passing
    wrapped = OutputError("cannot be written")
    wrapped.__cause__ = error
    assert is_passing(wrapped) is passing


def test_what_is_done_persistently(monkeypatch):
    waited, faults = [], [OSError(errno.EIO, "first"), OSError(errno.EIO, "second")]
    monkeypatch.setattr("time.sleep", waited.append)

    def do():
        if faults:
            raise faults.pop(0)
        return "done"

    assert persistently(do, 4) == "done"
    assert waited == [1.0, 2.0]
    faults = [OSError(errno.EIO, str(number)) for number in range(9)]
    with pytest.raises(OSError, match="2"):
        persistently(do, 2)
    faults = [OSError(errno.ENOSPC, "full")]
    with pytest.raises(OSError, match="full"):
        persistently(do, 4)
    assert waited == [1.0, 2.0, 1.0, 2.0]

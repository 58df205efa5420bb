"""Object storage (``segpipe.storage.bucket``): a run with inputs and output in a bucket of a real S3 endpoint."""

import json
import os
import signal
import subprocess
import time
from threading import Thread

import numpy as np
import pytest
import rasterio
from buckets import BUCKET
from command import invoke
from scenes import (
    CASES,
    PROCESSES,
    SEGPIPE,
    SERIAL,
    Fork,
    Silent,
    files,
    nothing,
    wait,
    wait_until,
)

from segpipe.errors import InputError, OutputError, SegpipeError
from segpipe.formats.case import Case
from segpipe.formats.cases import find_cases, find_input
from segpipe.formats.identity import FolderListings, identities
from segpipe.formats.raster.gdal import gdal_options
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import prepare
from segpipe.network.read import read_spec
from segpipe.pipeline.read import Reading, windows_of
from segpipe.pipeline.tiles import Tile, cut_tiles
from segpipe.process.extras import install
from segpipe.results.done import done_cases
from segpipe.results.run import Run
from segpipe.settings import load_settings
from segpipe.storage import lock, s3
from segpipe.storage.s3 import gdal_endpoint
from segpipe.storage.stores import store_at

PARTS = "--parts 6"


@pytest.fixture
def root(endpoint):
    return endpoint.root


def command(source, out, more):
    return [*SEGPIPE, "run", "-v", "-i", source, "-m", "plain.onnx", "-o", out, "--device", "cpu", *more.split()]


def begin_forked(root, words, log):
    return Fork(root, words[len(SEGPIPE) :], log, forked=1)


def run(root, out, more, source="s3://scenes/in/"):
    log = root / "run.log"
    code = wait(begin_forked(root, command(source, out, more), log), nothing)
    return code, log.read_text()


def run_here(root, out, more, source="s3://scenes/in/"):
    """The same in the process of the tests: where objects do not change between two runs, which GDAL would keep."""
    done = invoke(command(source, out, more)[len(SEGPIPE) :], root)
    return done.returncode, done.stdout + done.stderr


def assert_as_local(endpoint, prefix, whole):
    """Every file of a local run, byte for byte where it names no path, and no other."""
    found = endpoint.objects(prefix)
    assert sorted(found) == sorted(name for name, path in files(whole).items() if path.is_file())
    for name, data in found.items():
        if not name.endswith(".json"):
            assert data == (whole / name).read_bytes(), name


@pytest.mark.parametrize(
    "more", [SERIAL, f"{SERIAL} {PARTS}", f"{PROCESSES} {PARTS}"], ids=["serial", "parts", "parts of processes"]
)
def test_a_bucket_gets_the_bytes_that_a_folder_gets(more, root, endpoint):
    prefix = "".join(c for c in more if c.isalnum())
    code, output = run_here(root, f"s3://scenes/{prefix}", more)
    assert code == 0, output
    assert_as_local(endpoint, prefix, root / "whole-plain")
    masks = [line for line in endpoint.requests if line.startswith("PUT") and line.endswith(".tif") and ".parts" not in line]
    assert sorted(masks) == sorted(f"PUT /{BUCKET}/{prefix}/{name}.tif" for name in CASES)  # one request each
    assert list((root / "tmp").glob("segpipe*")) == []


def test_a_second_run_does_what_is_missing_or_has_changed(root, endpoint, monkeypatch):
    monkeypatch.setenv("CPL_VSIL_CURL_NON_CACHED", "/vsis3/scenes/changing/")  # as if each run had its own process
    endpoint.put_folder(root / "in", "changing")
    source, out = "s3://scenes/changing/", "s3://scenes/resumed/"
    assert run_here(root, out, SERIAL, source)[0] == 0
    assert run_here(root, out, SERIAL, source)[1].count("skipped") == len(CASES)
    endpoint.client.delete_object(Bucket=BUCKET, Key="resumed/b.tif")
    endpoint.put("changing/a.tif", (root / "in" / "b.tif").read_bytes())
    endpoint.put("changing/sub/c.tfw", b"1\n0\n0\n-1\n0\n0\n")  # a sidecar that has come
    code, output = run_here(root, out, SERIAL, source)
    assert code == 0, output
    redone = [name for name in CASES if f"done  {name} " in output]
    assert sorted(redone) == ["a", "b", "sub/c"]
    assert endpoint.objects("resumed")["a.tif"] == (root / "whole-plain" / "b.tif").read_bytes()
    assert run_here(root, out, f"{SERIAL} --overwrite", source)[1].count("skipped") == 0


@pytest.mark.parametrize("validity", ["scl", "{case}_SCL.tif:4"])
def test_masks_of_scenes_lie_in_the_bucket(validity, root, endpoint, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / "in" / f"{name}.tif").write_bytes((root / "in" / f"{name}.tif").read_bytes())
        classes = np.full((1, *CASES[name]), 4, np.uint8)
        classes[:, :20] = 9
        kind = {"driver": "GTiff", "dtype": "uint8", "crs": "EPSG:32633", "count": 1}
        height, width = CASES[name]
        with rasterio.open(tmp_path / "in" / f"{name}_SCL.tif", "w", width=width, height=height, **kind) as dataset:
            dataset.write(classes)
    endpoint.put_folder(tmp_path / "in", "masked")
    out, more = f"s3://{BUCKET}/clear-{len(validity)}", f"{SERIAL} --validity {validity}"
    code, log = run_here(root, out, more, source=f"s3://{BUCKET}/masked/")
    assert (code, "2 done, 0 done before, 0 failed" in log) == (0, True), log
    assert "0 done, 2 done before" in run_here(root, out, more, source=f"s3://{BUCKET}/masked/")[1]
    (tmp_path / "a.tif").write_bytes(endpoint.objects(out.rpartition("/")[2])["a.tif"])
    with rasterio.open(tmp_path / "a.tif") as mask:
        assert (mask.read(1)[:20] == 255).all()
        assert (mask.read(1)[20:] != 255).any()


def test_status_of_a_bucket(root, endpoint):
    endpoint.put_folder(root / "in", "few")
    assert run_here(root, "s3://scenes/told", SERIAL, "s3://scenes/few/")[0] == 0
    endpoint.put("few/new.tif", (root / "in" / "a.tif").read_bytes())
    ended = invoke(["status", "s3://scenes/told", "--json"], root)
    status = json.loads(ended.stdout)
    assert (ended.returncode, status["done"], status["missing"], status["running"]) == (1, len(CASES), ["new"], None)
    assert "-o s3://scenes/told" in status["command"]
    none = invoke(["status", "s3://scenes/none"], root)
    assert (none.returncode, "s3://scenes/none must be the output of a run" in none.stderr) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize("executor", [SERIAL, PROCESSES], ids=["serial", "processes"])
def test_a_killed_run_goes_on_part_by_part_and_its_lock_is_cleared(executor, root, endpoint):
    prefix = f"killed-{len(executor)}"
    endpoint.fail({rf"PUT /{BUCKET}/{prefix}/\.parts/.*/000007\.npz": 10_000})  # so that it cannot end before it is killed
    words = command("s3://scenes/in/", f"s3://scenes/{prefix}", f"{executor} --parts 12")
    process = begin_forked(root, words, root / "killed.log")

    def done():
        return [line for line in endpoint.requests if line.startswith("PUT") and line.endswith(".npz")]

    wait_until(lambda: len(done()) > 3, process)
    if executor == SERIAL:
        os.killpg(process.pid, signal.SIGSTOP)  # it must not end before the other has begun
        refused, output = run(root, f"s3://scenes/{prefix}", SERIAL)
        assert refused == 2
        assert f"process {process.pid} on" in output
    os.killpg(process.pid, 9)
    process.wait()
    endpoint.fail({})
    assert ".segpipe.lock" in endpoint.objects(prefix)
    before = {name: data for name, data in endpoint.objects(prefix).items() if name.endswith(".npz")}
    endpoint.forget()
    code, output = run(root, f"s3://scenes/{prefix}", f"{executor} --parts 12")
    assert code == 0, output
    again = {line.removeprefix(f"PUT /{BUCKET}/{prefix}/") for line in done()}
    assert before
    assert not again & set(before)
    assert_as_local(endpoint, prefix, root / "whole-plain")
    assert list((root / "tmp").glob("segpipe*")) == []


def test_another_machine_holds_it_while_it_gives_signs_of_life(endpoint, monkeypatch):
    store = store_at("s3://scenes/elsewhere")
    held = json.dumps({"host": "elsewhere", "pid": 1, "began": "1"}).encode()
    store.write(lock.NAME, held)
    with pytest.raises(OutputError, match="process 1 on elsewhere"), lock.locked(store):
        pass
    assert 0 <= store.age(lock.NAME) < 60
    monkeypatch.setattr(lock, "STALE", -1.0)
    with lock.locked(store) as killed:
        assert killed
        assert json.loads(store.read(lock.NAME))["pid"] == os.getpid()
    assert not store.has(lock.NAME)


def written(endpoint, key):
    return endpoint.client.head_object(Bucket=BUCKET, Key=key)["LastModified"]


def test_a_heartbeat_makes_a_lock_young_but_never_takes_one_back(endpoint):
    store = store_at("s3://scenes/beats")
    assert store.create("lock", b"mine")
    old = written(endpoint, "beats/lock")
    time.sleep(1.1)  # a store's clock counts seconds
    store.touch("lock", b"mine")
    assert written(endpoint, "beats/lock") > old
    store.write("lock", b"another's")
    store.touch("lock", b"mine")
    assert store.read("lock") == b"another's"


def test_of_many_at_once_one_gets_it(endpoint):
    store, got = store_at("s3://scenes/race"), []

    def grab(number):
        got.append(store.create("lock", str(number).encode()))

    threads = [Thread(target=grab, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 7 + [True]


def test_what_inputs_mean(root, endpoint, tmp_path):
    assert [case.name for case in find_cases(["s3://scenes/in/"])] == sorted(CASES)
    assert [case.name for case in find_cases(["s3://scenes/in"])] == sorted(CASES)
    (single,) = find_cases(["s3://scenes/in/sub/c.tif"])
    assert (single.name, single.path) == ("c", "s3://scenes/in/sub/c.tif")
    (tmp_path / "list.txt").write_text("s3://scenes/in/a.tif\n/vsis3/scenes/in/sub/c.tif\n")
    assert [case.name for case in find_cases([str(tmp_path / "list.txt")])] == ["a", "c"]
    endpoint.put("in/.hidden/x.tif", b"")
    endpoint.put("in/notes.pdf", b"")
    assert [case.name for case in find_cases(["s3://scenes/in/"])] == sorted(CASES)
    assert find_input(["s3://scenes/in/"]).left_out == {".pdf": 1}
    for key in ("in/.hidden/x.tif", "in/notes.pdf"):
        endpoint.client.delete_object(Bucket=BUCKET, Key=key)
    with pytest.raises(InputError, match="the input must exist, got s3://scenes/nowhere"):
        find_cases(["s3://scenes/nowhere"])
    with pytest.raises(InputError, match="cannot be listed: s3://nobodys/in/: there is no such object or bucket"):
        find_cases(["s3://nobodys/in/"])


def test_the_identity_of_an_object_has_its_etag_and_its_sidecars(root, endpoint):
    endpoint.put_folder(root / "in" / "sub", "same")
    before = identities("s3://scenes/same/c.tif", ["/vsis3/scenes/same/c.tif"])
    assert [found["path"] for found in before] == ["s3://scenes/same/c.tif"]
    assert before[0]["size"] == (root / "in" / "sub" / "c.tif").stat().st_size
    assert before == identities("/vsis3/scenes/same/c.tif", ["s3://scenes/same/c.tif"])
    endpoint.put("same/c.tfw", b"1\n0\n0\n-1\n0\n0\n")
    endpoint.put("same/c_RPC.TXT", b"")
    endpoint.put("same/cd.tfw", b"another's")
    endpoint.forget()
    beside = FolderListings()
    assert beside.sidecars("/vsis3/scenes/same/c.tif") == ["s3://scenes/same/c.tfw", "s3://scenes/same/c_RPC.TXT"]
    after = identities("s3://scenes/same/c.tif", ["s3://scenes/same/c.tif", "s3://scenes/same/c.tfw"], beside)
    assert [found["path"] for found in after] == ["s3://scenes/same/c.tfw", "s3://scenes/same/c.tif"]
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    ("source", "out", "words"),
    [
        ("s3://scenes/in/", "s3://scenes/in/out", "must not lie inside the input"),
        ("s3://scenes/in/a.tif", "s3://scenes/in", "would lie on or beside it"),
        ("in", "s3://nobodys/out", "must be in a bucket that exists, got nobodys"),
        ("in", "s3:///out", "must name a bucket"),
    ],
)
def test_what_cannot_be_written_to_is_refused(source, out, words, root, endpoint):
    code, output = run_here(root, out, SERIAL, source)
    assert (code, words in output) == (2, True), output


def test_a_mask_replaces_no_object_that_segpipe_did_not_write(root, endpoint):
    endpoint.put("taken/a.tif", (root / "in" / "b.tif").read_bytes())
    code, output = run_here(root, "s3://scenes/taken", SERIAL)
    assert code == 1
    assert "s3://scenes/taken/a.tif is an input or was not written by segpipe" in output
    assert endpoint.objects("taken")["a.tif"] == (root / "in" / "b.tif").read_bytes()


def test_without_boto3_the_command_that_installs_it_is_named(root, endpoint, tmp_path):
    (tmp_path / "boto3.py").write_text("raise ModuleNotFoundError(\"No module named 'boto3'\", name='boto3')\n")
    ended = subprocess.run(
        command("s3://scenes/in/", "out", SERIAL),
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, install("s3") in ended.stderr) == (2, True), ended.stderr


def test_gdal_is_told_of_the_endpoint_once(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://one.example/")
    assert gdal_endpoint() == {"AWS_S3_ENDPOINT": "one.example", "AWS_HTTPS": "YES", "AWS_VIRTUAL_HOSTING": "NO"}
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9000")
    monkeypatch.setenv("AWS_VIRTUAL_HOSTING", "TRUE")
    assert gdal_endpoint() == {"AWS_S3_ENDPOINT": "127.0.0.1:9000", "AWS_HTTPS": "NO"}
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    assert gdal_endpoint() == {}


def test_a_raster_alone_is_opened_without_listing_its_folder(root, endpoint):
    endpoint.put_folder(root / "in", "many")
    endpoint.put("many/sub/c.tfw", b"10\n0\n0\n-10\n7\n8\n")
    run_here(root, "s3://scenes/opened", SERIAL, "s3://scenes/many/")
    with rasterio.MemoryFile(endpoint.objects("opened")["sub/c.tif"]) as memory, memory.open() as mask:
        assert mask.transform.a == 10  # the world file was seen
    listed = [line for line in endpoint.requests if "delimiter=%2F" in line and "prefix=many%2F" in line]
    assert {line for line in listed if "prefix=many%2F " in f"{line} "} == set()


def test_a_row_of_windows_is_asked_for_at_once(root, endpoint, monkeypatch):
    """Every request costs its time on the way, however little it brings."""
    pixels = np.random.default_rng(0).integers(1, 255, (3, 400, 3_000), dtype=np.uint8)
    profile = {"driver": "GTiff", "count": 3, "height": 400, "width": 3_000, "dtype": "uint8"}
    blocks = {"tiled": True, "blockxsize": 128, "blockysize": 128, "interleave": "pixel"}
    with rasterio.open(root / "wide.tif", "w", **profile, **blocks) as dataset:
        dataset.write(pixels)
    endpoint.put("wide/wide.tif", (root / "wide.tif").read_bytes())
    spec = read_spec(load_settings(None, {"input": ("x",), "model": root / "plain.onnx", "device": "cpu"}))

    def tiles(path, most):
        monkeypatch.setattr("segpipe.pipeline.read.ASKED_FOR", most)
        endpoint.forget()
        with gdal_options():
            found = list(cut_tiles(windows_of([Case("wide", path)], Reading(spec))))
        got = [(tile.index, tile.patch.pixels) for tile in found if isinstance(tile, Tile) and tile.patch]
        assert len(got) == len(found)
        return got, sum(line.startswith("GET") and "wide.tif" in line for line in endpoint.requests)

    local, _ = tiles(str(root / "wide.tif"), 12)
    asked = {}
    for most in (1, 12):
        found, asked[most] = tiles("s3://scenes/wide/wide.tif", most)
        for (index, expected), (i, got) in zip(local, found, strict=True):
            assert index == i
            np.testing.assert_array_equal(expected, got)
    assert asked[12] < asked[1]


def test_what_was_done_before_shows_in_a_listing(root, endpoint):
    """A request for each of a thousand cases that are not there would take a minute."""
    cases = [
        Case(f"{folder}{number:03}", f"s3://{BUCKET}/in/{number}.tif") for folder in ("", "sub/") for number in range(40)
    ]
    flags = {
        "input": (f"s3://{BUCKET}/in/",),
        "model": root / "plain.onnx",
        "output": f"s3://{BUCKET}/fresh",
        "device": "cpu",
    }
    settings = load_settings(None, flags)
    fresh = Run(read_spec(settings), settings)
    endpoint.forget()
    assert done_cases(cases, fresh) == []
    assert len(endpoint.requests) == 2


BAD_KEYS = {
    "/etc/x/evil": "bad//etc/x/evil.tif",
    "//y": "bad///y.tif",
    "../x": "bad/../x.tif",
    "a/../../z": "bad/a/../../z.tif",
}
"""Names that a mask of such an object would have, if it had one."""


@pytest.mark.slow
def test_keys_that_would_lead_out_of_the_output_fail_alone(endpoint, tmp_path):
    good = (endpoint.root / "in" / "a.tif").read_bytes()
    for key in ("bad/good.tif", "bad/sub//b.tif", "bad/.hidden/c.tif", *BAD_KEYS.values()):
        endpoint.put(key, good)
    settings = {"input": ("s3://scenes/bad/",), "model": endpoint.root / "plain.onnx", "executor": "serial", "device": "cpu"}
    for output in (str(tmp_path / "deep" / "out"), "s3://scenes/bad-out"):
        summary = carry_out(prepare(load_settings(None, {**settings, "output": output})), Silent())
        assert summary.done == ["good", "sub/b"]
        failed = {failure.case.name: failure.error for failure in summary.failed}
        assert sorted(failed) == sorted(BAD_KEYS)
        for name, key in BAD_KEYS.items():
            assert failed[name].startswith("a file of the output must have a name below it, without empty parts, . and ..")
            assert failed[name].endswith(f"got {name!r}: rename s3://scenes/{key}")
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_a_name_that_no_key_can_have_fails_alone(endpoint, tmp_path):
    name = os.fsdecode(b"caf\xe9")
    for stem in ("good", name):
        (tmp_path / f"{stem}.tif").write_bytes((endpoint.root / "in" / "a.tif").read_bytes())
    settings = {"model": endpoint.root / "plain.onnx", "executor": "serial", "device": "cpu"}
    place = {"input": (str(tmp_path),), "output": "s3://scenes/utf8"}
    for _ in range(2):
        summary = carry_out(prepare(load_settings(None, settings | place)), Silent())
        assert summary.done + summary.skipped == ["good"]
        (failure,) = summary.failed
        assert (failure.case.name, "names in s3://scenes/utf8 must be UTF-8" in failure.error) == (name, True)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"AWS_PROFILE": "nobody"}, r"settings of the AWS tools: The config profile \(nobody\) could not be found"),
        ({"AWS_ENDPOINT_URL": "nothing"}, "settings of the AWS tools: Invalid endpoint: nothing"),
        (
            {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "HOME": "/nowhere"},
            "Unable to locate credentials: set AWS_ACCESS_KEY_ID",
        ),
    ],
)
def test_s3_that_is_not_set_up_is_one_line(setting, words, endpoint, monkeypatch):
    s3._client_of.cache_clear()
    for key, value in setting.items():
        monkeypatch.setenv(key, value) if value else monkeypatch.delenv(key)
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # which keeps what it has found
    try:
        with pytest.raises(SegpipeError, match=words) as raised:
            find_cases(["s3://scenes/in/"])
        assert "\n" not in str(raised.value)
    finally:
        s3._client_of.cache_clear()

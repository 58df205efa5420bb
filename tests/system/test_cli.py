"""The command line as a user has it: arguments in; exit code, words and files out."""

import csv
import json
import os
import platform
import pty
import re
import select
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from command import invoke
from networks import Network, contract, local, pixelwise
from onnx import TensorProto
from scenes import PATIENCE, SEGPIPE, Fork, begin_and_stop, mount, wait

from segpipe import __version__
from segpipe.results.device_kind import versions
from segpipe.settings import Settings
from segpipe.terminal.versions import version_lines

Run = Callable[..., subprocess.CompletedProcess[str]]
SERIAL = ("--executor", "serial", "--device", "cpu")
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


def noise(bands: int = 3, rows: int = 60, cols: int = 70, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 255, (bands, rows, cols), dtype=np.uint8)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """The folder of two scenes; ``m.onnx`` lies beside it."""
    return fresh_scenes(tmp_path) / "in"


def files_below(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p.relative_to(root)): (p.stat().st_mtime_ns, p.stat().st_size) for p in root.rglob("*")}


def run_json(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "run.json").read_text()))


def outcome(done: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def text(name: str, content: str) -> Callable[[Path], Any]:
    def write(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)

    return write


def model(**changes: Any) -> Callable[[Path], Any]:
    return lambda root: pixelwise(root / "m.onnx", **changes)


def net(channels: int, scores: int, **changes: Any) -> Callable[[Path], Any]:
    """A model whose graph and contract need not agree."""
    values = {**contract(), **changes}
    return lambda root: Network(channels).conv(channels, scores, 1).save(root / "m.onnx", values, classes=scores)


def sparse_classes(*ids: int, **more: Any) -> list[dict[str, Any]]:
    return [{"id": i, "name": f"c{i}", **more} for i in ids]


def copied(*names: str) -> Callable[[Path], Any]:
    return lambda root: [(root / name).write_bytes((root / "in" / "a.tif").read_bytes()) for name in names]


def nothing(root: Path) -> None: ...


REFUSED: list[tuple[str, Callable[[Path], Any], str, str]] = [
    ("no input", nothing, "-m m.onnx", "input is needed: give --input"),
    ("no model", nothing, "-i in", "model is needed: give --model"),
    ("input not there", nothing, "-i nowhere -m m.onnx", "input must exist, got nowhere"),
    ("empty folder", lambda root: (root / "empty").mkdir(), "-i empty -m m.onnx", "no raster or volume found in .*[.]tif"),
    ("empty glob", nothing, "-i in/*.jp2 -m m.onnx", r"no raster or volume found in in/\*[.]jp2"),
    ("model not there", nothing, "-i in -m n.onnx", "model must exist, got n.onnx"),
    ("not ONNX", text("m.onnx", "weights"), "-i in -m m.onnx", "m.onnx is not an ONNX file"),
    ("channels", net(4, 3), "-i in -m m.onnx", "got 3 .* 4 in"),
    ("classes", model(classes=3, task="binary", activation="sigmoid"), "-i in -m m.onnx", "classes 0 and 1, or 1 alone"),
    ("scores", net(3, 5), "-i in -m m.onnx", "5 scores .* 3"),
    ("ids without index", net(3, 3, classes=sparse_classes(3, 7, 200)), "-i in -m m.onnx", "index"),
    ("one index twice", net(3, 2, classes=sparse_classes(3, 7, index=0)), "-i in -m m.onnx", "index"),
    (
        "no configuration",
        nothing,
        "-c c.toml -i in -m m.onnx",
        "the configuration c.toml must exist, and does not: correct the path",
    ),
    (
        "unknown setting",
        text("c.toml", "overlp = 3"),
        "-c c.toml -i in -m m.onnx",
        "overlp: did you mean overlap",
    ),
    ("unknown key in contract", model(tiles=[64, 64]), "-i in -m m.onnx", "unknown key tiles"),
    ("missing key in contract", model(activation=None), "-i in -m m.onnx", "missing key activation"),
    (
        "no contract file",
        nothing,
        "-i in -m m.onnx --contract c.toml",
        "the contract c.toml must exist, and does not: correct the path",
    ),
    (
        "overlap",
        nothing,
        "-i in -m m.onnx --overlap 64",
        "smaller than the tile, got overlap 64 and tile 64",
    ),
    ("align", model(align=32), "-i in -m m.onnx --tile 80", "multiple of align.* tile 80 and align 32.*--tile 64"),
    ("step", model(align=32), "-i in -m m.onnx --overlap 40", "64 - 40 = 24 and align 32.*--overlap to 32"),
    ("tile of words", nothing, "-i in -m m.onnx --tile big", "tile.*big"),
    ("batch", nothing, "-i in -m m.onnx --batch 0", "batch.*got 0"),
    ("bands", nothing, "-i in -m m.onnx --bands 0,1,2", "counted from 1"),
    ("output is a file", text("out", ""), "-i in -m m.onnx -o out", "must be a folder, and .*out is a file"),
    ("output in input", nothing, "-i in -m m.onnx -o in/out", "must not lie inside the input"),
    ("output is input", nothing, "-i in -m m.onnx -o in", "must not lie inside the input|on or beside it"),
    ("output beside", nothing, "-i in/a.tif -m m.onnx -o in", "on or beside"),
    ("output in a glob", nothing, "-i in/**/*.tif -m m.onnx -o in/out", "must not lie inside the input"),
    ("remote output", nothing, "-i in -m m.onnx -o gs://bucket/x", "folder of this machine"),
    ("list of nothing", text("l.txt", "in/x.tif\nin/y.tif\n"), "-i l.txt -m m.onnx", "l.txt line 1: .*got in/x.tif"),
    ("list with a short row", text("l.csv", "id,path\n1,in/a.tif\n2\n"), "-i l.csv -m m.onnx", "l.csv line 3"),
]


def fresh_scenes(root: Path) -> Path:
    """Two scenes below ``in`` and ``m.onnx`` beside it."""
    (root / "in" / "sub").mkdir(parents=True)
    for seed, name in enumerate(["a.tif", "sub/b.tif"]):
        with rasterio.open(root / "in" / name, "w", driver="GTiff", width=70, height=60, count=3, dtype="uint8") as scene:
            scene.write(noise(seed=seed))
    pixelwise(root / "m.onnx")
    return root


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of every line of ``REFUSED``, and its files before and after."""
    roots = [fresh_scenes(tmp_path_factory.mktemp("refused")) for _ in REFUSED]
    for root, (_, made, _, _) in zip(roots, REFUSED, strict=True):
        made(root)
    before = [files_below(root) for root in roots]
    done = [
        invoke(["run", *case[2].split(), "--executor", "serial"], root) for root, case in zip(roots, REFUSED, strict=True)
    ]
    after = [files_below(root) for root in roots]
    return {case[0]: result for case, *result in zip(REFUSED, done, before, after, strict=True)}


@pytest.mark.parametrize(("name", "words"), [(case[0], case[3]) for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_cannot_start_is_refused(name, words, refused):
    done, before, after = refused[name]
    code, out, err = outcome(done)
    assert (code, out) == (2, ""), err
    assert re.search(words, err.replace("\n", " ")), err
    assert after == before


@pytest.mark.skipif(Path("/proc/driver/nvidia/version").exists(), reason="this machine has an NVIDIA driver")
def test_cuda_that_is_not_there_is_refused(scenes, segpipe):
    code, out, err = outcome(segpipe("run", "-i", "in", "-m", "m.onnx", "--device", "cuda"))
    assert (code, out) == (2, "")
    assert re.search("cuda needs a GPU.*--device cpu", err)


def test_auto_says_in_one_line_what_it_took_and_why(scenes, segpipe):
    code, _, err = outcome(segpipe("run", "-i", "in", "-m", "m.onnx", "--dry-run", "--device", "auto"))
    assert code == 0
    assert re.search(r"(?im)^.*device.*(cpu|cuda).*(driver|GPU|CUDA|provider).*$", err), err


def test_an_output_that_cannot_be_written_is_refused(scenes, mounts):
    root = scenes.parent
    (root / "out").mkdir()
    mount(mounts, f"mount --bind {root}/out {root}/out && mount -o remount,bind,ro {root}/out")
    code, said = run_within(mounts, root, "-o", "out/x")
    assert code == 2
    assert re.search("must be writable, and .*out is not", said)


def run_within(mounts: int, root: Path, *arguments: str) -> tuple[int, str]:
    """Exit code of a run that sees the mounts of a process, and what it said."""
    fork = Fork(root, ["run", "-i", "in", "-m", "m.onnx", *arguments, *SERIAL], root / "log", within=mounts)
    return fork.wait(), fork.log.read_text()


@pytest.mark.parametrize(("side", "kilobytes"), [(1000, 60), (1000, 200), (2200, 60), (2200, 420), (2200, 5200)])
def test_a_full_disk_costs_no_more_than_the_case_that_fills_it(side, kilobytes, raster, tmp_path, mounts):
    """Wherever it fills up, in the draft, the mask or the record: no broken file has a name, and what was done before stays.

    The case behind it is not begun, unless it was beside the end of the one that fills the disk.
    """
    raster("in/a.tif", noise(1, 40, 50))
    raster("in/b.tif", noise(1, side, side) % 3)
    raster("in/c.tif", noise(1, 40, 50))
    k = np.arange(3, dtype=np.float32)
    net = Network(1).add("Conv", 2 * k.reshape(-1, 1, 1, 1), -(k**2))
    net.save(tmp_path / "m.onnx", contract(1, scale=1.0, tile=[256, 256]), classes=3)
    (tmp_path / "disk").mkdir()
    mount(mounts, f"mount -t tmpfs -o size={kilobytes}k tmpfs {tmp_path}/disk")
    code, said = run_within(mounts, tmp_path, "-o", "disk")
    assert "Traceback" not in said
    assert code == 1, said
    out = Path(f"/proc/{mounts}/root{tmp_path}/disk")
    record = run_json(out)
    assert (record["done"][:1], [f["case"] for f in record["failed"]]) == (["a"], ["b"])
    assert record["done"] in (["a"], ["a", "c"])
    assert re.search("the disk of disk is full: no further work was started", record["problems"][0])
    assert sorted(p.name for p in out.iterdir()) == sorted(
        ["run.json", "areas.csv", *(f"{name}{end}" for name in record["done"] for end in (".tif", ".tif.aux.xml", ".json"))]
    )
    assert re.search("b.tif cannot be written.*|No space left", record["failed"][0]["error"])
    for name in record["done"]:
        with rasterio.open(out / f"{name}.tif") as mask:
            assert mask.read(1).max() < 3


UNTOLD = {
    "free": (3, 3, ("n", "h", "w")),
    "fixed": (3, 3, ("n", 64, 64)),
    "one score": (2, 1, ("n", "h", "w")),
    "off stride": (1, 2, (1, 48, 48)),
}


@pytest.mark.parametrize("kind", UNTOLD)
def test_the_lines_shown_for_a_missing_contract_work(kind, raster, segpipe, tmp_path):
    channels, scores, shape = UNTOLD[kind]
    raster("in/a.tif", noise(channels))
    Network(channels).conv(channels, scores, 1).save(tmp_path / "m.onnx", None, classes=scores, shape=shape)
    code, _, err = outcome(segpipe("run", "-i", "in", "-m", "m.onnx", *SERIAL))
    assert code == 2
    assert "m.onnx has no contract" in err
    lines = err.partition("\n\n")[2]
    assert {"channels", "mean", "std", "tile", "classes"} <= tomllib.loads(lines).keys()
    trained = re.sub(r"(?m)^(mean|std) = .*$", lambda m: f"{m[1]} = {[0.4] * channels}", lines)
    sidecar = re.search(r"\S+[.]toml", err)
    assert sidecar
    (tmp_path / sidecar[0]).write_text(trained)
    code, out, err = outcome(segpipe("run", "-i", "in", "-m", "m.onnx", *SERIAL))
    assert code == 0, err
    assert re.match(rf"{STAMP} \[1/1\] done  a", out)


def broken(path: Path) -> None:
    """A raster whose header is whole and whose pixels are not."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("executor", ["serial", "processes", "dask"])
def test_a_bad_case_costs_only_itself(executor, raster, segpipe, scenes):
    raster("in/bands.tif", noise(2))
    raster("in/text.tif", noise()).write_text("no raster")
    broken(raster("in/cut.tif", noise(3, 300, 300)))
    code, out, _ = outcome(segpipe("run", "-i", "in", "-m", "m.onnx", "-o", "out", "--executor", executor, "--workers", 2))
    assert code == 1
    record = run_json(scenes.parent / "out")
    assert record["done"] == ["a", "sub/b"]
    errors = {failure["case"]: failure["error"] for failure in record["failed"]}
    assert re.search("in/bands.tif: .*model's channels, got 2 bands.*fewer bands than the model has", errors["bands"])
    assert re.search("in/text.tif cannot be opened", errors["text"])
    assert re.search("in/cut.tif cannot be read at row", errors["cut"])
    *lines, totals, areas, where = out.splitlines()
    found = [re.match(rf"{STAMP} \[(\d)/5\] (?:done|failed)  ([\w/]+)", line) for line in lines]
    assert sorted(line[2] for line in found) == sorted([*errors, "a", "sub/b"])
    assert [line[1] for line in found] == ["1", "2", "3", "4", "5"]
    assert re.fullmatch(rf"{STAMP} 2 done, 0 done before, 3 failed in [\d.]+ s, [\d.]+ Mpx/s", totals)
    assert re.fullmatch(rf"{STAMP} areas: class0 [\d,.]+ (?:ha|px) \([\d.]+%\), class1 .*", areas)
    assert re.fullmatch(rf"{STAMP} areas in out/areas.csv, what failed and why in out/run.json", where)
    names = {p.name for p in (scenes.parent / "out").rglob("*") if p.is_file()}
    assert names == {"run.json", "areas.csv", *(f"{n}{e}" for n in "ab" for e in (".tif", ".tif.aux.xml", ".json"))}


def test_the_mask_of_an_earlier_run_of_a_case_that_fails_stays_and_does_not_count(segpipe, scenes):
    out = scenes.parent / "out"
    command = ("run", "-i", "in", "-m", "m.onnx", "-o", "out", *SERIAL)
    assert segpipe(*command).returncode == 0
    before = {path: path.read_bytes() for path in out.glob("a.*")}
    (scenes.parent / "in" / "a.tif").write_text("no raster")
    assert segpipe(*command).returncode == 1
    assert {path: path.read_bytes() for path in out.glob("a.*")} == before
    assert {line.partition(",")[0] for line in (out / "areas.csv").read_text().splitlines()} == {"case", "sub/b"}
    found = segpipe("polygons", "out", "-o", "p.geojson")
    assert re.match("[0-9,]+ polygons of 1 case", found.stdout), found.stderr


@pytest.mark.parametrize("bad", ["header", "pixels"])
def test_fail_fast_stops_at_the_first(bad, raster, segpipe, scenes):
    path = raster("in/0.tif", noise(2) if bad == "header" else noise(3, 300, 300))
    if bad == "pixels":
        broken(path)
    code, _, _ = outcome(segpipe("run", "-i", "in", "-m", "m.onnx", "-o", "out", "--fail-fast", *SERIAL))
    assert code == 1
    record = run_json(scenes.parent / "out")
    assert [failure["case"] for failure in record["failed"]] == ["0"]
    assert record["done"] == []
    code, _, _ = outcome(segpipe("run", "-i", "in", "-m", "m.onnx", "-o", "out", *SERIAL))
    assert (code, run_json(scenes.parent / "out")["done"]) == (1, ["a", "sub/b"])


@pytest.mark.parametrize("problem", [False, True])
def test_a_dry_run_writes_nothing_and_tells_all(problem, raster, segpipe, scenes):
    raster("in/large.tif", noise(3, 100, 500))
    if problem:
        raster("in/bands.tif", noise(2))
    before = files_below(scenes.parent)
    code, out, _ = outcome(segpipe("run", "-i", "in", "-m", "m.onnx", "-o", "out", "--dry-run", "--overlap", 0))
    assert code == int(problem)
    assert files_below(scenes.parent) == before
    assert re.search(r"(?m)^case  large  100 x 500 px  16 windows$", out)
    assert re.search(r"(?m)^case  sub/b  60 x 70 px  2 windows$", out)
    assert bool(re.search(r"(?m)^problem  bands: .*bands must", out)) == problem
    assert re.search(r"3 cases to do, 0 done before.*20 windows in \d+ jobs.* [\d,]+ MB", out)


def test_flags_win_over_the_configuration(segpipe, scenes):
    root = scenes.parent
    (root / "c.toml").write_text(
        'input = ["in/a.tif"]\nmodel = "m.onnx"\noutput = "conf"\nexecutor = "serial"\n'
        'overlap = [32, 24]\nblend = "linear"\n'
    )
    assert segpipe("run", "-c", "c.toml", "--overlap", "8", "-o", "flag").returncode == 0
    assert not (root / "conf").exists()
    record = json.loads((root / "flag" / "a.json").read_text())
    assert (record["settings"]["overlap"], record["settings"]["blend"]) == ([8, 8], "linear")
    assert segpipe("run", "-c", "c.toml").returncode == 0
    assert json.loads((root / "conf" / "a.json").read_text())["settings"]["overlap"] == [32, 24]


def test_the_output_is_segpipe_out_unless_named(segpipe, scenes):
    assert segpipe("run", "-i", "in/a.tif", "-m", "m.onnx", *SERIAL).returncode == 0
    assert (scenes.parent / "segpipe-out" / "a.tif").is_file()


def test_what_cutting_costs_and_too_little_memory_are_notes(segpipe, scenes):
    stderr = segpipe("run", "-i", "in/a.tif", "-m", "m.onnx", *SERIAL, "--parts", "4", "--memory", "0.05").stderr
    assert re.search(r"note: 1 case in \d parts: \d+\.\d% of their windows are inferred twice", stderr), stderr
    assert re.search(r"note: a worker is expected to take \d+ MB, and may take 50: raise --memory", stderr), stderr
    whole = segpipe("run", "-i", "in/a.tif", "-m", "m.onnx", *SERIAL, "--overwrite").stderr
    assert re.findall("note: (.*)", whole) == ["a: areas are in pixels: the file has no georeferencing"]


NAMED: list[tuple[str, str, set[str]]] = [
    ("folder", "-i in", {"a", "sub/b", "sub/deep/c", "x/b"}),
    ("any suffix", "-i in/odd.dat", {"odd"}),
    ("repeated", "-i in/a.tif -i in/sub", {"a", "b", "deep/c"}),
    ("twice the same", "-i in/a.tif -i ./in/a.tif -i in/sub/b.tif", {"a", "b"}),
    ("glob of files", "-i in/sub/*.tif", {"b"}),
    ("glob of folders", "-i in/*/b.tif", {"sub/b", "x/b"}),
    ("glob below", "-i in/**/*.tif", {"a", "sub/b", "sub/deep/c", "x/b"}),
    ("list", "-i lists/l.txt", {"a", "c"}),
    ("list that repeats", "-i lists/again.txt", {"a"}),
    ("CSV", "-i lists/l.csv", {"a", "c"}),
    ("CSV without header", "-i lists/bare.csv", {"a", "c"}),
]


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess[str]]:
    """Dry runs of every line of ``NAMED`` in one folder."""
    root = fresh_scenes(tmp_path_factory.mktemp("named"))
    for name in ("in/sub/deep/c.tif", "in/x/b.tif", "in/odd.dat"):
        text(name, "")(root)
        copied(name)(root)
    for name in ("in/.hidden/h.tif", "in/._a.tif", "in/notes.txt"):
        text(name, "")(root)
    text("lists/l.txt", f"# scenes\n../in/a.tif\n\n{root / 'in/sub/deep/c.tif'}\n")(root)
    text("lists/again.txt", "../in/a.tif\n../in/a.tif\n")(root)
    text("lists/l.csv", 'date,path,note\n1,../in/a.tif,"x, y"\n2,../in/sub/deep/c.tif,\n')(root)
    text("lists/bare.csv", "../in/a.tif,1\n../in/sub/deep/c.tif,2\n")(root)
    done = [invoke(["run", *arguments.split(), "-m", "m.onnx", "--dry-run"], root) for _, arguments, _ in NAMED]
    return dict(zip([case[0] for case in NAMED], done, strict=True))


@pytest.mark.parametrize(("name", "names"), [(case[0], case[2]) for case in NAMED], ids=[case[0] for case in NAMED])
def test_cases_are_named_by_their_place(name, names, named):
    code, out, _ = outcome(named[name])
    assert code == 0
    assert set(re.findall(r"(?m)^case  (\S+)  ", out)) == names


def test_folders_are_mirrored_and_stdout_has_a_line_per_case(raster, segpipe, scenes):
    raster("in/p.png", noise())
    code, out, _ = outcome(segpipe("run", "-i", "in", "-m", "m.onnx", "-o", "out", *SERIAL))
    assert code == 0
    cases, totals = out.rsplit("\n", 4)[0] + "\n", out.splitlines()[-3:]
    assert re.fullmatch(rf"({STAMP} \[\d/3\] done  (a|p|sub/b)  [^\n]* Mpx/s\n){{3}}", cases)
    assert re.fullmatch(rf"{STAMP} 3 done, 0 done before, 0 failed in [\d.]+ s, [\d.]+ Mpx/s", totals[0])
    assert re.fullmatch(rf"{STAMP} areas: class0 [\d,]+ px .*", totals[1])  # a picture has no place
    assert re.fullmatch(rf"{STAMP} areas in out/areas.csv", totals[2])
    found = {p for p in files_below(scenes.parent / "out") if p.endswith((".tif", ".png"))}
    assert found == {"a.tif", "p.png", "sub/b.tif"}
    with (scenes.parent / "out" / "areas.csv").open() as stream:
        assert [row["case"] for row in csv.DictReader(stream)][::4] == ["a", "p", "sub/b"]


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_is_quick(arguments, tmp_path):
    command = [sys.executable, "-X", "importtime", *SEGPIPE[1:], *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True, cwd=tmp_path)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "click" in imported
    heavy = {"onnxruntime", "onnx", "rasterio", "pyproj", "dask", "distributed", "rich", "torch", "pydantic", "numpy"}
    asked = {"rasterio", "numpy"} if "--version" in arguments else set()  # rasterio knows GDAL's version
    assert not imported & heavy - asked
    if "run" in arguments:
        assert all(flag in done.stdout for flag in ("--input", "--model", "--output", "--config", "--overlap", "--dry-run"))


def test_the_version_names_what_a_run_computes_with(segpipe):
    code, out, _ = outcome(segpipe("--version"))
    runtime = next(name for name in ("onnxruntime-gpu", "onnxruntime") if name in versions())
    runtime = f"{versions()[runtime]} ({runtime})"
    openvino = f", OpenVINO {versions()['openvino']}"  # installed with the packages for tests
    assert code == 0
    assert out.splitlines() == version_lines()
    assert out.splitlines() == [
        f"segpipe {__version__}",
        f"Python {platform.python_version()}, ONNX Runtime {runtime}, GDAL {rasterio.__gdal_version__}{openvino}",
    ]


def test_python_m_segpipe_is_called_segpipe():
    command = [sys.executable, "-m", "segpipe", "run", "--nothing"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (ended.returncode, ended.stderr.splitlines()[0]) == (2, "Usage: segpipe run [OPTIONS]")


def test_the_shell_completes_flags(segpipe_process, tmp_path):
    asked = {"_SEGPIPE_COMPLETE": "bash_complete", "COMP_WORDS": "segpipe run --bl", "COMP_CWORD": "2"}
    ended = segpipe_process(env={**os.environ, **asked})
    assert ended.stdout.split() == ["plain,--blend", "plain,--blend-on"]


def test_one_line_has_the_settings_that_are_not_defaults(segpipe, scenes):
    ended = segpipe(
        "run", "-i", "in", "-m", "m.onnx", "-o", "out", *SERIAL, "--blend", "linear", "--tile", 32, "--overlap", 8
    )
    (line,) = [line for line in ended.stderr.splitlines() if not line.startswith("note: ")]
    assert re.fullmatch(
        r"model m\.onnx, device cpu \(.*\), in this process, output out; tile = 32; overlap = 8; blend = linear", line
    )
    workers = segpipe("run", "-i", "in", "-m", "m.onnx", "-o", "out", "--workers", 1, "--dry-run").stderr
    assert re.fullmatch(r"model m\.onnx, device cpu \(.*\), 1 worker, output out\n", workers)
    everything = segpipe("run", "-i", "in", "-m", "m.onnx", "-o", "out", *SERIAL, "--dry-run", "-v").stderr
    keys = re.findall(r"(?m)^(\w+) = ", everything)
    assert set(Settings.model_fields) <= set(keys)
    assert set(Settings.model_fields) <= set(run_json(scenes.parent / "out")["settings"])


def test_nothing_of_this_needs_a_terminal(scenes, segpipe):
    code, out, err = outcome(segpipe("run", "-i", "in", "-m", "m.onnx", *SERIAL, env={**os.environ, "TERM": "dumb"}))
    assert (code, len(out.splitlines())) == (0, 2 + 3)
    assert "\x1b" not in out + err


def in_terminal(arguments: list[str], cwd: Path) -> tuple[int, str]:
    """Exit code and all that a terminal of 120 columns shows of stdout."""
    main, side = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    with subprocess.Popen(
        [*SEGPIPE, *arguments], stdout=side, stderr=subprocess.DEVNULL, cwd=cwd, env=environment
    ) as process:
        os.close(side)
        shown = b""
        while select.select([main], [], [], PATIENCE)[0]:
            try:
                shown += os.read(main, 65536)
            except OSError:  # the other end is closed
                break
        code = process.wait(PATIENCE)
    os.close(main)
    return code, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


@pytest.mark.parametrize("executor", ["serial", "processes", "dask"])
def test_a_terminal_shows_a_bar_and_a_table(executor, raster, scenes):
    raster("in/bands.tif", noise(2))
    command = ["run", "-i", "in", "-m", "m.onnx", "-o", "out", "--executor", executor, "--workers", "1"]
    code, shown = in_terminal(command, scenes.parent)
    assert code == 1
    assert "3/3 cases" in shown
    assert "Mpx/s" in shown
    assert "━" in shown
    assert re.search(r"failed  bands: .*bands must", shown)
    for words in ("class", "pixels", "hectares", "share", "class0", "class2", "nodata", "2 done, 0 done before, 1 failed"):
        assert words in shown
    assert "areas.csv" in shown


CASES = 4


def long_arguments(out: Path, executor: str) -> list[str]:
    choices = ["--confidence", "--executor", executor, "--device", "cpu"]
    return ["run", "-i", "in", "-m", "m.onnx", "-o", str(out), *choices]


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of several tiles, and in ``whole`` what an undisturbed run makes of them."""
    root = tmp_path_factory.mktemp("long")
    (root / "in").mkdir()
    for i in range(CASES):
        with rasterio.open(
            root / "in" / f"{i}.tif", "w", driver="GTiff", width=160, height=160, count=3, dtype="uint8"
        ) as f:
            f.write(noise(3, 160, 160, seed=i))
    local(root / "m.onnx", align=8, tile=[64, 64], overlap=[32, 32])
    assert invoke(long_arguments(root / "whole", "serial"), root).returncode == 0
    return root


def left_of(session: int, seconds: float = 30) -> list[str]:
    """Processes of a session that are still there after some seconds; the test began it, so it may end them."""
    limit = time.monotonic() + seconds
    while True:
        listed = subprocess.run(["ps", "-o", "args=", "-s", str(session)], capture_output=True, text=True, check=False)
        if not listed.stdout or time.monotonic() > limit:
            break
        time.sleep(0.1)
    if listed.stdout:
        with suppress(ProcessLookupError):  # the last of them may end by itself
            os.killpg(session, signal.SIGKILL)
    return listed.stdout.splitlines()


@pytest.mark.parametrize(
    ("executor", "number", "tell"),
    [
        ("serial", signal.SIGINT, os.killpg),
        ("serial", signal.SIGTERM, os.kill),
        ("processes", signal.SIGINT, os.killpg),
        ("processes", signal.SIGTERM, os.kill),
    ],
    ids=["serial Ctrl-C", "serial SIGTERM", "workers Ctrl-C", "workers SIGTERM"],
)
def test_an_interrupted_run_can_go_on(executor, number, tell, long_run, tmp_path):
    """Ctrl-C reaches the whole process group; a batch system may tell the first process alone."""
    out, log = tmp_path / "out", tmp_path / "log"
    process = begin_and_stop(long_run, [*SEGPIPE, *long_arguments(out, executor)], log, "jobs.task_queue:ended")
    tell(process.pid, number)
    process.send_signal(signal.SIGCONT)
    code = wait(process)
    left = left_of(process.pid)
    assert code == 75, log.read_text()
    assert left == []
    whole = {p.name: p.read_bytes() for p in (long_run / "whole").glob("*.tif")}
    there = {p.name: p.read_bytes() for p in out.glob("[0-9]*.tif")}
    assert there == {name: whole[name] for name in there}
    record = run_json(out)
    assert record["interrupted"] is True
    # workers may finish what they had begun; nothing more is begun
    assert len(record["done"]) < CASES or executor != "serial"
    assert [p.name for p in out.iterdir() if p.name.startswith(".")] == []
    assert invoke(long_arguments(out, "serial"), long_run).returncode == 0  # tests/slow/test_kills.py: with workers
    record = run_json(out)
    assert record["skipped"]
    assert len(record["skipped"]) + len(record["done"]) == CASES
    assert {p.name: p.read_bytes() for p in out.glob("*.tif")} == whole
    assert (out / "areas.csv").read_bytes() == (long_run / "whole" / "areas.csv").read_bytes()


def test_a_model_of_integers_refuses_floats_case_by_case(raster, segpipe, tmp_path):
    raster("in/float.tif", noise().astype(np.float32))
    raster("in/byte.tif", noise())
    net = Network(3).add("Cast", to=TensorProto.FLOAT).conv(3, 3, 1)
    values = contract(scale=None, offset=None)
    net.save(tmp_path / "m.onnx", values, classes=3, dtype=TensorProto.UINT8)
    code, _, _ = outcome(segpipe("run", "-i", "in", "-m", "m.onnx", "-o", "out", *SERIAL))
    record = run_json(tmp_path / "out")
    assert (code, record["done"]) == (1, ["byte"])
    assert re.search("float.tif: pixels must fit the model's uint8 input", record["failed"][0]["error"])


ENDING = """
import os, signal, sys, time
from segpipe.settings import Settings
from segpipe.terminal.versions import version_lines
from segpipe.results.device_kind import versions
from segpipe import __version__
from segpipe.process import signals
from segpipe.jobs.tasks import Halt

class Slow:
    def __del__(self):
        time.sleep(1)  # while Python ends, and hears of signals no more

slow = Slow()
halt = Halt()
signals.halt_first(halt, 0.3)
os.kill(os.getpid(), signal.SIGTERM)
assert halt.is_set()
{concluding}
sys.exit(75)
"""


@pytest.mark.parametrize("concluding", ["signals.ignore_signals()", ""], ids=["told", "left"])
def test_the_end_of_the_grace_does_not_kill_a_run_that_ends(concluding):
    script = ENDING.format(concluding=concluding)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 75, done.stderr
    assert "once more to stop it now" in done.stderr

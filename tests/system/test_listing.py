"""What cannot be listed, named or found costs only itself; every name that a file can have is a name."""

import csv
import errno
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from networks import pixelwise
from products import LANDSAT
from rasterio.io import MemoryFile
from scenes import PATIENCE, Silent
from unreadable import fail

from segpipe.cli import main
from segpipe.errors import InputError
from segpipe.formats.cases import find_cases, find_input
from segpipe.formats.listing import UNREADABLE
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import prepare
from segpipe.jobs.status import read_status
from segpipe.messages.printable import printable
from segpipe.settings import load_settings
from segpipe.storage.files import draft_name
from segpipe.storage.folder import Folder
from segpipe.storage.urls import malformed

NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
BYTES = os.fsdecode(b"caf\xe9 \xff")
"""A name in Latin-1, as old archives have them, and a byte that no encoding of Europe has alone."""


def scene(path: Path, seed: int = 1, **more) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(1, 255, (3, 40, 50), dtype=np.uint8)
    kind = {"driver": "GTiff", "count": 3, "height": 40, "width": 50, "dtype": "uint8", "crs": "EPSG:32633"}
    with MemoryFile() as file:  # rasterio writes no file whose name is no text
        with file.open(**kind, **more) as dataset:
            dataset.write(pixels)
        path.write_bytes(file.read())
    return path


@pytest.fixture
def root(tmp_path):
    """``in/good.tif`` and a model."""
    scene(tmp_path / "in" / "good.tif", 0)
    pixelwise(tmp_path / "m.onnx")
    return tmp_path


def prepared(root, *inputs, **more):
    flags = {"input": tuple(map(str, inputs or (root / "in",))), "model": root / "m.onnx", "output": root / "out"}
    return prepare(load_settings(None, {"executor": "serial", "device": "cpu", **flags, **more}))


def run(root, *inputs, **more):
    """Names of what is done, what failed and why, and the problems, as ``run.json`` has them."""
    summary = carry_out(prepared(root, *inputs, **more), Silent())
    recorded = json.loads((root / "out" / "run.json").read_text())
    assert recorded["state"] == "ended"
    assert recorded["problems"] == summary.problems
    return (
        recorded["done"] + recorded["skipped"],
        {one["case"]: one["error"] for one in recorded["failed"]},
        recorded["problems"],
    )


def labels(path):
    with rasterio.open(path) as mask:
        return mask.read(1)


# --- one name, no name, not there -----------------------------------------------------------------------------------------


def test_two_of_one_name_fail_and_the_rest_is_done(root):
    scene(root / "in" / "a.tif", 1)
    scene(root / "in" / "a.png", 2)
    done, failed, problems = run(root)
    assert (done, list(failed), problems) == (["good"], ["a"], [])
    assert failed["a"].startswith(f"two inputs would get one name, a: {root}/in/a.png and {root}/in/a.tif: rename one")
    assert not (root / "out" / "a.tif").exists()
    (root / "in" / "a.png").unlink()
    assert run(root)[:2] == (["a", "good"], {})


def test_many_of_one_name_are_one_failure(root):
    for folder in ("x", "y", "z"):
        scene(root / folder / "a.tif")
    done, failed, _ = run(root, root / "in", *(root / folder for folder in "xyz"))
    assert (done, list(failed)) == (["good"], ["a"])
    assert failed["a"].startswith(f"3 inputs would get one name, a: {root}/x/a.tif and {root}/y/a.tif and 1 more: rename")


def test_a_mask_of_an_earlier_night_does_not_make_one_of_two_done(root):
    scene(root / "in" / "a.tif", 1)
    assert run(root)[:2] == (["a", "good"], {})
    scene(root / "in" / "a.jp2", 2)
    done, failed, _ = run(root)
    assert (done, list(failed)) == (["good"], ["a"])


@pytest.mark.parametrize("name", ["run", "a.confidence"])
def test_a_reserved_name_fails_alone(name, root):
    scene(root / "in" / f"{name}.tif")
    done, failed, _ = run(root)
    assert (done, list(failed)) == (["good"], [name])
    assert f"reserved, got {root}/in/{name}.tif: rename it" in failed[name]


def test_a_line_of_a_list_that_is_not_there_fails_alone(root):
    (root / "l.txt").write_text("in/good.tif\n\nin/gone.tif\n")
    done, failed, _ = run(root, root / "l.txt")
    assert (done, failed) == (["good"], {"gone": f"{root}/l.txt line 3: the input must exist, got in/gone.tif"})


def test_folders_in_a_list_or_for_a_glob_are_named_with_what_to_do(root):
    (root / "l.txt").write_text("in/good.tif\nin\n")
    assert run(root, root / "l.txt")[1] == {
        "in": f"{root}/l.txt line 2: a list takes files, got the folder in: give it to --input"
    }
    with pytest.raises(
        InputError, match=rf"a glob takes files, and .*/i\* matches folders, such as {root}/in: end it with /\*\*"
    ):
        find_input([f"{root}/i*"])
    assert [case.name for case in find_input([f"{root}/i*/**"]).cases] == ["in/good"]


def test_a_list_in_another_encoding_names_its_files(root):
    scene(root / "in" / f"{BYTES}.tif")
    (root / "l.txt").write_bytes(b"in/good.tif\nin/" + os.fsencode(BYTES) + b".tif\n")
    assert run(root, root / "l.txt")[:2] == ([BYTES, "good"], {})


def test_status_knows_what_is_refused(root):
    scene(root / "in" / "b.tif", 1)
    run(root)
    shutil.copy(root / "in" / "b.tif", root / "in" / "b.tiff")
    found = read_status(str(root / "out"))
    assert (found.done, [one["case"] for one in found.failed], found.missing, found.problems) == (1, ["b"], [], [])


def test_commands_that_need_all_scenes_refuse_some(root):
    scene(root / "in" / "good.tiff", 1)
    with pytest.raises(InputError, match="two inputs would get one name, good"):
        find_cases([str(root / "in")])


# --- folders --------------------------------------------------------------------------------------------------------------

FIND = """
import json, sys
from segpipe.formats.cases import find_input
from segpipe.errors import InputError
try:
    found = find_input(sys.argv[1:])
    print(json.dumps([[case.name for case in found.cases], found.problems]))
except InputError as error:
    print(json.dumps([None, [str(error)]]))
"""


def found_by_nobody(*inputs):
    """Cases and problems as another user of the machine finds them: root may read every folder."""
    command = [sys.executable, "-c", FIND, *map(str, inputs)]
    command = [*NOBODY, *command] if os.getuid() == 0 else command
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=True, cwd=Path(__file__).parents[2]
    )
    return json.loads(done.stdout)


@pytest.fixture
def closed(tmp_path):
    """A folder with a folder that nobody may list, and one that may be listed and not entered; others may reach it."""
    scene(tmp_path / "in" / "good.tif")
    scene(tmp_path / "in" / "lost+found" / "a.tif")
    scene(tmp_path / "in" / "sub" / "b.tif")
    for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
        folder.chmod(folder.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
    (tmp_path / "in" / "lost+found").chmod(0)
    yield tmp_path / "in"
    (tmp_path / "in" / "lost+found").chmod(0o700)


@pytest.mark.parametrize("pattern", ["", "/**/*.tif", "/*", "/*/*.tif"])
def test_a_folder_that_cannot_be_read_is_named(pattern, closed):
    names, problems = found_by_nobody(f"{closed}{pattern}")
    assert names == {"/*": ["good"], "/*/*.tif": ["sub/b"]}.get(pattern, ["good", "sub/b"])
    if pattern == "/*":
        assert problems == []  # nothing in it was asked for
        return
    (problem,) = problems
    assert problem.startswith(
        f"a part of the input cannot be read, and its cases are left out: {closed}/lost+found: Permission denied: mend"
    )


def test_an_input_that_cannot_be_read_at_all_is_an_error(closed):
    names, (error,) = found_by_nobody(closed / "lost+found")
    assert names is None
    assert f"{closed}/lost+found: Permission denied" in error


def test_a_folder_that_goes_while_it_is_listed_is_a_problem_of_the_run(root, monkeypatch):
    scene(root / "in" / "going" / "a.tif")
    scandir = os.scandir

    def and_away(path):
        if str(path).endswith("/going"):
            shutil.rmtree(root / "in" / "going", ignore_errors=True)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", and_away)
    done, failed, (problem,) = run(root)
    assert (done, failed) == (["good"], {})
    assert f"left out: {root}/in/going: No such file or directory" in problem


def test_a_problem_is_told_by_every_command_and_ends_with_1(root, monkeypatch):
    """As a folder of another user's, which root does not have."""
    (root / "in" / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    place = f"{root}/in/closed: Permission denied"
    flags = ["run", "-i", str(root / "in"), "-m", str(root / "m.onnx"), "-o", str(root / "out"), "--device", "cpu"]
    tried = CliRunner().invoke(main, [*flags, "--dry-run"])
    assert (tried.exit_code, place in tried.stdout) == (1, True), tried.output
    done = CliRunner().invoke(main, [*flags, "--executor", "serial"])
    assert (done.exit_code, place in done.stderr) == (1, True), done.output
    assert (root / "out" / "good.tif").exists()
    status = CliRunner().invoke(main, ["status", str(root / "out")])
    assert (status.exit_code, place in status.stdout) == (1, True), status.output


def test_a_link_of_which_nobody_says_where_it_leads_is_a_problem(root, monkeypatch):
    scene(root / "far" / "s.tif")
    (root / "in" / "link").symlink_to(root / "far")
    fail(monkeypatch, root / "in" / "link", "stat")
    monkeypatch.setattr(os, "scandir", lambda folder: nullcontext(map(Entry, Path(folder).iterdir())))
    found = find_input([str(root / "in")])
    assert [case.name for case in found.cases] == ["good"]
    assert found.problems == [UNREADABLE.format(root / "in" / "link", "Input/output error: check the disk")]


def test_a_folder_that_cannot_be_read_to_its_end_has_no_cases(root, monkeypatch):
    """Of a series, the slices that were listed would be a shorter volume."""
    for n in range(3):
        scene(root / "in" / "sub" / f"{n}.tif")
    scandir = os.scandir

    def cut(path):
        return nullcontext(breaking(scandir(path), path)) if str(path).endswith("/sub") else scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", cut)
        patch.setattr("segpipe.storage.retry.time.sleep", lambda _: None)
        each = [find_input([str(root / "in" / text)]) for text in ("", "**", "**/*.tif")]
    for found in each:
        assert [case.name for case in found.cases] == ["good"]
        assert found.problems == [UNREADABLE.format(root / "in" / "sub", "Input/output error: check the disk")]


def breaking(entries, path):
    """Two entries of a folder, and then an error."""
    with entries:
        yield next(entries)
        yield next(entries)
    raise OSError(errno.EIO, os.strerror(errno.EIO), path)


class Entry:
    """An entry of a file system that does not say with the name what it is."""

    def __init__(self, path):
        self.name, self.path = path.name, str(path)

    def is_dir(self):
        return stat.S_ISDIR(Path(self.path).stat().st_mode)


@pytest.mark.parametrize("pattern", ["*/img/*.tif", "*/img/a.tif", "**/img/*.tif"])
def test_a_fixed_name_in_a_glob_for_which_nobody_answers_is_a_problem(pattern, root, monkeypatch):
    for day in "12":
        scene(root / "in" / day / "img" / "a.tif")
    fail(monkeypatch, root / "in" / "2" / "img")
    found = find_input([f"{root}/in/{pattern}"])
    assert [case.name for case in found.cases] == ["1/img/a"]
    (problem,) = found.problems
    assert f"{root}/in/2/img: Input/output error: check the disk" in problem


def test_a_fixed_name_of_a_file_in_a_glob_for_which_nobody_answers_is_a_problem(root, monkeypatch):
    for day in "12":
        scene(root / "in" / day / "a.tif")
    fail(monkeypatch, root / "in" / "2" / "a.tif")
    found = find_input([f"{root}/in/*/a.tif"])
    assert [case.name for case in found.cases] == ["1/a"]
    assert found.problems == [UNREADABLE.format(root / "in" / "2" / "a.tif", "Input/output error: check the disk")]


@pytest.mark.parametrize("name", ["p.zip", "p.tar", f"{LANDSAT}.tar", "x.SAFE"])
def test_a_product_that_cannot_be_looked_into_is_a_problem(name, root, monkeypatch):
    (root / "in" / name).mkdir() if name.endswith(".SAFE") else (root / "in" / name).touch()
    fail(monkeypatch, root / "in" / name)
    for text in (root / "in", root / "in" / "*"):
        (problem,) = find_input([str(text)]).problems
        assert problem == UNREADABLE.format(root / "in" / name, "Input/output error: check the disk")


def test_a_line_of_a_list_for_which_nobody_answers_fails_alone(root, monkeypatch):
    scene(root / "in" / "#5.tif")
    (root / "list.txt").write_text("in/good.tif\n#a comment\nin/#5.tif\n")
    fail(monkeypatch, root / "in" / "#5.tif")
    found = find_input([str(root / "list.txt")])
    (failure,) = found.refused
    assert [case.name for case in found.cases] == ["good"]
    assert failure.error == f"{root}/list.txt line 3: {root}/in/#5.tif cannot be read: Input/output error: check the disk"


@pytest.mark.parametrize("name", ["", "/good.tif"])
def test_an_input_for_which_nobody_answers_is_no_missing_one(name, root, monkeypatch):
    fail(monkeypatch, Path(f"{root}/in{name}"))
    told = CliRunner().invoke(main, ["cases", "-i", f"{root}/in{name}"])
    assert told.exit_code == 2
    assert told.stderr == f"error: {root}/in{name} cannot be read or written: Input/output error: check the disk\n"


def test_two_links_that_lead_back_end_in_every_search(root):
    """``glob`` of Python would try 2 to the power of 40 paths."""
    scene(root / "in" / "sub" / "s.tif")
    for name in ("back", "again"):
        (root / "in" / name).symlink_to(root / "in")
        (root / "in" / "sub" / name).symlink_to(root / "in" / "sub")
    (root / "in" / "self").symlink_to("self")
    assert [case.name for case in find_cases([str(root / "in")])] == ["good", "sub/s"]
    assert [case.name for case in find_cases([f"{root}/in/**/*.tif"])] == ["good", "sub/s"]
    assert [case.name for case in find_cases([f"{root}/in/**/sub/**/*.tif"])] == ["sub/s"]


@pytest.mark.parametrize(
    "pattern",
    ["*", "*.tif", "**/*.tif", "**", "*/*.tif", "s*/**/t.*", "**/s/*", ".h/*.tif", "[gs]*.tif", "sub/*.tif", "**/good.tif"],
)
def test_a_glob_means_what_it_means_to_python(pattern, root):
    import glob

    for name in ("sub/s/t.tif", "sub/u.tif", "s/t.png", ".h/v.tif", "sub/.w.tif", "readme.txt", "sub/s/good.tif"):
        scene(root / "in" / name)
    found = find_input([f"{root}/in/{pattern}"])
    suffixes = {".tif", ".png"}
    expected = [path for path in glob.glob(f"{root}/in/{pattern}", recursive=True) if Path(path).suffix in suffixes]
    clashing = {case.case.path for case in found.refused}
    assert sorted({case.path for case in found.cases} | clashing) == sorted(set(expected))


def test_folders_deeper_than_a_path_can_say_are_a_problem(root):
    before = Path.cwd()
    os.chdir(root / "in")
    for _ in range(30):
        os.mkdir("d" * 200)  # noqa: PTH102 - below what a path can name
        os.chdir("d" * 200)
    try:
        found = find_input([str(root / "in")])
    finally:
        os.chdir(before)
        subprocess.run(["rm", "-rf", str(root / "in" / ("d" * 200))], check=True)
    assert [case.name for case in found.cases] == ["good"]
    assert len(found.problems) == 1
    assert found.problems[0].endswith(
        "File name too long: shorten the name; run the same command again, or take it away first"
    )


# --- names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"parts": 4}], ids=["whole", "in parts"])
@pytest.mark.parametrize("name", [BYTES, f"{BYTES}/s", "esc\x1b[31m\nred", "n" * 251])
def test_a_file_of_any_name_has_a_mask_of_that_name(name, more, root):
    path = scene(root / "in" / f"{name}.tif", 1, transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5.4e6))
    shutil.copy(path, root / "plain.tif")
    run(root, root / "plain.tif")
    options = {"overlap": (16,), "tile": (32,), **more} if more else {}
    if more:
        run(root, root / "plain.tif", **options)
    done, failed, problems = run(root, **options)
    if len(name) > 250:  # its record would have a name of 256 bytes
        assert (done, list(failed)) == (["good"], [name])
        assert "File name too long" in failed[name]
        return
    assert (sorted(done), failed, problems) == (sorted([name, "good"]), {}, [])
    mask = Path(os.fsdecode(b"%s/out/%s.tif" % (os.fsencode(root), os.fsencode(name))))
    np.testing.assert_array_equal(labels(shutil.copy(mask, root / "copy.tif")), labels(root / "out" / "plain.tif"))
    record = json.loads(Path(f"{mask.with_suffix('')}.json").read_text())
    assert (record["case"], record["input"]["path"]) == (name, str(path))
    again = carry_out(prepared(root, **options), Silent())
    assert sorted(again.skipped) == sorted([name, "good"])
    assert read_status(str(root / "out")).done == 2
    rows = list(csv.reader((root / "out" / "areas.csv").read_text().splitlines()))
    assert {row[0] for row in rows[1:]} == {printable(name), "good"}
    path.unlink()
    scene(path, 3)
    redone = carry_out(prepared(root, **options), Silent())
    assert (redone.done, redone.skipped, redone.failed) == ([name], ["good"], [])


def test_sidecars_of_a_name_that_is_no_text_count(root):
    path = scene(root / "in" / f"{BYTES}.tif", 1)
    Path(f"{path}.aux.xml").write_text(
        "<PAMDataset>"
        + "".join(f'<PAMRasterBand band="{b}"><NoDataValue>7</NoDataValue></PAMRasterBand>' for b in (1, 2, 3))
        + "</PAMDataset>"
    )
    done, failed, _ = run(root)
    assert (sorted(done), failed) == (sorted([BYTES, "good"]), {})
    record = json.loads((root / "out" / f"{BYTES}.json").read_text())
    assert [file["path"] for file in record["input"]["files"]] == [str(path), f"{path}.aux.xml"]
    assert record["valid"]["pixels"] < 2000
    Path(f"{path}.aux.xml").unlink()
    summary = carry_out(prepared(root), Silent())
    assert (summary.done, summary.skipped) == ([BYTES], ["good"])


def test_more_such_names_than_are_looked_at_beforehand(root, monkeypatch):
    monkeypatch.setattr("segpipe.jobs.planning.MOST_OPENED", 1)
    scene(root / "in" / f"{BYTES}.tif", 1)
    shutil.copy(root / "in" / "good.tif", root / "in" / "other.tif")
    assert run(root)[:2] == ([BYTES, "good", "other"], {})


def test_an_output_whose_name_is_no_text_is_refused(root):
    done = CliRunner().invoke(
        main, ["run", "-i", str(root / "in"), "-m", str(root / "m.onnx"), "-o", str(root / BYTES), "--device", "cpu"]
    )
    assert done.exit_code == 2
    assert "the path of the output must be UTF-8" in done.stderr


@pytest.mark.parametrize("name", ["a.tif", "x/y.tif", "ü" * 115])
def test_a_draft_has_its_own_name_where_it_can(name):
    assert draft_name(name) == name


@pytest.mark.parametrize("name", [f"{BYTES}.tif", "n" * 240, f"{'ü' * 120}.tif", f"x/{BYTES}/a.tif"])
def test_a_draft_of_any_other_name_can_be_written(name, tmp_path):
    store = Folder(tmp_path)
    with rasterio.open(store.draft(name), "w", driver="GTiff", width=9, height=9, count=1, dtype="uint8"):
        pass
    assert store.draft(name) == store.draft(name)
    assert draft_name(name) != draft_name(name + "x")


# --- URLs -----------------------------------------------------------------------------------------------------------------

URLS = {
    "https://": "must name a host, as https://host/a.tif does, got https://$",
    "https:///a.tif": "must name a host",
    "/vsicurl/http:///a.tif": "must name a host",
    "http://[::1/a.tif": "must name a host",
    "s3://": "must name a bucket, as s3://bucket/scenes/ does, got s3://$",
    "/vsis3//a.tif": "must name a bucket",
    "foo://x/a.tif": "must begin with one of az, file, ftp, .* and ://, got foo://x/a.tif",
    "zip+foo://x/a.tif": "must begin with one of",
    f"s3://bucket/{BYTES}/": "must be UTF-8",
}


@pytest.mark.parametrize("url", URLS)
def test_a_url_that_names_nothing_is_told_at_once(url, root):
    with pytest.raises(InputError, match=URLS[url]):
        find_input([url])
    (root / "l.txt").write_bytes(os.fsencode(f"in/good.tif\n{url}\n"))
    found = find_input([str(root / "l.txt")])
    assert [case.name for case in found.cases] == ["good"]
    (failure,) = found.refused
    assert re.search(f"l.txt line 2: .*{URLS[url]}", failure.error)


@pytest.mark.parametrize(
    "url",
    [
        "/vsizip//vsicurl/https://h/a.zip/b.tif",
        "/vsizip/{/vsicurl/https://h/a.zip}/b.tif",
        "/vsicurl_streaming/https://h/a.tif",
        "/vsicurl?url=https%3A%2F%2Fh%2Fa.tif",
        "/vsicurl?url=https://h/a.tif",
        "http://h/a.tif",
        "zip+https://h/a.zip!/a.tif",
        "s3://bucket",
        "gs://b/a.tif",
        "/vsizip/a.zip/a.tif",
        "s3://b/a b%.tif",
    ],
)
def test_a_url_that_names_something_is_left_alone(url):
    assert malformed(url) is None


NO_BOTO = """
import sys
sys.modules["boto3"] = sys.modules["botocore"] = None
from segpipe.cli import main
main(prog_name="segpipe")
"""


@pytest.mark.slow
def test_without_boto3_every_way_to_s3_is_one_line(root):
    """In a process of its own, since here boto3 may have been imported."""
    (root / "l.txt").write_text("in/good.tif\ns3://bucket/a.tif\n")
    ways = {"input": ["-i", "s3://bucket/in/"], "output": ["-i", "in", "-o", "s3://bucket/out"], "list": ["-i", "l.txt"]}
    for way, flags in ways.items():
        command = [sys.executable, "-c", NO_BOTO, "run", "-m", "m.onnx", "--device", "cpu", "--dry-run", *flags]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=PATIENCE, check=False)
        lines = [line for line in (done.stdout + done.stderr).splitlines() if "needs boto3" in line]
        assert len(lines) == 1, done.stderr
        assert re.search("s3:// needs boto3, which is not installed: pip install", lines[0]), lines
        assert done.returncode == (1 if way == "list" else 2)
        assert "Traceback" not in done.stderr

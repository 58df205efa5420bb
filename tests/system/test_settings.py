"""Whatever settings say, a run begins with values that make sense, or ends with one line and exit code 2.

This covers segpipe.settings.values and segpipe.settings.loading, too.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from networks import contract, pixelwise

from segpipe.cli import main
from segpipe.contract import contract_of_metadata, parse_contract, read_contract
from segpipe.errors import ContractError, SettingsError
from segpipe.settings import Settings, load_settings
from segpipe.storage.documents import MOST_BYTES, MOST_LEVELS, DocumentError, parse_json, parse_toml

ODD = {
    "nan": "nan",
    "inf": "inf",
    "-inf": "-inf",
    "-1": -1,
    "0": 0,
    "1e30": 1e30,
    "10**30": 10**30,
    "": "",
    "bool": True,
}
"""Values that no number is meant to have, as TOML writes them."""

LENGTHS = ([], [1], [1, 2], [1] * 100, [0], [-1], [True], [10**30])


def tried(kind, function, *arguments):
    """What a function gives, or the one line of the error that it raises."""
    try:
        return function(*arguments)
    except kind as error:
        text = str(error)
    assert "\n" not in text
    assert len(text) < 1000
    return text


@pytest.fixture
def files(raster, tmp_path, monkeypatch):
    raster("in/a.tif", np.full((3, 40, 50), 9, np.uint8))
    pixelwise(tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments):
    return CliRunner().invoke(main, ["run", "-i", "in", "-m", "m.onnx", "--executor", "serial", *arguments])


def assert_one_line(ended, *, longest=1000):
    assert isinstance(ended.exception, SystemExit | None), repr(ended.exception)
    assert ended.exit_code in (0, 1, 2), ended.output
    if ended.exit_code == 2:
        lines = [line for line in ended.stderr.splitlines() if line.lower().startswith("error")]
        assert len(lines) == 1, ended.stderr
        assert len(lines[0]) < longest, lines[0]


def toml(value):
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return value
    return json.dumps(value)


FIELDS = {name: str(field.annotation) for name, field in Settings.model_fields.items()}
NUMERIC = [name for name, kind in FIELDS.items() if "int" in kind or "float" in kind]
TEXTS = [name for name, kind in FIELDS.items() if "str" in kind or "Path" in kind]


def test_all_numbers_of_a_run_are_known_here():
    assert set(NUMERIC) >= {
        "batch",
        "workers",
        "threads",
        "parts",
        "memory",
        "job_timeout",
        "grace",
        "retries",
        "tile",
        "bands",
    }


@pytest.mark.parametrize("key", NUMERIC)
def test_odd_numbers_are_refused_or_make_sense(key, files):
    """In the file and as a flag; where one is accepted, a dry run of it ends, too."""
    for name, value in [*ODD.items(), *((str(v), v) for v in LENGTHS)]:
        (files / "c.toml").write_text(f"{key} = {toml(value)}\n")
        settings = tried(SettingsError, load_settings, files / "c.toml", {"input": ("in",), "model": Path("m.onnx")})
        if isinstance(settings, str):
            assert key in settings
        else:
            assert name not in ("inf", "-inf", ""), settings
            assert_one_line(command("--config", "c.toml", "--dry-run"))
        if not isinstance(value, bool | list):
            ended = command(f"--{key.replace('_', '-')}={value}", "--dry-run")
            assert_one_line(ended)
            assert ended.exit_code == 2 or not isinstance(settings, str), ended.output


@pytest.mark.parametrize("key", TEXTS)
def test_texts_are_neither_empty_nor_too_long(key, files):
    for value in ("", " ", "a\0b", "x" * 5000, "/".join(["x"] * 5000), 3, [], {}, True):
        (files / "c.toml").write_text(f"{key} = {toml(value) if value != {} else '{}'}\n")
        assert_one_line(command("--config", "c.toml", "--dry-run"))
        if isinstance(value, str) and "\0" not in value:  # which no command line can hold
            ended = command(f"--{key.replace('_', '-')}={value}", "--dry-run")
            assert_one_line(ended, longest=12_000)  # the command line repeats a word that it does not know
            empty = value.strip() == "" and key not in ("profile", "nodata")
            assert ended.exit_code == 2 or not empty, key


BAD_FILES = {
    "empty": b"",
    "binary": bytes(range(256)),
    "utf16": "input = 'a'".encode("utf-16"),
    "duplicates": b"workers = 1\nworkers = 2",
    "deep": b"workers = " + b"[" * 10_000,
    "dots": b"a." * 100_000 + b"b = 1",
    "digits": b"workers = " + b"9" * 10_000,
    "long key": b"x" * 100_000 + b" = 1",
    "long value": b'blend = "' + b"x" * 100_000 + b'"',
    "large": b"# " + b"x" * MOST_BYTES,
}


@pytest.mark.parametrize("flag", ["config", "contract", "cluster"])
@pytest.mark.parametrize("kind", BAD_FILES)
def test_files_that_are_no_settings_are_one_line(flag, kind, files):
    (files / "f.toml").write_bytes(BAD_FILES[kind])
    where = ["--executor", "dask"] if flag == "cluster" else []
    ended = command(f"--{flag}", "f.toml", *where, "--dry-run")
    assert_one_line(ended)
    assert ended.exit_code == (0 if (flag, kind) == ("config", "empty") else 2)


@pytest.mark.parametrize("flag", ["config", "contract", "cluster"])
def test_a_folder_a_pipe_and_a_device_are_no_settings(flag, files):
    os.mkfifo(files / "pipe")
    for path in (files, files / "pipe", "/dev/zero", files / "none"):
        ended = command(f"--{flag}", str(path), "--executor", "dask", "--dry-run")
        assert_one_line(ended)
        assert (ended.exit_code, str(path) in ended.stderr) == (2, True)


def test_a_bom_and_line_ends_of_windows_are_read(files):
    (files / "c.toml").write_bytes(b"\xef\xbb\xbfworkers = 2\r\n")
    assert load_settings(files / "c.toml", {"input": ("in",), "model": Path("m.onnx")}).workers == 2


def test_a_cluster_must_have_sizes(files):
    for line in (
        'memory = "many"',
        'memory = "inf"',
        'memory = "-1GB"',
        'memory = "1GB"\nwait = inf',
        'memory = "1GB"\ncores = 0',
    ):
        (files / "f.toml").write_text(f'kind = "slurm"\njobs = 1\n{line}\n')
        ended = command("--cluster", "f.toml", "--executor", "dask", "--dry-run")
        assert_one_line(ended)
        assert ended.exit_code == 2


@pytest.mark.parametrize("tile", ["1000000000", "100000,100000", "2147483647"])
def test_a_tile_that_no_memory_holds_is_refused_before_it_is_tried(tile, files):
    ended = command("--tile", tile, "--dry-run")
    assert ended.exit_code == 2
    assert "lower --tile or --batch" in ended.stderr


# --- contracts ------------------------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("spacing", v) for v in ([NAN, NAN], [INF, 1], [0, 1], [1], [])),
        *(("tile", v) for v in ([0], [10**30], [NAN], [[1]], 1e30, "x")),
        *(("overlap", v) for v in ([-1], [10**30])),
        *(("align", v) for v in (0, -1, [10**30])),
        *(("channels", v) for v in (0, 10**12, 1e30, [], ["x" * 5000], [1])),
        *((key, v) for key in ("scale", "offset") for v in (NAN, [INF] * 3, 10**400, [], {})),
        *(("clip", v) for v in ([NAN, 1], [0, INF], [1, 0], [1])),
        *(("threshold", v) for v in (NAN, 0, 1, -1)),
        ("spacing_tolerance", INF),
        *(("classes", v) for v in ([], {}, [[]], [{"id": 65535, "name": "a"}], [{"id": 0, "name": "x" * 5000}])),
    ],
)
def test_odd_values_of_a_contract_are_one_line(key, value):
    with pytest.raises(ContractError, match=key) as caught:
        parse_contract({**contract(3, 3), key: value}, "c.toml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_million_classes_are_refused_without_reading_them_all():
    classes = [{"id": 7, "name": "class 7"}] * 10**6
    with pytest.raises(ContractError, match="must not be larger than 4 MB"):
        contract_of_metadata({"segpipe": json.dumps({**contract(3, 3), "classes": classes[:200_000]})}, 3)
    with pytest.raises(ContractError, match="at most 65535 values") as caught:
        parse_contract({**contract(3, 3), "classes": classes}, "c")
    assert len(str(caught.value)) < 300


def test_of_many_mistakes_some_are_named_and_the_others_counted():
    with pytest.raises(ContractError, match="and 95 more like these") as caught:
        parse_contract({**contract(3, 3), "classes": [{"id": "x", "name": f"{i}"} for i in range(100)]}, "c")
    assert len(str(caught.value)) < 700
    with pytest.raises(ContractError, match=r"class names must differ, got more than once: a$"):
        parse_contract({**contract(3, 3), "classes": [{"id": i, "name": "a"} for i in range(3)]}, "c")


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "", "\0", "nul", "9" * 10_000, "[]", "3", "null", '"' + "x" * 10**6 + '"'],
)
def test_metadata_that_is_no_contract_is_one_line(text):
    with pytest.raises(ContractError, match='metadata "segpipe" of the model') as caught:
        contract_of_metadata({"segpipe": text}, 3)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


DEEPNESS = {"standardization_mean": "[0, 0, 0]", "standardization_std": "[1, 1, 1]", "class_names": '{"0": "a", "1": "b"}'}
VALUES = (
    "[" * 10**5,
    "1e308",
    "1e999",
    "NaN",
    "-1",
    "0",
    '"x"',
    "[]",
    "{}",
    "null",
    "9" * 10**4,
    '{"x": 1}',
    "[[1]]",
    "true",
)


@pytest.mark.parametrize("key", [*DEEPNESS, "names", "model_type", "tile_size", "tiles_overlap", "resolution", "seg_thresh"])
def test_odd_metadata_of_deepness_is_read_or_refused(key):
    for value in VALUES:
        known = {name: text for name, text in DEEPNESS.items() if (key, name) != ("names", "class_names")}
        for scores in (1, 2):
            tried(ContractError, contract_of_metadata, {**known, "tile_size": "64", key: value}, 3, scores)


def test_documents_are_read_up_to_their_limits():
    deep = "[" * (MOST_LEVELS - 1) + "]" * (MOST_LEVELS - 1)
    assert parse_json(deep) == json.loads(deep)
    assert parse_toml(f"a = {deep}")["a"] == json.loads(deep)
    with pytest.raises(DocumentError, match="levels"):
        parse_json(f"[[{deep}]]")
    with pytest.raises(DocumentError, match="levels"):
        parse_toml(f"a = [[{deep}]]")
    assert parse_toml('path = "' + "a.b." * 40 + '"')
    assert len(read_largest().classes) == 20_000


def read_largest():
    """As large a contract as the limit was made for."""
    lines = [f'[[classes]]\nid = {i}\nname = "{i:05} {"x" * 80}"\ncolor = "#112233"\n' for i in range(20_000)]
    head = 'version = 1\nchannels = 3\nnormalize = "none"\nactivation = "softmax"\n'
    assert len(head + "".join(lines)) <= MOST_BYTES
    return parse_contract(parse_toml(head + "".join(lines)), "c")


def test_a_contract_file_in_another_encoding_is_one_line(tmp_path):
    (tmp_path / "c.toml").write_bytes("version = 1 # für".encode("latin-1"))
    with pytest.raises(ContractError, match=r"c\.toml must be UTF-8: .*: save it as UTF-8"):
        read_contract(tmp_path / "c.toml")


# --- what a run has around it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["/dev/full", "/proc/none/log.jsonl", "folder", "pipe"])
def test_a_lost_log_loses_no_mask(place, files):
    (files / "folder").mkdir()
    os.mkfifo(files / "pipe")
    ended = command("--log-file", place)
    assert ended.exit_code == 1
    assert ended.stderr.count("warning: lines of the log are lost") == 1
    assert ended.stderr.splitlines()[-1].startswith(f"error: lines of the log are lost: {place} cannot be written")
    assert (files / "segpipe-out" / "a.tif").exists()


def test_a_log_in_a_folder_that_is_not_there_yet_makes_it(files):
    assert command("--log-file", "new/folder/log.jsonl").exit_code == 0
    assert len((files / "new/folder/log.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("place", ["/dev/full", "/dev/zero", "folder", "pipe", "link"])
def test_a_profile_replaces_no_device(place, files):
    (files / "folder").mkdir()
    os.mkfifo(files / "pipe")
    (files / "link").symlink_to("/dev/full")
    ended = command(f"--profile={place}")
    assert ended.exit_code == 2
    assert f"--profile replaces its file, and {place} is a folder or a device" in ended.stderr
    assert Path("/dev/full").is_char_device()


def test_a_profile_leaves_nothing_but_its_file(files):
    (files / "logs").mkdir()
    assert command("--profile=logs/p.json").exit_code == 0
    assert [path.name for path in (files / "logs").iterdir()] == ["p.json"]


def test_a_profile_that_cannot_be_written_loses_no_mask(files):
    ended = command("--profile=/proc/none/p.json")
    assert ended.exit_code == 1
    assert "error: /proc/none/p.json cannot be written" in ended.stderr
    assert (files / "segpipe-out" / "a.tif").exists()


SHELL = f"exec {sys.executable} -m segpipe.cli run -i IN/in -m IN/m.onnx -o IN/out --executor serial"
AROUND = {
    "no streams": f"{SHELL} <&- >&- 2>&-",
    "no stdout": f"{SHELL} >&-",
    "no home": f"unset HOME XDG_CACHE_HOME; {SHELL}",
    "a home that cannot be written": f"export HOME=/proc/none; unset XDG_CACHE_HOME; {SHELL}",
    "no folder for temporary files": f"export TMPDIR=/none; {SHELL}",
    "a relative one": f"export TMPDIR=in; {SHELL}",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", AROUND)
def test_a_run_needs_no_more_than_its_files(kind, files):
    ended = subprocess.run(["sh", "-c", AROUND[kind].replace("IN", str(files))], capture_output=True, text=True, check=False)
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False), ended.stderr
    assert sorted(path.name for path in (files / "out").iterdir()) == [
        "a.json",
        "a.tif",
        "a.tif.aux.xml",
        "areas.csv",
        "run.json",
    ]
    assert [path.name for path in (files / "in").iterdir()] == ["a.tif"]


def test_a_folder_that_is_gone_is_one_line(files):
    script = f"mkdir gone; cd gone; rmdir ../gone; {SHELL}".replace("IN", str(files))
    ended = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: the current folder must exist")
    assert len(ended.stderr.splitlines()) == 1


def test_file_names_are_in_utf_8(segpipe_process):
    """GDAL reads names in UTF-8 whatever the locale is; in another, a second run would not see that a file has changed."""
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ended = segpipe_process("status", "out", env=ascii_only)
    assert ended.returncode == 2
    assert "error: the encoding of file names must be UTF-8, as GDAL expects, got ascii: set PYTHONUTF8=1" in ended.stderr
    mended = segpipe_process("status", "out", env={**ascii_only, "PYTHONUTF8": "1"})
    assert "must be the output of a run" in mended.stderr

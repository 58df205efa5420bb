"""The site and README: every block of commands runs, and what they list is what the code has."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import bioimages
import bundles
import click
import dicom_series
import dicoms
import nrrd
import numpy as np
import products
import pytest
import rasterio
import shapely
from fields import write_fields
from networks import Network, contract, local, pixelwise
from rasterio.windows import Window
from several import several
from volumes import voxels, write

from segpipe.cli import main
from segpipe.commands.edge import NOT_STARTED, SOME_FAILED
from segpipe.process.signals import INTERRUPTED
from segpipe.settings import Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
SLOW = {"own-model.md", "export.md"}
"""Pages that export networks."""

FENCE = re.compile(
    r'(?:<!-- (?P<note>[^>]*) -->\n)?```(?P<kind>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)```', re.DOTALL
)
SHELL = {"sh", "shell", "console"}
NOT_HERE = ("pip", "make", "python3", ".", "docker")
"""Commands that install something, or build all of it; tests/unit/test_dockerfiles.py reads the Dockerfiles."""

VARYING = re.compile(r"\d[\d.,]* (s|Mpx/s|ms)\b|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d |\s+$")


def blocks(page):
    return [match.groupdict() for match in FENCE.finditer(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_command_hides_in_an_indented_block(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"\n\n {4,}\S.*", text) == []


def options(command):
    if isinstance(command, click.Group):
        return {name for one in command.loaded().values() for name in options(one)}
    return {name for option in command.params for name in (*option.opts, *option.secondary_opts)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_flags_that_the_text_names_are_those_of_a_command(page):
    known = options(main) | {"--help", "--version"}
    of_benchmarks = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`([^`\n]+)`", text):
        for flag in () if code.startswith("grep ") else re.findall(r"(?<![\w-])--[a-z][\w-]*", code):
            assert flag in known or f'"{flag}"' in of_benchmarks, code


def commands(block):
    """Each command of a block, with the lines of output that follow it; continued lines are joined."""
    text = block["text"].replace("\\\n", " ")
    if block["kind"] != "console":
        return [(line, []) for line in text.splitlines()]
    found = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


KINDS = SHELL | {"python", "toml", "text", "cron", "r", "yaml", "zsh", "fish"}
"""Kinds of blocks; bash is for what is a file, such as a job of a batch system."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_stand_in_blocks_that_run(page):
    for block in blocks(page):
        assert block["kind"] in KINDS or (block["kind"] == "bash" and (block["title"] or block["text"].startswith("#!")))


def not_run(block):
    return (block["note"] or "").startswith("not run: ")


def pages_with_commands():
    for page in PAGES:
        if any(block["kind"] in SHELL and not not_run(block) for block in blocks(page)):
            marks = [pytest.mark.slow] if page.name in SLOW else []
            yield pytest.param(page, marks=marks, id=str(page.relative_to(ROOT)))


@pytest.fixture(scope="module")
def supposed(tmp_path_factory):
    """What the pages suppose: the bundled example under the names of the pages, photographs, and a volume."""
    root = tmp_path_factory.mktemp("supposed")
    for path in (ROOT / "configs", *(ROOT / "examples").iterdir()):
        link = root / path.relative_to(ROOT)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to("../scenes" if path == SCENES else path)
    _corners(root / "scenes")
    for name in ("unet.onnx", "crops.onnx"):
        shutil.copy(ROOT / "examples" / "crops.onnx", root / name)
    _photos(root)
    _volume(root)
    _download(root)
    _described(root)
    _several(root)
    return root


SCENES = ROOT / "examples" / "scenes"


def shows_figures(page):
    """Whether a page shows what is printed of the bundled scenes: they must be whole then."""
    return any(block["kind"] == "console" and re.search("scenes|danube", block["text"]) for block in blocks(page))


def _corners(folder):
    """A corner of each bundled scene, of one tile: enough where no figure is shown."""
    folder.mkdir()
    for path in SCENES.glob("*.tif"):
        with rasterio.open(path) as scene:
            window = Window(0, scene.height - 256, 256, 256)
            place = {"height": 256, "width": 256, "transform": scene.window_transform(window)}
            with rasterio.open(folder / path.name, "w", **{**scene.profile, **place}) as corner:
                corner.descriptions = scene.descriptions
                corner.write(scene.read(window=window))


@pytest.fixture
def folder(supposed, tmp_path):
    """A copy of it for each page, which may change it."""
    return Path(shutil.copytree(supposed, tmp_path, symlinks=True, dirs_exist_ok=True))


def _photos(root):
    (root / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (3, 90, 120), dtype=np.uint8)
    with rasterio.open(
        root / "photos" / "a.png", "w", driver="PNG", count=3, height=90, width=120, dtype="uint8"
    ) as picture:
        picture.write(pixels)
    Network(3).conv(3, 8, 3).add("Relu").conv(8, 1, 3).add("Sigmoid").save(root / "cells.onnx", None, classes=1)


def _volume(root):
    (root / "ct").mkdir()
    write(root / "ct" / "patient1.nii.gz", voxels((20, 22, 18)))
    Network(1, ndim=3).conv(1, 3, 3).save(root / "organs.onnx", None, classes=3, shape=("n", "d", "h", "w"))
    (root / "cases").mkdir()
    (root / "mr").mkdir()
    for channel in ("t1", "flair"):
        write(root / "mr" / f"patient1_{channel}.nii.gz", voxels((20, 22, 18)))
    Network(2, ndim=3).conv(2, 2, 3).save(root / "tumour.onnx", None, classes=2, shape=("n", "d", "h", "w"))
    tumour = {"layout": "NCDHW", "normalize": "zscore", "tile": [16] * 3, "overlap": [4] * 3, "align": 1}
    of_volumes = contract(2, 2, channels=["t1", "flair"], **tumour)
    lines = [f"{key} = {json.dumps(value)}" for key, value in of_volumes.items() if key != "classes"]
    lines += [f"[[classes]]\nid = {number}\nname = 'class {number}'" for number in range(2)]
    (root / "tumour.toml").write_text("\n".join(lines))
    for fold in range(3):
        net = Network(1, fold, ndim=3).conv(1, 3, 3)
        values = contract(1, 3, layout="NCDHW", normalize="zscore", tile=[16] * 3, overlap=[4] * 3)
        net.save(root / f"fold{fold}.onnx", values, classes=3, shape=("n", "d", "h", "w"))
    values = contract(1, 2, layout="NCDHW", normalize="zscore", tile=[16] * 3, overlap=[4] * 3)
    Network(1, ndim=3).conv(1, 2, 3).save(root / "lesion.onnx", values, classes=2, shape=("n", "d", "h", "w"))
    dicoms.write(root / "cases" / "patient7" / "ct", dicoms.values((20, 22, 18)), series=7)
    dicoms.write(root / "scans" / "patient3", dicoms.values((20, 22, 18)), series=3)


def _download(root):
    """A Sentinel-2 product of baseline 04.00, made from a bundled scene."""
    name, granule = "S2B_MSIL2A_20240615T095549_N0510_R122_T33UXP_20240615T123456.SAFE", "L2A_T33UXP_A038012_20240615T095952"
    images = root / name / "GRANULE" / granule / "IMG_DATA"
    with rasterio.open(SCENES / "morava.tif") as scene:
        pixels, profile = scene.read()[:, :530, :560], scene.profile
    for number, band in enumerate(("B02", "B03", "B04", "B08")):
        shifted = np.where(pixels[number] > 0, pixels[number] + 1000, 0).astype("uint16")
        _jp2(images / "R10m" / f"T33UXP_20240615T095549_{band}_10m.jp2", shifted, profile["crs"], profile["transform"])
    coarse = profile["transform"] * profile["transform"].scale(2)
    _jp2(images / "R20m" / "T33UXP_20240615T095549_B11_20m.jp2", shifted[::2, ::2], profile["crs"], coarse)
    (root / name / "MTD_MSIL2A.xml").write_text(products.metadata("2A", name.removesuffix(".SAFE"), -1000))


def _described(root):
    """A model folder of bioimage.io for the photographs, and two MONAI bundles for the volume."""
    colours = {"channels": ["red", "green", "blue"]}
    scaled = [{"id": "scale_linear", "kwargs": {"gain": 1 / 255}}]
    bioimages.write(root / "unet2d-nuclei", bioimages.described(scaled, [{"id": "sigmoid"}], **colours), channels=3)
    bundles.write(root / "spleen_ct_segmentation", bundles.inference([bundles.AXIAL, bundles.target("NormalizeIntensity")]))
    largest = bundles.target("KeepLargestConnectedComponent", "pred")
    bundles.write(root / "prostate_mri_anatomy", bundles.inference([bundles.AXIAL], [*bundles.MOST_LIKELY, largest]))


def _several(root):
    """A network of two images with a pair of pictures, and one of three dates with a field."""
    several(root / "change.onnx", "two images", bare=True)
    several(root / "series.onnx", "channels before dates", bare=True)
    rng = np.random.default_rng(0)
    for folder in ("A", "B"):
        (root / "test" / folder).mkdir(parents=True)
        pixels = rng.integers(0, 256, (3, 90, 120), dtype=np.uint8)
        size = {"count": 3, "height": 90, "width": 120, "dtype": "uint8"}
        with rasterio.open(root / "test" / folder / "x_1.png", "w", driver="PNG", **size) as picture:
            picture.write(pixels)
    (root / "fields").mkdir()
    with rasterio.open(root / "scenes" / "morava.tif") as scene:
        pixels, profile = scene.read([3, 4])[:, :200, :200], scene.profile
    size = {"count": 2, "height": 200, "width": 200, "dtype": "uint16", "nodata": profile["nodata"]}
    place = {"crs": profile["crs"], "transform": profile["transform"]}
    for date in ("2024-03-01", "2024-05-01", "2024-07-01"):
        with rasterio.open(root / "fields" / f"a_{date}.tif", "w", driver="GTiff", **size, **place) as raster:
            raster.write(pixels.astype("uint16"))


def _jp2(path, pixels, crs, transform):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = pixels.shape
    size = {"count": 1, "height": rows, "width": columns, "dtype": "uint16", "crs": crs, "transform": transform}
    with rasterio.open(path, "w", driver="JP2OpenJPEG", QUALITY=100, REVERSIBLE="YES", **size) as image:
        image.write(pixels, 1)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", list(pages_with_commands()))
def test_commands_of_a_page_run_and_print_what_it_says(page, folder, segpipe):
    if page.name in SLOW:  # which make it
        (folder / "unet.onnx").unlink()
    if shows_figures(page):
        shutil.copytree(SCENES, folder / "scenes", dirs_exist_ok=True)
    state = {}
    for block in blocks(page):
        if block["title"] and not block["title"].startswith("~"):
            (folder / block["title"]).write_text(block["text"])
        if block["kind"] == "python" and block["title"] == "train.py":
            _train(block["text"], folder)
        if block["kind"] in SHELL and not not_run(block):
            _run_block(block, folder, segpipe, state)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_of_a_shell_is_what_the_page_says(shell):
    (block,) = [block for block in blocks(DOCS / "install.md") if block["kind"] == shell]
    (variable,) = re.findall(r"(_\w+=\w+) segpipe", block["text"])
    command = [sys.executable, "-m", "segpipe"]
    name, value = variable.split("=")
    assert value == f"{shell}_source"
    env = {**os.environ, name: value, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {"bash": "complete -o nosort", "zsh": "#compdef segpipe", "fish": "complete --no-files"}[shell] in done.stdout


def _train(text, folder):
    """Trains nothing, but saves what it made."""
    here = Path.cwd()
    os.chdir(folder)
    try:
        exec(compile(text, "train.py", "exec"), {})
    finally:
        os.chdir(here)


def _run_block(block, folder, segpipe, state):
    ends = re.fullmatch(r"ends with (\d+)", block["note"] or "")
    for command, said in commands(block):
        code, text = _run(command, folder, segpipe, state)
        assert code == (int(ends[1]) if ends else 0), f"{command}\n{text}"
        _assert_lines(said, text, command)


def _run(command, folder, segpipe, state):
    words = shlex.split(command, comments=True)
    if not words or words[0] in NOT_HERE:
        return 0, ""
    if "segpipe" in words and not set("|&;") & set(command):
        start = words.index("segpipe") + 1
        plain = words[start : words.index(">>")] if ">>" in words else words[start:]
        done = segpipe(*_at_once(_in_one_process(plain)), cwd=folder)
        return done.returncode, done.stdout + done.stderr
    if re.match(r"\w+=", command):
        state["variables"] = command
        return 0, ""
    return _bash("\n".join(filter(None, [state.get("variables"), command])), folder)


def _bash(text, folder):
    path = {"PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", text], cwd=folder, env=path, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def _in_one_process(words):
    return [*words, "--executor", "serial", "--device", "cpu"] if words[0] == "run" and "--executor" not in words else words


def _at_once(words):
    """A measurement of a second instead of one of 20: tests/system/test_tune.py reads what it finds. An export with a tile a
    quarter as high and wide: tests/slow/test_families.py has as small ones."""
    shorter = {"--seconds": lambda _: "1"} | ({"--tile": lambda size: f"{int(size) / 4:g}"} if words[0] == "export" else {})
    return [shorter.get(option, str)(word) for option, word in pairwise(["", *words])]


def _assert_lines(said, text, command):
    """What a page shows of the output is in it, in order, but for times and rates; ``...`` stands for lines left out."""
    printed = iter([VARYING.sub("", line) for line in text.splitlines()])
    for line in said:
        wanted = VARYING.sub("", line)
        assert line == "..." or any(got.startswith(wanted) for got in printed), f"{command} does not print {line!r}:\n{text}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_flags_of_commands_that_do_not_run_here_are_known(page):
    for block in blocks(page):
        for line in block["text"].replace("\\\n", " ").splitlines() if not_run(block) else ():
            words = "run|export|status|inspect|tune|sample|estimate|evaluate|compare"
            if found := re.search(rf"\bsegpipe (({words}) .*?)( &)?$", line):
                _parse(shlex.split(found[1], comments=True))


def _parse(words):
    command, rest = main.loaded()[words[0]], words[1:]
    if isinstance(command, click.Group):
        known = command.loaded()
        command, rest = (known[rest[0]], rest[1:]) if rest[0] in known else (known["network"], rest)
    command.make_context(words[0], rest)


def test_few_blocks_do_not_run():
    of_segpipe = [
        block for page in PAGES for block in blocks(page) if block["kind"] in SHELL and "segpipe " in block["text"]
    ]
    assert sum(map(not_run, of_segpipe)) <= 0.25 * len(of_segpipe)


# --- what is listed -------------------------------------------------------------------------------------------------------


def rows(page, column=0):
    """The first cells of all tables of a page, split at commas outside of code."""
    lines = re.findall(r"^\| (`.*)", (DOCS / "reference" / page).read_text(encoding="utf-8"), re.MULTILINE)
    return [name for line in lines for name in re.findall(r"`([^`]+)`", line.split(" | ")[column])]


def test_settings_are_those_of_the_code():
    sys.path.insert(0, str(DOCS))
    try:
        from generate import page
    finally:
        sys.path.remove(str(DOCS))
    assert (DOCS / "reference" / "settings.md").read_text(encoding="utf-8") == page(), "run python docs/generate.py"


def test_each_flag_and_key_of_a_run_is_listed_once():
    text = (DOCS / "reference" / "settings.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(--[\w-]+)`", text.split("## segpipe run")[1].split("\n## ")[0], re.MULTILINE)
    flags = {option.opts[0] for option in main.loaded()["run"].params}
    assert sorted(listed) == sorted(flags)
    keys = {flag[2:].replace("-", "_") for flag in listed} - {"config", "dry_run", "verbose"}
    assert keys == set(Settings.model_fields)


def test_each_exit_code_is_listed_once():
    text = (DOCS / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (\d+) \|", text, re.MULTILINE) == [
        str(code) for code in (0, SOME_FAILED, NOT_STARTED, INTERRUPTED, 128 + 15)
    ]
    others = [page for page in PAGES if "| 75 |" in page.read_text(encoding="utf-8") and page.name != "exit-codes.md"]
    assert others == []


def test_keys_of_records_and_runs_are_listed_once(segpipe, tmp_path):
    pixelwise(tmp_path / "m.onnx", 4, tile=[256, 256], scale=1e-4)
    scene = ROOT / "examples" / "scenes" / "pirai.tif"
    segpipe("run", "-i", scene, "-m", "m.onnx", "-o", "out", "--executor", "serial", "--profile", cwd=tmp_path)
    text = (DOCS / "reference" / "records.md").read_text(encoding="utf-8")
    record, run, _ = (re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`.*?) \|", part, re.MULTILINE)))
                      for part in text.split("\n## ")[1:])  # fmt: skip
    written = json.loads((tmp_path / "out" / "pirai.json").read_text())
    assert sorted(record) == sorted([*written, "aoi", "lesions", "thumbnail", "time", "uids"])
    assert sorted(run) == sorted([*json.loads((tmp_path / "out" / "run.json").read_text()), "outside"])


def test_columns_of_areas_are_listed_once(segpipe, folder):
    (folder / "organs.toml").write_text(tomllib_text())
    done = segpipe("run", "-i", "ct", "-m", "organs.onnx", "-o", "out", "--executor", "serial", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert rows("areas-csv.md") == (folder / "out" / "areas.csv").read_text().splitlines()[0].split(",")


def tomllib_text():
    """The contract of docs/howto/volumes.md."""
    (block,) = [block for block in blocks(DOCS / "howto" / "volumes.md") if block["title"] == "organs.toml"]
    assert tomllib.loads(block["text"])["layout"] == "NCDHW"
    return block["text"]


def test_each_file_of_an_output_is_listed_once(segpipe, folder):
    """Runs on a raster, a picture and all kinds of volume leave what the page lists."""
    (folder / "organs.toml").write_text(tomllib_text())
    write(folder / "ct" / "patient2.nii", voxels((20, 22, 18)))
    place = {"space": "LPS", "space directions": np.eye(3), "space origin": np.zeros(3)}
    nrrd.write(str(folder / "ct" / "patient3.nrrd"), voxels((20, 22, 18)), place)
    headers = dicom_series.slices((20, 22, 18), spacing=(2, 2, 2))
    dicom_series.save(folder / "ct" / "patient4", headers, voxels((20, 22, 18)))
    local(folder / "photo.onnx", contract(3)["channels"])
    write_fields(folder / "plot.gpkg", [shapely.box(467_500, 8_113_000, 468_000, 8_114_000)], "EPSG:32720")
    runs = [("scenes/pirai.tif", "crops"), ("photos", "photo"), ("ct", "organs")]
    for number, (source, model) in enumerate(runs):
        flags = [
            "--confidence",
            "--style",
            "qgis",
            "--profile",
            "--executor",
            "serial",
            "--lesions",
            "--instances",
            "--audit",
        ]
        flags += ["--report", "dicom", *(["--zones", "plot.gpkg"] if model == "crops" else [])]
        done = segpipe("run", "-i", source, "-m", f"{model}.onnx", "-o", f"out{number}", *flags, cwd=folder)
        assert done.returncode == 0, done.stderr
    found = {path.name for number in range(3) for path in (folder / f"out{number}").iterdir() if path.is_file()}
    written = {
        re.sub(r"^(pirai|a|patient\d)(?=\.)", "<case>", name) if name not in ("areas.csv", "audit.jsonl") else name
        for name in found
    }
    listed = [name for name in rows("outputs.md") if not name.startswith((".", "--"))]
    assert len(listed) == len(set(listed))
    rare = {f"<case>.{kind}.tif.aux.xml" for kind in ("confidence", "instances")}  # of a CRS that GeoTIFF cannot hold
    assert written | rare == set(listed)


# --- the site -------------------------------------------------------------------------------------------------------------


def test_the_site_builds_with_every_link_and_anchor(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    text = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert not re.search(r'<(script|link|img)[^>]+(src|href)="(https?:)?//', text), "the site fetches something"


def test_links_of_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert [link for link in re.findall(r"\]\(([^)#]+)", text) if not (ROOT / link).exists()] == []


def test_extras_and_targets_that_are_named_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for named in re.findall(r"pip install '\.\[([\w,]+)\]'", text):
            assert set(named.split(",")) <= set(extras), page
        assert set(re.findall(r"`make ([\w-]+)`", text)) <= set(targets), page


# --- troubleshooting ------------------------------------------------------------------------------------------------------


def messages():
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    return [
        message for line in re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE) for message in re.findall("`([^`]+)`", line)
    ]


def texts_of_the_code():
    """All text of the package as it stands in its source, with a mark where a value is put in."""
    for path in (ROOT / "segpipe").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"\{[^}]*\}", "…", node.value)


@pytest.fixture(scope="module")
def code():
    return "\n".join(texts_of_the_code())


def test_there_are_messages():
    assert len(messages()) >= 25


@pytest.mark.parametrize("message", messages())
def test_each_message_is_one_of_the_code(message, code):
    for words in filter(None, (part.strip(" :;,.") for part in message.split("…"))):
        assert words in code, words

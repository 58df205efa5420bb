"""The wheel, built and installed into clean environments: it holds all that a run needs, and its metadata names the rest."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
UV = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
SAID = re.compile(
    r"segpipe [\d.]+\nPython 3\.\d+\.\d+, ONNX Runtime [\d.]+ \(onnxruntime(-gpu)?\), GDAL 3\.[\d.]+(, OpenVINO [\d.]+)?\n"
)


def call(*command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **{"env": CLEAN, **options})
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "segpipe", folder / "segpipe", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", folder)
    (wheel,) = (folder / "dist").iterdir()
    return wheel


def pythons():
    """One interpreter of each minor version from 3.11 on, that uv or pyenv has on this machine; nothing is downloaded."""
    command = [UV, "python", "list", "--only-installed", "--offline", "--output-format", "json"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout if UV else ""
    found = {one["path"]: one["version"] for one in json.loads(listed or "[]") if one["implementation"] == "cpython"}
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found |= {str(path): path.parts[-3] for path in sorted(pyenv.glob("versions/3*/bin/python3"))}
    versions = {minor(version): Path(path) for path, version in found.items()}
    versions[sys.version_info[:2]] = Path(sys.executable)
    return {version: versions[version] for version in sorted(versions) if version >= (3, 11)}


def minor(version):
    """``3.12.1`` as (3, 12)."""
    return tuple(map(int, re.match(r"(\d+)\.(\d+)", version).groups()))


PYTHONS = pythons()


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    there = {
        str(path.relative_to(ROOT)) for path in (ROOT / "segpipe").rglob("*") if path.suffix in (".py", ".toml", ".typed")
    }
    assert {name for name in names if ".dist-info/" not in name} == there
    assert "segpipe/py.typed" in there
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_python_versions_are_those_that_are_named():
    classifiers = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text())
    assert {f"3.{minor}" for _, minor in PYTHONS} <= set(classifiers)
    text = (ROOT / "docs/install.md").read_text()
    assert f"Python {', '.join(classifiers[:-1])} or {classifiers[-1]}" in text


def test_a_run_needs_no_more_of_segpipe_than_the_wheel_has(wheel, tmp_path):
    """Without a network: the other packages are those of the tests."""
    python = tmp_path / "venv/bin/python"
    call(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    call(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    (packages,) = (tmp_path / "venv/lib").glob("*/site-packages")
    (packages / "of-the-tests.pth").write_text(sysconfig.get_path("purelib"))
    check_installed(python, tmp_path)


@pytest.fixture(scope="module")
def index(wheel):
    """An index that has what the wheel needs."""
    if UV is None:
        pytest.skip("uv is not installed")
    command = [
        UV,
        "pip",
        "install",
        "--dry-run",
        "--system",
        "--python",
        sys.executable,
        "--reinstall-package",
        "click",
        "click",
    ]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no package index can be reached: {tried.stderr.strip().splitlines()[-1]}")


@pytest.mark.parametrize("version", PYTHONS, ids=lambda version: ".".join(map(str, version)))
def test_the_wheel_installs_on_every_python_that_is_here(version, wheel, index, tmp_path):
    call(UV, "venv", "--python", PYTHONS[version], tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    call(UV, "pip", "install", "--python", python, wheel)
    call(UV, "pip", "check", "--python", python)
    check_installed(python, tmp_path)


def test_extras_fit_together(wheel, index):
    """Resolved, not installed: several bring gigabytes. Not tensorrt, whose packages lie on an index of their own."""
    extras = "medical,s3,xarray,cluster,dashboard,docs,export,cuda"
    command = [UV, "pip", "compile", "--quiet", "--python", next(iter(PYTHONS.values())), "-"]
    said = call(*command, input=f"segpipe[{extras}] @ file://{wheel}")
    assert {"nibabel", "boto3", "xarray", "dask-jobqueue", "bokeh", "torch", "segmentation-models-pytorch"} <= {
        line.partition("==")[0] for line in said.splitlines()
    }


def check_installed(python, folder):
    """The command and the module work, from another folder than the checkout, and label a scene as the checkout does."""
    segpipe = python.parent / "segpipe"
    assert SAID.fullmatch(call(segpipe, "--version", cwd=folder))
    where = call(python, "-c", "import segpipe; print(segpipe.__file__)", cwd=folder)
    assert Path(where.strip()).is_relative_to(folder)
    scene, model = ROOT / "examples/scenes/pirai.tif", ROOT / "examples/crops.onnx"
    call(segpipe, "run", "-i", scene, "-m", model, "-o", folder / "out", "--executor", "serial", cwd=folder)
    assert "\n1 done, 0 failed, 0 missing" in call(python, "-m", "segpipe", "status", folder / "out", cwd=folder)
    with rasterio.open(folder / "out/pirai.tif") as mask, rasterio.open(ROOT / "examples/truth/pirai.tif") as truth:
        labels, true = mask.read(1), truth.read(1)
    assert np.mean(labels[labels != 255] == true[labels != 255]) > 0.95

"""Dockerfiles are read, as no Docker runs where the tests do: what they copy is there, and nothing runs as root."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
FILES = ("Dockerfile", "Dockerfile.cuda")
KEPT = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]


def instructions(name: str) -> list[tuple[str, str]]:
    """Keyword and arguments of each instruction, with continued lines joined."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in text.splitlines())]


def copied(name: str) -> Iterator[str]:
    """Paths of the checkout that an image takes."""
    for word, rest in instructions(name):
        if word == "COPY" and "--from=" not in rest:
            yield from rest.split()[:-1]


@pytest.mark.parametrize("name", FILES)
def test_base_images_are_pinned(name):
    bases = [rest.split()[0] for word, rest in instructions(name) if word == "FROM"]
    assert len(bases) == 2
    assert all(re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base) for base in bases)


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_exists_and_is_not_ignored(name):
    paths = list(copied(name))
    assert {"segpipe", "pyproject.toml", "README.md", "LICENSE"} <= set(paths)
    for path in paths:
        assert (ROOT / path).exists(), path
        assert path in KEPT, path


@pytest.mark.parametrize("name", FILES)
def test_segpipe_runs_as_its_own_user(name):
    last = dict(instructions(name)[-7:])
    assert last["ENTRYPOINT"] == '["segpipe"]'
    assert last["USER"] == "10001:10001"
    assert last["RUN"] == "useradd --create-home --uid 10001 segpipe"


def test_what_is_needed_on_a_cpu_is_what_pyproject_names():
    with (ROOT / "pyproject.toml").open("rb") as stream:
        named = list(map(Requirement, tomllib.load(stream)["project"]["dependencies"]))
    lines = (ROOT / "requirements-cpu.txt").read_text().splitlines()
    needed = {str(Requirement(line)) for line in lines if not line.startswith("#")}
    assert needed == {f"{one.name}{one.specifier}" for one in named if one.name != "onnxruntime-gpu"}

"""The examples in docstrings give what they say; those of the Python interface are run by ``test_api_notebook.py``."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "segpipe"


def modules_with_examples() -> list[str]:
    paths = [path for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text()]
    names = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in paths]
    return sorted(name for name in names if not name.startswith("segpipe.api"))


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_of_docstrings(name):
    found = doctest.testmod(import_module(name))
    assert found.attempted
    assert not found.failed

"""SECURITY.md says what tests hold, and names them."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from networks import Network, contract
from onnx import helper

from segpipe.errors import ModelError
from segpipe.network.read import read_spec
from segpipe.pipeline.model_check import try_out
from segpipe.settings import load_settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
HELD = ("What segpipe does not trust", "What segpipe trusts")


def statements():
    """Items of the lists whose every statement a test holds."""
    for section in re.split(r"(?m)^## ", TEXT)[1:]:
        title, _, body = section.partition("\n")
        if title in HELD:
            yield from (item.split("\n\n")[0] for item in re.split(r"(?m)^- ", body)[1:])


@cache
def held_by(path):
    nodes = ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_the_lists_are_found():
    assert len(list(statements())) > 20
    assert "(SECURITY.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("statement", list(statements()), ids=lambda text: text[:40])
def test_each_statement_names_tests_that_exist(statement):
    named = re.findall(r"(tests/\w+/test_\w+\.py)::(test_\w+)", statement)
    assert named
    assert statement.count("tests/") == len(named)
    for path, name in named:
        assert name in held_by(path), f"{path}::{name}"


def test_a_model_of_custom_operators_is_refused(tmp_path):
    net = Network(3)
    net.nodes.append(helper.make_node("Run", ["image"], ["turned"], domain="evil.ops"))
    net.last = "turned"
    path = net.conv(3, 3, 1).save(tmp_path / "m.onnx", contract(), classes=3)
    with pytest.raises(ModelError, match=r"evil\.ops"):
        try_out(read_spec(load_settings(None, {"input": ("-",), "model": path, "device": "cpu"})))

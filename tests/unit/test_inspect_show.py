"""How facts are printed for people: words for numbers, and nothing in names is markup."""

import io

import pytest
from inspecting import EXAMPLE, SCENE, model_facts, raster_facts
from rich.console import Console

from segpipe.inspect.section import by, section
from segpipe.inspect.show_model import CLASS_ROWS, _si, print_model
from segpipe.inspect.show_raster import print_raster


@pytest.fixture
def terminal():
    return Console(file=io.StringIO(), width=160)


def text(terminal: Console) -> str:
    return terminal.file.getvalue()


def test_a_section_has_a_title_and_two_columns(terminal):
    section(terminal, "[bold]title", [("key", "[/] value"), ("longer key", "b")])
    assert text(terminal) == "[bold]title\nkey         [/] value\nlonger key  b        \n\n"


def test_an_empty_section_is_not_there(terminal):
    section(terminal, "title", [])
    assert text(terminal) == ""


@pytest.mark.parametrize(("numbers", "words"), [([256, 256], "256 x 256"), ([0.1, 2.5], "0.1 x 2.5"), ([], "")])
def test_sizes(numbers, words):
    assert by(numbers) == words


@pytest.mark.parametrize(("number", "words"), [(2.857e9, "2.86 G"), (999, "999"), (1000, "1 k"), (3.2e13, "32 T")])
def test_large_numbers(number, words):
    assert _si(number) == words


def test_the_bundled_model(terminal):
    facts = model_facts(EXAMPLE)
    print_model(terminal, facts)
    shown = text(terminal)
    assert f"model {EXAMPLE}" in shown
    assert f"{facts.parameters.count:,}" in shown
    classes = facts.contract["classes"]
    assert f"{len(classes)} classes" in shown
    assert all(c["name"] in shown for c in classes)
    assert len(classes) <= CLASS_ROWS


def test_the_bundled_scene(terminal):
    facts = raster_facts(SCENE)
    print_raster(terminal, facts)
    shown = text(terminal)
    assert f"raster {SCENE}" in shown
    assert facts.crs in shown
    assert "10 x 10 m on the ground" in shown

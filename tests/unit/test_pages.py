"""Pages for people: ARCHITECTURE.md stays one page, links lead somewhere, and docs/contract.md has the keys of the code."""

import json
import re
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from segpipe.contract import Contract, SegmentationClass, parse_contract
from segpipe.contract.keys import IMAGE_TOLERANCE, VOLUME_TOLERANCE
from segpipe.geometry.layout import Layout
from segpipe.storage.documents import parse_toml

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
MOST_BYTES = 8_192
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CONTRACT = (ROOT / "docs/contract.md").read_text(encoding="utf-8")
DECISIONS = ROOT / "docs/decisions"


def test_architecture_is_one_page():
    assert len((ROOT / "ARCHITECTURE.md").read_bytes()) <= MOST_BYTES


def prose(page):
    return FENCE.sub("", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_tables_are_whole(page):
    """Each begins with a heading, which a blank line would cut off, and its rows have as many cells."""
    for table in re.findall(r"(?:^\|.*\n)+", prose(page), re.MULTILINE):
        rows = [len(re.findall(r"(?<!\\)\|", re.sub(r"`[^`\n]*`", "", row))) for row in table.splitlines()]
        assert re.match(r"\|.*\n\| *-", table), table[:200]
        assert len(set(rows)) == 1, table[:200]


def links(page):
    """Relative links of a page, without code."""
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", target)]


def anchors(page):
    """Anchors of headings, as GitHub makes them and as the site does, which joins hyphens."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    github = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
    return github | {re.sub("-+", "-", anchor) for anchor in github}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_anchors_are_those_of_github_and_of_the_site(tmp_path):
    page = tmp_path / "a.md"
    page.write_text("# One pixel, from file to mask\n\n## What `--input` takes, `areas.csv`\n\n```sh\n# no heading\n```\n")
    assert anchors(page) == {"one-pixel-from-file-to-mask", "what---input-takes-areascsv", "what-input-takes-areascsv"}


def test_the_index_has_every_decision():
    listed = {target.partition("#")[0] for target in links(DECISIONS / "index.md")}
    assert listed == {page.name for page in DECISIONS.glob("*.md")} - {"index.md"}


@pytest.mark.parametrize("page", sorted(DECISIONS.glob("*.md")), ids=lambda page: page.name)
def test_decisions_name_tests_and_code_that_exist(page):
    for path in re.findall(r"`((?:segpipe|tests|benchmarks)/[\w/.]+)`", prose(page)):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("module", sorted((ROOT / "segpipe").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_first_line_of_a_module_says_what_it_holds(module):
    assert re.match(r'"""[^\n]{10,}[.:]', module.read_text(encoding="utf-8"))


def rows(heading):
    """The rows of the table below a heading: key to type, default and meaning."""
    section = CONTRACT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = [
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in section.splitlines() if line.startswith("|")
    ]
    return {key.strip("`"): rest for key, *rest in cells[2:]}


def told(field) -> str:
    """The default of a field, as the page writes it."""
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    return "none" if default is None else f"`{json.dumps(default)}`"


def choices(annotation: Any) -> list[str]:
    """The texts that a key can have."""
    if annotation is Layout:
        return [str(layout) for layout in Layout]
    if get_origin(annotation) is Literal:
        return [choice for choice in get_args(annotation) if isinstance(choice, str)]
    return [c for part in get_args(annotation) for c in choices(part)] if isinstance(annotation, UnionType) else []


@pytest.mark.parametrize(("heading", "model"), [("Keys", Contract), ("Keys of a class", SegmentationClass)])
def test_the_page_of_the_contract_has_its_keys_with_their_defaults(heading: str, model: type[BaseModel]):
    listed = rows(heading)
    assert [key for key in listed if key != "dates"] == list(model.model_fields)  # dates is written out before the check
    for key, field in model.model_fields.items():
        kind, default, _ = listed[key]
        assert default == told(field), key
        assert re.findall(r'"(\w+)"', kind)[: len(choices(field.annotation))] == choices(field.annotation), key


def test_the_defaults_of_volumes_are_told():
    listed = rows("Keys")
    assert '`"mm"`' in listed["spacing_unit"][2]
    assert listed["spacing_tolerance"][1:] == [f"`{IMAGE_TOLERANCE}`", listed["spacing_tolerance"][2]]
    assert f"`{VOLUME_TOLERANCE}`" in listed["spacing_tolerance"][2]


def test_the_example_of_a_contract_is_one():
    text = re.search(r"```toml\n(.*?)```", CONTRACT, re.DOTALL)
    assert text
    assert parse_contract(parse_toml(text[1]), "docs/contract.md").channel_count == 4


def test_the_worked_example_is_the_family_of_the_tests():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    family = (ROOT / "tests/arrays.py").read_text(encoding="utf-8")
    excerpts = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(excerpts) == 5
    for excerpt in excerpts:
        assert excerpt in family, excerpt


def test_what_contributors_are_told_to_run_and_to_open_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"^make ([\w-]+)", text, re.MULTILINE)) <= set(targets)
    for path in re.findall(r"`((?:segpipe|tests|benchmarks)/[\w/]+\.py)`", text):
        assert "NAME" in path or (ROOT / path).exists(), path

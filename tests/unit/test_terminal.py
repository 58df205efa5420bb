"""What files say is shown as it is: no markup, no command to a terminal, one line for one thing."""

import csv
import io
import json
import logging
from dataclasses import fields, replace
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from networks import Network, contract
from rich.console import Console

from segpipe.contract import Contract, parse_contract
from segpipe.errors import ContractError
from segpipe.formats.case import Case
from segpipe.inspect.file import inspect_file
from segpipe.inspect.show import print_facts
from segpipe.jobs.launch import carry_out
from segpipe.jobs.prepare import prepare
from segpipe.jobs.status import Status, read_status
from segpipe.jobs.tasks import Outcome
from segpipe.messages import console
from segpipe.messages.printable import CONTROL, one_row, printable, printable_json
from segpipe.results.schema import Amount, Record, RecordedInput, RecordedModel
from segpipe.results.tables import write_areas
from segpipe.results.totals import UNITS, Sum, Totals
from segpipe.settings import load_settings
from segpipe.storage.folder import Folder
from segpipe.terminal.bar import Bar
from segpipe.terminal.chosen import settings_lines
from segpipe.terminal.log_lines import LogLine, StderrHandler
from segpipe.terminal.plan import note_lines, print_plan
from segpipe.terminal.progress import Lines, _in_full, areas_table, largest, print_conclusion
from segpipe.terminal.state import print_status
from segpipe.tune.show import _print

RANGES = ((0, 32), (127, 160), (0x202A, 0x202F), (0x2066, 0x206A))
CONTROLS = [chr(code) for start, stop in RANGES for code in range(start, stop)]

MARKUP = ("[/]", "[grass]", "[bold red]x[/bold red]", "a[/grass]", ":smiley:", "[link=file:///etc/passwd]x[/link]")

EVIL = "a\xa0\x1b[2J\x9b1m\u202egpj\n2026-11-28 [1/1] done  b"
"""A name that clears a terminal, turns itself around, and forges a line of a log."""


@pytest.mark.parametrize("character", CONTROLS)
def test_class_names_have_no_control_characters(character):
    values = contract(3, 2, classes=[{"id": 0, "name": "a"}, {"id": 1, "name": f"b{character}c"}])
    with pytest.raises(ContractError, match=r"without control characters, got .*: rename the class") as error:
        parse_contract(values, "here")
    assert not CONTROL.search(str(error.value))


def test_names_of_every_script_are_good():
    names = ["Wald", "森林", "غابة", "לֹא", "a\u200db", "[/]", "=1+1", "é"]
    assert Contract.model_validate(contract(3, classes=[{"id": i, "name": n} for i, n in enumerate(names)]))


@pytest.mark.parametrize("character", CONTROLS)
def test_control_characters_are_shown_escaped(character):
    assert printable(f"a{character}b") == f"a{character!r}b".replace("'", "")
    text = json.dumps({"a": f"x{character}y"}, ensure_ascii=False)
    assert json.loads(printable_json(text)) == {"a": f"x{character}y"}
    assert not CONTROL.search(printable_json(text))


def record(case: str, *names: str) -> Record:
    figures = {"pixels": 1, "area": 1.5, "unit": "ha", "share": 0.5}
    rows = [{"class_id": n, "class_name": name, **figures} for n, name in enumerate(names)]
    source, statistics = RecordedInput("/in/a.tif", (1, 2), ()), {"areas": rows}
    return Record(case, "1", source, RecordedModel("0" * 64), {}, False, (), Amount(2, 3.0, "ha"), statistics)


def printed(capsys, table, width: int = 200) -> str:
    out = console.console()
    out.width = width
    out.print(table)
    return capsys.readouterr().out


def test_classes_that_look_like_markup_stand_in_the_table(capsys):
    text = printed(capsys, areas_table(Totals.over([record("a", *MARKUP)]), "first"))
    assert all(name in text for name in MARKUP)


def classes_of(sizes: list[float]) -> list[dict]:
    """Rows of ``areas.csv`` in hectares, and one of nodata."""
    names = [*(f"c{n}" for n in range(len(sizes))), "nodata"]
    rows = zip(names, [*sizes, 500.0], strict=True)
    return [
        {"class_id": 0, "class_name": n, "pixels": int(a * 100), "area": a, "unit": "ha", "share": None} for n, a in rows
    ]


def line_of(sizes: list[float]) -> str:
    one = replace(
        record("a"), valid=Amount(int(sum(sizes) * 100), sum(sizes), "ha"), statistics={"areas": classes_of(sizes)}
    )
    return largest(Totals.over([one]))


def test_a_line_has_the_areas_of_all_classes_in_their_order():
    assert line_of([1, 0, 3]) == "c0 1.0 ha (25.0%), c2 3.0 ha (75.0%), nodata 500.0 ha"


def test_of_many_classes_a_line_has_the_largest():
    text = line_of([float(n) for n in range(1, 11)])
    largest = [f"c{n} {n + 1}.0 ha ({(n + 1) / 55:.1%})" for n in range(9, 1, -1)]
    assert text == ", ".join([*largest, "2 smaller classes", "nodata 500.0 ha"])


class Planned:
    """As much of a plan as a bar needs."""

    done: tuple[Case, ...] = ()
    outside: tuple[Case, ...] = ()
    pixels = None

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize("name", MARKUP)
def test_cases_that_look_like_markup_are_named(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with Bar(SimpleNamespace(plan=Planned(), cases=[Case(name, name)])) as bar:
        bar.outcome(Outcome(Case(name, "x"), 0.0, error=f"{name} is bad"))
        bar.note(f"note: {name}")
    text = capsys.readouterr().out
    assert f"failed  {name}: {name} is bad" in text
    assert f"note: {name}" in text


def test_the_table_of_tune_has_no_markup(capsys, monkeypatch):
    out = console.console()
    monkeypatch.setattr(Console, "is_terminal", True)
    _print(out, ("", "model"), [["", name] for name in (*MARKUP, EVIL)])
    text = capsys.readouterr().out
    assert all(name in text for name in MARKUP)
    assert not CONTROL.search(text.replace("\n", "").replace("\x1b[1m", "").replace("\x1b[0m", ""))


def lines_of(text: str) -> list[str]:
    assert not CONTROL.search(text.replace("\n", ""))
    return text.splitlines()


def test_a_case_is_one_line_whatever_it_is_called(capsys):
    lines = Lines(SimpleNamespace(plan=Planned(), cases=[Case(EVIL, EVIL)]))
    lines.outcome(Outcome(Case(EVIL, EVIL), 0.1, 10))
    lines.outcome(Outcome(Case(EVIL, EVIL), 0.1, error=f"{EVIL} is bad"))
    values = {"output": EVIL, "done": 0, "failed": [{"case": EVIL, "error": EVIL}], "missing": [EVIL], "parts": {}}
    values |= {key.name: None for key in fields(Status) if key.name not in values} | {"problems": [], "command": EVIL}
    print_status(Status(**values), as_json=False)
    assert len(lines_of(capsys.readouterr().out)) == 2 + 5
    print_status(Status(**values), as_json=True)
    (line,) = lines_of(capsys.readouterr().out)
    assert json.loads(line)["missing"] == [EVIL]


def test_lines_of_libraries_are_escaped(capsys):
    StderrHandler().handle(
        logging.LogRecord("boto", logging.INFO, "f", 1, "GET \x1b]0;x\x07 %s", ("https://h/a?sig=SECRET",), None)
    )
    assert capsys.readouterr().err == "GET \\x1b]0;x\\x07 https://h/a?...\n"


@pytest.mark.parametrize(
    ("name", "level", "message", "line"),
    [
        ("segpipe", logging.WARNING, "it is %s", "warning: it is late"),
        ("segpipe", logging.WARNING, "warning: it is %s", "warning: it is late"),
        ("segpipe", logging.WARNING, "note: it is %s", "note: it is late"),
        ("segpipe", logging.INFO, "it is %s", "INFO:segpipe:it is late"),
        ("boto", logging.WARNING, "it is %s", "WARNING:boto:it is late"),
    ],
)
def test_a_warning_of_segpipe_looks_like_the_other_lines_of_a_run(name, level, message, line, capsys):
    handler = StderrHandler()
    handler.setFormatter(LogLine())
    handler.handle(logging.LogRecord(name, level, "f", 1, message, ("late",), None))
    assert capsys.readouterr().err == line + "\n"


NAMES = ["plain", 'qu"ote', "com,ma", "=1+1", "+1", "-1", "@x", " space ", "'", "é,ü", "[/]", "back\\slash"]
LOOKS_ESCAPED = ["\\x1b", "\\\\x1b"]
FILES = [*NAMES, *LOOKS_ESCAPED, EVIL, "a\rb", "a\r\nb", "\tx", "\\tx", "\\\\tx", "\\\tx", "\udc9f", "\\udc9f", "a;b"]
"""Case names, which may hold anything; class names may not."""


def readers():
    yield lambda path: list(csv.reader(io.StringIO(path.read_bytes().decode(), newline="")))
    if find_spec("pandas"):
        import pandas as pd

        as_text = {"header": None, "dtype": str, "keep_default_na": False, "encoding": "utf-8"}
        yield lambda path: [list(row) for row in pd.read_csv(path, **as_text).to_numpy()]


@pytest.mark.parametrize("read", list(readers()))
def test_areas_have_one_row_for_each_and_read_back_equal(read, tmp_path, monkeypatch):
    classes = [*NAMES, *LOOKS_ESCAPED]
    stored = [record(name, *classes) for name in FILES]
    monkeypatch.setattr("segpipe.results.tables.records", lambda output, cases: stored)
    write_areas(Folder(tmp_path), [])
    head, *rows = read(tmp_path / "areas.csv")
    assert head == ["case", "class_id", "class_name", "pixels", "area", "unit", "share"]
    told = [(one_row(case), n, one_row(name)) for case in FILES for n, name in enumerate(classes)]
    assert len({case for case, *_ in told}) == len(FILES)
    assert all(one_row(name) == name for name in NAMES)
    assert rows == [[case, str(n), name, "1", "1.5", "ha", "0.5"] for case, n, name in told]
    assert len((tmp_path / "areas.csv").read_text().splitlines()) == 1 + len(rows)


def test_a_whole_run_over_evil_names(raster, tmp_path, capsys, monkeypatch):
    for name in (EVIL.replace("/", "_"), "[grass]", "x[bold]"):
        raster(f"in/{name}.tif", np.full((3, 40, 40), 9, np.uint8), descriptions=["[/]", "\x1b[31mred", "\u202eeulb"])
    raster("in/bad\x1b[2J.tif", np.full((1, 40, 40), 9, np.uint8))
    classes = [{"id": i, "name": name} for i, name in enumerate(("[/]", "[grass]", "b"))]
    Network(3, 0).conv(3, 3, 1).save(tmp_path / "m.onnx", contract(3, 3, classes=classes), classes=3)
    flags = {"input": (str(tmp_path / "in"),), "model": tmp_path / "m.onnx", "output": tmp_path / "out"}
    settings = load_settings(None, flags | {"executor": "serial", "device": "cpu"})
    prepared = prepare(settings, open_all=True)
    print_plan(prepared)
    plan = prepare(settings)
    with Lines(plan) as watcher:
        summary = carry_out(plan, watcher)
    print_conclusion(plan, summary)
    for line in (
        *settings_lines(plan),
        *settings_lines(plan, everything=True),
        *note_lines(plan),
    ):
        console.echo(line)
    lines_of(capsys.readouterr().out)
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        print_conclusion(plan, summary)
    text = capsys.readouterr().out
    assert "[/]" in text
    assert "[grass]" in text
    assert len(summary.done) == 3
    print_status(read_status(str(tmp_path / "out")), as_json=False)
    lines_of(capsys.readouterr().out)
    for path in sorted((tmp_path / "in").iterdir()):
        print_facts(inspect_file(load_settings(None, {"input": (str(path),), "model": path, "device": "cpu"})))
    print_facts(inspect_file(load_settings(None, {"input": (str(tmp_path / "m.onnx"),), "model": tmp_path / "m.onnx"})))
    assert "[grass]" in "\n".join(lines_of(capsys.readouterr().out))


@pytest.mark.parametrize(
    ("interrupted", "cases", "unit", "said"),
    [(True, 2, "ha", True), (False, 2, "ha", False), (True, 1, "ha", False), (True, 2, "mm3", False)],
)
def test_sums_of_an_interrupted_run_say_that_shared_ground_counts_for_each_case(interrupted, cases, unit, said):
    summary = SimpleNamespace(interrupted=interrupted, totals=None, good=iter(range(cases)))
    lines = list(_in_full(summary, Totals({}, Sum(), UNITS[unit], True)))
    assert ["share counts once for each" in line for line in lines] == [True] * said

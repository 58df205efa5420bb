"""``segpipe estimate``: numbers of the papers in, the same numbers out; what cannot be estimated is named."""

import csv
import json
from pathlib import Path

import pytest

from segpipe.accuracy import commands, show

TABLE = """map,deforestation,forest gain,stable forest,stable non-forest,area_ha
deforestation,66,0,5,4,18000
forest gain,0,55,8,12,13500
stable forest,1,0,153,11,288000
stable non-forest,2,1,9,313,580500
"""


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    (tmp_path / "m.csv").write_text(TABLE)
    return tmp_path / "m.csv"


def test_the_table_has_the_numbers_of_the_paper(segpipe, matrix):
    done = segpipe("estimate", "--matrix", matrix)
    assert done.returncode == 0, done.stderr
    assert "640 units, 4 strata; stratified by the classes of the map (Olofsson et al. 2014)" in done.stdout
    line = next(line for line in done.stdout.splitlines() if line.startswith("deforestation"))
    assert line.split("  ")[0] == "deforestation"
    for number in ("18,000", "21,158", "± 6,158", "0.8800", "0.7487", "0.4737 to 0.9270*"):
        assert number in line
    assert "overall accuracy 0.9465, ± 0.0185" in done.stdout
    assert "exact interval" in done.stdout
    assert done.stderr == ""


def test_normal_intervals_are_those_of_the_paper(segpipe, matrix):
    done = segpipe("estimate", "--matrix", matrix, "--intervals", "normal")
    assert "± 0.2133" in done.stdout
    assert "exact" not in done.stdout


def test_files_and_json_have_the_same_numbers(segpipe, matrix, tmp_path):
    done = segpipe("estimate", "--matrix", matrix, "--output", "figures", "--json")
    printed = json.loads(done.stdout)
    assert printed == json.loads((tmp_path / "figures" / "estimate.json").read_text())
    with (tmp_path / "figures" / "estimate.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == show.COLUMNS
    assert len(rows) == len(printed["estimates"]) == 1 + 4 * 4
    for row, one in zip(rows, printed["estimates"], strict=True):
        assert float(row["value"]) == one["value"]
        assert float(row["standard_error"]) == one["standard_error"]
    assert printed["estimates"][1] | {"low": 0, "high": 0} == {
        "class": "deforestation", "quantity": "area", "value": pytest.approx(21157.76223776224), "low": 0, "high": 0,
        "standard_error": pytest.approx(3141.6501969730475), "interval": "normal", "unit": "ha",
    }  # fmt: skip


def test_another_level_makes_other_intervals(segpipe, matrix):
    wide, narrow = (
        json.loads(segpipe("estimate", "--matrix", matrix, "--level", level, "--json").stdout)["estimates"][1]
        for level in ("0.99", "0.9")
    )
    assert (wide["high"] - wide["value"]) / (narrow["high"] - narrow["value"]) == pytest.approx(2.576 / 1.645)


def test_a_design_that_does_not_fit_is_said(segpipe, matrix):
    done = segpipe("estimate", "--matrix", matrix, "--design", "simple")
    assert done.returncode == 0
    assert done.stderr.startswith("warning: the design does not fit: 75 of 640 units are in deforestation")


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ("66", "x", "row deforestation, column deforestation must be a number of at least 0 and at most 1e+15, got 'x'"),
        ("area_ha", "acres", "must have one column area"),
        ("deforestation,66,0,5,4", "deforestation,0,0,0,0", "each stratum must have units in the sample"),
    ],
)
def test_bad_input_is_one_line(segpipe, matrix, was, now, said):
    matrix.write_text(TABLE.replace(was, now, 1))
    done = segpipe("estimate", "--matrix", matrix)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_level_is_a_share(segpipe, matrix):
    done = segpipe("estimate", "--matrix", matrix, "--level", "95")
    assert (done.returncode, done.stderr) == (2, "error: --level must be at least 0.5 and below 1, got 95\n")


def test_a_folder_that_cannot_be_written_is_named(segpipe, matrix, tmp_path):
    (tmp_path / "file").write_text("")
    done = segpipe("estimate", "--matrix", matrix, "--output", "file/below")
    assert done.returncode == 2
    assert "file/below" in done.stderr


def test_the_command_is_a_function(matrix, capsys):
    flags = {"design": None, "level": None, "intervals": None, "output": None, "json": True}
    assert commands.estimate_command(matrix=matrix, **flags) == 0
    assert json.loads(capsys.readouterr().out)["units"] == 640

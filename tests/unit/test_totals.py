"""Totals of a run: sums over records by hand, in the unit that all cases have, and in pixels where they differ."""

import pytest

from segpipe.messages.console import console
from segpipe.results.schema import Amount, Record, RecordedInput, RecordedModel
from segpipe.results.totals import Totals
from segpipe.terminal.progress import areas_table


def record(unit: str, *amounts: tuple[str, int, float | None], size: float | None) -> Record:
    rows = [{"class_id": None, "class_name": n, "pixels": p, "area": a, "unit": unit, "share": None} for n, p, a in amounts]
    valid = Amount(sum(p for n, p, _ in amounts if n != "nodata"), size, unit)
    source, model = RecordedInput("/a", (1, 1), ()), RecordedModel("0")
    return Record("a", "1", source, model, {}, False, (), valid, {"areas": rows})


def printed(capsys, table) -> str:
    console().print(table, width=200)
    return capsys.readouterr().out


FIELD = record("ha", ("crop", 30, 3.0), ("nodata", 5, 0.5), size=3.0)
WOOD = record("ha", ("crop", 10, 2.0), ("wood", 50, 5.0), size=7.0)
PICTURE = record("px", ("wood", 10, None), size=None)
HEAD = record("mm3", ("tumour", 8, 1500.0), ("nodata", 2, 10.0), size=6000.0)


def test_shares_are_of_the_area_where_every_case_has_one():
    totals = Totals.over([FIELD, WOOD])
    assert {name: (one.pixels, one.area) for name, one in totals.classes.items()} == {
        "crop": (40, 5.0),
        "nodata": (5, 0.5),
        "wood": (50, 5.0),
    }
    assert [totals.share(name) for name in totals.classes] == [0.5, None, 0.5]
    assert totals.text("crop") == "5.0 ha (50.0%)"
    assert totals.text("nodata") == "0.5 ha"


@pytest.mark.parametrize("found", [[FIELD, PICTURE], [PICTURE, FIELD]])
def test_shares_are_of_pixels_where_a_case_has_no_area(found):
    totals = Totals.over(found)
    assert totals.share("crop") == 30 / 40
    assert totals.text("wood") == "10 px (25.0%)"
    assert (totals.classes["crop"].area, totals.measured) == (3.0, False)


def test_volumes_are_shown_in_millilitres(capsys):
    totals = Totals.over([HEAD, HEAD])
    assert totals.text("tumour") == "3.000 ml (25.0%)"
    assert "millilitres" in printed(capsys, areas_table(Totals.over([HEAD, HEAD]), "first"))


def test_areas_of_two_units_are_not_added(capsys):
    totals = Totals.over([FIELD, HEAD])
    assert (totals.classes["tumour"].area, totals.classes["nodata"].area) == (0, 0.5)
    assert totals.text("tumour") == "8 px (21.1%)"
    assert "some cases have no area in hectares" in " ".join(printed(capsys, areas_table(totals, "first")).split())


def test_no_case_has_no_totals(capsys):
    assert Totals.over([]).classes == {}
    assert "hectares" in printed(capsys, areas_table(Totals.over([]), "first"))


def test_a_run_without_a_record_says_nothing_of_areas(capsys):
    assert "some cases" not in printed(capsys, areas_table(Totals.over([]), "first"))

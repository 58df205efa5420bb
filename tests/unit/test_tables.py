"""Samples in tables: the published examples through files, and tables that do not belong together."""

import golden
import numpy as np
import pandas as pd
import pytest

from segpipe.accuracy.estimate import OVERALL, Level, estimate
from segpipe.accuracy.survey import OTHER, UNEQUAL, design_of_survey
from segpipe.accuracy.tables import survey_of_tables
from segpipe.errors import InputError

SIZES = {"A": 40000, "B": 30000, "C": 20000, "D": 10000}


@pytest.fixture
def tables(tmp_path):
    """The example of Stehman (2014)."""
    sample, _ = golden.STEHMAN_2014
    rows = zip(
        *([golden.CLASSES[k] for k in each] for each in (sample.stratum, sample.mapped, sample.reference)), strict=True
    )
    (tmp_path / "samples.csv").write_text("stratum,map,reference\n" + "\n".join(map(",".join, rows)))
    sizes = (f"{name},{pixels},{pixels * 0.09:g}" for name, pixels in SIZES.items())
    (tmp_path / "strata.csv").write_text("stratum,pixels,area_ha\n" + "\n".join(sizes))
    return tmp_path / "samples.csv", tmp_path / "strata.csv"


def test_stehman_2014(tables):
    found = estimate(design_of_survey(survey_of_tables(*tables, "reference")), Level(exact=False))
    assert (found.design.method, found.design.unit, found.design.mapped) == (OTHER, "ha", None)
    printed = {
        ("A", "share"): (0.35, 0.08225), ("C", "share"): (0.20, 0.06428), (OVERALL, "overall_accuracy"): (0.63, 0.08464),
        ("B", "users_accuracy"): (0.5745, 0.12478), ("B", "producers_accuracy"): (0.7941, 0.11655),
    }  # fmt: skip
    for (name, what), (value, error) in printed.items():
        row = found.of(name, what)
        assert (round(row.value, 4), round(row.error, 5)) == (value, error)
    assert found.of("A", "area").value == pytest.approx(0.35 * 9000)


def test_stehman_2014_by_the_command(tables, segpipe):
    done = segpipe("estimate", "--samples", "samples.csv", "--strata", "strata.csv")
    assert done.returncode == 0, done.stderr
    assert "40 units, 4 strata; stratified by another map (Stehman 2014)" in done.stdout
    assert "overall accuracy 0.6300" in done.stdout
    refused = segpipe("estimate", "--samples", "samples.csv", "--strata", "strata.csv", "--design", "simple")
    assert (refused.returncode, "leave --map and --design simple out" in refused.stderr) == (2, True)


def test_areas_of_pixels_count(tables):
    """Those of Tyukavina et al. (2025), of which map and reference have one class."""
    samples, strata = tables
    sizes, areas = golden.UNITS.tolist(), golden.AREAS.tolist()
    text = (f"{k},{int(n)},{n * a!r}" for k, (n, a) in enumerate(zip(sizes, areas, strict=True), 1))
    strata.write_text("stratum,pixels,area_km2\n" + "\n".join(text))
    whole = golden.ROWS[np.isin(golden.ROWS[:, 1], (0, 1)) & np.isin(golden.ROWS[:, 2], (0, 1))]
    lines = [f"{int(h)},{int(m)},{int(r)},{areas[int(h) - 1]!r}" for h, m, r, n in whole for _ in range(int(n))]
    samples.write_text("stratum,map,kind,area\n" + "\n".join(lines))
    found = estimate(design_of_survey(survey_of_tables(samples, strata, "kind")))
    assert (found.design.method, found.design.unit) == (UNEQUAL, "km2")
    by_hand = 0.0
    for h, (n, a) in enumerate(zip(sizes, areas, strict=True), 1):
        own = whole[whole[:, 0] == h]
        by_hand += n * a * (own[:, 2] * own[:, 3]).sum() / own[:, 3].sum()
    assert found.of("1", "area").value == pytest.approx(by_hand, rel=1e-9)


@pytest.mark.parametrize(
    ("file", "was", "now", "said"),
    [
        (1, "stratum,", "layer,", "must have the column stratum, and has layer, pixels, area_ha"),
        (1, "area_ha", "hectares", "must have the column area"),
        (1, "40000", "40000.5", "pixels must be whole numbers, got 40000.5"),
        (1, "40000", "0.5", "pixels must be whole numbers, got 0.5"),
        (1, "40000", "many", "pixels must be a number above 0, at most"),
        (1, "B,30000", "A,30000", "must have each stratum once, and A is there twice"),
        (1, "D,10000", "E,10000", "each stratum must be one of the table of strata, A, B, C, E, got 'D'"),
        (0, "reference", "truth", "must have the column reference"),
        (0, "map", "mapped", "must have the column map"),
    ],
)
def test_tables_that_do_not_belong_together_are_named(tables, file, was, now, said):
    tables[file].write_text(tables[file].read_text().replace(was, now, 1))
    with pytest.raises(InputError, match=said):
        survey_of_tables(*tables, "reference")


def test_a_stratum_without_points_is_named(tables):
    tables[1].write_text(tables[1].read_text() + "\nE,5,0.45")
    with pytest.raises(InputError, match="each stratum must have units in the sample, and E"):
        design_of_survey(survey_of_tables(*tables, "reference"))


def test_a_stratum_with_more_points_than_pixels_is_named(tables):
    """The finite-population correction would be negative, and there is no root of it."""
    tables[1].write_text(tables[1].read_text().replace("A,40000", "A,9"))
    with pytest.raises(InputError, match="A has 10 units in the sample and 9 pixels: give all pixels of the stratum"):
        design_of_survey(survey_of_tables(*tables, "reference"))


@pytest.mark.parametrize("odd", ["winter\u2028wheat", "winter\x0bwheat", "winter\x85wheat", "winter\nwheat"])
def test_letters_that_python_takes_for_ends_of_lines_are_part_of_a_label(tables, odd):
    """pandas, which reads the table, too, is the oracle."""
    samples, strata = tables
    samples.write_text(samples.read_text() + f'\nA,A,"{odd}"', newline="")
    found = survey_of_tables(samples, strata, "reference")
    assert list(found.labels) == pd.read_csv(samples)["reference"].tolist()


def test_areas_of_pixels_may_name_their_unit(tables):
    """Pixels of twice the area in one stratum; the column has the head that the table of strata has."""
    samples, strata = tables
    head, *rows = samples.read_text().splitlines()
    doubled = [f"{row},{0.18 if row.startswith('A') else 0.09}" for row in rows]
    for name in ("area", "area_ha"):
        samples.write_text("\n".join([f"{head},{name}", *doubled]))
        found = survey_of_tables(samples, strata, "reference")
        assert found.area.tolist() == [0.18 if row.startswith("A") else 0.09 for row in rows]
    samples.write_text("\n".join([f"{head},area_km2", *doubled]))
    with pytest.raises(InputError, match="must have one unit, and their columns are area_km2 and area_ha"):
        survey_of_tables(samples, strata, "reference")

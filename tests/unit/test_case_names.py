"""Names of cases: numbers in place of paths, also in errors, and names that are refused."""

from segpipe.formats.case import Case
from segpipe.formats.case_names import named_by_uid, numbered, refusals

A, B = Case("ward/a", "in/ward/a.tif"), Case("ward/b", "in/ward/b.tif")
SERIES = Case("1.2.3", "in/series", "dicom")


def test_numbers_follow_the_order_and_errors_name_no_path():
    cases, errors = numbered([A, B], {B: "in/ward/b.tif must exist: ward/b is gone"})
    assert [(case.name, case.path) for case in cases] == [("0001", A.path), ("0002", B.path)]
    assert errors == {cases[1]: "0002 must exist: 0002 is gone"}


def test_numbers_have_the_digits_that_all_need():
    cases, _ = numbered([Case(f"c{n:05}", f"c{n:05}.tif") for n in range(12_345)], {})
    assert (cases[0].name, cases[-1].name) == ("00001", "12345")


def test_a_case_without_a_uid_is_refused_by_a_number():
    cases, errors = named_by_uid([SERIES, A], {})
    assert [case.name for case in cases] == ["1.2.3", "without-uid-0001"]
    assert errors == {
        cases[1]: "without-uid-0001 must have a UID, after which --case-name uid names its mask, and only DICOM has one: "
        "give --case-name number"
    }


def test_one_refusal_for_each_name():
    same = [Case("a", "x/a.tif"), Case("a", "y/a.tif"), Case("a", "z/a.tif")]
    run, bad, good = Case("run", "in/run.tif"), Case("b", "in/b.tif"), Case("c", "in/c.tif")
    found = {failure.case.path: failure.error for failure in refusals([*same, bad, good, run], {bad: "it must exist"})}
    assert found == {
        "x/a.tif": "3 inputs would get one name, a: x/a.tif and y/a.tif and 1 more: rename one, or give them in runs of "
        "their own",
        "in/b.tif": "it must exist",
        "in/run.tif": "the names run and *.confidence are reserved, got in/run.tif: rename it",
    }

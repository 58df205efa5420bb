"""Coded concepts of classes."""

import pytest
from pydicom.sr.codedict import codes

from segpipe.formats.dicom.concepts import concepts_of, schemes, text
from segpipe.formats.style import Segment


@pytest.mark.parametrize(
    ("snomed", "category"),
    [
        (("10200004",), codes.cid7150.AnatomicalStructure),
        ((codes.cid7159.Cyst.value,), codes.cid7150.MorphologicallyAbnormalStructure),
        (("85756007", "55603005"), codes.cid7150.Tissue),
    ],
)
def test_a_category_is_stated_or_follows_from_the_type(snomed: tuple[str, ...], category: object) -> None:
    assert concepts_of(Segment("x", 1, snomed=snomed))[0] == category


def test_a_private_code_depends_on_the_name_alone() -> None:
    _, one = concepts_of(Segment("spleen", 1))
    _, same = concepts_of(Segment("spleen", 7, 2))
    _, other = concepts_of(Segment("Spleen", 1))
    assert one == same != other
    assert len(one.value) <= 16  # a short string (PS3.5, 6.2)
    assert (one.scheme_designator, one.meaning) == ("99SEGPIPE", "spleen")


def test_the_private_scheme_is_described_where_it_is_used() -> None:
    coded, other = Segment("liver", 1, snomed=("10200004",)), Segment("spleen", 2)
    assert schemes([coded]) is None
    (item,) = schemes([coded, other]) or []
    assert item.CodingSchemeDesignator == "99SEGPIPE"


@pytest.mark.parametrize(("name", "shown"), [("a\\b", "a/b"), ("x" * 99, "x" * 64), ("  ", "class")])
def test_a_name_is_one_value_of_a_long_string(name: str, shown: str) -> None:
    assert text(name) == shown

"""Identifiers of SNOMED CT: published ones, and every single mistake in them."""

import pytest

from segpipe.contract.snomed import checked_concept, has_check_digit

CONCEPTS = ("138875005", "10200004", "49755003", "108369006", "91723000", "64033007", "1000004", "900000000000207008")
"""Of the international edition: its root, liver, morphologically abnormal structure, neoplasm, anatomical structure, kidney,
and two of other lengths."""


@pytest.mark.parametrize("code", CONCEPTS)
def test_published_concepts(code: str) -> None:
    assert checked_concept(code) == code


@pytest.mark.parametrize("digits", ["2363", "123451", "84736430954837284567892"])
def test_published_check_digits(digits: str) -> None:
    assert has_check_digit(digits)


@pytest.mark.parametrize("code", CONCEPTS[:5])
def test_every_wrong_digit_and_every_swap_of_neighbours_is_found(code: str) -> None:
    for place, digit in enumerate(code):
        for other in "0123456789".replace(digit, ""):
            assert not has_check_digit(code[:place] + other + code[place + 1 :])
        if place and digit != code[place - 1]:
            assert not has_check_digit(code[: place - 1] + digit + code[place - 1] + code[place + 1 :])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("T-62000", "SNOMED RT"),
        ("", "6 to 18 digits"),
        ("10204", "6 to 18 digits"),
        ("01020004", "6 to 18 digits"),
        ("1" * 19, "6 to 18 digits"),
        ("10200004\n", "6 to 18 digits"),
        ("\u0661" * 8, "6 to 18 digits"),
        ("10200005", "check digit"),
        ("751689013", "not of a description"),
    ],
)
def test_others_are_refused(code: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked_concept(code)

"""Identifiers of SNOMED CT: their form and their check digit (SNOMED CT release file specifications, section 5.5)."""

import re

FORM = re.compile(r"[1-9][0-9]{5,17}")

CONCEPTS = ("00", "10")
"""The two digits before the check digit of a concept, without and with a namespace; other items have others."""

STEP = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)
"""Permutation of digits that Verhoeff applies once for each position from the right."""


def _product(a: int, b: int) -> int:
    """Product in the dihedral group of order 10; 0 to 4 are rotations, 5 to 9 are reflections."""
    if a < 5:
        return (a + b) % 5 if b < 5 else 5 + (a + b) % 5
    return 5 + (a - b) % 5 if b < 5 else (a - b) % 5


def has_check_digit(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (Verhoeff 1969).

    >>> has_check_digit("2363"), has_check_digit("2364")
    (True, False)
    """
    check = 0
    for position, digit in enumerate(reversed(digits)):
        check = _product(check, _stepped(int(digit), position % 8))
    return check == 0


def _stepped(digit: int, times: int) -> int:
    return _stepped(STEP[digit], times - 1) if times else digit


def checked_concept(code: str) -> str:
    """The identifier of a concept.

    Raises:
        ValueError: it cannot be one.
    """
    if not FORM.fullmatch(code):
        raise ValueError(
            'must be the identifier of a SNOMED CT concept, 6 to 18 digits such as "10200004" (those of SNOMED RT, such as '
            "T-62000, are retired)"
        )
    if not has_check_digit(code):
        raise ValueError("must be the identifier of a SNOMED CT concept, whose last digit is a check digit of the others")
    if code[-3:-1] not in CONCEPTS:
        raise ValueError("must be the identifier of a SNOMED CT concept, not of a description or a relationship")
    return code

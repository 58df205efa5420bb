"""Columns of ``zones.csv``: no two classes share one."""

import pytest

from segpipe.results.zones.table import FIRST, columns_of


@pytest.mark.parametrize(
    ("classes", "stems"),
    [
        (((0, "water"), (4, "maize")), ["water", "maize"]),
        (((1, "seen"), (2, "majority"), (3, "unseen")), ["seen_1", "majority_2", "unseen_3"]),
        (((1, "seen"), (2, "seen_1")), ["seen_1_1", "seen_1"]),
        (((2, "seen_1"), (1, "seen"), (5, "seen_1_1")), ["seen_1", "seen_1_1_1", "seen_1_1"]),
        (((1, "crop"), (2, "crop"), (3, "crop_1")), ["crop_1_1", "crop_2", "crop_1"]),
    ],
)
def test_columns_differ(classes: tuple[tuple[int, str], ...], stems: list[str]) -> None:
    found = columns_of(classes)
    columns = [column for pair in found for column in pair]
    assert len({*columns, *FIRST}) == len(columns) + len(FIRST)
    assert found == [(f"{stem}_ha", f"{stem}_share") for stem in stems]

"""A confusion matrix as a picture: SVG, which needs no library."""

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

import numpy as np

from segpipe.array_types import Integers
from segpipe.messages.printable import one_row

CELL, LETTER, MARGIN = 56, 7, 12
"""Pixels of a cell, of a letter, and around the picture."""
LONGEST = 24
"""Letters of a name that are shown."""
DARK = 0.5
"""Share from which figures are white."""


def as_svg(names: Sequence[str], matrix: Integers) -> str:
    """Rows are classes of the reference, columns those of the map; each cell has its share of the pixels of its row."""
    words = [escape(_short(name)) for name in names]
    left = MARGIN + 2 * LETTER + LETTER * max(map(len, words))
    wide, tall = left + CELL * len(words) + MARGIN, left + CELL * len(words) + MARGIN
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {tall}" width="{wide}" height="{tall}" '
        'font-family="sans-serif" font-size="12">'
    )
    title = "<title>Confusion matrix: rows are the reference, columns the map, shares of rows</title>"
    ground = f'<rect width="{wide}" height="{tall}" fill="white"/>'
    return "\n".join([head, title, ground, *_names(words, left), *_cells(matrix, left), "</svg>", ""])


def _short(name: str) -> str:
    text = one_row(name)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _names(words: Sequence[str], left: int) -> Iterator[str]:
    for k, word in enumerate(words):
        middle = left + CELL * k + CELL // 2
        yield f'<text x="{left - LETTER}" y="{middle + 4}" text-anchor="end">{word}</text>'
        yield f'<text transform="translate({middle + 4} {left - LETTER}) rotate(-90)">{word}</text>'


def _cells(matrix: Integers, left: int) -> Iterator[str]:
    sums = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, sums, out=np.zeros(matrix.shape), where=sums > 0)
    for row, values in enumerate(shares):
        for col, share in enumerate(values):
            x, y = left + CELL * col, left + CELL * row
            shade = round(255 - 200 * float(share))
            yield f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill="rgb({shade},{shade},255)" stroke="#ccc"/>'
            color, text = "white" if share > DARK else "black", f"{share:.1%}" if matrix[row, col] else "0"
            yield f'<text x="{x + CELL // 2}" y="{y + CELL // 2 + 4}" text-anchor="middle" fill="{color}">{text}</text>'

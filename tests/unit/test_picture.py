"""The picture of a confusion matrix: an XML parser finds its cells, in the place and shade that the counts ask for."""

from xml.etree import ElementTree

import numpy as np

from segpipe.accuracy.picture import CELL, as_svg

SVG = "{http://www.w3.org/2000/svg}"


def test_cells_have_the_share_of_their_row():
    root = ElementTree.fromstring(as_svg(["a", "b & <c>"], np.array([[3, 1], [0, 5]])))
    texts = [one.text for one in root.iter(f"{SVG}text")]
    assert texts[:4] == ["a", "a", "b & <c>", "b & <c>"]
    assert texts[4:] == ["75.0%", "25.0%", "0", "100.0%"]
    cells = [one for one in root.iter(f"{SVG}rect") if one.get("width") == str(CELL)]
    shades = [int(one.get("fill")[4:].split(",")[0]) for one in cells]
    assert shades == [105, 205, 255, 55]
    assert float(cells[1].get("x")) - float(cells[0].get("x")) == CELL
    assert float(cells[2].get("y")) - float(cells[0].get("y")) == CELL


def test_a_class_without_pixels_has_an_empty_row():
    root = ElementTree.fromstring(as_svg(["a", "b" * 60], np.zeros((2, 2), int)))
    texts = [one.text for one in root.iter(f"{SVG}text")]
    assert texts[4:] == ["0"] * 4
    assert max(map(len, texts)) == 24

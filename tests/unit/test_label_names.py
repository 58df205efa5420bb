"""Names of classes as people write them."""

import unicodedata
from pathlib import Path

import geopandas
import pytest
import shapely

from segpipe.accuracy.annotations import Labelling
from segpipe.accuracy.polygons import read_polygons
from segpipe.errors import InputError, SettingsError, SourceError
from segpipe.messages.names import Names
from segpipe.polygons.rule import chosen

CLASSES = {3: "Mais", 4: "mais", 5: "Getränk", 6: "7", 7: "Gras"}
"""Two names that differ in case alone, one with a letter of two forms, and one that is the id of another class."""

MEANT = {
    "Mais": 3, " mais ": 4, "MAIS": None, "getränk": 5, unicodedata.normalize("NFD", "Getränk"): 5, "GRAS": 7,
    "7": 6, "3": 3, "cow": None,
}  # fmt: skip
"""What a person would take each text for; None: it is not clear, or no class."""


@pytest.mark.parametrize("text", MEANT)
def test_a_name_is_taken_for_the_class_that_a_person_would_take_it_for(text: str, tmp_path: Path) -> None:
    """Wherever names are read: labels of annotations, a column of polygons, and a flag."""
    found: list[int | None] = [Names.of({name: k for k, name in CLASSES.items()}, {k: k for k in CLASSES}).find(text)]
    readers = (
        lambda: Labelling.of(CLASSES).value(text),
        lambda: int(read_polygons(_file(tmp_path, text), "kind", CLASSES, mapped=False).values[0]),
        lambda: next(iter(chosen(text, tuple(CLASSES.items())) or ())),
    )
    for read in readers:
        try:
            found.append(read())
        except (InputError, SettingsError, SourceError):
            found.append(None)
    assert found == [MEANT[text]] * 4


def test_labels_that_a_file_maps_may_differ_in_case() -> None:
    labelling = Labelling.of(CLASSES, {"Tree": 3, "tree": 7})
    assert (labelling.value("Tree"), labelling.value("tree")) == (3, 7)
    with pytest.raises(SourceError, match="labels of annotations must be classes, Tree, tree, got 'TREE'"):
        labelling.value("TREE")


def _file(folder: Path, text: str) -> Path:
    path = folder / "f.geojson"
    geopandas.GeoDataFrame({"kind": [text]}, geometry=[shapely.box(0, 0, 1, 1)], crs="EPSG:4326").to_file(path)
    return path

"""Annotations of COCO, Labelme and CVAT: what their files say, pixel by pixel, and what is refused."""

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segpipe.accuracy import annotations as module
from segpipe.accuracy.annotated import Annotated, PixelRuns
from segpipe.accuracy.annotations import Annotations, Labelling, by_case, read_annotations
from segpipe.accuracy.coco import is_coco, uncompressed
from segpipe.accuracy.cvat import read_cvat
from segpipe.accuracy.labelme import is_labelme
from segpipe.accuracy.polygons import OUTSIDE
from segpipe.errors import InputError, SourceError
from segpipe.geometry.grid import BareGrid
from segpipe.geometry.windows import Window

CLASSES = {0: "background", 1: "cat", 2: "dog"}
SIZE = 6, 8


def drawn(picture: Annotated, classes: dict[int, str] = CLASSES, shape: tuple[int, ...] = SIZE) -> np.ndarray:
    """Labels of a picture, joined from windows; -1 where none counts."""
    found = np.zeros(shape, np.int64)
    with Annotations(picture, Labelling.of(classes)).on(BareGrid(shape)) as labels:
        for row in range(0, shape[0], 4):
            for col in range(0, shape[1], 3):
                stop = min(row + 4, shape[0]), min(col + 3, shape[1])
                values, valid = labels.read(Window((row, col), stop))
                found[row : stop[0], col : stop[1]] = np.where(valid, values, -1)
    return found


def expected(*boxes: tuple[int, int, int, int, int]) -> np.ndarray:
    found = np.zeros(SIZE, np.int64)
    for value, top, left, bottom, right in boxes:
        found[top:bottom, left:right] = value
    return found


def save(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def coco(*annotations: Any, name: str = "photo.jpg", **image: Any) -> dict[str, Any]:
    """A file of one picture; annotations are category and segmentation."""
    return {
        "info": {},
        "images": [{"id": 7, "file_name": name, "width": 8, "height": 6} | image],
        "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "Dog"}],
        "annotations": [
            {"id": k, "image_id": 7, "category_id": c, "segmentation": s} for k, (c, s) in enumerate(annotations)
        ],
    }


def only(path: Path) -> Annotated:
    pictures = read_annotations(path)
    assert pictures is not None
    (picture,) = pictures
    return picture


def test_polygons_of_coco_later_over_earlier_by_pixel_centres(tmp_path: Path) -> None:
    value = coco((3, [[1, 1, 5, 1, 5, 4, 1, 4]]), (4, [[3.4, 2, 7.6, 2, 7.6, 6, 3.4, 6], [0, 5, 1, 5, 1, 6, 0, 6]]))
    picture = only(save(tmp_path / "a.json", value))
    assert (drawn(picture) == expected((1, 1, 1, 4, 5), (2, 2, 3, 6, 8), (2, 5, 0, 6, 1))).all()
    assert drawn(picture, {1: "cat", 2: "dog"})[0, 0] == -1  # no class is called background


HAND = [14, 2, 4, 2, 26]
"""Down the columns of 6 rows: 14 outside, then rows 2 and 3 of column 2, 4 outside, rows 2 and 3 of column 3, the rest."""


def packed(counts: list[int]) -> str:
    """``rleToString`` of COCO's maskApi.c, line by line."""
    text = ""
    for i, count in enumerate(counts):
        x = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            c = x & 0x1F
            x >>= 5
            more = x != -1 if c & 0x10 else x != 0
            text += chr((c | 0x20 if more else c) + 48)
    return text


@pytest.mark.parametrize("form", ["numbers", "text"])
def test_runs_of_coco_go_down_the_columns(tmp_path: Path, form: str) -> None:
    counts = HAND if form == "numbers" else packed(HAND)
    picture = only(save(tmp_path / "a.json", coco((3, {"counts": counts, "size": [6, 8]}))))
    assert (drawn(picture) == expected((1, 2, 2, 4, 4))).all()


def test_compressed_runs_by_hand() -> None:
    """14 is one character, 14 + 48 or ">", as its bit 16 is not set; so are 2, 4 and 2 - 2. 26 - 4 is 22, which has bit 16,
    so a second character follows: 22 + 32 + 48 is "f", then "0". 8 - 9 is 31 + 48, or "O"."""
    assert uncompressed(">240f0") == HAND == uncompressed(packed(HAND))
    assert uncompressed("595O") == [5, 9, 5, 8]
    draw = np.random.default_rng(0)
    for _ in range(50):
        counts = draw.integers(0, draw.integers(2, 10**6), 30).tolist()
        assert uncompressed(packed(counts)) == counts
    for text in ("é", "P" * 20, "f", " "):
        with pytest.raises(ValueError, match="compressed runs"):
            uncompressed(text)


def test_random_runs_are_read_window_by_window() -> None:
    draw = np.random.default_rng(0)
    for by_column in (True, False):
        mask = draw.random((9, 7)) < 0.4
        flat = np.concatenate([[False], mask.ravel(order="F" if by_column else "C")])
        counts = np.diff([0, *np.flatnonzero(flat[1:] != flat[:-1]), mask.size]).tolist()
        runs = PixelRuns.of(counts, (2, 3), (9, 7), by_column=by_column)
        whole = np.zeros((14, 12), bool)
        whole[2:11, 3:10] = mask
        for start, stop in (((0, 0), (14, 12)), ((1, 2), (5, 6)), ((5, 5), (14, 12)), ((0, 0), (2, 3))):
            assert (runs.within(Window(start, stop)) == whole[start[0] : stop[0], start[1] : stop[1]]).all()


def test_names_of_roboflow(tmp_path: Path) -> None:
    for name, more in (("photo_jpg.rf.0a1b2c.jpg", {}), ("x.jpg", {"extra": {"name": "photo.png"}})):
        picture = only(save(tmp_path / "_annotations.coco.json", coco(name=name, **more)))
        assert by_case([picture], tmp_path, ["photo"]) == {"photo": picture}


def png(mask: np.ndarray) -> str:
    data = BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(data, format="PNG")
    return base64.b64encode(data.getvalue()).decode()


def labelme(*shapes: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"version": "5.5.0", "imagePath": "photo.jpg", "imageHeight": 6, "imageWidth": 8, "shapes": [*shapes]} | more


def test_shapes_of_labelme(tmp_path: Path) -> None:
    corner = png(np.array([[1, 1], [1, 0]]))
    value = labelme(
        {"label": "cat", "points": [[0, 0], [4, 0], [4, 3], [0, 3]], "shape_type": "polygon"},
        {"label": "dog", "points": [[6, 4], [2, 2]], "shape_type": "rectangle"},
        {"label": "cat", "points": [[6, 4], [7, 5]], "shape_type": "mask", "mask": corner},
        {"label": "dog", "points": [[7.5, 0.5], [7.5, 0.9]], "shape_type": "circle"},
        {"label": "eye", "points": [[1, 1]], "shape_type": "point"},
    )
    picture = only(save(tmp_path / "photo.json", value))
    want = expected((1, 0, 0, 3, 4), (2, 2, 2, 4, 6), (1, 4, 6, 5, 8), (1, 5, 6, 6, 7), (2, 0, 7, 1, 8))
    assert (drawn(picture) == want).all()
    assert picture.problems == ("photo.json: eye is a point, which has no area",)


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><labels><label><name>cat</name></label></labels></task></meta>
<image id="0" name="set/photo.jpg" width="8" height="6">
<polygon label="dog" z_order="1" points="0.00,0.00;4.00,0.00;4.00,3.00;0.00,3.00"><attribute name="a">1</attribute></polygon>
<box label="cat" z_order="0" xtl="2" ytl="2" xbr="6" ybr="4"/>
<mask label="cat" rle="0, 3, 1" left="6" top="4" width="2" height="2" z_order="2"/>
<box label="dog" xtl="5" ytl="0" xbr="7" ybr="4" rotation="90" z_order="3"/>
<points label="eye" points="1,1"/>
</image></annotations>"""


def test_shapes_of_cvat_by_z_order(tmp_path: Path) -> None:
    picture = only(save(tmp_path / "annotations.xml", CVAT))
    want = expected((1, 2, 2, 4, 6), (2, 0, 0, 3, 4), (1, 4, 6, 5, 8), (1, 5, 6, 6, 7), (2, 1, 4, 3, 8))
    assert (drawn(picture) == want).all()
    assert picture.problems == ("set/photo.jpg: eye is a points, which has no area",)
    circle = CVAT.replace('<points label="eye" points="1,1"/>', '<ellipse label="dog" cx="0.5" cy="5.5" rx="0.4" ry="0.4"/>')
    assert drawn(only(save(tmp_path / "annotations.xml", circle)))[5, 0] == 2


def test_runs_of_cvat_may_end_before_their_box(tmp_path: Path) -> None:
    text = CVAT.replace("0, 3, 1", "0, 3")
    assert drawn(only(save(tmp_path / "a.xml", text)))[5, 7] == 0


def test_pictures_of_a_folder_find_their_cases(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    save(tmp_path / "a.json", labelme(imagePath="..\\photos\\a.jpg"))
    save(tmp_path / "b" / "c.json", labelme(imagePath="c.jpg"))
    save(tmp_path / "d.xml", CVAT)
    save(tmp_path / "e.json", {"settings": 1})
    save(tmp_path / "f.json", "{")
    save(tmp_path / "a.tif.aux.xml", "<PAMDataset/>")
    save(tmp_path / "g.xml", "<other/>")
    pictures = read_annotations(tmp_path)
    assert pictures is not None
    found = by_case(pictures, tmp_path, ["a", "b/c", "z/c", "photo", "other"])
    assert {case: picture.path.name for case, picture in found.items()} == {"a": "a.json", "b/c": "c.json", "photo": "d.xml"}
    with pytest.raises(InputError, match=r"annotated pictures must have the names of cases, x, and .* has none of them"):
        by_case(pictures, tmp_path, ["x"])
    with pytest.raises(InputError, match=r"each case must have one reference, and photo has annotations in d.xml and d.xml"):
        by_case([*pictures, *pictures], tmp_path, ["photo"])


def test_a_folder_without_annotations_is_one_of_rasters(tmp_path: Path) -> None:
    save(tmp_path / "a.json", {"settings": 1})
    assert read_annotations(tmp_path) is None
    assert read_annotations(tmp_path / "missing") is None
    (tmp_path / "a.tif").write_bytes(b"II")
    assert read_annotations(tmp_path / "a.tif") is None


def test_labels_that_are_mapped_or_ignored() -> None:
    labelling = Labelling.of({1: "cat"}, {"Kitten": 1, "dog": None})
    assert (labelling.value("kitten"), labelling.value("dog"), labelling.background) == (1, OUTSIDE, OUTSIDE)
    assert labelling.rule == "pixels in no object of the annotations do not count, as no class is called background"
    assert Labelling.of(CLASSES).rule == "pixels in no object of the annotations count as background"
    assert Labelling.of(CLASSES).value("2") == 2
    with pytest.raises(
        SourceError, match=r"labels of annotations must be classes, Kitten, dog, got 'cow': map it to one, or ignore it"
    ):
        labelling.value("cow")


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    picture = only(save(tmp_path / "photo.json", labelme()))
    with pytest.raises(SourceError, match=r"has 8 x 6 pixels for photo.jpg, the mask 6 x 8: export them with the size"):
        drawn(picture, shape=(8, 6))
    with pytest.raises(SourceError, match="annotations must be of the picture of the mask"):
        drawn(only(save(tmp_path / "photo.json", labelme(imageHeight=None))), shape=(2, 6, 8))


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotations>&b;</annotations>'
RUNS = {"counts": [3, 4], "size": [6, 8]}
BAD: dict[str, tuple[str, Any, str]] = {
    "entities": ("a.xml", BOMB, "must have no document type"),
    "cut xml": ("a.xml", CVAT[:-20], "must be the XML of CVAT, and is not"),
    "other xml": ("a.xml", "<kml/>", "must be the XML of CVAT, with <annotations>, and has <kml>"),
    "video": ("a.xml", "<annotations><track/></annotations>", "has tracks of a video: export it as CVAT for images 1.1"),
    "no label": ("a.xml", CVAT.replace('label="dog" z_order="1"', ""), "a polygon of set/photo.jpg: it must have 'label'"),
    "no number": ("a.xml", CVAT.replace("4.00,3.00", "4.00,x"), "a polygon of set/photo.jpg: could not convert"),
    "two points": ("a.xml", CVAT.replace(";4.00,3.00;0.00,3.00", ""), "a polygon must have 3 points"),
    "endless": ("a.xml", CVAT.replace("4.00,3.00", "inf,nan"), "coordinates of a polygon must be finite"),
    "long runs": ("a.xml", CVAT.replace("0, 3, 1", "0, 9"), "runs must fill a box of 2 x 2 pixels, and have 9"),
    "no size": ("a.xml", CVAT.replace('width="8" height="6"', ""), "a picture must have name, width and height"),
    "turned": (
        "a.xml",
        CVAT.replace("<points ", '<ellipse cx="1" cy="1" rx="1" ry="1" rotation="9" ').replace("/></image>", "/></image>"),
        "it must not be turned",
    ),
    "cut json": ("a.json", "{", "is not JSON"),
    "other json": ("a.json", {"a": 1}, "must be annotations of COCO or Labelme, and has other keys"),
    "deep json": ("a.json", "[" * 100_000, "a.json"),
    "no width": ("a.json", coco(width=0), "annotations of COCO must have their keys"),
    "short runs": ("a.json", coco((3, RUNS)), "runs must fill 8 x 6 pixels, and have 7"),
    "negative runs": ("a.json", coco((3, RUNS | {"counts": [50, -2]})), "runs must fill a box"),
    "size of runs": ("a.json", coco((3, RUNS | {"size": [8, 6]})), "runs must have the size of the picture, 8 x 6"),
    "category": ("a.json", coco((9, [[0, 0, 1, 0, 1, 1]])), "category 9 must be one of the categories"),
    "odd": ("a.json", coco((3, [[0, 0, 1, 0, 1]])), "an object of photo.jpg"),
    "kind": ("a.json", labelme({"label": "x", "points": [[0, 0]], "shape_type": "blob"}), "its type must be polygon"),
    "no png": (
        "a.json",
        labelme({"label": "x", "points": [[0, 0], [1, 1]], "shape_type": "mask", "mask": "AAAA"}),
        "its mask cannot be read",
    ),
    "size of png": (
        "a.json",
        labelme({"label": "x", "points": [[0, 0], [1, 1]], "shape_type": "mask", "mask": png(np.ones((3, 3)))}),
        "its mask must have 2 x 2 pixels, and has 3 x 3",
    ),
    "no base 64": (
        "a.json",
        labelme({"label": "x", "points": [[0, 0], [1, 1]], "shape_type": "mask", "mask": "é"}),
        "a shape of x",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_as_its_tool_writes_it_is_refused(tmp_path: Path, name: str) -> None:
    file, value, why = BAD[name]
    with pytest.raises(InputError) as caught:
        read_annotations(save(tmp_path / file, value))
    assert why in str(caught.value)
    assert str(tmp_path / file) in str(caught.value)


def test_files_that_are_too_large_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 10)
    with pytest.raises(InputError, match=r"a.xml must have at most 10 bytes, and has .*: export it in parts"):
        read_annotations(save(tmp_path / "a.xml", CVAT))


def test_files_tell_their_tool_by_their_keys() -> None:
    assert (is_coco(coco()), is_labelme(coco())) == (True, False)
    assert (is_coco(labelme()), is_labelme(labelme())) == (False, True)
    assert (is_coco([]), is_labelme(None)) == (False, False)
    assert [one.name for one in read_cvat(Path("a.xml"), CVAT.encode())] == ["set/photo.jpg"]

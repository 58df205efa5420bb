"""Cases that are refused for their names, by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest

from segpipe.errors import OutputError
from segpipe.formats.case import Case, Failure
from segpipe.formats.cases import Found
from segpipe.network.joined_spec import spec_of_run
from segpipe.results.name_conflicts import refuse_taken, storable, without_reserved
from segpipe.results.run import Run
from segpipe.settings import load_settings
from segpipe.storage.folder import Folder

MASK = np.zeros((1, 4, 4), "u1")


def found(*names: str) -> Found:
    refused = [Failure(Case("old", "/in/old.tif"), "unreadable")]
    return Found([Case(name, f"/in/{name}.tif") for name in names], {}, refused, [])


def split(result: Found) -> tuple[list[str], dict[str, str]]:
    return [case.name for case in result.cases], {failure.case.name: failure.error for failure in result.refused}


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Run]:
    networks.pixelwise(tmp_path / "m.onnx", 1)

    def make(**flags: Any) -> Run:
        fixed = {"input": (str(tmp_path),), "model": tmp_path / "m.onnx", "output": tmp_path / "out", "device": "cpu"}
        settings = load_settings(None, fixed | flags)
        return Run(spec_of_run(settings), settings)

    return make


def test_names_that_a_folder_cannot_store_are_refused_and_say_what_to_rename(tmp_path: Path) -> None:
    kept, refused = split(storable(found("a", "b/../../c", "b"), Folder(tmp_path)))
    assert kept == ["a", "b"]
    assert refused.keys() == {"old", "b/../../c"}
    assert refused["b/../../c"].endswith("got 'b/../../c': rename /in/b/../../c.tif")


def test_names_of_files_that_other_cases_write_are_refused_where_these_are_asked_for(run: Callable[..., Run]) -> None:
    names = ["a", "a.classes/water", "a.instances"]
    assert split(without_reserved(found(*names), run()))[0] == names
    kept, refused = split(without_reserved(found(*names), run(lesions=True, instances=True)))
    assert (kept, refused["a.instances"]) == (
        ["a", "a.classes/water"],
        "with --instances the names *.instances are reserved, got /in/a.instances.tif: rename it",
    )
    kept, refused = split(without_reserved(found(*names), run(lesions=True, instances=True, per_class=True)))
    assert kept == ["a"]
    assert refused.keys() == {"old", "a.instances", "a.classes/water"}


def test_a_search_without_refusals_is_the_same_and_all_names_each_case_once() -> None:
    search = found("a", "z")
    assert search.without([]) is search
    assert [case.name for case in search.all] == ["a", "old", "z"]
    assert [case.name for case in search.without([Failure(search.cases[1], "why")]).all] == ["a", "old", "z"]
    assert split(search.named({"z", "old", "other"})) == (["z"], {"old": "unreadable"})


@pytest.mark.parametrize("name", ["a.tif", "a.json", "a.qml"])
def test_a_file_of_others_is_not_replaced(
    name: str, run: Callable[..., Run], raster: Callable[..., Path], tmp_path: Path
) -> None:
    raster("out/a.tif" if name == "a.tif" else "out/other.tif", MASK)
    if name != "a.tif":
        (tmp_path / "out" / name).write_text('{"mine": "<qgis>"}')
    case, asked = Case("a", str(tmp_path / "a.tif")), run(style="qgis")
    with pytest.raises(OutputError, match=rf"out/{name} is an input or was not written by segpipe: name another --output"):
        refuse_taken(case, asked, [])
    if name == "a.qml":
        refuse_taken(case, run(), [])  # it is not written


def test_an_input_is_not_replaced_though_segpipe_wrote_it(out: Path, run: Callable[..., Run]) -> None:
    mask = next(path for path in sorted(out.rglob("*.tif")) if path.with_suffix(".json").exists())
    case, asked = Case(mask.relative_to(out).with_suffix("").as_posix(), "/in/a.tif"), run(output=out)
    refuse_taken(case, asked, [])
    with pytest.raises(OutputError, match="is an input"):
        refuse_taken(case, asked, [str(mask)])

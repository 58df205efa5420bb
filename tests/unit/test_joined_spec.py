"""The file that lists models, and the classes of the joined map: what is refused, and with which mend."""

from pathlib import Path
from typing import Any

import model_lists
import numpy as np
import pytest
import volumes
from model_lists import PARTS, numbered

from segpipe.api.list_runs import without
from segpipe.commands.export.join import join
from segpipe.errors import ExportError, OutputError, SettingsError
from segpipe.export.model_list import ListedModel, check_list, write_list
from segpipe.export.nnunet.folder import TrainedFolder
from segpipe.formats.case import Case
from segpipe.formats.finished_mask import as_stored, open_labels
from segpipe.geometry.windows import Window
from segpipe.jobs.plan import Plan
from segpipe.network.joined_spec import joined_spec, spec_of_run
from segpipe.network.model_list import is_list, read_list
from segpipe.network.spec import ListMember
from segpipe.pipeline.decision import CONFIDENCE_NODATA, Decision
from segpipe.results.joined_labels import Claims, laid_over
from segpipe.settings import load_settings
from segpipe.storage.folder import Folder

TINY = {name: PARTS[name] for name in ("organs", "cardiac")}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("list")
    model_lists.write(root, TINY)
    model_lists.flat(root / "crops.onnx", ["grass", "maize"], seed=5)
    return root


def listed(root: Path, text: str, **settings: Any) -> Any:
    path = root / "list.toml"
    path.write_text(text)
    return spec_of_run(load_settings(None, {"input": ("in",), "model": path, "device": "cpu", **settings}))


BOTH = '[[models]]\nfile = "organs.onnx"\n[[models]]\nfile = "cardiac.onnx"\n'


def test_classes_are_numbered_in_the_order_of_the_models(root: Path) -> None:
    spec = listed(root, BOTH)
    assert {one.name: one.id for one in spec.contract.classes if one.id} == numbered(TINY)
    assert [one.name for one in spec.listed] == ["organs", "cardiac"]
    assert spec.listed[1].ids == ((0, 0), (1, 4))
    assert spec.members == tuple(one.spec for one in spec.listed)
    assert (spec.passes, spec.contract.is_joined) == (1, True)


def test_a_table_gives_ids_colours_and_names(root: Path) -> None:
    text = (
        'classes = [{ id = 9, name = "Leber", color = "#102030" }, { id = 300, name = "Herz" }]\n'
        '[[models]]\nfile = "organs.onnx"\nclasses = { liver = "Leber", spleen = "Leber", stomach = "" }\n'
        '[[models]]\nname = "H"\nfile = ["cardiac.onnx"]\nclasses = { heart = "Herz" }\n'
    )
    spec = listed(root, text)
    assert [(one.id, one.name, one.color) for one in spec.contract.classes] == [
        (0, "background", None),
        (9, "Leber", "#102030"),
        (300, "Herz", None),
    ]
    assert spec.listed[0].ids == ((0, 0), (1, 9), (2, 9), (3, 0))
    assert spec.listed[1].name == "H"
    assert Decision(spec.contract, spec.blend_on).dtype == np.uint16


def test_the_hash_is_of_models_order_and_tables(root: Path) -> None:
    turned = '[[models]]\nfile = "cardiac.onnx"\n[[models]]\nfile = "organs.onnx"\n'
    renamed = BOTH + 'classes = { heart = "cor" }\n'
    numbered_otherwise = 'classes = [{ id = 1, name = "heart" }]\n[[models]]\nfile = "cardiac.onnx"\n'
    alone = '[[models]]\nfile = "cardiac.onnx"\n'
    texts = (BOTH, turned, renamed, alone, numbered_otherwise)
    first, *others = (listed(root, text).sha256 for text in texts)
    assert first == listed(root, "# a note\n" + BOTH).sha256
    assert first not in others
    assert others[2] == others[3]  # the same ids, written down


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"list.toml must be a list of models, with a table \[\[models\]\] for each, and has none"),
        ("version = 1\nchannels = 3\n", r"or give it as --contract"),
        ("models = []\n", r"list.toml: models: must have 1 or more values"),
        ("[[models]]\n", r"list.toml: missing key models\.0\.file"),
        ('[[models]]\nfile = "organs.onnx"\nweight = 2\n', r"models\.0\.weight"),
        ('[[models]]\nfile = "no.onnx"\n', r"the model must exist, got .*no.onnx"),
        ('[[models]]\nname = "../x"\nfile = "organs.onnx"\n', r"models\.0\.name: must be up to 100 letters.*got '\.\./x'"),
        ('[[models]]\nfile = "organs.onnx"\n' * 2, r'names of models must differ, got "organs" more than once'),
        (
            '[[models]]\nfile = "organs.onnx"\n[[models]]\nname = "again"\nfile = "organs.onnx"\n',
            r'a class must come from one model, and organs and again both give "liver": rename it in one of them, as '
            r'classes = \{ "liver" = "other name" \}, or leave it out with ""',
        ),
        (
            BOTH + 'classes = { hart = "" }\n',
            r'cardiac has no class "hart" \(did you mean "heart"\?\): correct its classes in the list',
        ),
        (
            'classes = [{ id = 1, name = "liver" }, { id = 2, name = "spleen" }, { id = 3, name = "stomach" }]\n' + BOTH,
            r'\[\[classes\]\] must have every class of the models, and lacks "heart" of cardiac: add it, or leave the class '
            r'out with classes = \{ "heart" = "" \} of cardiac',
        ),
        (
            'classes = [{ id = 1, name = "heart" }, { id = 2, name = "lungs" }]\n[[models]]\nfile = "cardiac.onnx"\n',
            r'\[\[classes\]\] has "lungs", which no model gives: correct or remove it',
        ),
        (
            'classes = [{ id = 1, name = "heart" }, { id = 1, name = "x" }]\n[[models]]\nfile = "cardiac.onnx"\n',
            r"ids of \[\[classes\]\] must differ, got 1 more than once",
        ),
        (
            'classes = [{ id = 0, name = "heart" }]\n[[models]]\nfile = "cardiac.onnx"\n',
            r'id 0 is the background.*got id 0 for "heart": give it another id',
        ),
        (
            'classes = [{ id = 1, name = "heart", index = 2 }]\n[[models]]\nfile = "cardiac.onnx"\n',
            r'a class of a joined map has no index, got index 2 for "heart": leave it out',
        ),
        (
            '[[models]]\nfile = "crops.onnx"\n',
            r"crops has no class called background, and would claim every voxel: leave one of its classes out, such as "
            r'classes = \{ "grass" = "" \}',
        ),
    ],
)
def test_what_is_refused(text: str, message: str, root: Path) -> None:
    with pytest.raises(Exception, match=message) as caught:
        listed(root, text)
    assert isinstance(caught.value, SettingsError) or "no.onnx" in text
    assert "\n" not in str(caught.value)


def test_the_mend_for_a_model_without_background_works(root: Path) -> None:
    spec = listed(root, '[[models]]\nfile = "crops.onnx"\nclasses = { "grass" = "" }\n')
    assert [one.name for one in spec.contract.classes] == ["background", "maize"]


@pytest.mark.parametrize("key", ["audit", "profile", "contract"])
def test_settings_of_one_model_are_refused(key: str, root: Path) -> None:
    value = {"audit": 3, "profile": True, "contract": root / "c.toml"}[key]
    with pytest.raises(SettingsError, match=f"{key} is for one model, and .*list.toml is a list of them: leave --{key} out"):
        listed(root, BOTH, **{key: value})


def test_a_list_stands_alone(root: Path) -> None:
    with pytest.raises(SettingsError, match="a list of models must be the only --model"):
        is_list([root / "list.toml", root / "organs.onnx"])
    with pytest.raises(SettingsError, match=r"the list of models .*must exist, and does not: correct the path"):
        read_list(root / "none.toml")


def claims(ids: list[int], likely: list[int] | None = None, invalid: list[int] | None = None) -> Claims:
    """One band of a row of pixels."""
    return Claims(
        np.array([ids]),
        np.array(invalid or [0] * len(ids), bool),
        None if likely is None else np.array([likely], np.uint8),
    )


def test_the_last_claim_wins_by_hand(root: Path) -> None:
    decision = Decision(listed(root, BOTH).contract, "labels")
    labels, likely = laid_over(
        [claims([1, 1, 0, 0, 2], [10, 20, 30, 40, 50]), claims([0, 4, 4, 0, 4], [60, 70, 80, 30, 90], [0, 0, 0, 0, 1])],
        decision,
    )
    assert labels.tolist() == [1, 4, 4, 0, 255]
    assert likely is not None
    assert likely.tolist() == [10, 70, 80, 30, CONFIDENCE_NODATA]


def test_a_written_list_reads_as_it_was_meant(root: Path) -> None:
    (root / "sub").mkdir(exist_ok=True)
    names = write_list(
        [ListedModel("a", (root / "organs.onnx",)), ListedModel("b", (root / "cardiac.onnx",))], root / "made.toml"
    )
    assert names == list(numbered(TINY))
    spec = joined_spec(load_settings(None, {"input": ("in",), "model": root / "made.toml", "device": "cpu"}))
    assert {one.name: one.id for one in spec.contract.classes if one.id} == numbered(TINY)
    assert isinstance(spec.listed[0], ListMember)
    assert 'file = "organs.onnx"' in (root / "made.toml").read_text()
    with pytest.raises(OutputError, match="exists: name another file with --output, or give --overwrite"):
        check_list(root / "made.toml", overwrite=False)
    with pytest.raises(OutputError, match=r"must be a .toml file, got made.onnx: name it made.toml"):
        check_list(Path("made.onnx"), overwrite=False)
    with pytest.raises(ExportError, match=r'models of a list must have different classes, and a and b both have "liver"'):
        write_list(
            [ListedModel("a", (root / "organs.onnx",)), ListedModel("b", (root / "organs.onnx",))], root / "twice.toml"
        )
    assert not (root / "twice.toml").exists()


def test_a_written_mask_is_read_window_by_window(tmp_path: Path) -> None:
    data = volumes.voxels((5, 6, 7), "u1")
    volumes.write(tmp_path / "a.nii.gz", data)
    with open_labels("nifti", Folder(tmp_path), "a.nii.gz", as_stored(1)) as mask:
        assert mask.shape == (7, 6, 5)
        assert (mask.read(Window((1, 0, 2), (4, 6, 5)))[0] == data.T[1:4, 0:6, 2:5]).all()


def test_a_plan_without_some_cases() -> None:
    cases = [Case(name, f"{name}.nii") for name in "abc"]
    plan = Plan(workers=1, calls=1, unopened=cases)
    assert [case.name for case in without(plan, {"b"}).unopened] == ["a", "c"]


def test_names_of_folders_are_those_of_their_datasets(tmp_path: Path) -> None:
    several = pytest.importorskip("segpipe.export.nnunet.several", reason="torch is not installed")

    def folder(dataset: str | None, configuration: str = "3d_fullres") -> TrainedFolder:
        plans = {} if dataset is None else {"dataset_name": dataset}
        return TrainedFolder(tmp_path / "Dataset007_Own" / f"T__P__{configuration}", plans, {}, "checkpoint_final.pth")

    each = [folder("Dataset291_part 1/organs"), folder(None), folder("Dataset1_X"), folder("Dataset1_X", "2d")]
    assert several.names_of(each) == ["part_1_organs", "Own", "X-3d_fullres", "X-2d"]
    with pytest.raises(ExportError, match="folders of a list must be of different trainings, and X-2d is there twice"):
        several.names_of([folder("Dataset1_X", "2d")] * 2)
    assert join.name == "join"

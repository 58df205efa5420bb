"""Folders of nnU-Net: their documents, checkpoints and contracts, without nnU-Net itself."""

import os
from pathlib import Path
from typing import Any

import nnunets
import pytest

from segpipe.contract import Contract
from segpipe.errors import ExportError, SettingsError
from segpipe.export.nnunet.contract import channel_names, contract_of
from segpipe.export.nnunet.folder import open_folder
from segpipe.export.nnunet.labels import label_terms
from segpipe.export.nnunet.normalization import scaling_terms
from segpipe.export.nnunet.plans import Configuration, configuration_of
from segpipe.export.nnunet.settings import nnunet_settings
from segpipe.export.nnunet.trainer import check_trainer

torch = pytest.importorskip("torch")

from segpipe.export.nnunet.checkpoint import read_checkpoint  # noqa: E402 - they import torch
from segpipe.export.nnunet.make import opened_folder  # noqa: E402
from segpipe.export.nnunet.network import network_of  # noqa: E402


def read(name: str = "3d_fullres", axes: int = 3, plan: dict[str, Any] | None = None, **changes: Any) -> Configuration:
    own = nnunets.configuration(axes, **changes)
    return configuration_of(nnunets.plans({name: own}, **(plan or {})), name)


def drawn_up(tmp_path: Path, own: dict[str, Any] | None = None, data: dict[str, Any] | None = None, **plan: Any) -> Contract:
    own = own or nnunets.configuration()
    folder = nnunets.write_folder(tmp_path / "t__p__c", nnunets.plans({"c": own}, **plan), data)
    opened = open_folder(folder, "checkpoint_final.pth")
    return contract_of(opened, configuration_of(opened.plans, "c"), list(range(len(own["patch_size"]))))


# The folder


def test_folds_are_numbered_ones_unless_there_is_only_all(tmp_path: Path):
    folder = nnunets.write_folder(tmp_path / "f")
    for fold in ("10", "2", "all"):
        (folder / f"fold_{fold}").mkdir()
        (folder / f"fold_{fold}" / "checkpoint_final.pth").touch()
    opened = open_folder(folder, "checkpoint_final.pth")
    assert opened.trained_folds == ["2", "10", "all"]
    assert opened.chosen(()) == ["2", "10"]
    assert opened.chosen(("all", "2", "2")) == ["all", "2"]


def test_a_fold_that_is_missing_is_named_with_those_there(tmp_path: Path):
    folder = nnunets.write_folder(tmp_path / "f")
    (folder / "fold_0").mkdir()
    (folder / "fold_0" / "checkpoint_best.pth").touch()
    with pytest.raises(ExportError, match=r"for fold 3, and has only checkpoint_best.pth: correct --fold or --checkpoint"):
        open_folder(folder, "checkpoint_final.pth").chosen(("3",))
    with pytest.raises(ExportError, match=r"for fold 3, and has it for fold 0: correct --fold"):
        open_folder(folder, "checkpoint_best.pth").chosen(("0", "3"))
    with pytest.raises(ExportError, match=r"for any fold, and has no checkpoint"):
        open_folder(nnunets.write_folder(tmp_path / "g"), "checkpoint_final.pth").chosen(())


def test_a_folder_without_plans_says_where_they_are(tmp_path: Path):
    trained = nnunets.write_folder(tmp_path / "Dataset042" / "t__p__3d_fullres")
    (trained / "fold_0").mkdir()
    with pytest.raises(ExportError, match=rf"must hold plans.json, and does not: give {trained}"):
        open_folder(tmp_path / "Dataset042", "checkpoint_final.pth")
    with pytest.raises(ExportError, match=rf"must hold plans.json, and does not: give {trained}"):
        open_folder(trained / "fold_0", "checkpoint_final.pth")
    with pytest.raises(ExportError, match=r"copy plans.json from the results of nnUNetv2_train"):
        open_folder(tmp_path, "checkpoint_final.pth")
    with pytest.raises(ExportError, match=r"must be a folder such as .* which does not exist"):
        open_folder(tmp_path / "no", "checkpoint_final.pth")


@pytest.mark.parametrize("text", ["{", "[1]", "\xff", '{"a": NaN'])
def test_damaged_documents_are_refused(tmp_path: Path, text: str):
    folder = nnunets.write_folder(tmp_path / "f")
    (folder / "plans.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ExportError, match=r"plans.json .*copy it again"):
        open_folder(folder, "checkpoint_final.pth")


# The plans


def test_a_configuration_has_the_total_stride_of_its_network():
    own = read(architecture=nnunets.architecture(strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]]))
    assert (own.patch, own.spacing, own.align) == ((16, 16, 16), (2.0, 1.0, 1.5), (2, 4, 4))
    assert own.architecture.class_name == "PlainConvUNet"


def test_a_configuration_inherits():
    configurations = {
        "3d_fullres": nnunets.configuration(),
        "3d_lowres": {"inherits_from": "3d_fullres", "spacing": [4.0, 4.0, 4.0]},
        "a": {"inherits_from": "b"},
        "b": {"inherits_from": "a"},
    }
    plan = nnunets.plans(configurations)
    assert configuration_of(plan, "3d_lowres").spacing == (4.0, 4.0, 4.0)
    assert configuration_of(plan, "3d_lowres").patch == (16, 16, 16)
    with pytest.raises(ExportError, match=r"inherit from each other: a, b"):
        configuration_of(plan, "a")
    with pytest.raises(ExportError, match=r"must hold the configuration 2d, and has 3d_fullres, 3d_lowres, a, b"):
        configuration_of(plan, "2d")


def test_the_second_stage_of_a_cascade_is_refused_with_the_reason():
    with pytest.raises(ExportError, match=r"second stage of a cascade, whose input includes the labels of 3d_lowres"):
        read("3d_cascade_fullres", previous_stage="3d_lowres")


def test_a_preprocessor_of_ones_own_is_refused():
    with pytest.raises(ExportError, match=r"must be nnU-Net's DefaultPreprocessor, got Mine"):
        read(preprocessor_name="Mine")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"patch_size": [16]}, "patch_size"),
        ({"patch_size": "x"}, "another form"),
        ({"spacing": [1, 1]}, "spacing"),
        ({"architecture": {}}, "has no 'network_class_name'"),
    ],
)
def test_plans_of_another_form_are_refused(changes: dict[str, Any], says: str):
    with pytest.raises(ExportError, match=rf"as nnU-Net 2 writes it, .*{says}"):
        read(**changes)


def test_old_plans_describe_their_network_themselves():
    old = nnunets.configuration(
        UNet_class_name="PlainConvUNet",
        UNet_base_num_features=32,
        unet_max_num_features=48,
        n_conv_per_stage_encoder=[2, 2, 2],
        n_conv_per_stage_decoder=[2, 2],
        pool_op_kernel_sizes=[[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        conv_kernel_sizes=[[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    )
    del old["architecture"]
    own = configuration_of(nnunets.plans({"3d_fullres": old}), "3d_fullres")
    assert own.architecture.arguments["features_per_stage"] == [32, 48, 48]
    assert own.architecture.arguments["n_conv_per_stage"] == [2, 2, 2]
    assert own.align == (2, 4, 4)


# Labels


def test_labels_are_classes_without_the_ignored():
    terms = label_terms(nnunets.dataset(labels={"background": 0, "b": 2, "a": [1], "ignore": 3}))
    assert terms["task"] == "multiclass"
    assert [(c["id"], c["name"]) for c in terms["classes"]] == [(0, "background"), (1, "a"), (2, "b")]


def test_regions_are_independent_classes_with_the_labels_of_their_order():
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}
    terms = label_terms(nnunets.dataset(labels=labels, regions_class_order=[1, 2, 3]))
    assert (terms["task"], terms["activation"]) == ("regions", "sigmoid")
    assert [(c["id"], c["name"], c["index"]) for c in terms["classes"]] == [
        (1, "whole", 0),
        (2, "core", 1),
        (3, "enhancing", 2),
    ]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"labels": {}}, "must hold labels"),
        ({"labels": {"background": 0, "a": 2}}, r"must be 0, 1, 2 and so on, each once, got \[0, 2\]"),
        ({"labels": {"background": 0, "a": "1"}}, "must be a number from 0, .*got a: '1'"),
        ({"labels": {"a": [1, 2], "b": 2}}, "must have a label for each of a, b, got None"),
        ({"labels": {"a": [1, 2], "b": 2}, "regions_class_order": [1, 1]}, r"each once, to tell .* got \[1, 1\]"),
    ],
)
def test_other_labels_are_refused(data: dict[str, Any], says: str):
    with pytest.raises(ExportError, match=says):
        label_terms(nnunets.dataset(**data))


# Normalisation


def test_ct_is_clipped_and_standardised_by_its_foreground():
    assert scaling_terms(read()) == {"normalize": ["fixed"], "mean": [40.0], "std": [60.0], "clip": [[-150.0, 260.0]]}


def test_channels_of_several_schemes():
    own = read(
        normalization_schemes=["CTNormalization", "ZScoreNormalization", "RescaleTo01Normalization", "NoNormalization"],
        use_mask_for_norm=[False] * 4,
    )
    terms = scaling_terms(own)
    assert terms["normalize"] == ["fixed", "zscore", "minmax", "none"]
    assert terms["mean"] == [40.0, 0.0, 0.0, 0.0]
    assert terms["clip"] == [[-150.0, 260.0], *[[-1e30, 1e30]] * 3]


def test_z_score_with_a_mask_leaves_out_zeros():
    own = read(normalization_schemes=["ZScoreNormalization"] * 2, use_mask_for_norm=[True, True])
    assert scaling_terms(own) == {"normalize": ["zscore", "zscore"], "statistics_over": "nonzero"}
    assert scaling_terms(read(use_mask_for_norm=[True])).get("statistics_over") is None  # CT ignores it
    mixed = read(normalization_schemes=["ZScoreNormalization"] * 2, use_mask_for_norm=[True, False])
    assert scaling_terms(mixed)["statistics_over"] == ["nonzero", "all"]
    assert scaling_terms(read(normalization_schemes=["CTNormalization", "ZScoreNormalization"],
                              use_mask_for_norm=[True, True],
                              foreground_intensity_properties_per_channel={"0": nnunets.FOREGROUND})
                         )["statistics_over"] == ["all", "nonzero"]  # fmt: skip


def test_rgb_is_divided_by_255():
    assert scaling_terms(read(normalization_schemes=["RGBTo01Normalization"]))["std"] == [255.0]


def test_a_scheme_of_ones_own_is_refused():
    with pytest.raises(ExportError, match=r"must be one of nnU-Net's own, got Mine"):
        scaling_terms(read(normalization_schemes=["Mine"]))
    without = {"foreground_intensity_properties_per_channel": {}}
    with pytest.raises(ExportError, match=r"mean, std, percentile_00_5 and percentile_99_5 of the foreground in channel 0"):
        scaling_terms(read(plan=without))


# The contract


def test_the_contract_of_a_volume(tmp_path: Path):
    contract = drawn_up(tmp_path)
    assert contract.channels == ["CT"]
    assert (contract.layout, contract.tile, contract.overlap, contract.align) == ("NCDHW", [16] * 3, [8] * 3, [2] * 3)
    assert (contract.spacing, contract.spacing_unit, contract.spacing_tolerance) == ([2.0, 1.0, 1.5], "mm", 0.01)
    assert (contract.pixel, contract.flips, contract.orientation, contract.axis_order) == ("physical", [0, 1, 2], None, None)
    assert contract.provenance["nnunet"]["dataset"] == "Dataset042_Lesion"
    assert contract.provenance["nnunet"]["resampling_fn_data_kwargs"]["order"] == 3


def test_transposed_axes_are_in_the_contract(tmp_path: Path):
    assert drawn_up(tmp_path, transpose_forward=[2, 0, 1]).axis_order == [2, 0, 1]
    turned = drawn_up(tmp_path / "turned", transpose_forward=[2, 0, 1], image_reader_writer="NibabelIOWithReorient")
    assert (turned.orientation, turned.axis_order) == ("RSA", None)


def test_a_network_of_slices_has_the_spacing_within_a_slice(tmp_path: Path):
    contract = drawn_up(tmp_path, nnunets.configuration(2))
    assert (contract.layout, contract.tile, contract.spacing, contract.spacing_unit) == ("NCHW", [16, 16], [1.0, 1.5], "mm")


def test_pictures_have_no_spacing(tmp_path: Path):
    data = nnunets.dataset(channel_names={"0": "R", "1": "G", "2": "B"}, file_ending=".png")
    own = nnunets.configuration(2, normalization_schemes=["RGBTo01Normalization"] * 3, use_mask_for_norm=[False] * 3)
    contract = drawn_up(tmp_path, own, data)
    assert (contract.spacing, contract.pixel, contract.channels) == (None, "stored", ["R", "G", "B"])


def test_channels_must_be_those_of_the_plans(tmp_path: Path):
    with pytest.raises(ExportError, match=r"same channels, got 2 \(CT, PET\) and 1 normalization_schemes"):
        drawn_up(tmp_path, data=nnunets.dataset(channel_names={"0": "CT", "1": "PET"}))
    assert channel_names({"modality": {"0": "MR", "1": "MR"}}) == ["MR 0", "MR 1"]
    with pytest.raises(ExportError, match=r"must hold channel_names"):
        channel_names({"channel_names": {"1": "CT"}})


# Checkpoints


def test_a_checkpoint_of_nnunet_is_read_without_its_code(tmp_path: Path):
    weights = {"module.conv.weight": torch.ones(2)}
    path = nnunets.save_checkpoint(tmp_path, "0", nnunets.checkpoint(weights, inference_allowed_mirroring_axes=(2, 0)))
    found = read_checkpoint(path)
    assert list(found.weights) == ["conv.weight"]
    assert (found.trainer, found.configuration, found.flips) == ("nnUNetTrainer", "3d_fullres", [0, 2])
    assert read_checkpoint(nnunets.save_checkpoint(tmp_path, "1", {"network_weights": weights})).flips == []


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_with_code_in_it_does_not_run(tmp_path: Path):
    content = nnunets.checkpoint({"w": torch.ones(1)}, logging=Bomb(tmp_path / "ran"))
    path = nnunets.save_checkpoint(tmp_path, "0", content)
    with pytest.raises(ExportError, match=r"loading more would run code from the file"):
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_other_files_are_no_checkpoints(tmp_path: Path):
    with pytest.raises(ExportError, match=r"must be a checkpoint of nnU-Net 2, with network_weights"):
        read_checkpoint(nnunets.save_checkpoint(tmp_path, "0", {"w": torch.ones(1)}))
    whole = nnunets.save_checkpoint(tmp_path, "1", nnunets.checkpoint({"w": torch.ones(1)}))
    whole.write_bytes(whole.read_bytes()[:200])
    with pytest.raises(ExportError, match=r"damaged or no checkpoint"):
        read_checkpoint(whole)


# Trainers


@pytest.mark.parametrize(
    "name",
    [
        "nnUNetTrainer",
        "nnUNetTrainerBN",
        "nnUNetTrainerNoMirroring",
        "nnUNetTrainer_4000epochs_NoMirroring",
        "nnUNetTrainer_DASegOrd0_NoMirroring",
        "nnUNetTrainer_onlyMirror01_1500ep",
        "nnUNetTrainerDA5",
        "nnUNetTrainerAdan1en3",
        "nnUNetTrainerDiceCELoss_noSmooth",
        "nnUNetTrainerNoDeepSupervision",
    ],
)
def test_trainers_of_nnunet_use_the_network_of_the_plans(name: str):
    check_trainer(name, network_of_plans=False)


@pytest.mark.parametrize("name", ["nnUNetTrainerUMamba", "Mine", "nnUNet_Primus_M_Trainer"])
def test_a_trainer_of_ones_own_needs_a_word(name: str):
    with pytest.raises(ExportError, match=rf"got {name}, .* give --network-of-plans"):
        check_trainer(name, network_of_plans=False)
    check_trainer(name, network_of_plans=True)


def test_folds_must_be_of_one_training(tmp_path: Path):
    folder = nnunets.write_folder(tmp_path / "f")
    one = nnunets.save_checkpoint(folder, "0", nnunets.checkpoint({"w": torch.ones(1)}))
    other = nnunets.save_checkpoint(
        folder, "1", nnunets.checkpoint({"w": torch.ones(1)}, inference_allowed_mirroring_axes=(0,))
    )
    opened = open_folder(folder, "checkpoint_final.pth")
    with pytest.raises(ExportError, match=r"folds must be of one training"):
        opened_folder(opened, [read_checkpoint(one), read_checkpoint(other)])
    bare = nnunets.save_checkpoint(folder, "2", {"network_weights": {"w": torch.ones(1)}})
    with pytest.raises(ExportError, match=r"rename the folder to TRAINER__PLANS__CONFIGURATION"):
        opened_folder(opened, [read_checkpoint(bare)])


def test_layers_that_are_not_torchs_are_not_imported(tmp_path: Path):
    given = nnunets.architecture()
    given["arch_kwargs"]["nonlin"] = "os.system"
    own = read(architecture=given)
    path = nnunets.save_checkpoint(tmp_path, "0", nnunets.checkpoint({"w": torch.ones(1)}))
    with pytest.raises(
        ExportError, match=r"layers of plans.json must be torch's own, such as torch.nn.Conv3d, got os.system"
    ):
        network_of(own.architecture, [read_checkpoint(path)], 1, 3)


def test_settings_name_files_by_fold(tmp_path: Path):
    flags = {"folder": tmp_path, "output": tmp_path / "lesion.onnx", "folds": ("0", "1")}
    settings = nnunet_settings(flags)
    assert settings.output_of("1", 2).name == "lesion-fold1.onnx"
    assert settings.output_of("1", 1).name == "lesion.onnx"
    assert nnunet_settings({**flags, "merge": True}).output_of("0", 2).name == "lesion.onnx"
    with pytest.raises(SettingsError, match=r"--fold must be a number or all, got best"):
        nnunet_settings({**flags, "folds": ("best",)})

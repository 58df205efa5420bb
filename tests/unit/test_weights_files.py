"""Checkpoints as people have them: the network ends up with exactly the weights that were saved, or the user with a mend."""

import argparse
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from segpipe.errors import ExportError
from segpipe.export.families.hub import open_folder
from segpipe.export.network import open_network
from segpipe.export.settings import ExportSettings
from segpipe.export.terms import Terms
from segpipe.export.weights import fit, form_of, read_checkpoint

State = dict[str, Tensor]


class Net(nn.Module):
    """A stem with batch norm, and a head."""

    def __init__(self, classes: int = 3, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.stem(image))


class Shell(nn.Module):
    """What Lightning, DataParallel and the like are: a module around the network."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def trained(seed: int = 0, **sizes: int) -> Net:
    """Seeded weights, and statistics as training leaves them."""
    torch.manual_seed(seed)
    net = Net(**sizes)
    for _ in range(3):
        net(torch.randn(2, 3, 8, 8))
    return net.eval()


def loaded(path: Path, *, trust: bool = False, prefix: str | None = None, replace_head: bool = False, **sizes: int) -> Net:
    """A fresh network with the weights of a file."""
    torch.manual_seed(99)
    net = Net(**sizes)
    content = read_checkpoint(path, trust_pickle=trust)
    assert isinstance(content, dict)
    fit(net, content, prefix=prefix, replace_head=replace_head)
    return net


def assert_same(net: nn.Module, truth: nn.Module) -> None:
    ours, theirs = net.state_dict(), truth.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=0)


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


# --- where the state is ---------------------------------------------------------------------------------------------------

WRAPPED: dict[str, Callable[[State], Any]] = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": 0.1},
    "model": lambda state: {"model": state, "args": None},
    "net": lambda state: {"net": state, "acc": 0.9, "epoch": 1},
    "network": lambda state: {"network": state},
    "weights": lambda state: {"weights": state, "name": "best"},
    "any other name": lambda state: {"checkpoint": state, "epoch": 1},
    "nested": lambda state: {"model": {"state_dict": state}, "epoch": 1},
    "beside an optimiser": lambda state: {
        "model": state,
        "optimizer": {"state": {0: {"step": torch.tensor(5.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
    },
}


@pytest.mark.parametrize("how", WRAPPED)
@pytest.mark.parametrize("zipped", [True, False])
def test_state_is_found_wherever_it_is_kept(how, zipped, tmp_path):
    net = trained()
    path = saved(tmp_path / "w.pt", WRAPPED[how](net.state_dict()), _use_new_zipfile_serialization=zipped)
    assert_same(loaded(path), net)
    content = read_checkpoint(path, trust_pickle=False)
    assert isinstance(content, dict)
    assert content.keys() == net.state_dict().keys(), "an optimiser's tensors are no second state"


PREFIXED: dict[str, Callable[[Net], nn.Module]] = {
    "model.": lambda net: Shell(model=net),
    "module.": lambda net: Shell(module=net),
    "_orig_mod.": lambda net: Shell(_orig_mod=net),
    "model.module._orig_mod.": lambda net: Shell(model=Shell(module=Shell(_orig_mod=net))),
}


@pytest.mark.parametrize("prefix", PREFIXED)
def test_prefix_is_found_and_stripped(prefix, tmp_path):
    net = trained()
    path = saved(tmp_path / "w.pt", PREFIXED[prefix](net).state_dict())
    assert_same(loaded(path), net)
    assert_same(loaded(path, prefix=prefix), net)
    assert_same(loaded(path, prefix=prefix.removesuffix(".")), net)


def test_prefix_is_told(tmp_path):
    """It is in the provenance, so it must say what was taken and what was left."""
    net = trained()
    state = Shell(model=net, loss=nn.BCEWithLogitsLoss(pos_weight=torch.ones(3))).state_dict()
    notes = fit(Net(), state, prefix=None, replace_head=False)
    assert notes == (
        "keys taken from below 'model.'",
        "keys of the checkpoint that are not the network's, left out: loss.pos_weight",
    )


def test_data_parallel_and_compile_as_torch_saves_them(tmp_path):
    net = trained()
    assert_same(loaded(saved(tmp_path / "p.pt", nn.DataParallel(net).state_dict())), net)
    assert_same(loaded(saved(tmp_path / "c.pt", torch.compile(net).state_dict())), net)


def test_a_prefix_ends_with_a_dot():
    """``conv`` ends ``deconv`` and stands below nothing."""
    net = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 1)})
    with pytest.raises(ExportError, match=r"has none of them: the network has conv.weight"):
        fit(net, nn.ModuleDict({"deconv": nn.Conv2d(3, 4, 1)}).state_dict(), prefix=None, replace_head=False)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_safetensors_by_content(name, tmp_path):
    net = trained()
    save_file(net.state_dict(), tmp_path / name)
    assert form_of(tmp_path / name) == "safetensors"
    assert_same(loaded(tmp_path / name), net)


# --- Lightning ------------------------------------------------------------------------------------------------------------


def lightning(net: nn.Module, hyper_parameters: Any) -> dict[str, Any]:
    """The keys of a checkpoint of Lightning 2, with a loss of its own beside the network."""
    shell = Shell(model=net, loss=nn.CrossEntropyLoss(weight=torch.ones(3)))
    return {
        "epoch": 9,
        "global_step": 1000,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": shell.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 10}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val'}": {"best_model_score": torch.tensor(0.9), "dirpath": "/runs"}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3}]}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": hyper_parameters,
    }


HARMLESS = {
    "plain": {"lr": 1e-3, "name": "unet", "widths": [16, 32], "none": None, "flag": True, "size": (512, 512)},
    "tensors": {"class_weights": torch.ones(3)},
    "torch types": {"dtype": torch.float16, "device": torch.device("cpu"), "sizes": torch.Size([1, 2])},
}


@pytest.mark.parametrize("kind", HARMLESS)
@pytest.mark.parametrize("prefix", [None, "model.", "state_dict.model."])
def test_lightning_checkpoint(kind, prefix, tmp_path):
    net = trained()
    path = saved(tmp_path / "last.ckpt", lightning(net, HARMLESS[kind]))
    given = "model." if prefix == "state_dict.model." and kind != "tensors" else prefix
    assert_same(loaded(path, prefix=given), net)


@pytest.mark.parametrize(
    ("odd", "name"),
    [
        (argparse.Namespace(lr=1e-3), "argparse.Namespace"),
        ({"root": Path("/data")}, "pathlib"),
        ({"lr": np.float64(1e-3)}, "numpy"),
    ],
)
def test_lightning_checkpoint_with_odd_hyper_parameters(odd, name, tmp_path):
    """torch does not load these unasked; the message names the type, and trust mends it."""
    net = trained()
    path = saved(tmp_path / "last.ckpt", lightning(net, odd))
    with pytest.raises(ExportError, match=rf"holds more than tensors.*state_dict\(\) alone, or give --trust-pickle.*{name}"):
        read_checkpoint(path, trust_pickle=False)
    assert_same(loaded(path, trust=True), net)


# --- more than one ---------------------------------------------------------------------------------------------------------


def test_average_within_the_state_must_be_named(tmp_path):
    net, average = trained(0), trained(1)
    path = saved(tmp_path / "w.ckpt", {"state_dict": Shell(model=net, ema_model=average).state_dict()})
    with pytest.raises(ExportError, match=r"more than once, under (?=.*\bmodel[.])(?=.*ema_model[.]).*--prefix"):
        loaded(path)
    assert_same(loaded(path, prefix="model."), net)
    assert_same(loaded(path, prefix="ema_model."), average)


@pytest.mark.parametrize("key", ["model_ema", "ema", "state_dict_ema"])
def test_average_beside_the_state_must_be_named(key, tmp_path):
    """As torchvision's and timm's training scripts keep it."""
    net, average = trained(0), trained(1)
    path = saved(tmp_path / "w.pth", {"model": net.state_dict(), key: average.state_dict(), "epoch": 5})
    with pytest.raises(ExportError, match=rf"more than once, under (?=.*\bmodel[.])(?=.*{key}[.]).*--prefix"):
        loaded(path)
    assert_same(loaded(path, prefix="model"), net)
    assert_same(loaded(path, prefix=key), average)


def test_averaged_model_of_torch(tmp_path):
    """``n_averaged`` beside ``module.``: one network, no question."""
    net = trained()
    average = torch.optim.swa_utils.AveragedModel(net)
    assert_same(loaded(saved(tmp_path / "w.pt", average.state_dict())), net)


def test_prefix_that_nothing_has(tmp_path):
    path = saved(tmp_path / "w.pt", Shell(model=trained()).state_dict())
    with pytest.raises(ExportError, match=r"must begin with --prefix, got ema[.] and model[.]stem"):
        loaded(path, prefix="ema.")


# --- keys and shapes ------------------------------------------------------------------------------------------------------


def test_missing_and_unexpected_keys_are_listed(tmp_path):
    state = trained().state_dict()
    del state["stem.0.bias"], state["stem.1.running_var"]
    state["extra.weight"] = torch.ones(1)
    path = saved(tmp_path / "w.pt", state)
    with pytest.raises(ExportError, match=r"missing: stem.0.bias, stem.1.running_var; unexpected: extra.weight: correct"):
        loaded(path)
    with pytest.raises(ExportError, match=r"missing: stem.0.bias"):
        loaded(path, replace_head=True)


def test_many_keys_are_counted(tmp_path):
    state = trained().state_dict() | {f"extra.{i}": torch.ones(1) for i in range(25)}
    with pytest.raises(ExportError, match=r"unexpected: extra.0, .*extra.9 and 15 more"):
        loaded(saved(tmp_path / "w.pt", state))


def test_another_network_is_named_as_such(tmp_path):
    path = saved(tmp_path / "w.pt", nn.Linear(3, 3).state_dict())
    with pytest.raises(ExportError, match=r"none of them: the network has stem.0.weight.*has weight, bias: correct --arch"):
        loaded(path)


def test_old_checkpoint_without_counts_of_batches(tmp_path):
    net = trained()
    state = {key: value for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    found = loaded(saved(tmp_path / "w.pt", state))
    image = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(found.eval()(image), net(image), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(dtype, tmp_path):
    net = trained()
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in net.state_dict().items()}
    found = loaded(saved(tmp_path / "w.pt", state)).state_dict()
    for key, value in state.items():
        assert found[key].dtype == net.state_dict()[key].dtype
        torch.testing.assert_close(found[key].double(), value.double(), rtol=1e-7, atol=0)


def test_weights_that_are_not_finite_are_listed(tmp_path):
    state = trained().state_dict()
    state["stem.0.weight"][0, 0, 0, 0] = torch.nan
    state["head.bias"][1] = torch.inf
    with pytest.raises(ExportError, match=r"NaN or infinity in stem.0.weight, head.bias: take"):
        loaded(saved(tmp_path / "w.pt", state))


def test_other_number_of_classes_shows_shapes_and_the_mend(tmp_path):
    path = saved(tmp_path / "w.pt", trained(classes=7).state_dict())
    expected = r"head.weight \(7, 4, 1, 1\) for \(3, 4, 1, 1\), head.bias \(7,\) for \(3,\).*--replace-head"
    with pytest.raises(ExportError, match=expected):
        loaded(path)


def test_head_begun_anew_keeps_all_else_and_says_so(tmp_path):
    net = trained(classes=7)
    fresh = Net()
    before = fresh.head.weight.detach().clone()
    notes = fit(fresh, net.state_dict(), prefix=None, replace_head=True)
    assert_same(fresh.stem, net.stem)
    torch.testing.assert_close(fresh.head.weight.detach(), before, rtol=0, atol=0)
    assert notes == ("new untrained head: head.weight (7, 4, 1, 1) for (3, 4, 1, 1), head.bias (7,) for (3,)",)


def test_a_head_that_fits_is_kept_though_it_might_be_replaced(tmp_path):
    net = trained()
    assert_same(loaded(saved(tmp_path / "w.pt", net.state_dict()), replace_head=True), net)


def test_another_width_is_no_head(tmp_path):
    """Shapes that differ behind the first axis are of another network."""
    path = saved(tmp_path / "w.pt", trained(width=8).state_dict())
    with pytest.raises(ExportError, match=r"of another shape: .*head.weight \(3, 8, 1, 1\) for \(3, 4, 1, 1\)") as caught:
        loaded(path, replace_head=True)
    assert "--replace-head" not in str(caught.value)


def test_layers_that_grew_by_different_numbers_are_no_head():
    """Only first axes differ, and yet these are not classes."""
    wide = nn.ModuleDict({"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(3, 6, 1)})
    slim = nn.ModuleDict({"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(3, 5, 1)})
    with pytest.raises(ExportError, match=r"of another shape: a.weight"):
        fit(slim, wide.state_dict(), prefix=None, replace_head=True)


def test_a_table_of_positions_is_no_head():
    """Swin's ``relative_position_bias_table`` counts positions on its first axis."""

    class Attention(nn.Module):
        def __init__(self, positions: int) -> None:
            super().__init__()
            self.relative_position_bias_table = nn.Parameter(torch.zeros(positions, 4))
            self.head = nn.Conv2d(4, 3, 1)

    with pytest.raises(ExportError, match=r"of another shape: relative_position_bias_table \(225, 4\) for \(169, 4\)"):
        fit(Attention(169), Attention(225).state_dict(), prefix=None, replace_head=True)


# --- pickles --------------------------------------------------------------------------------------------------------------


class Trap:
    """What a malicious pickle does: call anything at all when it is loaded."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.witness),)


def plain_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "zip": torch.save,
    "legacy": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "pickle": plain_pickle,
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", ["w.pt", "w.ckpt", "w.bin", "w.safetensors"])
def test_code_in_a_pickle_does_not_run(writer, name, tmp_path):
    path, witness = tmp_path / name, tmp_path / "ran"
    WRITERS[writer]({"state_dict": trained().state_dict(), "extra": Trap(witness)}, path)
    with pytest.raises(ExportError) as caught:
        read_checkpoint(path, trust_pickle=False)
    assert not witness.exists()
    if name != "w.safetensors":
        assert "loading that runs code from the file: save its state_dict() alone, or give --trust-" in str(caught.value)
        assert "weights_only" not in str(caught.value)


def test_code_in_a_trusted_pickle_runs(tmp_path):
    path, witness = tmp_path / "w.pt", tmp_path / "ran"
    net = trained()
    torch.save({"state_dict": net.state_dict(), "extra": Trap(witness)}, path)
    assert_same(loaded(path, trust=True), net)
    assert witness.exists()


def test_a_whole_module(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU())
    path = saved(tmp_path / "w.pt", net)
    with pytest.raises(ExportError, match=r"holds more than tensors.*--trust-pickle.*torch.nn.modules.container.Sequential"):
        read_checkpoint(path, trust_pickle=False)
    found = read_checkpoint(path, trust_pickle=True)
    assert isinstance(found, nn.Module)
    assert_same(found, net)


def test_a_whole_module_under_a_key(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 2, 1))
    found = read_checkpoint(saved(tmp_path / "w.pt", {"model": net, "epoch": 3}), trust_pickle=True)
    assert isinstance(found, dict)
    assert found.keys() == net.state_dict().keys()


def test_a_whole_module_whose_code_is_not_here(tmp_path, monkeypatch):
    """The most common end of such files: the message must not speak of damage."""
    (tmp_path / "gone_away.py").write_text("from torch import nn\nclass Own(nn.Conv2d): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    import gone_away

    path = saved(tmp_path / "w.pt", gone_away.Own(3, 2, 1))
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "gone_away")
    with pytest.raises(ExportError, match=r"needs the Python code that it was saved with.*PYTHONPATH.*gone_away"):
        read_checkpoint(path, trust_pickle=True)


# --- damage ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("trust", [True, False])
def test_truncated_checkpoint(keep, zipped, trust, tmp_path):
    path = saved(tmp_path / "w.pt", trained().state_dict(), _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(ExportError, match="must be a checkpoint of torch, and is none, or is damaged or truncated"):
        read_checkpoint(path, trust_pickle=trust)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.99])
def test_truncated_safetensors(keep, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(trained().state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(ExportError, match=r"w.safetensors cannot be read as safetensors"):
        read_checkpoint(path, trust_pickle=False)


@pytest.mark.parametrize(
    "text", ["hello\n", "<!DOCTYPE html><html></html>", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"]
)
def test_text_is_not_offered_trust(text, tmp_path):
    """A page of an error, or a pointer of Git LFS, in place of the download."""
    (tmp_path / "w.pt").write_text(text)
    with pytest.raises(ExportError, match="must be a checkpoint of torch, and is none") as caught:
        read_checkpoint(tmp_path / "w.pt", trust_pickle=False)
    assert "--trust-pickle" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "held"), [([1, 2], "list"), (torch.ones(2), "Tensor"), ({"epoch": 3}, "epoch"), ({}, "")]
)
def test_checkpoint_without_a_state(content, held, tmp_path):
    with pytest.raises(ExportError, match=f"must hold a state_dict, a dictionary of tensors by name; it has {held}"):
        read_checkpoint(saved(tmp_path / "w.pt", content), trust_pickle=False)


# --- folders --------------------------------------------------------------------------------------------------------------


def test_folder_without_config(tmp_path):
    with pytest.raises(ExportError, match=r"must hold config.json, got .*: name the folder of save_pretrained"):
        open_folder(tmp_path, classes=3, replace_head=False, trust_pickle=False)


def test_folder_with_a_factory_needs_a_file(tmp_path):
    settings = ExportSettings(weights=tmp_path, output=tmp_path / "m.onnx", module="x:y")
    with pytest.raises(ExportError, match=f"{tmp_path}.*directory"):
        open_network(
            settings, Terms({"channels": 3, "classes": [{"id": 0, "name": "a"}], "tile": [64], "normalize": "none"})
        )

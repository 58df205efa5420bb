"""Networks that were pickled as a whole: their weights are read, and nothing of the file runs; torch is the oracle."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from segpipe.errors import ExportError
from segpipe.export.weights import read_checkpoint

OWN = """
from pathlib import Path
import torch
from torch import nn

def touch(path):
    Path(path).touch()

class Trap:
    def __init__(self, path):
        self.path = path
    def __reduce__(self):
        return touch, (self.path,)

class Own(nn.Module):
    def __init__(self, channels=3):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Conv2d(4, 2, 1)
        self.again = self.head
        self.register_buffer("kept", torch.arange(3.0))
        self.register_buffer("left", torch.arange(4.0), persistent=False)
        self.names = {"a": 1, "b": {2, 3}}
        self.act = nn.functional.relu

    def __setstate__(self, state):
        touch(__file__ + ".ran")
        super().__setstate__(state)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The user's module, found in the working folder."""
    (tmp_path / "mynet_of_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import mynet_of_test

    yield mynet_of_test
    sys.modules.pop("mynet_of_test", None)


def saved(content, path="w.pt"):
    torch.save(content, path)
    return Path(path).absolute()


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: {"epoch": 3, "model": net, "ema": None}])
def test_weights_are_those_of_the_state_and_nothing_runs(wrap, own, tmp_path):
    net = own.Own()
    net.trap = own.Trap(str(tmp_path / "sprung"))
    found = read_checkpoint(saved(wrap(net)), trust_pickle=False, named=True)
    wanted = net.state_dict()
    assert list(found) == list(wanted)
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["mynet_of_test.py", "w.pt"]


def test_the_message_names_the_class_and_looks_in_the_working_folder(own, tmp_path, monkeypatch):
    path = saved(own.Own())
    here = r"network, mynet_of_test.Own, .*: name it by --module mynet_of_test:Own \(mynet_of_test.py is in this folder\)"
    with pytest.raises(ExportError, match=here):
        read_checkpoint(path, trust_pickle=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    sys.modules.pop("mynet_of_test")
    sys.path.remove(str(tmp_path))
    with pytest.raises(ExportError, match=r"\(mynet_of_test.py is not in this folder: go to the one that has it\)"):
        read_checkpoint(path, trust_pickle=False)
    assert "mynet_of_test" not in sys.modules
    sys.path.append(str(tmp_path))


def test_a_class_of_a_script_must_move_to_a_file(own, monkeypatch):
    monkeypatch.setattr(own.Own, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "Own", own.Own, raising=False)
    with pytest.raises(ExportError, match=r"put it into a file such as mynet.py, and name it by --module mynet:Own"):
        read_checkpoint(saved(own.Own()), trust_pickle=False)


def test_a_network_of_a_library_is_named_by_arch(tmp_path):
    import segmentation_models_pytorch

    net = segmentation_models_pytorch.Linknet("resnet18", encoder_weights=None)
    path = saved(net, tmp_path / "w.pt")
    with pytest.raises(ExportError, match="name it by --arch smp:Linknet and --encoder"):
        read_checkpoint(path, trust_pickle=False)
    assert read_checkpoint(path, trust_pickle=False, named=True).keys() == net.state_dict().keys()


def test_a_network_inside_itself_ends(own):
    net = own.Own()
    net._modules["stem"]._modules["loop"] = net
    found = read_checkpoint(saved(net), trust_pickle=False, named=True)
    assert "head.weight" in found


def test_a_trusted_class_is_found_in_the_working_folder(own, tmp_path):
    path = saved(own.Own())
    sys.modules.pop("mynet_of_test")
    sys.path.remove(str(tmp_path))
    assert isinstance(read_checkpoint(path, trust_pickle=True), nn.Module)


def test_the_network_that_is_named_takes_the_weights_of_a_trusted_pickle(own):
    """It was left out without a word, and the pickled one exported."""
    from segpipe.export.network import open_network
    from segpipe.export.settings import ExportSettings
    from segpipe.export.terms import Terms

    terms = Terms({"channels": 3, "classes": [{"id": 0}, {"id": 1}], "tile": [64], "normalize": "none"})
    settings = {"weights": saved(own.Own()), "output": Path("m.onnx"), "trust_pickle": True}
    alone = open_network(ExportSettings(**settings), terms)
    assert (alone.architecture, len(alone.notes)) == ("Own", 1)
    named = open_network(ExportSettings(**settings, module="mynet_of_test:Own"), terms)
    assert (named.architecture, named.notes) == ("mynet_of_test:Own", ())
    torch.testing.assert_close(named.module.state_dict(), alone.module.state_dict())


def test_functions_of_the_system_are_refused_even_so(own):
    net = own.Own()

    class Evil:
        def __reduce__(self):
            import os

            return os.mkdir, ("made",)

    net.evil = Evil()
    with pytest.raises(ExportError, match="holds more than tensors"):
        read_checkpoint(saved(net), trust_pickle=False, named=True)
    assert not Path("made").exists()

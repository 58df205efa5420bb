"""Programs that would do more than compute: each evil file touches a marker if it is let; none is, unless it is trusted."""

import io
import json
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from segpipe.errors import ExportError
from segpipe.export.families.smp import open_folder
from segpipe.export.network import open_network
from segpipe.export.settings import ExportSettings
from segpipe.export.terms import Terms
from segpipe.export.weights import read_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
REFUSED = r"is a program that may do more than arithmetic, .*: it holds .*state_dict\(\) instead, or give --trust-pickle"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        return nn.functional.interpolate(y, size=[x.shape[2], x.shape[3]], mode="bilinear")


class Saves(Net):
    path: str

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, self.path)
        return x


class Maps(Saves):
    """Makes the file that it maps."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_file(self.path, shared=True, size=4)


class Awakes(nn.Module):
    """At load, before anything is called."""

    path: str

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        torch.save([1], state[0])


class Touch:
    """A pickle that touches a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "ran"


def load(path, *, trust=False):
    settings = ExportSettings(weights=path, output=path.with_suffix(".onnx"), trust_pickle=trust)
    return open_network(settings, Terms({})).module


def scripted(net, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(net.eval()), path)
    return path


def exported(path):
    free = torch.export.Dim.DYNAMIC
    shapes = ({0: free, 2: free, 3: free},)
    torch.export.save(torch.export.export(Net().eval(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=shapes), path)
    return path


def changed(path, change):
    """The archive with some of its files changed, added, or, where they are None, removed."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(parts)).split("/")[0] + "/"
    inner = {name.removeprefix(root): content for name, content in parts.items()}
    change(inner)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in inner.items():
            archive.writestr(name.removeprefix("//") if name.startswith("//") else root + name, content)
    return path


def in_json(path, change, part="models/model.json"):
    def edit(parts):
        content = json.loads(parts[part])
        change(content)
        parts[part] = json.dumps(content).encode()

    return changed(path, edit)


def pickled(path):
    """As ``torch.save`` writes it."""
    stream = io.BytesIO()
    torch.save({"a": Touch(path)}, stream)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["scripted", "traced", "exported"])
def test_honest_programs_give_what_they_gave(kind, tmp_path):
    net, x = Net().eval(), torch.randn(2, 3, 8, 8)
    if kind == "exported":
        program = load(exported(tmp_path / "p.pt2"))
        whole = torch.export.load(tmp_path / "p.pt2").module()
    else:
        path = tmp_path / "p.pt"
        torch.jit.save(torch.jit.script(net) if kind == "scripted" else torch.jit.trace(net, x), path)
        program, whole = load(path), torch.jit.load(path)
    torch.testing.assert_close(program(x), whole(x), rtol=0, atol=0)


@pytest.mark.parametrize("evil", [Saves, Maps, Awakes])
def test_script_that_writes_files_is_refused(evil, tmp_path, marker):
    path = scripted(evil(str(marker)), tmp_path / "p.pt")
    marker.unlink(missing_ok=True)
    with pytest.raises(ExportError, match=REFUSED):
        load(path)
    assert not marker.exists()
    load(path, trust=True)(torch.zeros(1, 1, 2, 4))
    assert marker.exists(), "the premise: the file is evil"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("_9 = torch", "a name for torch itself"),
        ("_9 = getattr(torch, 'save')", "a name for torch itself"),
        ("_9 = ops.prim", "a name for torch itself"),
        ("_9 = torch.save", "aten::save, which takes the name of a file"),
        ("_9 = ops.aten.from_file('a')", "aten::from_file"),
        ("_9 = ops.dist.send(x)", "dist::send"),
        ("_9 = ops.prim.rpc_sync(x)", "prim::rpc_sync"),
        ("_9 = __torch__.torch.classes.dist_c10d.FileStore('a', 1)", r"a class of C\+\+"),
        ("_9 = __torch__.torch", "a name for torch itself"),
        ("_9 = '", "code that cannot be read"),
    ],
)
def test_script_by_hand_is_looked_at_name_by_name(line, found, tmp_path):
    path = scripted(Net(), tmp_path / "p.pt")

    def add(parts):
        parts["code/__torch__/extra.py"] = f"def f(x: Tensor) -> Tensor:\n  {line}\n  return x\n".encode()

    with pytest.raises(ExportError, match=f"it holds {found}"):
        load(changed(path, add))


def test_objects_of_cpp_in_a_script_are_refused(tmp_path):
    def add(parts):
        parts["data.pkl"] = parts["data.pkl"] + b"c__torch__.torch\nclasses.dist_c10d.FileStore\n"

    with pytest.raises(ExportError, match=r"an object of C\+\+ in p/data.pkl"):
        load(changed(scripted(Net(), tmp_path / "p.pt"), add))


@pytest.mark.parametrize("kind", ["samples", "weights", "constants", "a weight", "a constant", "an object", "opaque"])
def test_pickles_in_a_program_do_not_run(kind, tmp_path, marker):
    path = exported(tmp_path / "p.pt2")
    evil = pickled(marker)
    entry = {"is_param": False, "use_pickle": True, "tensor_meta": None}
    places = {
        "samples": {"data/sample_inputs/model.pt": evil},
        "weights": {"data/weights/model.pt": evil},
        "constants": {"data/constants/model.pt": evil},
        "a weight": {"data/weights/weight_99": evil},
        "a constant": {"data/constants/tensor_0": evil},
        "an object": {"data/constants/custom_obj_0": evil},
        "opaque": {"data/constants/opaque_obj_0": pickle.dumps(Touch(marker))},
    }

    def add(parts):
        parts |= places[kind]
        for folder in ("weights", "constants"):
            config = json.loads(parts[f"data/{folder}/model_{folder}_config.json"])
            for name in places[kind]:
                if name.startswith(f"data/{folder}/") and not name.endswith(".pt"):
                    config["config"]["evil"] = {**entry, "path_name": name.rsplit("/", 1)[1]}
            parts[f"data/{folder}/model_{folder}_config.json"] = json.dumps(config).encode()

    changed(path, add)
    if kind == "samples":
        load(path)  # nothing needs them
    else:
        with pytest.raises(ExportError, match=REFUSED):
            load(path)
    assert not marker.exists()
    with_trust(path)
    assert marker.exists() or kind in ("an object", "opaque"), "the premise: the file is evil"


def with_trust(path):
    """Whatever comes of it."""
    try:
        load(path, trust=True)
    except ExportError:
        return


def set_target(name):
    def change(program):
        program["graph_module"]["graph"]["nodes"][2]["target"] = name

    return change


def set_expression(marker):
    def change(program):
        values = program["graph_module"]["graph"]["sym_int_values"]
        next(iter(values.values()))["as_expr"]["expr_str"] = f"__import__('pathlib').Path({str(marker)!r}).touch()"

    return change


def set_guards(marker):
    def change(program):
        program["guards_code"] = [f"__import__('pathlib').Path({str(marker)!r}).touch() or True"]

    return change


@pytest.mark.parametrize(
    "target",
    [
        *("torch.os.system", "torch.save", "torch.load", "torch.hub.load", "torch.ops.load_library", "_operator.call"),
        *("_operator.attrgetter", "torch.ops.aten.from_file.default", "torch.ops.c10d.send.default", "#ext:thing"),
        *("torch.ops.higher_order.triton_kernel_wrapper_mutation", "math.nothing.else", "anything"),
    ],
)
def test_operators_of_a_program_are_those_that_compute(target, tmp_path):
    path = in_json(exported(tmp_path / "p.pt2"), set_target(target))
    with pytest.raises(ExportError, match=REFUSED):
        load(path)


def test_expressions_of_a_program_are_not_evaluated(tmp_path, marker):
    path = in_json(exported(tmp_path / "p.pt2"), set_expression(marker))
    with pytest.raises(ExportError, match=r"it holds \"__import__\('pathlib'\)"):
        load(path)
    assert not marker.exists()
    with_trust(path)
    assert marker.exists(), "the premise: the file is evil"


def test_guards_of_a_program_are_left_out(tmp_path, marker):
    program = load(in_json(exported(tmp_path / "p.pt2"), set_guards(marker)))
    program(torch.zeros(1, 3, 8, 8))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("data/aotinductor/model/a.so", "compiled code"),
        ("models/other.json", "another model"),
        ("//version", "cannot be loaded"),
        ("MODELS/model.json", "two files of one name"),
    ],
)
def test_further_parts_of_a_program_are_refused(name, found, tmp_path):
    path = changed(exported(tmp_path / "p.pt2"), lambda parts: parts.update({name: b"1"}))
    with pytest.raises(ExportError, match=found):
        load(path)


def test_names_of_a_program_are_no_code(tmp_path):
    def change(program):
        program["graph_module"]["graph"]["nodes"][2]["inputs"][0]["name"] = "a=1, **__import__('os').environ, b"

    with pytest.raises(ExportError, match=REFUSED):
        load(in_json(exported(tmp_path / "p.pt2"), change))


# --- checkpoints and folders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w.pt", "epoch=3.ckpt", "w.pth"])
def test_pickles_beside_the_weights_do_not_run(name, tmp_path, marker):
    content = {"state_dict": Net().state_dict(), "hyper_parameters": {"a": Touch(marker)}, "callbacks": {"b": Touch(marker)}}
    torch.save(content, tmp_path / name)
    with pytest.raises(ExportError, match="loading that runs code from the file"):
        read_checkpoint(tmp_path / name, trust_pickle=False)
    assert not marker.exists()


@pytest.mark.parametrize("library", ["smp", "transformers"])
def test_pickles_in_folders_do_not_run(library, tmp_path, marker):
    smp = {"_model_class": "Unet", "encoder_name": "resnet18", "in_channels": 3, "classes": 2}
    hub = {"model_type": "mobilevit", "id2label": {"0": "a", "1": "b"}, "auto_map": {"AutoConfig": "evil.Evil"}}
    (tmp_path / "config.json").write_text(json.dumps(smp if library == "smp" else hub))
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    (tmp_path / "pytorch_model.bin").write_bytes(pickled(marker))
    with pytest.raises(ExportError):
        load(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["Unet.forward", "losses", "__builtins__", "from_pretrained"])
def test_a_folder_names_networks_only(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_model_class": name, "encoder_name": "resnet18"}))
    with pytest.raises(ExportError, match="networks of segmentation-models-pytorch are"):
        open_folder(tmp_path, None)

"""Models whose scores are averaged must agree; what they are together; one model alone is what it was."""

import hashlib
import json

import numpy as np
import pytest
from networks import Network, contract, local, pooling
from onnx import TensorProto, helper

from segpipe.contract import parse_contract
from segpipe.errors import ContractError, ModelError, SettingsError
from segpipe.network.ensemble import tried
from segpipe.network.read import check_unchanged, read_spec
from segpipe.pipeline.memory import network_bytes
from segpipe.pipeline.model_check import try_out
from segpipe.settings import Settings, load_settings


def spec_of(*models, **settings):
    return read_spec(load_settings(None, {"input": ("a.tif",), "model": models, "device": "cpu", **settings}))


def save(path, seed=0, batch="n", size="h", **changes):
    net = Network(3, seed).conv(3, 3, 3)
    return net.save(path, contract(3, 3, **changes), classes=3, shape=(batch, size, size))


OLD = (
    '{"version":1,"channels":3,"scale":0.00392156862745098,"offset":0.0,"clip":null,"normalize":"none","mean":null,'
    '"std":null,"scaling":"host","pixel":"stored","layout":"NCHW","tile":[64,64],"overlap":[16,16],"align":1,'
    '"equivariant":null,"spacing":null,"spacing_unit":"m","spacing_tolerance":0.1,"orientation":null,"activation":"softmax",'
    '"task":"multiclass","threshold":0.5,"classes":[{"id":0,"name":"class0","color":null,"index":null},'
    '{"id":1,"name":"class1","color":null,"index":null},{"id":2,"name":"class2","color":null,"index":null}],"input":null,'
    '"output":null,"provenance":{}}'
)
"""What the hash of a model was made of before there were flips."""


def test_the_identity_of_one_model_is_that_of_earlier_versions(tmp_path):
    file = save(tmp_path / "m.onnx")
    expected = hashlib.sha256(hashlib.sha256(file.read_bytes()).digest() + OLD.encode()).hexdigest()
    assert spec_of(file).sha256 == spec_of(file, tta="flips").sha256 == expected
    assert parse_contract(contract(3, 3), "x").model_dump_json() == OLD
    assert json.loads(parse_contract(contract(3, 3, flips=["x"]), "x").model_dump_json())["flips"] == [1]


def test_the_identity_of_several_is_made_of_each_in_order(tmp_path):
    files = [save(tmp_path / f"{k}.onnx", k) for k in range(3)]
    alone = [spec_of(file).sha256 for file in files]
    together = spec_of(*files)
    assert together.sha256 == hashlib.sha256("".join(alone).encode()).hexdigest()
    assert [member.sha256 for member in together.members] == alone
    assert together.sha256 != spec_of(*files[::-1]).sha256
    assert (together.passes, together.title) == (3, ", ".join(map(str, files)))


def test_each_of_several_is_seen_when_it_changes(tmp_path):
    files = [save(tmp_path / f"{k}.onnx", k) for k in range(2)]
    spec = spec_of(*files)
    check_unchanged(spec)
    save(files[1], 7)
    with pytest.raises(ModelError, match=r"1\.onnx has changed since this run began"):
        check_unchanged(spec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": 0.5}, r"scale, got 0\.0039\d+ in .*a\.onnx and 0\.5 in .*b\.onnx"),
        ({"activation": "none"}, r'activation, got "softmax" in .* and "none" in'),
        ({"tile": [32, 32]}, r"tile, got \[64, 64\] in .* and \[32, 32\] in"),
        ({"overlap": [8, 16]}, r"overlap, got \[16, 16\] in .* and \[8, 16\] in"),
        ({"align": 2}, r"align, got \[1, 1\] in .* and \[2, 2\] in"),
        ({"classes": [{"id": i, "name": "xyz"[i]} for i in range(3)]}, r"classes, got \[0 class0, .* and \[0 x, 1 y, 2 z"),
        ({"spacing": [10, 10]}, r"spacing, got none in .* and \[10\.0, 10\.0\] in"),
        ({"channels": ["r", "g", "b"]}, r"channels, got 3 in .* and \['r', 'g', 'b'\] in"),
        ({"flips": ["y"]}, r"flips, got \[0, 1\] in .* and \[0\] in"),
    ],
)  # fmt: skip
def test_a_difference_is_an_error_that_names_the_key_and_both_values(changes, message, tmp_path):
    files = save(tmp_path / "a.onnx"), save(tmp_path / "b.onnx", 1, **changes)
    with pytest.raises(ContractError, match="must agree in " + message):
        spec_of(*files)


def test_what_does_not_count_may_differ(tmp_path):
    more = {"flips": ["y", "x"], "provenance": {"fold": 1}, "equivariant": True, "tile": [32, 32], "overlap": [8, 8]}
    files = save(tmp_path / "a.onnx"), save(tmp_path / "b.onnx", 1, **more)
    spec = spec_of(*files, tile=64, overlap=16)
    assert [member.tiling for member in spec.members] == [spec.tiling] * 2


def test_a_batch_that_is_fixed_in_one_is_that_of_all(tmp_path):
    free, four, two = save(tmp_path / "a.onnx"), save(tmp_path / "b.onnx", 1, batch=4), save(tmp_path / "c.onnx", 2, batch=2)
    spec = spec_of(free, four)
    assert [one.batch for one in (spec, *spec.members)] == [4] * 3
    assert spec.batch_is_fixed
    with pytest.raises(ModelError, match=r"one fixed at 4 in .*b\.onnx and at 2 in .*c\.onnx"):
        spec_of(four, two)


def test_a_batch_of_one_for_all_where_one_depends_on_it(tmp_path):
    net = Network(3, 1).conv(3, 3, 3)
    alone = net.last
    net.add("ReduceMean", np.array([0]), keepdims=1)
    mean, net.last = net.last, alone
    net.nodes.append(helper.make_node("Add", [net.last, mean], ["mixed"]))
    net.last = "mixed"
    mixed = net.save(tmp_path / "mixed.onnx", contract(3, 3), classes=3)
    found = try_out(spec_of(local(tmp_path / "a.onnx"), mixed, batch=2))
    assert [one.batch for one in (found, *found.members)] == [1] * 3


def test_memory_is_all_weights_and_the_largest_call(tmp_path):
    files = [local(tmp_path / "a.onnx"), pooling(tmp_path / "b.onnx", align=1)]
    spec = spec_of(*files)
    a, b = (try_out(one) for one in spec.members)
    both = tried(spec, (a, b))
    assert network_bytes(both, 3) == (a.weights_mb + b.weights_mb + 3 * max(a.network_mb, b.network_mb)) * 1e6


def test_a_model_is_named_once(tmp_path):
    file = save(tmp_path / "a.onnx")
    with pytest.raises(
        SettingsError, match=r"name each model once, and one of them is there twice, got /.*a\.onnx, /.*a\.onnx"
    ):
        spec_of(file, tmp_path / "x" / ".." / "a.onnx")


def test_flips_need_an_axis(tmp_path):
    with pytest.raises(SettingsError, match=r"the contract says flips = \[\]: leave --tta out"):
        spec_of(save(tmp_path / "a.onnx", flips=[]), tta="flips")


@pytest.mark.parametrize("flips", [["z"], [2], ["x", 1], [True], ["xy"], "x", [-1]])
def test_flips_are_axes_of_the_layout(flips):
    with pytest.raises(ContractError, match="flips"):
        parse_contract(contract(3, 3, flips=flips), "c.toml")


@pytest.mark.parametrize(
    ("layout", "flips", "axes"), [("NDHWC", ["x", "z"], (0, 2)), ("NHWC", ["x"], (1,)), ("NCHW", None, (0, 1))]
)
def test_flips_by_letter(layout, flips, axes):
    sizes = [8] * (len(layout) - 2)
    terms = parse_contract(contract(1, 3, layout=layout, tile=sizes, overlap=sizes, flips=flips), "c.toml")
    assert terms.flip_axes == axes


def test_a_setting_of_one_model_is_written_as_before():
    one, two = (Settings(input=("a.tif",), model=model) for model in ("m.onnx", ("m.onnx", "n.onnx")))
    assert one.model_dump(mode="json")["model"] == "m.onnx"
    assert two.model_dump(mode="json")["model"] == ["m.onnx", "n.onnx"]
    assert Settings.model_validate(two.model_dump(mode="json")) == two


def test_a_copy_of_a_model_is_not_averaged(tmp_path):
    first = save(tmp_path / "a.onnx")
    (tmp_path / "b.onnx").write_bytes(first.read_bytes())
    with pytest.raises(ModelError, match=r"must differ, and .*a\.onnx and .*b\.onnx have one content"):
        spec_of(first, tmp_path / "b.onnx")


def test_models_take_one_type_of_pixels(tmp_path):
    """A network of 8 bits would get the last 8 of each pixel of 16."""
    first = save(tmp_path / "a.onnx", scale=1.0)
    net = Network(3, 1).add("Cast", to=TensorProto.FLOAT).conv(3, 3, 3)
    net.save(tmp_path / "b.onnx", contract(3, 3, scale=1.0), classes=3, shape=("n", "h", "h"), dtype=TensorProto.UINT8)
    with pytest.raises(ContractError, match=r"must agree in the type of their input, got float32 in .* and uint8 in"):
        spec_of(first, tmp_path / "b.onnx")

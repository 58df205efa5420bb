"""Files that hold one channel each become cases: by numbers, and by patterns."""

import json
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import volumes

from segpipe.contract import parse_contract
from segpipe.errors import InputError, SettingsError
from segpipe.formats.case import Case, CaseSelection, ChannelFiles, Channels
from segpipe.formats.cases import Found, find_input
from segpipe.formats.channels import channels_of, files_of, per_channel
from segpipe.formats.nifti.source import NiftiSource
from segpipe.formats.stacked import Stacked
from segpipe.geometry.windows import Window
from segpipe.settings import load_settings

MR = ["FLAIR", "T1", "T2"]
PATTERNS = (("FLAIR", "*_flair.nii.gz"), ("T1", "*_t1.nii.gz"), ("T2", "*_t2.nii.gz"))


def contract(channels: Any = 2, **changes: Any) -> Any:
    return parse_contract(networks.contract(channels, 3, **changes), "a test")


def found(root: Path, files: str, channels: Channels | None) -> Found:
    for name in files.split():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return find_input([str(root)], CaseSelection(channels=channels))


def as_text(root: Path, cases: list[Case]) -> dict[str, str]:
    return {case.name: " ".join(str(Path(path).relative_to(root)) for path in files_of(case)) for case in cases}


def test_numbers_of_nnunet(tmp_path: Path) -> None:
    two = channels_of(contract(), None)
    files = "b_0000.nii.gz b_0001.nii.gz sub/a_1_0000.nii sub/a_1_0001.nii sub/a_2_0000.nii.gz sub/a_2_0001.nii.gz c.nii.gz"
    assert as_text(tmp_path, found(tmp_path, files, two).cases) == {
        "b": "b_0000.nii.gz b_0001.nii.gz",
        "c": "c.nii.gz",
        "sub/a_1": "sub/a_1_0000.nii sub/a_1_0001.nii",
        "sub/a_2": "sub/a_2_0000.nii.gz sub/a_2_0001.nii.gz",
    }


def test_numbers_mean_nothing_to_a_model_of_one_channel_and_in_names_of_rasters(tmp_path: Path) -> None:
    assert channels_of(contract(1), None) is None
    files = "b_0000.nii.gz b_0001.nii.gz s_0000.tif s_0001.tif t_0007.nii"
    assert {case.name for case in found(tmp_path, files, None).cases} == {"b_0000", "b_0001", "s_0000", "s_0001", "t_0007"}
    own = as_text(tmp_path, found(tmp_path, "", channels_of(contract(), None)).cases)
    assert own.keys() == {"b", "s_0000", "s_0001", "t_0007"}


def test_a_model_of_nnunet_takes_the_number_away_even_if_it_has_one_channel(tmp_path: Path) -> None:
    one = channels_of(contract(1, provenance={"nnunet": {}}), None)
    cases = found(tmp_path, "a_0000.nii.gz b.nii sub/c_0000.nii d_0001.nii", one).cases
    assert as_text(tmp_path, cases) == {
        "a": "a_0000.nii.gz",
        "b": "b.nii",
        "d_0001": "d_0001.nii",
        "sub/c": "sub/c_0000.nii",
    }
    assert not any(isinstance(case.index, ChannelFiles) for case in cases)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            "p_0001.nii.gz q.nii",
            "p: channel 0 .FLAIR. has no file p_0000, got p_0001.nii.gz: if each file holds all channels",
        ),
        ("p_0000.nii.gz p_0002.nii", "p: channel 1 .T1. has no file p_0001, got p_0000.nii.gz, p_0002.nii: add it, or take"),
        ("p_0000.nii p_0001.nii p_0002.nii p_0003.nii", "p: the model takes 3 channels, got p_0000.nii.*: take away what"),
        ("p_0000.nii p_0001.nii p_0001.nii.gz p_0002.nii", "p: each channel must have one file, got .*: take away one"),
    ],
)
def test_a_case_without_one_file_per_channel_fails_under_its_name(tmp_path: Path, files: str, message: str) -> None:
    (failure,) = found(tmp_path, files, channels_of(contract(MR), None)).refused
    assert failure.case.name == "p"
    assert __import__("re").match(message, failure.error)


LAYOUTS = {
    "names": ("p_flair.nii.gz p_t1.nii.gz p_t2.nii.gz", PATTERNS, "p"),
    "folders of cases": (
        "p/p_flair.nii.gz p/p_t1.nii.gz p/p_t2.nii.gz p/p_seg.nii.gz",
        PATTERNS,
        "p/p",
    ),
    "names of folders": (
        "x/p/flair.nii.gz x/p/t1.nii.gz x/p/t2.nii.gz",
        (("T1", "*/t1.nii.gz"), ("T2", "*/t2.nii.gz"), ("FLAIR", "*/flair.nii.gz")),
        "x/p",
    ),
    "folders of channels": (
        "flair/p.nii.gz t1/p.nii.gz t2/p.nii.gz",
        (("T1", "t1/*.nii.gz"), ("T2", "t2/*.nii.gz"), ("FLAIR", "flair/*.nii.gz")),
        "p",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_patterns(tmp_path: Path, layout: str) -> None:
    files, patterns, name = LAYOUTS[layout]
    result = found(tmp_path, files, channels_of(contract(MR), patterns))
    assert as_text(tmp_path, result.cases) == {name: " ".join(files.split()[:3])}
    assert result.left_out == ({".nii.gz": 1} if "seg" in files else {})


def test_a_pattern_without_a_file(tmp_path: Path) -> None:
    channels = channels_of(contract(MR), PATTERNS)
    result = found(tmp_path, "p_flair.nii.gz p_t2.nii.gz q_flair.nii.gz q_t1.nii.gz q_t2.nii.gz", channels)
    assert [case.name for case in result.cases] == ["q"]
    (failure,) = result.refused
    assert failure.case.name == "p"
    assert failure.error.startswith("p: T1 has no file like *_t1.nii.gz, got p_flair.nii.gz, p_t2.nii.gz: add it")


def test_patterns_that_match_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"--channels must match files of the input, got \*_flair.nii.gz, .* such as .*p.nii"
    ):
        found(tmp_path, "p.nii", channels_of(contract(MR), PATTERNS))


def test_two_cases_of_one_name(tmp_path: Path) -> None:
    (failure,) = found(tmp_path, "p.nii p_0000.nii p_0001.nii", channels_of(contract(), None)).refused
    assert "two inputs would get one name, p:" in failure.error


def test_the_order_is_the_contracts() -> None:
    assert channels_of(contract(MR), PATTERNS[::-1]) == Channels(tuple(MR), tuple(p for _, p in PATTERNS))
    assert channels_of(contract(2), (("b", "*b"), ("a", "*a"))) == Channels(("b", "a"), ("*b", "*a"))
    files = [
        (one.path, own.channels)
        for one, own in per_channel(Case("p", "x", "nifti", ChannelFiles(("x", "y"))), contract(["a", "b"]))
    ]
    assert files == [("x", ["a"]), ("y", ["b"])]


def test_a_stack_of_files_is_one_volume(tmp_path: Path) -> None:
    """Type and tags of both, and boxes of both."""
    files = [
        volumes.write(tmp_path / "a.nii", volumes.voxels(), scl_slope=2, scl_inter=1),
        volumes.write(tmp_path / "b.nii", volumes.voxels(dtype="u1", seed=1)),
    ]
    own = parse_contract(networks.contract(1, 3, layout="NCDHW", tile=[16], overlap=[4], pixel="physical"), "a test")
    stack = Stacked([NiftiSource(str(file), own) for file in files])
    window = Window((1, 2, 3), (4, 6, 7))
    pixels, invalid = stack.read(window)
    box = (slice(1, 4), slice(2, 6), slice(3, 7))
    np.testing.assert_array_equal(pixels, np.stack([volumes.voxels().T[box], volumes.voxels(dtype="u1", seed=1).T[box]]))
    assert (pixels.dtype, stack.dtype, invalid) == (np.int16, np.int16, None)
    assert [tag.tolist() for tag in stack.tags() or ()] == [[2, 1], [1, 0]]
    assert stack.files == tuple(map(str, files))
    assert (stack.block, stack.memory((8, 8, 8)), stack.empty(window), stack.unpacked) == (0, 0, False, 0)
    assert stack.near((0.5, 0.5, 0.5), 4).shape == (4, 4, 4)
    stack.close()


def test_all_packed_channels_take_space_together(tmp_path: Path) -> None:
    """In TMPDIR, unpacked: the header of 352 bytes, and two bytes per voxel."""
    files = [volumes.write(tmp_path / f"{name}.nii.gz", volumes.voxels(seed=seed)) for seed, name in enumerate("ab")]
    own = parse_contract(networks.contract(1, 3, layout="NCDHW", tile=[16], overlap=[4]), "a test")
    stack = Stacked([NiftiSource(str(file), own) for file in files])
    assert stack.unpacked == 2 * (352 + volumes.voxels().nbytes)
    stack.close()


@pytest.mark.parametrize("given", [PATTERNS[:2], (*PATTERNS[:2], ("PD", "*_pd")), (*PATTERNS, PATTERNS[0])])
def test_channels_that_the_model_does_not_have(given: Any) -> None:
    with pytest.raises(SettingsError, match="--channels must name each of the model's channels once, FLAIR, T1, T2, got"):
        channels_of(contract(MR), given)


def test_a_flag_and_a_table_say_the_same(tmp_path: Path) -> None:
    text = ",".join(f"{name}={pattern}" for name, pattern in PATTERNS)
    base = {"input": ("x",), "model": "m.onnx"}
    assert load_settings(None, {**base, "channels": text}).channels == PATTERNS
    table = tmp_path / "run.toml"
    table.write_text("[channels]\n" + "\n".join(f'{name} = "{pattern}"' for name, pattern in PATTERNS))
    settings = load_settings(table, base)
    assert settings.channels == PATTERNS
    assert load_settings(None, {**base, "channels": json.loads(settings.model_dump_json())["channels"]}).channels == PATTERNS
    for wrong, message in (("t1", "must be NAME=PATTERN"), ("a=x,b=*", "must have a \\*"), ("a=*,b=*_*", "as many as the")):
        with pytest.raises(SettingsError, match=message):
            load_settings(None, {**base, "channels": wrong})

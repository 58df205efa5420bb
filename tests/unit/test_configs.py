"""The files in ``configs`` hold keys that a run takes, those that are commented out, too."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from segpipe.contract import read_contract
from segpipe.formats.channels import channels_of
from segpipe.network.scaling import fixed_scaling
from segpipe.settings import Settings, load_settings

CONFIGS = Path(__file__).parents[2] / "configs"
EXCLUDING = {"scheduler", "cluster", "bands_from"}
"""Where to run: one of these and ``workers``. Bands: ``bands`` or ``bands_from``."""


def uncommented(text: str) -> dict[str, object]:
    """All keys of a file, with those that are commented out."""
    lines = [re.sub(r"^# (?=\w+ = )", "", line) for line in text.splitlines()]
    return tomllib.loads("\n".join(lines))


@pytest.mark.parametrize("name", ["crops.toml", "lesions.toml"])
def test_settings_are_those_of_a_run(name: str, tmp_path: Path) -> None:
    values = uncommented((CONFIGS / name).read_text())
    assert values.keys() <= Settings.model_fields.keys()
    assert {"input", "model", "output", "channels"} <= values.keys()
    assert load_settings(CONFIGS / name, {"input": ("x",), "model": "m.onnx"}).blend == "gaussian"
    everything = {key: value for key, value in values.items() if key not in EXCLUDING}
    assert load_settings(None, {**everything, "log_file": tmp_path / "log"}).channels is not None


def test_crops_shows_every_setting() -> None:
    assert uncommented((CONFIGS / "crops.toml").read_text()).keys() == Settings.model_fields.keys()


def test_the_contract_for_lesions_fits_the_settings() -> None:
    contract = read_contract(CONFIGS / "lesions-contract.toml")
    patterns = load_settings(None, {**uncommented((CONFIGS / "lesions.toml").read_text())}).channels
    channels = channels_of(contract, patterns)
    assert channels is not None
    assert channels.patterns == ("*_flair.nii.gz", "*_t1.nii.gz")
    assert contract.is_measured
    assert contract.scores == 2


@pytest.mark.parametrize("rule", ["For CT", "A window of CT"])
def test_the_rules_of_ct_in_its_comments_are_contracts(rule: str) -> None:
    text = (CONFIGS / "lesions-contract.toml").read_text()
    line = next(line for line in text.splitlines() if line.startswith(f"# {rule}"))
    keys = re.findall(r"(\w+) = (\[[^\]]*\]|\"\w+\"|[-\d.]+)", line)
    own = {key: tomllib.loads(f"x = {value}")["x"] for key, value in keys}
    values = {**tomllib.loads(text), **own}
    for key in ("clip_percentiles", "statistics_over"):
        del values[key]
    contract = read_contract(CONFIGS / "lesions-contract.toml").model_validate(values)
    low, high = contract.limits or ([0.0], [0.0])
    found = fixed_scaling(contract, None)(np.array([[-5000.0, 5000.0]] * 2), None)
    expected = [(end[0] - contract.column("mean")[0]) / contract.column("std")[0] for end in (low, high)]
    np.testing.assert_allclose(found, [expected] * 2, rtol=1e-6)

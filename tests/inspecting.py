"""``segpipe inspect`` as tests call it: the command, its JSON, the facts themselves."""

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from segpipe.cli import main
from segpipe.inspect.facts import ModelFacts, RasterFacts, VolumeFacts
from segpipe.inspect.file import inspect_file
from segpipe.settings import Settings, load_settings

EXAMPLE = Path(__file__).parents[1] / "examples" / "crops.onnx"
SCENE = Path(__file__).parents[1] / "examples" / "scenes" / "danube.tif"
SHARED_MODELS = Path(__file__).parents[2] / "shared" / "data" / "models"


def command(*arguments: Any, **environment: str) -> Result:
    """The command line without the second that a process takes to start."""
    return CliRunner(env=environment).invoke(main, ["inspect", *map(str, arguments)], catch_exceptions=False)


def told(*arguments: Any, code: int = 0) -> dict[str, Any]:
    """The JSON object on stdout."""
    ended = command(*arguments, "--json")
    assert ended.exit_code == code, ended.stderr
    return dict(json.loads(ended.stdout))


def settings(file: Path, **flags: Any) -> Settings:
    return load_settings(None, {"input": (str(file),), "model": file, "device": "cpu", **flags})


def sidecar(path: Path, values: dict[str, Any]) -> Path:
    """A contract as TOML; JSON writes TOML's values, but for the tables of the classes."""
    values = dict(values)
    classes = values.pop("classes")
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    lines += [line for c in classes for line in ("[[classes]]", *(f"{key} = {json.dumps(v)}" for key, v in c.items()))]
    path.write_text("\n".join(lines))
    return path


def model_facts(path: Path, **flags: Any) -> ModelFacts:
    facts = inspect_file(settings(path, **flags))
    assert isinstance(facts, ModelFacts)
    return facts


def raster_facts(path: Path, **flags: Any) -> RasterFacts:
    facts = inspect_file(settings(path, **flags))
    assert isinstance(facts, RasterFacts)
    return facts


def volume_facts(path: Path, **flags: Any) -> VolumeFacts:
    facts = inspect_file(settings(path, **flags))
    assert isinstance(facts, VolumeFacts)
    return facts

"""What a worker of Dask knows of the runs that use it, and of the places of their files; without a cluster."""

from dataclasses import replace
from pathlib import Path

import pytest
from networks import local

from segpipe.errors import WorkerError
from segpipe.jobs import dask_worker
from segpipe.jobs.dask_worker import MODELS, ClientInfo, check_files, forget, keep, plugin_of
from segpipe.network.read import read_spec
from segpipe.results.run import Run
from segpipe.settings import load_settings
from segpipe.storage.lock import NAME


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run whose first process works in ``first``, with relative paths."""
    (tmp_path / "first" / "out").mkdir(parents=True)
    (tmp_path / "second" / "out").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "first")
    local(Path("m.onnx"))
    settings = load_settings(None, {"input": ("in",), "model": Path("m.onnx"), "output": "out", "device": "cpu"})
    return Run(read_spec(settings), settings)


def test_runs_into_folders_of_one_relative_name_have_plugins_of_their_own(run, tmp_path, monkeypatch):
    names = {plugin_of(run, identity).name for identity in ("a", "b")}
    assert len(names) == 1, "a run that goes on after a kill must replace the plugin of the one before"
    monkeypatch.chdir(tmp_path / "second")
    assert plugin_of(run, "c").name not in names


def test_a_worker_keeps_the_models_of_several_runs_until_each_ends(run):
    for identity in ("a", "b"):
        keep(run, identity, None)
    assert {"a", "b"} <= {*MODELS}
    forget("a")
    assert "a" not in MODELS
    assert MODELS["b"].spec.sha256 == run.model.sha256
    forget("b")


def test_the_lock_tells_whether_an_output_is_the_same(run, tmp_path, monkeypatch):
    monkeypatch.setattr(dask_worker, "PATIENCE", 0.0)
    (tmp_path / "first" / "out" / NAME).write_bytes(b"mine")
    client = ClientInfo.of(run, "a")
    check_files(run, client, "tcp://there")
    monkeypatch.chdir(tmp_path / "second")
    for other in (None, b"that of another run"):
        if other is not None:
            (tmp_path / "second" / "out" / NAME).write_bytes(other)
        with pytest.raises(
            WorkerError, match=r"the output out of .*/first is not that of tcp://there, which runs in .*/second"
        ):
            check_files(run, client, "tcp://there")
    (tmp_path / "second" / "out" / NAME).write_bytes(b"mine")  # a folder that is mounted at two places
    check_files(run, client, "tcp://there")


@pytest.mark.parametrize("output", ["/shared/out", "s3://maps/out"])
def test_relative_inputs_need_the_same_folder_wherever_the_output_is(output, run, tmp_path, monkeypatch):
    run = replace(run, settings=run.settings.model_copy(update={"output": output}))
    client = ClientInfo("a", str(tmp_path / "first"), None)
    check_files(run, client, "tcp://there")
    monkeypatch.chdir(tmp_path / "second")
    with pytest.raises(WorkerError, match=r"the input in of .*/first is not that of tcp://there, which runs in .*/second"):
        check_files(run, client, "tcp://there")
    elsewhere = run.settings.model_copy(update={"input": ("/shared/in", "s3://maps/in", "/vsizip/x.zip/a.tif")})
    check_files(replace(run, settings=elsewhere), client, "tcp://there")

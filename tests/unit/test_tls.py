"""TLS between the processes of a cluster: the files that are named, or keys for one run."""

import pytest

from segpipe.jobs.tls import own_keys, security
from segpipe.settings import load_settings


@pytest.mark.parametrize("named", [[], ["ca"], ["ca", "cert", "key"]], ids=len)
def test_files_that_are_named_make_encryption_a_must(named, tmp_path):
    keys = {}
    for name in named:
        (tmp_path / name).write_bytes(b"")
        keys[f"tls_{name}"] = tmp_path / name
    settings = load_settings(None, {"input": ("in",), "model": "m.onnx", "scheduler": "tls://10.0.0.1:8786", **keys})
    found = security(settings)
    assert (found is None) == (not named)
    if found is not None:
        assert found.require_encryption
        given = {"ca": found.tls_ca_file, "cert": found.tls_client_cert, "key": found.tls_client_key}
        assert given == {name: str(tmp_path / name) if name in named else None for name in given}


def test_keys_of_a_run_are_its_own():
    first, second = own_keys(), own_keys()
    assert first.require_encryption
    assert first.tls_client_key.startswith("-----BEGIN")  # in memory, no path
    assert first.tls_client_key != second.tls_client_key

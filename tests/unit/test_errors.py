"""Errors: which end one case, how they name it, and which end everything."""

import errno
import os

import pytest

from segpipe.errors import (
    DeviceMemoryError,
    SourceError,
    UnforeseenError,
    case_errors,
    correct_path,
    memory_errors,
    on_failure,
    one_line,
    with_limit,
)


def test_an_error_of_segpipe_is_kept_as_it_is():
    error = SourceError("a.tif cannot be opened")
    with case_errors("a.tif") as failed:
        raise error
    assert failed.error is error


def test_any_other_error_names_the_case_and_keeps_its_cause():
    error = ValueError("of two\nlines")
    with case_errors("a.tif") as failed:
        raise error
    assert isinstance(failed.error, UnforeseenError)
    assert str(failed.error) == "a.tif failed in a way that segpipe does not know: ValueError: of two lines"
    assert failed.error.__cause__ is error


def test_a_block_that_ends_well_has_no_error():
    with case_errors("a.tif") as failed:
        pass
    assert failed.error is None


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_everything_is_not_the_case_s(kind):
    with pytest.raises(kind), case_errors("a.tif"):
        raise kind


def test_a_generator_that_is_closed_within_ends():
    def items():
        with case_errors("a.tif"):
            yield 1
            yield 2

    each = items()
    assert next(each) == 1
    each.close()
    assert list(each) == []


@pytest.mark.parametrize("said", ["CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "Failed to allocate memory for 3"])
def test_memory_of_a_device_is_told_from_all_else(said):
    with pytest.raises(DeviceMemoryError, match="lower --batch or --tile"), memory_errors():
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="another"), memory_errors():
        raise RuntimeError("another")


def test_the_text_of_an_error_has_no_secrets_and_one_line():
    assert str(SourceError("https://me:pw@host/a.tif?sig=1 is gone")) == "https://...@host/a.tif?... is gone"
    assert one_line(" a\n\tb ") == "a b"


def test_a_relative_path_that_does_not_exist_is_told_with_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert correct_path("in/a.tif") == f"correct the path, which is relative to {tmp_path}"
    assert correct_path(tmp_path / "a.tif") == correct_path("s3://bucket/a.tif") == "correct the path"
    tmp_path.rmdir()
    assert correct_path("in/a.tif") == "correct the path"


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), GeneratorExit()])
def test_a_failed_block_is_undone_and_its_error_passed_on(error):
    calls: list[str] = []
    with pytest.raises(type(error)) as raised, on_failure(lambda: calls.append("undone")):
        raise error
    assert (raised.value, calls) == (error, ["undone"])


def test_a_block_that_succeeds_is_not_undone():
    with on_failure(lambda: pytest.fail("undone")):
        pass


@pytest.mark.parametrize(
    ("said", "mended"),
    [
        (f"src/10.tif: {os.strerror(errno.EMFILE)}", "(ulimit -n)"),
        (f"src/10.tif: {os.strerror(errno.ENFILE)}", "(sysctl fs.file-max)"),
        ("src/10.tif: Too many open files, and more", ", and more"),
    ],
)
def test_a_limit_of_open_files_in_the_words_of_a_library_has_its_mend(said, mended):
    assert with_limit(said).startswith(said)
    assert with_limit(said).endswith(mended)

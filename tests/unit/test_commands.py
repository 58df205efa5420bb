"""The tables of commands: each name is a file, each file has its name in a table, and completion imports nothing."""

import errno
import subprocess
import sys
from pathlib import Path
from typing import get_args

import click
import pytest
from click.shell_completion import CompletionItem
from scenes import PATIENCE

import segpipe.commands.export
from segpipe import choices, cli
from segpipe.commands.cases import cases
from segpipe.commands.edge import NOT_STARTED, guarded
from segpipe.commands.export import making
from segpipe.commands.export.network import network
from segpipe.commands.export.nnunet import nnunet
from segpipe.commands.inspect import inspect
from segpipe.commands.lazy import LazyGroup
from segpipe.commands.options import PATH
from segpipe.commands.run import run
from segpipe.commands.tune import tune
from segpipe.errors import DisagreementError, ExportError, SettingsError
from segpipe.export.nnunet.settings import NnunetSettings
from segpipe.export.settings import ExportSettings
from segpipe.process.signals import INTERRUPTED
from segpipe.settings import Settings
from segpipe.tune.settings import TuneSettings

PACKAGE = Path(cli.__file__).parent / "commands"
SHARED = {"edge", "lazy", "options", "making", "__init__"}
"""Files that are no commands."""


@pytest.mark.parametrize(
    ("group", "folder"), [(cli.main, PACKAGE), (segpipe.commands.export.export, PACKAGE / "export")], ids=["main", "export"]
)
def test_commands_are_the_files_of_the_package(group, folder):
    files = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    assert set(group.sentences) == files - SHARED
    assert {name: command.name for name, command in group.loaded().items()} == {name: name for name in group.sentences}


def test_other_words_are_no_commands():
    assert cli.main.get_command(click.Context(cli.main), "edge") is None
    assert cli.main.get_command(click.Context(cli.main), "os") is None


def test_help_and_completion_of_a_group_import_no_command():
    code = (
        "import sys, click; from segpipe.cli import main; ctx = click.Context(main, info_name='segpipe')\n"
        "print(*(item.value for item in main.shell_complete(ctx, 'e'))); assert 'Sum up' in main.get_help(ctx)\n"
        "print(*(name for name in sys.modules if name.startswith('segpipe.commands.')))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True
    ).stdout
    assert printed.splitlines() == ["estimate evaluate export", "segpipe.commands.edge segpipe.commands.lazy"]


def test_completion_tells_what_commands_do_and_the_flags_of_the_group():
    group = LazyGroup("g", package="nowhere", sentences={"add": "Add up."}, params=[click.Option(["--all"])])
    context = click.Context(group)

    def told(begun: str) -> list[tuple[str, str | None]]:
        items: list[CompletionItem] = group.shell_complete(context, begun)
        return [(item.value, item.help) for item in items]

    assert told("a") == [("add", "Add up.")]
    assert ("--all", None) in told("--")


@pytest.mark.parametrize(
    ("command", "settings", "own"),
    [
        (run, Settings, {"config", "dry_run", "verbose"}),
        (inspect, Settings, {"file", "json"}),
        (cases, Settings, {"codes", "config"}),
        (tune, TuneSettings, {"json"}),
        (network, ExportSettings, {"verbose"}),
        (nnunet, NnunetSettings, {"verbose", "folders"}),
    ],
    ids=lambda one: one.name if isinstance(one, click.Command) else "",
)
def test_flags_are_fields_of_the_settings(command, settings, own):
    assert {one.name for one in command.params} - own <= set(settings.__annotations__)


def test_a_flag_has_the_choices_of_its_setting():
    offered = {one.name: set(one.type.choices) for one in run.params if isinstance(one.type, click.Choice)}
    words = {name: _words(Settings.model_fields[name].annotation) for name in offered}
    assert offered == words
    assert words["blend"] == set(choices.BLENDS)
    assert words["overlap_rule"] == set(choices.RULES)


def _words(annotation):
    """Strings in a literal, also where it may be None."""
    return {word for part in get_args(annotation) for word in ([part] if isinstance(part, str) else _words(part))}


@pytest.fixture
def ended(monkeypatch):
    """Exit code of a guarded command that raises this."""
    taken = []
    for name in ("interrupt", "leave_at_once"):
        monkeypatch.setattr(f"segpipe.commands.edge.signals.{name}", lambda name=name: taken.append(name))

    def end(error, *, writes=False):
        def command() -> int:
            if error is not None:
                raise error
            return 7

        with pytest.raises(SystemExit, match=r"\d") as exit:
            guarded(writes=writes)(command)()
        return exit.value.code, taken.pop()

    return end


def test_errors_become_exit_codes(ended, capsys):
    assert ended(None) == (7, "leave_at_once")
    assert ended(SettingsError("tile must be 1 or more, got 0"), writes=True) == (NOT_STARTED, "interrupt")
    assert ended(KeyboardInterrupt()) == (INTERRUPTED, "leave_at_once")
    assert capsys.readouterr().err.splitlines() == [
        "error: tile must be 1 or more, got 0",
        "interrupted: run the same command again",
    ]


def test_an_error_of_the_system_is_one_line_with_its_file_and_the_mend(ended, capsys):
    assert ended(OSError(errno.EMFILE, "Too many open files", "out/a.tif")) == (NOT_STARTED, "leave_at_once")
    assert ended(OSError(errno.EACCES, "Permission denied", b"out/\xff.json")) == (NOT_STARTED, "leave_at_once")
    assert ended(OSError("lost")) == (NOT_STARTED, "leave_at_once")
    assert capsys.readouterr().err.splitlines() == [
        "error: out/a.tif cannot be read or written: Too many open files: raise the limit of open files of this process "
        "(ulimit -n)",
        "error: out/\\udcff.json cannot be read or written: Permission denied: mend its permissions",
        "error: a file cannot be read or written: lost",
    ]
    with pytest.raises(BrokenPipeError, match="closed"):
        guarded()(lambda: (_ for _ in ()).throw(BrokenPipeError(errno.EPIPE, "closed")))()


def test_a_guarded_command_keeps_its_words_and_its_docstring(capsys):
    @click.command()
    @click.argument("path", type=PATH)
    @click.option("--deep", is_flag=True)
    @guarded()
    def list_(path: Path, *, deep: bool) -> int:
        """List a folder."""
        click.echo(f"{path} {deep}")
        return 0

    assert list_.help == "List a folder."
    with pytest.raises(SystemExit, match="0"):
        list_(["here", "--deep"])
    assert capsys.readouterr().out == "here True\n"
    with pytest.raises(SystemExit, match="2"):
        list_([" "])
    assert "must not be empty" in capsys.readouterr().err


def test_a_package_that_is_missing_is_an_error_with_its_extra():
    def load():
        raise ModuleNotFoundError("no", name="torch")

    with pytest.raises(ExportError, match=r"exporting needs torch, which is not installed: pip install .*nnunet"):
        making.print_made(load, "nnunet", verbose=False)


def test_scores_that_differ_from_those_of_torch_end_with_one(capsys):
    def make(say):
        say("comparing")
        raise DisagreementError("labels agree at 0.5")
        yield

    assert making.print_made(lambda: make, "export", verbose=False) == 1
    assert capsys.readouterr().err.splitlines() == ["comparing", "error: labels agree at 0.5"]

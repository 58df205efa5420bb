"""A group of commands that are imported on demand, so that ``--help`` and completion are quick."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem

from segpipe.process.garbage import loading


class LazyGroup(click.Group):
    """Commands of a package: ``name`` is the object ``name`` of the module ``name``.

    Args:
        package: package with a module per command.
        sentences: what each command does, by its name; ``--help`` of the group prints it without importing the command.
    """

    def __init__(self, *arguments: Any, package: str, sentences: Mapping[str, str], **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.package, self.sentences = package, sentences

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands in alphabetical order, without importing them."""
        del ctx
        return sorted(self.sentences)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if the group has none of this name."""
        del ctx
        if cmd_name not in self.sentences:
            return None
        with loading():
            command: click.Command = getattr(import_module(f"{self.package}.{cmd_name}"), cmd_name)
        return command

    def loaded(self) -> dict[str, click.Command]:
        """Every command by its name, in the order of the table."""
        ctx = click.Context(self)
        return {name: command for name in self.sentences if (command := self.get_command(ctx, name))}

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with the sentences that are known without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.sentences[name]) for name in self.list_commands(ctx)])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Commands that begin with ``incomplete``, with their sentences, and the options of the group."""
        matching = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        commands = [CompletionItem(name, help=self.sentences[name]) for name in matching]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]

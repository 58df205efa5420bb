"""``--help`` of every command can be read: options in groups, each on one screen."""

import re
from collections.abc import Iterator

import click
import pytest

from segpipe.cli import HELP_COLUMNS, main
from segpipe.terminal.option_groups import LAST, GroupedCommand, GroupedOption, group

SCREEN = 40
"""Rows."""


def commands(command: click.Command = main, name: str = "segpipe") -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for word, one in command.loaded().items():
            yield from commands(one, f"{name} {word}")


ALL = dict(commands())


def help_of(name: str) -> list[str]:
    context = click.Context(ALL[name], info_name=name, terminal_width=HELP_COLUMNS)
    return ALL[name].get_help(context).splitlines()


@pytest.mark.parametrize("name", ALL)
def test_help_fits_the_screen(name):
    lines = help_of(name)
    assert max(map(len, lines)) <= HELP_COLUMNS
    sections = "\n".join(lines).split("\n\n")
    assert max(len(section.splitlines()) for section in sections) <= SCREEN


@pytest.mark.parametrize("name", ALL)
def test_every_option_has_a_group_where_there_are_many(name):
    options = [one for one in ALL[name].params if isinstance(one, click.Option)]
    assert len(options) <= 8 or isinstance(ALL[name], GroupedCommand)
    if isinstance(ALL[name], GroupedCommand):
        assert [one.name for one in options if not isinstance(one, GroupedOption)] == []


@pytest.mark.parametrize("name", ALL)
def test_help_has_every_option_once(name):
    text = help_of(name)
    for option in ALL[name].params:
        if isinstance(option, click.Option):
            rows = [line for line in text if re.match(rf"  (-\w, )?{max(option.opts, key=len)}\b(?!-)", line)]
            assert len(rows) == 1, option.name


@pytest.mark.parametrize("name", ALL)
def test_every_option_is_explained(name):
    for option in ALL[name].params:
        if isinstance(option, click.Option):
            assert option.help
            assert option.help.endswith(".")


def test_groups_stand_in_their_order_and_more_is_the_last():
    @click.command(cls=GroupedCommand)
    @group(LAST)("--last", help="Of the last.")
    @group("B")("--two", help="Second.")
    @group("A")("--one", help="First.")
    @group("B")("--three", help="Third.")
    @click.argument("file")
    def command(**values: str) -> None:
        """Do."""

    sections = command.sections(click.Context(command))
    assert {name: [row[1] for row in rows] for name, rows in sections.items()} == {
        "B": ["Second.", "Third."],
        "A": ["First."],
        LAST: ["Of the last.", "Show this message and exit."],
    }

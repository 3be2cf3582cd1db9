"""Help screens: the common options first, on one screen; every option with a text; flags that say what they do."""

import dataclasses
import typing

import pytest

from whence.help import COMMON, _texts, flags, help_screen
from whence.packages import command_groups

COMMANDS = [(group, name, command) for group in command_groups().values() for name, command in group.load().items()]
NAMES = [f"{group.name} {name}" for group, name, _ in COMMANDS]
SCREEN = 40  # lines


def screen(group, name: str, command: type) -> str:
    return help_screen(command, f"whence {group.name} {name}", width=100)


@pytest.mark.parametrize(("group", "name", "command"), COMMANDS, ids=NAMES)
def test_common_options_are_on_the_first_screen(group, name: str, command: type) -> None:
    lines = screen(group, name, command).splitlines()
    heads = [n for n, line in enumerate(lines) if n and line and not lines[n - 1] and not line.startswith(" ")]
    (start,) = (n for n in heads if lines[n] in ("Common options", "Options"))
    assert next((n for n in heads if n > start), len(lines)) <= SCREEN
    assert max(len(line) for line in lines[start:]) <= 100


@pytest.mark.parametrize(("group", "name", "command"), COMMANDS, ids=NAMES)
def test_every_option_is_there_once_and_has_a_text(group, name: str, command: type) -> None:
    lines, texts = screen(group, name, command).splitlines(), _texts(command)
    for flag in flags(command):
        assert sum(line.startswith("  --") and line.split()[0] == flag for line in lines) == 1, flag
    assert not [field.name for field in dataclasses.fields(command) if not texts.get(field.name)]


@pytest.mark.parametrize(("group", "name", "command"), COMMANDS, ids=NAMES)
def test_a_flag_that_switches_off_says_so(group, name: str, command: type) -> None:
    for field in dataclasses.fields(command):
        if typing.get_type_hints(command)[field.name] is bool and field.default is True:
            assert _texts(command)[field.name].startswith("Do not ")


def test_the_common_options_are_options() -> None:
    known = {field.name for _, _, command in COMMANDS for field in dataclasses.fields(command)}
    assert set(COMMON) <= known

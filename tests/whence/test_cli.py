"""The command line: help without waiting, errors with cause and cure, exit codes."""

import shlex
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from whence import cli
from whence.cache import Interrupted
from whence.cache.errors import StoreError
from whence.rooms import rooms


@dataclass(frozen=True)
class Fails:
    """Fails."""

    how: str = "whence"

    def run(self) -> None:
        if self.how == "interrupt":
            raise KeyboardInterrupt
        if self.how == "scheduler":
            raise Interrupted("Stopped by the scheduler.", "Run it again.")
        if self.how == "bug":
            raise ZeroDivisionError("nothing to divide by")
        raise StoreError("The store is full.", "Empty it.")


@pytest.fixture
def fails(monkeypatch) -> None:
    monkeypatch.setattr("whence.rooms.Room.load", lambda room: {"demo": Fails})


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "whence", *arguments], capture_output=True, text=True, check=False)


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, whence.cli as c; c.main(['--help']); sys.exit('torch' in sys.modules)"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "demo" in done.stdout
    assert time.monotonic() - began < 30  # a hang, not a timing


def test_every_room_tells_its_commands_as_they_are() -> None:
    found = rooms()
    assert {"demo", "run", "cache"} <= set(found)
    for room in found.values():
        assert room.summary.endswith("."), room.name
        assert tuple(room.load()) == room.commands


@pytest.mark.parametrize("name", sorted(rooms()))
def test_every_command_has_help_with_an_example(name: str, capsys) -> None:
    room = rooms()[name]
    for command, made in room.load().items():
        arguments = [name, "--help"] if room.single else [name, command, "--help"]
        assert cli.main(arguments) == 0
        said = capsys.readouterr().out
        assert "whence " + name in said
        assert "Example" in said, f"{name} {command} has no example"
        assert callable(made.run)


@pytest.mark.parametrize("name", sorted(rooms()))
def test_every_example_is_a_command_as_it_stands(name: str) -> None:
    """Its options exist and their values are read; what the commands do is their rooms' tests."""
    for made in rooms()[name].load().values():
        text = (made.__doc__ or "").split("Example:")[1].replace("\\\n", " ")
        lines = [line.strip() for line in text.splitlines() if line.strip().startswith("whence ")]
        assert lines
        for line in lines:
            room, *rest = shlex.split(line, comments=True)[1:]
            command = rooms()[room].load()[room if rooms()[room].single else rest[0]]
            cli.parse(command, line, rest if rooms()[room].single else rest[1:])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cahce"], "Did you mean 'cache'"),
        (["cache", "lss"], "Did you mean 'ls'"),
        (["cache", "ls", "--kinds", "x"], "--kind"),
        (["run"], "TOML"),
        (["run", "missing.toml"], "Cannot read missing.toml"),
    ],
)
def test_wrong_usage_is_2(arguments: list[str], said: str, capsys) -> None:
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


@pytest.mark.usefixtures("fails")
@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("whence", 1, "The store is full.\n  Empty it."),
        ("bug", 1, "ZeroDivisionError: nothing to divide by"),
        ("interrupt", 130, "the same command resumes"),
        ("scheduler", 130, "Run it again."),
    ],
)
def test_failures(how: str, code: int, said: str, capsys) -> None:
    assert cli.main(["demo", "--how", how]) == code
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    cli.main(["demo", "--how", how, "--debug"])
    assert "Traceback" in capsys.readouterr().err


def test_overviews(capsys) -> None:
    assert cli.main([]) == 0
    assert cli.main(["cache"]) == 0
    assert "whence cache COMMAND --help" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0


def test_a_reader_that_stops_reading_is_no_error() -> None:
    pipe = f"{sys.executable} -m whence --help | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", pipe], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_completion_knows_the_tree(capsys) -> None:
    assert cli.main(["--tyro-print-completion", "bash"]) == 0
    said = capsys.readouterr().out
    assert "'cache'" in said
    assert "'verify'" in said

"""The command line: help without waiting, errors with cause and cure, exit codes."""

import shlex
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from whence import cli
from whence.cache.errors import Interrupted, StoreError
from whence.packages import command_groups


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
    monkeypatch.setattr("whence.packages.CommandGroup.load", lambda self: {"demo": Fails})


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "whence", *arguments], capture_output=True, text=True, check=False)


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, whence.cli as c; c.main(['--help']); sys.exit('torch' in sys.modules)"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "demo" in done.stdout
    assert time.monotonic() - began < 30  # a hang, not a timing


def test_every_group_lists_the_commands_that_it_loads() -> None:
    found = command_groups()
    assert {"demo", "run", "cache"} <= set(found)
    for group in found.values():
        assert group.summary.endswith("."), group.name
        assert tuple(group.load()) == group.commands


@pytest.mark.parametrize("name", sorted(command_groups()))
def test_every_command_has_help_with_an_example(name: str, capsys) -> None:
    group = command_groups()[name]
    for command, work in group.load().items():
        arguments = [name, "--help"] if group.single else [name, command, "--help"]
        assert cli.main(arguments) == 0
        printed = capsys.readouterr().out
        assert "whence " + name in printed
        assert "Example" in printed, f"{name} {command} has no example"
        assert callable(work.run)


@pytest.mark.parametrize("name", sorted(command_groups()))
def test_every_example_is_a_command_as_it_stands(name: str) -> None:
    """Its options exist and their values are accepted; the packages test what the commands do."""
    for work in command_groups()[name].load().values():
        text = (work.__doc__ or "").split("Example:")[1].replace("\\\n", " ")
        lines = [line.strip() for line in text.splitlines() if line.strip().startswith("whence ")]
        assert lines
        for line in lines:
            group, *rest = shlex.split(line, comments=True)[1:]
            command = command_groups()[group].load()[group if command_groups()[group].single else rest[0]]
            cli.parse(command, line, rest if command_groups()[group].single else rest[1:])


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


def test_the_former_name_of_an_option_still_works_but_is_not_shown(tmp_path, capsys) -> None:
    assert cli.main(["cache", "ls", "--root", str(tmp_path)]) == 0
    assert cli.main(["cache", "ls", f"--root={tmp_path}"]) == 0
    assert capsys.readouterr().out.count("0 entries") == 2
    assert cli.main(["cache", "ls", "--help"]) == 0
    assert "--root" not in capsys.readouterr().out


def test_every_command_that_runs_a_model_takes_a_device() -> None:
    for group in command_groups().values():
        for name, command in group.load().items():
            fields = command.__dataclass_fields__
            if "model" in fields or "models" in fields:
                assert {"device", "store"} <= set(fields), f"{group.name} {name}"
            if "model" in fields:
                assert "dtype" in fields, f"{group.name} {name}"


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

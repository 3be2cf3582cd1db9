"""The command line: `whence ROOM COMMAND ...`, exit code 0 done, 1 failed, 2 wrong usage, 130 interrupted.

A command is a frozen dataclass with run(): its fields are the options, its docstring the help. Only the room
that is asked for is imported. Errors that Whence raises on purpose are printed as cause and cure; `--debug`
shows where any error came from.
"""

import contextlib
import functools
import inspect
import operator
import os
import signal
import sys
import textwrap
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

from .rooms import Room, rooms

ABOUT = (
    "Which training data made a model do that (attrib), what its activations are made of (decomp), and what it would "
    "be without some of its data (unlearn)."
)
INTERRUPTED = 130
FORMER_OPTIONS = {"--root": "--store"}  # accepted, not shown


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. `argv` as in sys.argv[1:]."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    # a thread that waits for others sleeps: where several processes share the cores, one that spins costs ten
    # times the work (read by torch's OpenMP when it is imported, which nothing has done yet)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with contextlib.suppress(ValueError):  # not in the main thread, whose caller handles signals
        signal.signal(signal.SIGTERM, _terminated)
    try:
        dispatch(arguments)
        sys.stdout.flush()
        return 0
    except SystemExit as stop:  # tyro's own: help is 0, wrong usage 2
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        return interrupted()
    except BrokenPipeError:  # the reader of `whence ... | head` has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return failed(error, debug)


def entry() -> None:
    """The console script."""
    sys.exit(main())


def dispatch(arguments: list[str]) -> None:
    """Find the command that the arguments begin with, build it from the rest, and run it."""
    known = rooms()
    if arguments and arguments[0].startswith("--tyro-"):
        completion(known, arguments)
        return
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview(known))
        return
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(version("whence"))
        return
    room = known.get(arguments[0])
    if room is None:
        wrong("command", arguments[0], list(known), "whence --help")
    rest = arguments[1:]
    if room.single:
        name = room.name
        program = f"whence {name}"
    elif not rest or rest[0] in ("-h", "--help"):
        print(room_overview(room))
        return
    else:
        name, rest = rest[0], rest[1:]
        program = f"whence {room.name} {name}"
    commands = room.load()
    if name not in commands:
        wrong(f"command of {room.name}", name, list(commands), f"whence {room.name} --help")
    parse(commands[name], program, rest).run()


def parse(command: type[Any], program: str, arguments: Sequence[str]) -> Any:
    """A command's dataclass from command-line arguments."""
    import tyro

    return tyro.cli(
        command,
        prog=program,
        description=help_of(command),
        args=[_current(argument) for argument in arguments],
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _current(argument: str) -> str:
    """An option of an earlier version under its name of today."""
    name, equals, value = argument.partition("=")
    return FORMER_OPTIONS.get(name, name) + equals + value


def help_of(command: type[Any]) -> str:
    """A command's docstring as help: literal-block marks removed, the rest as it was written."""
    return inspect.cleandoc(command.__doc__ or "").replace("::\n", ":\n")


def overview(known: dict[str, Room]) -> str:
    """What `whence --help` prints."""
    lines = ["usage: whence ROOM COMMAND [options]", "", textwrap.fill(ABOUT, 88), ""]
    width = max(len(name) for name in known)
    for room in known.values():
        head = f"  {room.name.ljust(width)}  "
        text = room.summary if room.single else f"{' | '.join(room.commands)}\n{room.summary}"
        for line in text.split("\n"):
            lines += textwrap.wrap(line, 88, initial_indent=head, subsequent_indent=" " * len(head))
            head = " " * len(head)
    lines += [
        "",
        "  whence ROOM --help, whence ROOM COMMAND --help: options and an example that works when pasted",
        "  --debug: show where an error came from    --version",
        "  --tyro-print-completion {bash,zsh,tcsh}: completion for your shell",
        "",
        "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted (the same command resumes).",
    ]
    return "\n".join(lines)


def room_overview(room: Room) -> str:
    """What `whence ROOM --help` prints."""
    commands = room.load()
    width = max(len(name) for name in commands)
    lines = [f"usage: whence {room.name} COMMAND [options]", "", textwrap.fill(room.summary, 88), ""]
    for name, command in commands.items():
        first = help_of(command).split("\n\n")[0].replace("\n", " ")
        head = f"  {name.ljust(width)}  "
        lines += textwrap.wrap(first, 88, initial_indent=head, subsequent_indent=" " * len(head))
    lines += ["", f"  whence {room.name} COMMAND --help: its options and an example"]
    return "\n".join(lines)


def completion(known: dict[str, Room], arguments: Sequence[str]) -> None:
    """Print the completion script of the whole tree of commands, all rooms imported."""
    import tyro

    def choose(options: dict[str, Any]) -> Any:
        named = (Annotated[option, tyro.conf.subcommand(name)] for name, option in options.items())
        return functools.reduce(operator.or_, named)

    tree = {room.name: room.load()[room.name] if room.single else choose(room.load()) for room in known.values()}
    tyro.cli(
        choose(tree),
        prog="whence",
        args=list(arguments),
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes),
    )


def wrong(what: str, given: str, known: list[str], see: str) -> NoReturn:
    from whence.cache.errors import UsageError, did_you_mean

    cure = did_you_mean(given, known, "There are")
    raise UsageError(f"There is no {what} called {given!r}.", f"{cure} See `{see}`.")


def failed(error: Exception, debug: bool) -> int:
    """Print an error for the person who typed the command; returns the exit code."""
    from whence.cache.errors import WhenceError

    if debug:
        traceback.print_exception(error)
    if isinstance(error, WhenceError):
        print(f"whence: {error}", file=sys.stderr)
        return error.exit_code
    print(f"whence: {type(error).__name__}: {error}", file=sys.stderr)
    if not debug:
        print("  Unexpected error. Run it again with --debug to see where it happened.", file=sys.stderr)
    return 1


def interrupted() -> int:
    print(
        "\nwhence: interrupted.\n  Everything committed is kept: the same command resumes.",
        file=sys.stderr,
    )
    return INTERRUPTED


def _terminated(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    entry()

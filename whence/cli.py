"""The command line: `whence GROUP COMMAND ...`. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

A command is a frozen dataclass with run(): its fields are the options, its docstring the help. Only the
module of the command that is called is imported. Errors that Whence raises on purpose are printed as cause and cure;
`--debug` shows the traceback of any error.
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

from .packages import CommandGroup, command_groups

ABOUT = (
    "Which training data made a model do that (attrib), what its activations are made of (decomp), and what it would "
    "be without some of its data (unlearn)."
)
INTERRUPTED = 130
FORMER_OPTIONS = {"--root": "--store", "--run": "--recorded"}  # accepted, not shown


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. `argv` as in sys.argv[1:]."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    # a waiting thread sleeps: if processes share the cores, one that spins costs ten times the work
    # (torch's OpenMP reads this when torch is imported, which has not happened yet)
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
    except BrokenPipeError:  # `whence ... | head` closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except BaseException as error:  # Interrupted is no Exception
        return failed(error, debug)


def entry() -> None:
    """The console script."""
    sys.exit(main())


def dispatch(arguments: list[str]) -> None:
    """Find the command that the arguments begin with, build it from the rest, and run it."""
    known = command_groups()
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
    group = known.get(arguments[0])
    if group is None:
        wrong("command", arguments[0], list(known), "whence --help")
    rest = arguments[1:]
    if group.single:
        name = group.name
        program = f"whence {name}"
    elif not rest or rest[0] in ("-h", "--help"):
        print(group_overview(group))
        return
    else:
        name, rest = rest[0], rest[1:]
        program = f"whence {group.name} {name}"
    commands = group.load()
    if name not in commands:
        wrong(f"command of {group.name}", name, list(commands), f"whence {group.name} --help")
    parse(commands[name], program, rest).run()


def parse(command: type[Any], program: str, arguments: Sequence[str]) -> Any:
    """A command's dataclass from command-line arguments. Raises UsageError for a value that is not allowed."""
    import tyro

    from .options import check

    if {"-h", "--help"} & set(arguments):
        from .help import help_screen

        print(help_screen(command, program))
        raise SystemExit(0)
    work, unknown = tyro.cli(
        command,
        prog=program,
        description=help_of(command),
        args=[_current(argument) for argument in arguments],
        config=(tyro.conf.FlagCreatePairsOff,),
        return_unknown_args=True,
    )
    if unknown:
        wrong_option(command, unknown[0], program)
    check(work)
    getattr(work, "precheck", lambda: None)()  # what a command knows to be wrong before anything is loaded
    return work


def _current(argument: str) -> str:
    """The current name of an option of an earlier version."""
    name, equals, value = argument.partition("=")
    return FORMER_OPTIONS.get(name, name) + equals + value


def help_of(command: type[Any]) -> str:
    """A command's docstring as help: without literal-block marks."""
    return inspect.cleandoc(command.__doc__ or "").replace("::\n", ":\n")


def overview(known: dict[str, CommandGroup]) -> str:
    """What `whence --help` prints."""
    lines = ["usage: whence GROUP COMMAND [options]", "", textwrap.fill(ABOUT, 88), ""]
    width = max(len(name) for name in known)
    for group in known.values():
        head = f"  {group.name.ljust(width)}  "
        text = group.summary if group.single else f"{' | '.join(group.commands)}\n{group.summary}"
        for line in text.split("\n"):
            lines += textwrap.wrap(line, 88, initial_indent=head, subsequent_indent=" " * len(head))
            head = " " * len(head)
    lines += [
        "",
        "  Start: whence demo, or with a model and texts of your own:",
        "  whence attrib report --model FOLDER --data texts.jsonl --prompt TEXT --completion TEXT",
        "",
        "  whence GROUP --help, whence GROUP COMMAND --help: options and an example to paste",
        "  --debug: show the traceback of an error    --version",
        "  --tyro-print-completion {bash,zsh,tcsh}: completion for your shell",
        "",
        "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted (the same command resumes).",
    ]
    return "\n".join(lines)


def group_overview(group: CommandGroup) -> str:
    """What `whence GROUP --help` prints."""
    commands = group.load()
    width = max(len(name) for name in commands)
    lines = [f"usage: whence {group.name} COMMAND [options]", "", textwrap.fill(group.summary, 88), ""]
    for name, command in commands.items():
        first = help_of(command).split("\n\n")[0].replace("\n", " ")
        head = f"  {name.ljust(width)}  "
        lines += textwrap.wrap(first, 88, initial_indent=head, subsequent_indent=" " * len(head))
    lines += ["", f"  whence {group.name} COMMAND --help: its options and an example"]
    return "\n".join(lines)


def completion(known: dict[str, CommandGroup], arguments: Sequence[str]) -> None:
    """Print the completion script of all commands, which imports every group."""
    import tyro

    def choose(options: dict[str, Any]) -> Any:
        named = (Annotated[option, tyro.conf.subcommand(name)] for name, option in options.items())
        return functools.reduce(operator.or_, named)

    tree = {group.name: group.load()[group.name] if group.single else choose(group.load()) for group in known.values()}
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


def wrong_option(command: type[Any], given: str, program: str) -> NoReturn:
    from whence.cache.errors import UsageError, did_you_mean

    from .help import flags

    name, dash = given.partition("=")[0], given.startswith("-")
    cure = (
        did_you_mean(name, flags(command), "It has") if dash else "An option begins with --; quote a text with spaces."
    )
    raise UsageError(
        f"{program} has no {'option' if dash else 'argument'} {name!r}.", f"{cure} See `{program} --help`."
    )


def failed(error: BaseException, debug: bool) -> int:
    """Print an error for the person who typed the command; returns the exit code."""
    from whence.cache.errors import Interrupted, WhenceError

    if debug:
        traceback.print_exception(error)
    if isinstance(error, (WhenceError, Interrupted)):
        print(f"whence: {error}", file=sys.stderr)
        return error.exit_code
    print(f"whence: {type(error).__name__}: {error}", file=sys.stderr)
    if not debug:
        print("  Unexpected error. Run it again with --debug to see where it happened.", file=sys.stderr)
    return 1


def interrupted() -> int:
    print(
        "\nwhence: interrupted.\n  What is committed is kept: the same command resumes.",
        file=sys.stderr,
    )
    return INTERRUPTED


def _terminated(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    entry()

"""The progress bar of every long loop: rate and time left on a terminal, a line every 15 seconds in a log."""

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
LOG_SECONDS = 15.0


def progress(
    iterable: Iterable[T], *, total: int | None = None, desc: str = "", unit: str = "it", quiet: bool = False
) -> Iterator[T]:
    """Yield from `iterable` under a bar named `desc` that counts `unit`s; see `bar` for where it appears."""
    yield from bar(iterable, total=total, desc=desc, unit=unit, quiet=quiet)


def bar(
    iterable: Iterable[T] | None = None,
    *,
    total: int | None = None,
    done: int = 0,
    desc: str = "",
    unit: str = "it",
    quiet: bool = False,
) -> "tqdm[T]":
    """The bar itself, for loops that advance it by hand (`update`) or show a figure on it (`set_postfix`).

    On a terminal or in a notebook it redraws ten times a second; if standard error is a file, it writes a line every
    15 seconds. `quiet=True`, or WHENCE_QUIET=1 in the environment, shows nothing. done: steps of an earlier run.
    """
    interactive = redraws()
    return tqdm(
        iterable,
        total=total,
        initial=done,
        desc=desc,
        unit=unit,
        disable=quiet or _silenced(),
        mininterval=0.1 if interactive else LOG_SECONDS,
        delay=0 if interactive else LOG_SECONDS,
        dynamic_ncols=interactive,
        leave=interactive,
        file=None if interactive else _Log(),
    )


def redraws() -> bool:
    """Whether bars can redraw themselves here: in a terminal or a notebook, unless WHENCE_QUIET=1."""
    return (sys.stderr.isatty() or "ipykernel" in sys.modules) and not _silenced()


def _silenced() -> bool:
    return os.environ.get("WHENCE_QUIET") == "1"


class _Log:
    """Standard error as a file: every state of a bar on a line of its own."""

    def write(self, text: str) -> None:
        line = text.replace("\x1b[A", "").strip()
        if line:
            print(line, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


def say(message: str) -> None:
    """Print one line on standard error; WHENCE_QUIET=1 silences it."""
    if not _silenced():
        tqdm.write(message, file=sys.stderr)


def duration(seconds: float | int) -> str:
    """Seconds as text; a dash if nothing was measured."""
    if seconds <= 0:
        return "-"
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
